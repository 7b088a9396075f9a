"""The models over HTTP: listed, fetched, loaded, let go of, removed, as the commands do it. Knows no tokens.

An id is any name that the commands take. Its slashes and colons come as they are or percent-encoded; one that
ends like a route (org/state) has its slashes encoded.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import isfinite
from time import monotonic
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mdl import documents, runnable
from mdl.errors import Busy, MdlError, NotFound
from mdl.library import Library
from mdl.model import Model
from mdl.reference import Reference, show
from mdl.runnable import elsewhere
from mdl.server import abilities, engines, guard, openai
from mdl.server.body import Place, read
from mdl.server.failure import Ascii, Refused
from mdl.server.fields import Fields
from mdl.server.jobs import Job
from mdl.server.names import PATHS, Key, key
from mdl.server.options import ServeOptions
from mdl.server.pool import Entry
from mdl.server.service import Service
from mdl.server.stream import SILENCE, SSE, while_connected

WATCH_SECONDS = 0.25  # between two looks at a download that is watched
MOST_REMEMBERED = 1024  # models of which it is known what they can do
_able: dict[Key, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and who answers it. `name` is the id in its path."""

    service: Service
    options: ServeOptions
    scope: Scope
    receive: Receive
    name: str = ""

    @property
    def library(self) -> Library:
        return self.service.library

    async def fields(self, place: Place) -> Fields:
        """Of its body; a request without one says nothing."""
        return Fields(await read(Request(self.scope, self.receive), place, empty=True))

    def require_trust(self) -> None:
        """Raises Refused (403) for those who may only ask models."""
        if not guard.is_trusted(self.scope, self.options):
            raise Refused(
                "models are fetched and removed only for those who have the key, or are on this machine",
                "start the server with --api-key",
                status=403,
            )


Answerer = Callable[[Asked], Awaitable[Response]]


class Endpoint:
    """A route, with who answers each of its methods. `end` is what comes after the id in its path."""

    def __init__(self, service: Service, options: ServeOptions, end: str = "", **answerers: Answerer) -> None:
        self._service = service
        self._options = options
        self._end = end
        self._answerers = answerers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, answerers = named(scope, self._end), self._answerers
        if name is None:
            name, answerers = named(scope) or "", {"GET": one}  # the id is org/state, with its slash encoded
        answerer = answerers.get(scope["method"].replace("HEAD", "GET"))
        if answerer is None:
            raise HTTPException(405, headers={"Allow": "GET, DELETE"})
        name = guard.given(scope) or name
        response = await answerer(Asked(self._service, self._options, scope, receive, name))
        await response(scope, receive, send)


def named(scope: Scope, end: str = "") -> str | None:
    """The id in the path of a request, which ends so. Slashes that came encoded are the id's own."""
    tail = "".join(scope["raw_path"].decode("ascii").split("/", 3)[3:])
    return unquote(tail.removesuffix(end)) if tail.endswith(end) else None


# Models


async def listing(asked: Asked) -> Response:
    """GET /v1/models: those that can be asked, with `all` also those that cannot."""
    models = await asked.service.names.all()
    if only := guard.given(asked.scope):
        models = {only: await asked.service.names.find(only)}
    elif _wants_all(asked):
        models = await asyncio.to_thread(_with_others, asked.library, models)
    able = await asyncio.to_thread(lambda: [_abilities(model) for model in models.values()])
    data = [
        _document(asked.service, name, model, abilities)
        for (name, model), abilities in zip(models.items(), able, strict=True)
    ]
    return Ascii({"object": "list", "data": data})


async def one(asked: Asked) -> Response:
    """GET /v1/models/{name}."""
    model = await asked.service.names.find(asked.name)
    able = await asyncio.to_thread(_abilities, model)
    return Ascii(_document(asked.service, asked.name, model, able))


async def fetch(asked: Asked) -> Response:
    """POST /v1/models: `source_url`, or `model`, names what to download, as `mdl download` takes it."""
    asked.require_trust()
    with asked.service.room.place() as place:
        fields = await asked.fields(place)
        model, source = fields.text("model"), fields.text("source_url")
        if model and source and model != source:
            fields.fail("source_url", "says something else than model")
        fields.done()
        if not (model or source):
            fields.fail("source_url", "is missing")
        return await _begun(asked, source or model or "")


