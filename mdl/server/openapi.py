"""The OpenAPI document of the server: each route with what it takes and answers. Knows no fields: those are
in `schemas`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.types import Receive, Scope, Send

from mdl import __version__
from mdl.server import schemas
from mdl.server.failure import Ascii
from mdl.server.options import ServeOptions
from mdl.server.schemas import Schema

_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "The API key is missing or wrong.",
    "403": "Asked by a name that this server does not have, by the page of another site, or for what only "
    "some may have done.",
    "404": "There is no such model on this machine.",
    "408": "The body took too long.",
    "409": "The model is in use.",
    "413": "The body is too large.",
    "422": "The model cannot do this.",
    "500": "The model could not be loaded, or died over this request.",
    "503": "Too many requests, or no memory for the model now; `Retry-After` says when to ask again.",
}
_ALWAYS = ("401", "403")
_OF_MODELS = (*_ALWAYS, "400", "404")
_OF_ANSWERS = tuple(status for status in _ERRORS if status != "409")
_OF_JOBS = (*_ALWAYS, "404")
_OF_BODIES = ("400", "408", "413", "503")


def _answer(schema: Schema, media: str = "application/json") -> dict[str, Any]:
    return {"description": "The answer.", "content": {media: {"schema": schema}}}


def _operation(name: str, about: str, answer: dict[str, Any], errors: tuple[str, ...]) -> dict[str, Any]:
    refused = {status: {"$ref": f"#/components/responses/{status}"} for status in sorted(errors)}
    return {"operationId": name, "summary": about, "responses": {"200": answer, **refused}}


def _get(name: str, about: str, schema: Schema, errors: tuple[str, ...] = _ALWAYS) -> dict[str, Any]:
    return {"get": _operation(name, about, _answer(schema), errors)}


def _post(name: str, about: str, request: str, answer: str, chunk: str = "") -> dict[str, Any]:
    """With a `chunk`, the answer may come as a stream of those."""
    operation = _operation(name, about, _answer(schemas.ref(answer)), _OF_ANSWERS)
    body = {"required": True, "content": {"application/json": {"schema": schemas.ref(request)}}}
    if chunk:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": schemas.events(chunk)}
    return {"post": {**operation, "requestBody": body}}


def _page(name: str, about: str) -> dict[str, Any]:
    return {"get": _operation(name, about, _answer(schemas.text(), "text/plain"), _ALWAYS)}


def _alive() -> dict[str, Any]:
    """To be asked without a key."""
    operation = _operation("alive", "Whether the server lives.", _answer(schemas.ref("Status")), ("403",))
    return {"get": {**operation, "security": []}}


def _ready() -> dict[str, Any]:
    found = _get("ready", "Whether what was to be loaded at the start is.", schemas.ref("Status"))
    found["get"]["responses"]["503"] = _answer(schemas.ref("Status"))
    return found


def _of(parameter: str, *operations: dict[str, Any]) -> dict[str, Any]:
    """What a path with a parameter takes."""
    found: dict[str, Any] = {
        "parameters": [
            {"name": parameter, "in": "path", "required": True, "schema": schemas.text(minLength=1)}
        ]
    }
    for operation in operations:
        found |= operation
    return found


def _delete(name: str, about: str, answer: str, errors: tuple[str, ...]) -> dict[str, Any]:
    return {"delete": _operation(name, about, _answer(schemas.ref(answer)), errors)}


def _acts(name: str, about: str, answer: str, errors: tuple[str, ...], request: str = "") -> dict[str, Any]:
    """A POST that may come without a body, or can have none that matters."""
    operation = _operation(name, about, _answer(schemas.ref(answer)), errors)
    if request:
        content = {"application/json": {"schema": schemas.ref(request)}}
        operation["requestBody"] = {"required": False, "content": content}
    return {"post": operation}


def _begins(name: str, about: str, request: str, needed: bool) -> dict[str, Any]:
    """A POST that begins a download."""
    errors = (*_OF_MODELS, *_OF_BODIES, "422")
    begun = _acts(name, about, "Job", errors, request)["post"]
    begun["requestBody"]["required"] = needed
    begun["responses"] = {"202": begun["responses"].pop("200"), **begun["responses"]}
    return {"post": begun}


def _watched() -> dict[str, Any]:
    events = _answer(schemas.job_events(), "text/event-stream")
    operation = _operation("jobEvents", "A download while it runs, and its end.", events, _OF_JOBS)
    operation["responses"]["204"] = {"description": "The end was heard already (`Last-Event-ID`)."}
    return {"get": operation}


_FETCH = "Begins a download of `source_url` or `model`, as `mdl download` takes them, or joins one."
_CANCEL = "Ends a download. What has arrived stays, and the next one goes on from there."


def _models(more: str) -> dict[str, Any]:
    listed = _get(f"models{more}", "The models that can be asked.", schemas.ref("Models"), (*_ALWAYS, "400"))
    about = "Also those that cannot be asked: not downloaded, damaged, or of a kind that does not run here."
    listed["get"]["parameters"] = [{"name": "all", "in": "query", "schema": schemas.flag(about)}]
    return {**listed, **_begins(f"fetch{more}", _FETCH, "FetchRequest", needed=True)}


PATHS = {
    "/": _page("hello", "What this is."),
    "/healthz": _alive(),
    "/readyz": _ready(),
    "/openapi.json": _get("document", "This document.", {"type": "object"}),
    "/metrics": _page("metrics", "Figures for Prometheus."),
    "/mdl/engines": _get("engines", "The models that are loaded.", schemas.ref("Engines")),
    "/mdl/engines/stop": _post("stop", "Lets go of a model, after its answers.", "StopRequest", "Stopped"),
    "/v1/models": _models(""),
    "/models": _models("Alias"),
    "/v1/models/{name}": _of(
        "name",
        _get("model", "A model that can be asked.", schemas.ref("Model"), _OF_MODELS),
        _delete("delete", "Removes a version of a model, as `mdl rm` does.", "Deleted", (*_OF_MODELS, "409")),
    ),
    "/v1/models/{name}/state": _of(
        "name", _get("state", "Whether it is here, and loaded.", schemas.ref("ModelState"), _OF_MODELS)
    ),
    "/v1/models/{name}/metadata": _of(
        "name",
        _get(
            "metadata", "Its files, and what its header says.", schemas.ref("Metadata"), (*_OF_MODELS, "422")
        ),
    ),
    "/v1/models/{name}/download": _of(
        "name",
        _get("lastDownload", "The last download of it.", schemas.ref("Job"), _OF_MODELS),
        _begins("download", "Begins a download of it, or joins one.", "DownloadRequest", needed=False),
    ),
    "/v1/models/{name}/start": _of(
        "name", _acts("start", "Loads a model.", "ModelState", _OF_ANSWERS, "StartRequest")
    ),
    "/v1/models/{name}/stop": _of(
        "name",
        _acts(
            "stopModel",
            "Lets go of a model, if it is loaded.",
            "ModelState",
            (*_OF_MODELS, *_OF_BODIES),
            "HaltRequest",
        ),
    ),
    "/v1/jobs": _get("jobs", "The downloads that clients have asked for.", schemas.ref("Jobs")),
    "/v1/jobs/{job}": _of(
        "job",
        _get("job", "A download.", schemas.ref("Job"), _OF_JOBS),
        _delete("cancel", _CANCEL, "Job", _OF_JOBS),
    ),
    "/v1/jobs/{job}/cancel": _of("job", _acts("cancelAlias", _CANCEL, "Job", _OF_JOBS)),
    "/v1/jobs/{job}/events": _of("job", _watched()),
    "/v1/chat/completions": _post(
        "chat", "Answers a conversation.", "ChatRequest", "ChatCompletion", "ChatChunk"
    ),
    "/v1/completions": _post(
        "complete", "Goes on with texts.", "CompletionRequest", "Completion", "CompletionChunk"
    ),
    "/v1/embeddings": _post("embed", "Turns texts into vectors.", "EmbeddingRequest", "Embeddings"),
    "/v1/rerank": _post(
        "rerank", "Tells how relevant documents are to a query.", "RerankRequest", "Reranking"
    ),
    "/rerank": _post("rerankAlias", "The same as /v1/rerank.", "RerankRequest", "Reranking"),
    "/v2/rerank": _post("rerankSecondAlias", "The same as /v1/rerank.", "RerankRequest", "Reranking"),
    "/tokenize": _post("tokenize", "The tokens of a text or of a conversation.", "TokenizeRequest", "Tokens"),
    "/detokenize": _post("detokenize", "The text of tokens.", "DetokenizeRequest", "Text"),
}


@cache
def document(key: bool) -> dict[str, Any]:
    """Of OpenAPI 3.1; `key` says whether one is asked for."""
    error = _answer(schemas.ref("Error"))
    components = {
        "schemas": {**schemas.REQUESTS, **schemas.ANSWERS},
        "responses": {status: {**error, "description": about} for status, about in _ERRORS.items()},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "mdl", "version": __version__, "description": _ABOUT},
        "paths": PATHS,
        "components": components,
        "security": [{"key": []}] if key else [],
    }


_ABOUT = (
    "Open language models on this machine, by OpenAI's API and what llama.cpp's server has beyond it. A "
    "field that is not here is refused by its name; null is the same as absent."
)


@dataclass(frozen=True, slots=True)
class Document:
    options: ServeOptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Ascii(document(bool(self.options.api_key or self.options.keys)))(scope, receive, send)
