"""Answers on their way from an engine to a client: waited for, sent as they come, given up when nobody is
left to read them. Knows no dialect and no JSON.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from starlette.types import Receive, Send

from mdl.engine import Engine
from mdl.engine.request import Chat, Delta
from mdl.errors import Busy, MdlError

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the pieces until it has many
]


class Dialect(Protocol):
    """How a stream is written: what comes first, each piece (the last one with `finish`), and a failure."""

    def begin(self) -> bytes: ...

    def piece(self, delta: Delta) -> bytes: ...

    def failure(self, error: MdlError) -> bytes: ...


class Pieces:
    """The pieces of an answer, in bunches: what has come since the last time. Raises what the engine says."""

    def __init__(self) -> None:
        self._arrived: list[Delta | MdlError] = []
        self._news = asyncio.Event()
        self._finished = False

    def put(self, piece: Delta | MdlError) -> None:
        self._arrived.append(piece)
        self._news.set()

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        return self

    async def __anext__(self) -> list[Delta]:
        if self._finished:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        bunch: list[Delta] = []
        for place, piece in enumerate(self._arrived):
            if isinstance(piece, MdlError):
                if not bunch:
                    raise piece
                self._arrived = self._arrived[place:]
                self._news.set()
                return bunch
            bunch.append(piece)
        self._arrived = []
        self._finished = bunch[-1].finish is not None
        return bunch


@contextmanager
def asking(engine: Engine, chat: Chat) -> Iterator[Pieces]:
    """The answer to a chat; leaving it unfinished cancels the request. The engine posts to this loop."""
    pieces = Pieces()
    cancel = engine.submit(chat, pieces.put)
    try:
        yield pieces
    finally:
        cancel()


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """What is done inside ends, without an error, when the client goes away. To be used after the body."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone or task.uncancel():
            raise
    finally:
        watcher.cancel()


async def send_stream(send: Send, pieces: Pieces, dialect: Dialect) -> None:
    """Sends an answer as server-sent events. What fails before the first piece is raised, for a status of its
    own; after that it is an event, and the end."""
    body = b"".join(map(dialect.piece, await anext(pieces)))
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    body = dialect.begin() + body
    try:
        await _send(send, body)
        async for bunch in pieces:
            await _send(send, b"".join(map(dialect.piece, bunch)))
        await _send(send, b"", more=False)
    except MdlError as error:
        await _send(send, dialect.failure(error), more=False)
    except asyncio.CancelledError:
        await _send(send, dialect.failure(Busy("the server is ending")), more=False)
        raise


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