async def delete(asked: Asked) -> Response:
    """DELETE /v1/models/{name}, by the rules of `mdl rm`. What is idle is let go of first."""
    asked.require_trust()
    service = asked.service
    found, reference = await _known(asked)
    if service.names.served:
        raise _in_use(f"{reference} is what this server serves", "end the server first")
    if found is not None and found.place is not None:
        raise Refused(f"{show(asked.name)} is not in the cache", "only what is there is removed")
    model = await asyncio.to_thread(asked.library.removable, asked.name)
    if (job := service.jobs.of(model.reference)) is not None and job.active:
        raise _in_use(f"{model.reference} is being downloaded", f"cancel {job.id} first")
    await _let_go(service, model)
    try:
        freed = await asyncio.to_thread(asked.library.store.remove, model)
    except Busy as error:
        raise _in_use(error.message, error.hint) from None
    service.names.forget()
    return Ascii({"id": asked.name, "object": "model", "deleted": True, "freed": freed})


async def state(asked: Asked) -> Response:
    """GET /v1/models/{name}/state."""
    return Ascii(await _state(asked))


async def metadata(asked: Asked) -> Response:
    """GET /v1/models/{name}/metadata: what is recorded of it, and what its header says."""
    model = await asked.service.names.find(asked.name)
    found = await asyncio.to_thread(_metadata, model)
    return Ascii({"id": asked.name, "object": "model.metadata", **found})


async def download(asked: Asked) -> Response:
    """POST /v1/models/{name}/download."""
    asked.require_trust()
    with asked.service.room.place() as place:
        (await asked.fields(place)).done()
        return await _begun(asked, asked.name)


async def last_download(asked: Asked) -> Response:
    """GET /v1/models/{name}/download."""
    _, reference = await _known(asked)
    job = asked.service.jobs.of(reference)
    if job is None:
        raise Refused(f"nobody has asked for a download of {show(asked.name)}", "POST begins one", status=404)
    return Ascii(told(job))


async def start(asked: Asked) -> Response:
    """POST /v1/models/{name}/start. Answers when it is loaded."""
    with asked.service.room.place() as place:
        fields = await asked.fields(place)
        place.want(1)
        keep_alive = openai.keep_alive(fields)
        fields.done()
        model = await asked.service.names.find(asked.name)
        if model.is_api:
            raise elsewhere(model)
        wanted = await asked.service.names.wanted(asked.name, "", model)
        async with while_connected(asked.receive), asked.service.pool.borrow(model, keep_alive, wanted):
            pass
    return Ascii(await _state(asked))


async def stop(asked: Asked) -> Response:
    """POST /v1/models/{name}/stop. Answers when it has ended, after the answers that it gives unless by
    `force`; what is not loaded has."""
    with asked.service.room.place() as place:
        fields = await asked.fields(place)
        force = fields.flag("force") or False
        fields.done()
        model = await asked.service.names.find(asked.name)
        async with while_connected(asked.receive):
            await asked.service.pool.stop(model, force)
    return Ascii(await _state(asked))


# Jobs


async def jobs(asked: Asked) -> Response:
    """GET /v1/jobs."""
    return Ascii({"object": "list", "data": [told(job) for job in asked.service.jobs.all()]})


async def job(asked: Asked) -> Response:
    """GET /v1/jobs/{job}."""
    return Ascii(told(asked.service.jobs.find(asked.name)))


async def cancel(asked: Asked) -> Response:
    """DELETE /v1/jobs/{job}, or POST /v1/jobs/{job}/cancel. What is over stays as it is."""
    asked.require_trust()
    found = asked.service.jobs.find(asked.name)
    asked.service.jobs.cancel(found)
    return Ascii(told(found))


