"""The HTTP server: routes put together, one error handler. Knows no dialect's fields and no tokens."""

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mdl import __version__
from mdl.errors import MdlError
from mdl.server import chat, completions, embeddings, failure, models, tokens
from mdl.server.engines import Engines, Stop
from mdl.server.failure import Ascii
from mdl.server.generation import Generation
from mdl.server.guard import Guard, Journal
from mdl.server.metrics import Page
from mdl.server.openapi import Document
from mdl.server.options import ServeOptions
from mdl.server.question import Question
from mdl.server.service import Service


def app(service: Service, options: ServeOptions) -> Starlette:
    """What answers the requests. Whoever runs it closes the pool."""
    application = Starlette(
        routes=[
            Route("/", _hello),
            Route("/healthz", _alive),
            Route("/readyz", Ready(service), methods=["GET"]),
            Route("/openapi.json", Document(options), methods=["GET"]),
            Route("/metrics", Page(service.metrics, service), methods=["GET"]),
            Route("/mdl/engines", Engines(service), methods=["GET"]),
            Route("/mdl/engines/stop", Stop(service), methods=["POST"]),
            *models.routes(service, options),
            Route("/v1/chat/completions", Generation(service, chat.asked), methods=["POST"]),
            Route("/v1/completions", Generation(service, completions.asked), methods=["POST"]),
            Route("/v1/embeddings", Question(service, embeddings.embeddings), methods=["POST"]),
            Route("/v1/rerank", Question(service, embeddings.rerank), methods=["POST"]),
            Route("/rerank", Question(service, embeddings.rerank), methods=["POST"]),
            Route("/v2/rerank", Question(service, embeddings.rerank), methods=["POST"]),
            Route("/tokenize", Question(service, tokens.tokenize), methods=["POST"]),
            Route("/detokenize", Question(service, tokens.detokenize), methods=["POST"]),
        ],
        middleware=[Middleware(Journal, metrics=service.metrics), Middleware(Guard, options=options)],
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
