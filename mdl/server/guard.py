"""Who may ask: the Host, Origin and key of a request, and its line in the log. Knows no routes.

Host is checked against rebinding: a page of evil.example whose name comes to point to this machine still says
"Host: evil.example". Addresses cannot be rebound, so any is allowed.
"""

import asyncio
import logging
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from time import perf_counter

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdl.errors import Busy
from mdl.reference import show
from mdl.server import failure
from mdl.server.failure import Refused
from mdl.server.metrics import Metrics
from mdl.server.options import ServeOptions

_FORWARDED = {b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"}
GIVEN = "mdl.model"  # in the scope of a request: the model that its key is for
MODELS = ("/v1/models", "/models")
OTHERS = ("/mdl/", "/v1/jobs", "/metrics")  # paths that are about more than one model
OPEN_PATHS = ("/healthz",)  # for those who watch whether it lives, and have no key

log = logging.getLogger("mdl.server")

Headers = dict[bytes, bytes]


class Guard:
    """Lets through what may pass. Answers 401 without the key, 403 to other people's pages."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app = app
        self._names = {"localhost", options.host.lower(), *(name.lower() for name in options.allow_hosts)}
        self._keys = {_digest(key.encode()): model for key, model in _keys(options)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except Refused as error:
                await failure.response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers: Headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_known(host):
            name = show(host)
            raise Refused(f"this server is not called {name}", "allow it with --allow-host", status=403)
        if _is_foreign(scope["method"], headers, host):
            raise Refused("pages of other sites may not use this server", status=403)
        if self._keys and scope["path"] not in OPEN_PATHS:
            model = _model_of_key(self._keys, headers.get(b"authorization", b""))
            if model:
                _check_scope(scope)
                scope[GIVEN] = model

    def _is_known(self, host: str) -> bool:
        name = _without_port(host)
        return name.lower().rstrip(".") in self._names or _is_address(name)


def given(scope: Scope) -> str | None:
    """The model that the key of a request is for, whatever it names; None for a key for all."""
    return scope.get(GIVEN)


def is_trusted(scope: Scope, options: ServeOptions) -> bool:
    """Whether a request may change what is on this machine: it came with the key, or from this machine and
    not through a proxy, which could be anybody."""
    if given(scope):
        return False
    if options.api_key or options.keys:
        return True
    passed_on = _FORWARDED & {name for name, _ in scope["headers"]}
    client = (scope["client"] or ("",))[0].partition("%")[0]
    return not passed_on and _is_address(client) and ip_address(client).is_loopback


class Journal:
    """A line in the log for each request, and an answer for those that the server's end leaves without."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        started = perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            pass  # before its body was whole: nobody waits for an answer
        except asyncio.CancelledError:
            if not status:
                await failure.response(Busy("the server is ending"))(scope, receive, noting)
        finally:
            seconds = perf_counter() - started
            self._metrics.request(_route(scope), status, seconds)
            _write(scope, status, seconds)


def _route(scope: Scope) -> str:
    """The route, as few as there are: a path is anything that a client thinks of."""
    path = str(scope["path"])
    if "endpoint" not in scope:
        return "none"
    if not scope["path_params"]:
        return path
    name, value = next(iter(scope["path_params"].items()))
    *head, rest = path.split("/", 3)  # "", "v1", "models", and what begins with the value
    return "/".join([*head, f"{{{name}}}"]) + rest[len(value) :]


def _write(scope: Scope, status: int, seconds: float) -> None:
    client = (scope["client"] or ("-",))[0]
    path = scope["raw_path"].decode("ascii")[:200]  # still quoted: nothing in it moves a cursor
    log.info("%s %s %s %s %.3fs", client, scope["method"], path, status or "gone", seconds)


def _is_foreign(method: str, headers: Headers, host: str) -> bool:
    """Whether a browser sends this for a page that is not ours. Following a link to us is fine."""
    origin = headers.get(b"origin")
    if origin is not None:
        _, _, place = origin.decode("latin-1").partition("://")
        return place.lower() != host.lower()
    site = headers.get(b"sec-fetch-site", b"none")
    if method == "GET" and headers.get(b"sec-fetch-mode") == b"navigate":
        return False
    return site not in (b"none", b"same-origin")


def _keys(options: ServeOptions) -> tuple[tuple[str, str], ...]:
    """Each key, and the model that it is for, if it is for one."""
    return (*(((options.api_key, ""),) if options.api_key else ()), *options.keys)


def _model_of_key(expected: dict[bytes, str], header: bytes) -> str:
    """What a key is for. Raises Refused for one that is not known."""
    scheme, _, key = header.partition(b" ")
    # Digests, so that the time says nothing about the length either; and all of them, whichever it is.
    digest = _digest(key)
    fits = [model for known, model in expected.items() if compare_digest(digest, known)]
    if not fits or scheme.lower() != b"bearer":
        how = "Authorization: Bearer KEY"
        raise Refused("the API key is missing or wrong", how, status=401, code="invalid_api_key")
    return fits[0]


def _check_scope(scope: Scope) -> None:
    """Raises Refused for what somebody has no business with who is given one model."""
    changes = scope["path"].startswith(MODELS) and scope["method"] not in ("GET", "HEAD")
    if changes or scope["path"].startswith(OTHERS):
        raise Refused("this API key is for asking one model", "take another key for that", status=403)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _digest(text: bytes) -> bytes:
    return sha256(text).digest()
