"""Which requests are for a model that an API runs, and so are passed on. Knows the paths, and no bytes."""

from collections.abc import Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from mdl.errors import MdlError
from mdl.server.guard import given
from mdl.server.passing import Asked
from mdl.server.service import Service
from mdl.server.stream import while_connected

ROUTES = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/rerank": "rerank",
    "/v2/rerank": "rerank",
}


async def passed(
    service: Service, body: Mapping[str, Any], scope: Scope, receive: Receive, send: Send
) -> bool:
    """Whether a request is for a model that an API runs, which it has been passed on to then, to its end."""
    route, name = ROUTES.get(str(scope["path"])), body.get("model")
    if route is None or not isinstance(name, str | None):
        return False
    try:
        called = service.names.default(given(scope) or name)
        model = await service.names.find(called, str(scope["path"]))
    except MdlError:
        return False  # as it is told to those who ask for other models, after what is wrong with the body
    if model.is_api:
        watch = service.metrics.answer(str(model.reference))
        wanted = await service.names.wanted(called, str(scope["path"]), model)
        async with while_connected(receive):
            await service.passing.ask(model, Asked(route, body, wanted.profile), send, watch)
    return model.is_api
