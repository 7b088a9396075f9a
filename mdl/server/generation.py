"""A request for text, from its body to its answers: the endpoint of every dialect that asks for such. Knows
no fields and no JSON.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mdl.engine.request import Chat, Completion, Delta
from mdl.profiles import Profile
from mdl.server.body import read
from mdl.server.failure import Ascii, named
from mdl.server.guard import given
from mdl.server.passed import passed
from mdl.server.service import Service
from mdl.server.stream import Dialect, Events, Pieces, asking, while_connected


class Asked(Protocol):
    """What a dialect reads from a body. `model` None: it did not say. `answers` is how many it wants.
    `keep_alive` is how many seconds the model stays when nobody asks for it any more; None: as ever. `params`
    is what it calls the fields of `engine.request` that it calls otherwise."""

    @property
    def model(self) -> str | None: ...

    @property
    def answers(self) -> int: ...

    @property
    def stream(self) -> bool: ...

    @property
    def keep_alive(self) -> float | None: ...

    @property
    def params(self) -> Mapping[str, str]: ...

    def requests(self, profile: Profile) -> tuple[Chat | Completion, ...]:
        """One for each answer, with what is left open as the model's profile has it."""

    def chunks(self, name: str) -> Dialect:
        """How a stream of the answers is written; `name` is what the model is called by."""

    def whole(self, name: str, answers: list[list[Delta]]) -> dict[str, Any]:
        """All answers in one object."""


@dataclass(frozen=True, slots=True)
class Generation:
    """`understand` raises Refused, which names the field, for a body that it cannot take."""

    service: Service
    understand: Callable[[Any], Asked]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        room = self.service.room
        with room.place() as place:
            body = await read(Request(scope, receive), place)
            place.want(1)
            if await passed(self.service, body, scope, receive, send):
                return
            asked = self.understand(body)
            place.want(asked.answers)
            name, path = self.service.names.default(given(scope) or asked.model), str(scope["path"])
            async with while_connected(receive):
                if asked.stream:
                    events = Events(send, asked.chunks(name), room.limits)
                    async with events, self._answers(name, path, asked) as pieces:
                        await events.send(pieces)
                else:
                    async with self._answers(name, path, asked) as pieces:
                        answers = await pieces.all()
                    await Ascii(asked.whole(name, answers))(scope, receive, send)

    @asynccontextmanager
    async def _answers(self, name: str, path: str, asked: Asked) -> AsyncIterator[Pieces]:
        model = await self.service.names.find(name, path)
        wanted = await self.service.names.wanted(name, path, model)
        async with self.service.pool.borrow(model, asked.keep_alive, wanted) as lent:
            watch = self.service.metrics.answer(str(model.reference))
            with (
                named(asked.params),
                asking(lent.engine, asked.requests(wanted.profile), watch.piece) as pieces,
            ):
                yield pieces
