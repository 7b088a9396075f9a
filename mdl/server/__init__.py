"""The HTTP server: routes put together, one error handler. Knows no dialect's fields and no tokens."""

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mdl import __version__
from mdl.errors import MdlError
from mdl.server import failure, openai
from mdl.server.body import Room, read
from mdl.server.failure import Ascii
from mdl.server.guard import Guard, Journal
from mdl.server.names import Names
from mdl.server.options import ServeOptions
from mdl.server.pool import Pool
from mdl.server.stream import asking, send_stream, while_connected


@dataclass(slots=True)
class Service:
    """What the routes share. It is `ready` when what was to be loaded at the start is."""

    names: Names
    pool: Pool
    room: Room
    ready: bool = False


def app(service: Service, options: ServeOptions) -> Starlette:
    """What answers the requests. Whoever runs it closes the pool."""
    application = Starlette(
        routes=[
            Route("/", _hello),
            Route("/healthz", _alive),
            Route("/readyz", Ready(service)),
            Route("/v1/models", Models(service), methods=["GET"]),
            Route("/v1/models/{name:path}", OneModel(service), methods=["GET"]),
            Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
        ],
        middleware=[Middleware(Journal), Middleware(Guard, options=options)],
        exception_handlers={
            MdlError: failure.on_error,
            HTTPException: failure.on_http_exception,
            Exception: failure.on_bug,
        },
    )
    application.router.redirect_slashes = False  # a redirect would repeat the Host that the client sent
    return application


async def _hello(_: Request) -> Response:
    return PlainTextResponse(f"mdl {__version__} speaks OpenAI's API here, below /v1\n")


async def _alive(_: Request) -> Response:
    return Ascii({"status": "ok"})


@dataclass(frozen=True, slots=True)
class Ready:
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = self.service.ready
        response = Ascii({"status": "ready" if ready else "loading"}, 200 if ready else 503)
        await response(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Models:
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        models = await self.service.names.all()
        data = [openai.listed(name, model) for name, model in models.items()]
        await Ascii({"object": "list", "data": data})(scope, receive, send)


@dataclass(frozen=True, slots=True)
class OneModel:
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        model = await self.service.names.find(name)
        await Ascii(openai.listed(name, model))(scope, receive, send)


@dataclass(frozen=True, slots=True)
class ChatCompletions:
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self.service
        with service.room.place() as place:
            try:
                asked = openai.asked(await read(Request(scope, receive), place))
            except ClientDisconnect:
                return
            name = service.names.default(asked.model)
            async with while_connected(receive):
                model = await service.names.find(name)
                async with service.pool.borrow(model) as lent:
                    chat = lent.profile.chat(asked.chat, asked.given)
                    with asking(lent.engine, chat) as pieces:
                        if asked.stream:
                            chunks = openai.Chunks(name, asked.include_usage)
                            await send_stream(send, pieces, chunks)
                            return
                        deltas = [delta async for bunch in pieces for delta in bunch]
                await Ascii(openai.completion(name, deltas))(scope, receive, send)
