"""Requests for models that an API runs: passed on to it, and its answers passed back, as they come.

The body goes as the client wrote it, but for the model's name and what its profile fills in; of the client's
headers goes nothing, and of the API's come back those that tell of the answer. Bytes are read as fast as the
client takes them, and are not looked into. Knows no dialect's fields.
"""

import asyncio
import json
import ssl
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Send

from mdl import __version__, upstream
from mdl.address import is_among, proxy_for
from mdl.config import Settings
from mdl.connection import tls
from mdl.errors import Busy, MdlError
from mdl.model import Model
from mdl.profiles import Profile
from mdl.server import failure
from mdl.server.failure import Refused
from mdl.server.filling import filled
from mdl.server.metrics import Watch
from mdl.server.remembered import Remembered
from mdl.upstream import LARGEST_ERROR, SILENCE, Upstream

if TYPE_CHECKING:
    import httpx2

REMEMBERED_SECONDS = 10.0  # for which a key is not looked up again
CONNECT_SECONDS = 10.0
WRITE_SECONDS = 60.0
CLOSE_SECONDS = 1.0
KEPT_SECONDS = 3.0  # for an idle connection: less than the five after which many servers end one
# What may be told of an answer. All else is for the API's own site: cookies, policies, who may read it.
_TOLD = frozenset(
    b"content-type content-length content-language cache-control retry-after retry-after-ms x-should-retry "
    b"x-request-id request-id apim-request-id x-ms-region x-ms-request-id x-ms-client-request-id "
    b"azureml-model-session".split()
)
_TOLD_OF = (b"openai-", b"x-ratelimit-")
_EVENTS = b"text/event-stream"

Headers = list[tuple[bytes, bytes]]


class Asked(NamedTuple):
    """A request: where it goes at an API, what it says, and what is set for its model."""

    route: str
    body: Mapping[str, Any]
    profile: Profile


@dataclass(eq=False, slots=True)
class Passing:
    """The connections to all APIs. Whoever makes it closes it."""

    settings: Settings
    _transports: "dict[tuple[bool, str | None], httpx2.AsyncHTTPTransport]" = field(default_factory=dict)
    _known: Remembered[str, Upstream] = field(default_factory=lambda: Remembered(REMEMBERED_SECONDS))
    _asking: "set[asyncio.Task[Any] | None]" = field(default_factory=set)

    async def ask(self, model: Model, asked: Asked, send: Send, watch: Watch) -> None:
        """Passes a request on, and sends what comes. When cancelled, so is the request.

        Raises Refused where the API cannot be asked, and what `upstream.of` does.
        """
        place = await self._place(model)
        body = filled(asked.body, asked.route, asked.profile, place)
        data = json.dumps({**body, "model": place.model}).encode()
        response = await self._asked(place, asked.route, data)
        self._asking.add(task := asyncio.current_task())
        try:
            if response.status_code >= 300:
                await _refuse(place, response, send)
            else:
                await Relay(place, response, send, watch).run()
        finally:
            await response.aclose()
            self._asking.discard(task)

    async def close(self) -> None:
        """After those that ask have been cancelled: they tell their clients so."""
        if asking := set(filter(None, self._asking)):
            await asyncio.wait(asking, timeout=CLOSE_SECONDS)
        for transport in self._transports.values():
            await transport.aclose()

    async def _place(self, model: Model) -> Upstream:
        at = f"{model.reference} {model.card or ''}"
        return await self._known.get(at, lambda: upstream.of(model, self.settings))

    async def _asked(self, place: Upstream, route: str, data: bytes) -> "httpx2.Response":
        import httpx2

        headers = {
            "User-Agent": f"mdl/{__version__}",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            **place.headers,
        }
        limits = httpx2.Timeout(SILENCE, connect=CONNECT_SECONDS, write=WRITE_SECONDS).as_dict()
        extensions = {"timeout": limits}
        request = httpx2.Request(
            "POST", place.url(route), headers=headers, content=data, extensions=extensions
        )
        transport = await self._transport(place)
        try:
            return await transport.handle_async_request(request)
        except httpx2.TimeoutException:
            raise _unreachable(place, "did not answer in time", 504) from None
        except httpx2.TransportError as error:
            raise _unreachable(place, f"cannot be asked ({_cause(error)})") from None

    async def _transport(self, place: Upstream) -> "httpx2.AsyncHTTPTransport":
        """Without a client around it, which would keep cookies, and send them to whoever asks next."""
        insecure = is_among(place.address, self.settings.insecure)
        proxy = proxy_for(place.address, urllib.request.getproxies())
        if (insecure, proxy) not in self._transports:
            # Reading all authorities takes 20 ms, in which others should have their turn.
            trusted = await asyncio.to_thread(tls, self.settings.ca, insecure)
            self._transports.setdefault((insecure, proxy), _opened(trusted, proxy))
        return self._transports[insecure, proxy]