async def events(asked: Asked) -> Response:
    """GET /v1/jobs/{job}/events. A client that has heard the end and comes back is told to stay away, as
    https://html.spec.whatwg.org/multipage/server-sent-events.html has it."""
    found = asked.service.jobs.find(asked.name)
    heard = Headers(scope=asked.scope).get("last-event-id")
    if not found.active and heard == found.state:
        return Response(status_code=204)
    return Events(found, asked.options.limits.silence_seconds)


class Events(Response):
    """A download as server-sent events, each of which tells all: `progress` whenever something has changed,
    and at the end what became of it: `done`, `error` or `cancelled`."""

    def __init__(self, job: Job, silence_seconds: float) -> None:
        super().__init__()
        self._job = job
        self._silence = silence_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        async with while_connected(receive):
            await self._tell(send)

    async def _tell(self, send: Send) -> None:
        last, when, over = "", monotonic(), False
        while not over:
            over = not self._job.active
            event = self._event(over)
            silent = monotonic() - when >= self._silence
            if event != last or silent:
                body = (event if event != last else SILENCE).encode("ascii")
                await send({"type": "http.response.body", "body": body, "more_body": not over})
                last, when = event, monotonic()
            await _wait(self._job)

    def _event(self, over: bool) -> str:
        data = json.dumps(told(self._job), separators=(",", ":"))
        name = f"id: {self._job.state}\nevent: {self._job.state}" if over else "event: progress"
        return f"{name}\ndata: {data}\n\n"


async def _wait(job: Job) -> None:
    """For a moment, or for its end."""
    try:
        async with asyncio.timeout(WATCH_SECONDS):
            await job.over.wait()
    except TimeoutError:
        pass


def told(job: Job) -> dict[str, Any]:
    """A download as JSON has it: sizes in bytes, times in seconds, since 1970 or to go. What is not known is
    null."""
    speed, eta = job.tally.speed if job.active else None, job.eta
    return {
        "id": job.id,
        "object": "job",
        "model": str(job.reference),
        "state": job.state,
        "bytes": job.tally.bytes,
        "total": job.tally.total,
        "speed": None if speed is None else round(speed),
        "eta": None if eta is None else round(eta, 1),
        "error": _error(job.error),
        "note": job.tally.note,
        "created": int(job.created),
        "ended": None if job.ended is None else int(job.ended),
    }


# Inside


async def _begun(asked: Asked, name: str) -> Response:
    found = await asked.service.jobs.start(name)
    return Ascii(told(found), 202, {"Location": f"/v1/jobs/{found.id}"})


async def _known(asked: Asked) -> tuple[Model | None, Reference]:
    """What an id means: a model that is here, or None for one that could be fetched, and its name. Raises
    NotFound, also for what is not served."""
    try:
        model = await asked.service.names.find(asked.name)
    except NotFound:
        if asked.name.startswith(PATHS) or asked.service.names.served:
            raise
        resolution = await asyncio.to_thread(asked.library.resolve, asked.name)
        if resolution.model is not None or resolution.reference is None:
            raise
        return None, resolution.reference
    return model, model.reference


async def _state(asked: Asked) -> dict[str, Any]:
    model, reference = await _known(asked)
    job, entry = asked.service.jobs.of(reference), _entry(asked.service, model)
    failure = _failure(asked.service, model, job)
    return {
        "id": asked.name,
        "object": "model.state",
        "state": _word(model, entry, job, failure),
        "error": _error(failure),
        "job": told(job) if job is not None else None,
        "engine": engines.document(entry) if entry is not None else None,
    }


def _word(model: Model | None, entry: Entry | None, job: Job | None, failure: MdlError | None) -> str:
    if entry is not None:
        return {"loading": "starting", "leaving": "stopping"}.get(entry.state, "running")
    if job is not None and job.active:
        return "downloading"
    if failure is not None:
        return "error"
    return "not-downloaded" if model is None or model.is_absent else "ready"


def _failure(service: Service, model: Model | None, job: Job | None) -> MdlError | None:
    """Why it cannot be asked."""
    if model is None or model.is_absent:
        return job.error if job is not None else None
    cause = model.problem or model.summary.unsupported
    return MdlError(cause) if cause else service.pool.failure(model)


