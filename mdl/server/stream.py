"""Answers on their way from an engine to a client: waited for, sent as they come, given up when nobody is
left to read them. Knows no dialect and no JSON.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from starlette.types import Receive, Send

from mdl.engine import Engine
from mdl.engine.request import Chat, Completion, Delta, Usage
from mdl.errors import Busy, MdlError
from mdl.server.options import Limits

SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the pieces until it has many
]
SILENCE = ": still at it\n\n"  # a comment, which readers of event streams skip

Bunch = list[tuple[int, Delta]]


class Dialect(Protocol):
    """How a stream is written, in ASCII: what comes first, each piece (the last one of an answer with
    `finish`), what comes after all answers, and a failure, after which nothing comes."""

    def begin(self) -> str: ...

    def piece(self, index: int, delta: Delta) -> str: ...

    def end(self) -> str: ...

    def failure(self, error: MdlError) -> str: ...


class Pieces:
    """The pieces of so many answers to one request, in bunches: what has come since the last time, each with
    the index of its answer. Raises what the engine says. `heard` is told of each, with the usage of an answer
    that ends."""

    def __init__(self, answers: int, heard: Callable[[Usage | None], None]) -> None:
        self._heard = heard
        self._arrived: list[tuple[int, Delta | MdlError]] = []
        self._news = asyncio.Event()
        self._left = answers

    @property
    def finished(self) -> bool:
        """Nothing comes after what was handed out."""
        return not self._left

    def put(self, index: int, piece: Delta | MdlError) -> None:
        self._arrived.append((index, piece))
        self._news.set()
        if isinstance(piece, Delta):
            self._heard(piece.usage)

    def __aiter__(self) -> AsyncIterator[Bunch]:
        return self

    async def __anext__(self) -> Bunch:
        if not self._left:
            raise StopAsyncIteration
        await self._news.wait()
        self._news.clear()
        bunch: Bunch = []
        for place, (index, piece) in enumerate(self._arrived):
            if isinstance(piece, MdlError):
                if not bunch:
                    raise piece
                self._arrived = self._arrived[place:]
                self._news.set()
                return bunch
            bunch.append((index, piece))
            self._left -= piece.finish is not None
        self._arrived = []
        return bunch

    async def all(self) -> list[list[Delta]]:
        """The pieces of each answer, when all are finished."""
        answers: list[list[Delta]] = [[] for _ in range(self._left)]
        async for bunch in self:
            for index, delta in bunch:
                answers[index].append(delta)
        return answers


@contextmanager
def asking(
    engine: Engine, requests: Sequence[Chat | Completion], heard: Callable[[Usage | None], None]
) -> Iterator[Pieces]:
    """An answer to each of them; leaving one unfinished cancels it. The engine posts to this loop."""
    pieces = Pieces(len(requests), heard)
    with ExitStack() as cancels:
        for index, request in enumerate(requests):
            cancels.callback(engine.submit(request, partial(pieces.put, index)))
        yield pieces


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


class Events:
    """An answer that is sent as server-sent events: what is done inside makes and sends it.

    It begins with the first piece, or without one after a while. What fails before is raised, for a status of
    its own; after that it is an event, and the end. Comments break long silences, which proxies and clients
    would take for the end of the connection.
    """

    def __init__(self, send: Send, dialect: Dialect, limits: Limits) -> None:
        self._sink = send
        self._dialect = dialect
        self._limits = limits
        self._begun = self._ended = False
        self._sending = asyncio.Lock()
        self._time = asyncio.get_running_loop().time
        self._sent = self._time()

    async def __aenter__(self) -> Self:
        self._breaking = asyncio.create_task(self._break_silences())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._breaking.cancel()
        if self._begun and isinstance(error, MdlError):
            await self._send(self._dialect.failure(error), more=False)
            return True
        if self._begun and isinstance(error, asyncio.CancelledError):
            await self._send(self._dialect.failure(Busy("the server is ending")), more=False)
        return False

    async def send(self, pieces: Pieces) -> None:
        """All of them, to the end."""
        dialect = self._dialect
        body = dialect.begin()
        async for bunch in pieces:
            body += "".join([dialect.piece(index, delta) for index, delta in bunch])
            if pieces.finished:
                body += dialect.end()
            await self._send(body, more=not pieces.finished)
            body = ""

    async def _send(self, body: str, more: bool = True) -> None:
        async with self._sending:
            if self._ended:
                return
            self._ended = not more
            if not self._begun:
                await self._sink({"type": "http.response.start", "status": 200, "headers": SSE})
                self._begun = True
            self._sent = self._time()
            await self._sink({"type": "http.response.body", "body": body.encode("ascii"), "more_body": more})

    async def _break_silences(self) -> None:
        pause = self._limits.begin_seconds
        while True:
            await asyncio.sleep(pause)
            if not self._begun or self._time() - self._sent >= self._limits.silence_seconds:
                await self._send(SILENCE)
            pause = self._sent + self._limits.silence_seconds - self._time()