def _opened(trusted: ssl.SSLContext, proxy: str | None) -> "httpx2.AsyncHTTPTransport":
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=KEPT_SECONDS)
    address = proxy if proxy is None or "://" in proxy else f"http://{proxy}"
    try:
        return httpx2.AsyncHTTPTransport(verify=trusted, trust_env=False, limits=limits, proxy=address)
    except (ValueError, httpx2.InvalidURL, ImportError):  # not shown: there may be a password in it
        raise Refused("the address of the server's proxy cannot be used", status=502) from None


@dataclass(slots=True)
class Relay:
    """An answer on its way. One that breaks off ends with an error if it is a stream of events; else as it
    came, unfinished."""

    place: Upstream
    response: "httpx2.Response"
    send: Send
    watch: Watch
    begun: bool = False

    async def run(self) -> None:
        import httpx2

        if self.response.headers.get("content-encoding", "identity") != "identity":
            raise _unreachable(self.place, "sends compressed bytes, though plain ones were asked for")
        try:
            await self._pass()
        except httpx2.TransportError as error:
            await self._break_off(_unreachable(self.place, f"broke off its answer ({_cause(error)})"))
        except asyncio.CancelledError:
            await self._break_off(Busy("the server is ending"))
            raise

    async def _pass(self) -> None:
        headers = told(self.response.headers.raw, self.place)
        if self._is_stream or "transfer-encoding" in self.response.headers:  # then a length means nothing
            headers = [header for header in headers if header[0] != b"content-length"]
        if self._is_stream:
            headers.append((b"x-accel-buffering", b"no"))  # nginx would keep the pieces until it has many
        await self.send(
            {"type": "http.response.start", "status": self.response.status_code, "headers": headers}
        )
        self.begun = True
        async for piece in self.response.aiter_raw():
            self.watch.piece(None)
            await self._send(piece, more=True)
        await self._send(b"", more=False)

    async def _break_off(self, error: MdlError) -> None:
        if self.begun and self._is_stream:
            await self._send(f"\n\ndata: {json.dumps(failure.body(error))}\n\n".encode("ascii"), more=False)

    async def _send(self, piece: bytes, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": piece, "more_body": more})

    @property
    def _is_stream(self) -> bool:
        kind: str = self.response.headers.get("content-type", "")
        return kind.lower().startswith(_EVENTS.decode())


def told(headers: Iterable[tuple[bytes, bytes]], place: Upstream) -> Headers:
    """The headers of an API's answer that are for the client."""
    secret = place.key.secret.encode()
    return [
        (name.lower(), value)
        for name, value in headers
        if (name.lower() in _TOLD or name.lower().startswith(_TOLD_OF)) and not (secret and secret in value)
    ]


async def _refuse(place: Upstream, response: "httpx2.Response", send: Send) -> None:
    """Passes an error back: what it says if it has the form that clients expect, else in that form."""
    import httpx2

    if response.status_code < 400:
        raise _unreachable(place, f"sends elsewhere ({response.status_code}), which is not followed")
    if response.status_code > 599:
        raise _unreachable(place, f"answered {response.status_code}, which means nothing")
    said = bytearray()
    try:
        async for piece in response.aiter_raw():
            said += piece
            if len(said) > LARGEST_ERROR:
                raise _unreachable(
                    place, f"answered {response.status_code}, at more length than an error has"
                )
    except httpx2.TransportError:
        said.clear()
    body = error_body(place, response.status_code, bytes(said))
    headers = [
        header for header in told(response.headers.raw, place) if not header[0].startswith(b"content-")
    ]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(place: Upstream, status: int, said: bytes) -> bytes:
    """{"error": …} as the API means it, but without the key if it is there; or one that tells the status."""
    try:
        content = json.loads(said)
        plain = json.dumps(content)  # in which a key is not spelled by escapes, or under a name twice
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and isinstance(content.get("error"), dict):
        secret = json.dumps(place.key.secret)[1:-1]  # as it stands in JSON
        return (plain.replace(secret, "***") if secret else plain).encode()
    error = failure.body(Refused(str(upstream.failure(place, status, said).message), status=status))
    error["error"]["code"] = "upstream_error"
    return json.dumps(error).encode()


def _unreachable(place: Upstream, what: str, status: int = 502) -> Refused:
    return Refused(f"{place.reference.host} {place.without_key(what)}", status=status, code="upstream_error")


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