def _entries(service: Service, model: Model | None) -> list[Entry]:
    """Its engines: as a rule one. Those that stay come first."""
    at = key(model) if model is not None else None
    found = [entry for entry in service.pool.entries if key(entry.model) == at]
    return sorted(found, key=lambda entry: (entry.leaving, entry.loading))


def _entry(service: Service, model: Model | None) -> Entry | None:
    return next(iter(_entries(service, model)), None)


def _document(service: Service, name: str, model: Model, able: tuple[str, ...]) -> dict[str, Any]:
    """A model as OpenAI's API lists it, and what is known of it besides."""
    summary, entry = model.summary, _entry(service, model)
    job = service.jobs.of(model.reference)
    return {
        **openai.listed(name, model),
        "reference": str(model.reference),
        "version": model.version,
        "state": _word(model, entry, job, _failure(service, model, job)),
        "loaded": entry is not None and entry.loaded is not None,
        "size": model.size,
        "format": summary.format,
        "quantization": summary.quantization,
        "architecture": summary.architecture,
        "parameters": summary.parameters,
        "context_length": summary.context_length,
        "capabilities": list(able),
    }


def _wants_all(asked: Asked) -> bool:
    wanted = QueryParams(asked.scope["query_string"]).get("all", "false")
    if wanted not in ("true", "false"):
        raise Refused("all has to be true or false", param="all")
    return wanted == "true" and not asked.service.names.served


def _with_others(library: Library, models: dict[str, Model]) -> dict[str, Model]:
    """And those of the cache that cannot be asked."""
    known = set(map(key, models.values()))
    others = (model for model in library.list() if model.summary.kind == "model" and key(model) not in known)
    return {**models, **{str(model.reference): model for model in others}}


def _abilities(model: Model) -> tuple[str, ...]:
    at = key(model)
    if at not in _able:
        if len(_able) >= MOST_REMEMBERED:
            _able.clear()
        _able[at] = abilities.of(model)
    return _able[at]


def _metadata(model: Model) -> dict[str, Any]:
    from mdl import inspection

    found = documents.model(model)
    del found["folder"]  # a client has no business with what lies where
    unread = model.problem or model.is_api
    return {
        **found,
        "license": model.summary.license,
        "capabilities": list(_abilities(model)),
        "header": None if unread else _plain(inspection.metadata(runnable.weights(model))),
    }


def _plain(value: Any) -> Any:
    """What JSON can hold of it."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


async def _let_go(service: Service, model: Model) -> None:
    """Ends its engines, if they are idle."""
    if any(entry.busy or entry.loading for entry in _entries(service, model)):
        raise _in_use(f"{model.reference} is answering requests", "try again later, or stop it first")
    await service.pool.stop(model)


def _in_use(message: str, hint: str) -> Refused:
    return Refused(message, hint, status=409, code="model_in_use")


def _error(error: MdlError | None) -> dict[str, Any] | None:
    """As the commands print it."""
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "hint": error.hint or None}


# By path. One that another begins like comes after that.
ROUTES: dict[str, dict[str, Answerer]] = {
    "/v1/models": {"GET": listing, "POST": fetch},
    "/models": {"GET": listing, "POST": fetch},
    "/v1/models/{name:path}/state": {"GET": state},
    "/v1/models/{name:path}/metadata": {"GET": metadata},
    "/v1/models/{name:path}/download": {"GET": last_download, "POST": download},
    "/v1/models/{name:path}/start": {"POST": start},
    "/v1/models/{name:path}/stop": {"POST": stop},
    "/v1/models/{name:path}": {"GET": one, "DELETE": delete},
    "/v1/jobs": {"GET": jobs},
    "/v1/jobs/{job}": {"GET": job, "DELETE": cancel},
    "/v1/jobs/{job}/cancel": {"POST": cancel},
    "/v1/jobs/{job}/events": {"GET": events},
}


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """All of them."""
    return [
        Route(path, Endpoint(service, options, path.partition("}")[2], **answerers), methods=[*answerers])
        for path, answerers in ROUTES.items()
    ]
