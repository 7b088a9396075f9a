"""A request that has one result, from its body to the answer: the endpoint of what is no generation of text.
Knows no fields and no JSON.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mdl import engine
from mdl.errors import MdlError
from mdl.profiles import Profile
from mdl.server import body
from mdl.server.failure import Ascii, named
from mdl.server.guard import given
from mdl.server.passed import passed
from mdl.server.service import Service
from mdl.server.stream import while_connected


class Asked(Protocol):
    """What is read from a body. `model` None: it did not say. `keep_alive` is how many seconds the model
    stays when nobody asks for it any more; None: as ever. `params` is what it calls the fields of
    `engine.request` that it calls otherwise."""

    @property
    def model(self) -> str | None: ...

    @property
    def keep_alive(self) -> float | None: ...

    @property
    def params(self) -> Mapping[str, str]: ...

    def question(self, profile: Profile) -> tuple[str, engine.Asked]:
        """What an engine is asked, as Engine.post takes it."""

    def read(self, result: Any) -> int:
        """How many tokens the model read for what the engine said."""

    def answer(self, name: str, result: Any) -> dict[str, Any] | Iterator[str]:
        """The answer, of what the engine said; `name` is what the model is called by. One that takes long to
        write comes in pieces of its JSON, in ASCII."""


@dataclass(frozen=True, slots=True)
class Question:
    """`understand` raises Refused, which names the field, for a body that it cannot take."""

    service: Service
    understand: Callable[[Any], Asked]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.service.room.place() as place:
            sent = await body.read(Request(scope, receive), place)
            place.want(1)
            if await passed(self.service, sent, scope, receive, send):
                return
            asked = self.understand(sent)
            name = self.service.names.default(given(scope) or asked.model)
            async with while_connected(receive):
                result = await self._result(name, str(scope["path"]), asked)
                answer = asked.answer(name, result)
                if isinstance(answer, dict):
                    await Ascii(answer)(scope, receive, send)
                else:
                    await _send_in_pieces(answer, send)

    async def _result(self, name: str, path: str, asked: Asked) -> Any:
        model = await self.service.names.find(name, path)
        wanted = await self.service.names.wanted(name, path, model)
        async with self.service.pool.borrow(model, asked.keep_alive, wanted) as lent:
            with named(asked.params):
                found = await result(lent.engine, *asked.question(wanted.profile))
        if read := asked.read(found):
            self.service.metrics.read(str(model.reference), read)
        return found


async def _send_in_pieces(pieces: Iterator[str], send: Send) -> None:
    """Others have their turn between two of them."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece.encode("ascii"), "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


async def result(asked: engine.Engine, what: str, question: engine.Asked) -> Any:
    """Of an engine that posts to this loop. Raises what it says; when cancelled, so is the question."""
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def deliver(result: Any) -> None:
        if answered.done():
            return  # given up a moment ago
        if isinstance(result, MdlError):
            answered.set_exception(result)
        else:
            answered.set_result(result)

    cancel = asked.post(what, question, deliver)
    try:
        return await answered
    finally:
        cancel()
