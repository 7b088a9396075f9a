"""Bytes at an address: one HTTP request with its redirects, secrets, limits and failures. Knows no files.

Redirects are followed here and not by urllib3, because what may go along with them is our promise: the
caller's headers go to the origin they were given for and to nobody else, and https never becomes http.
"""

import contextlib
import datetime
import email.utils
import functools
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mdl import __version__
from mdl.errors import AuthError, MdlError, NetworkError, NotFound, UsageError
from mdl.traffic import Traffic

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

T = TypeVar("T")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_HARMLESS = frozenset({"accept", "accept-language", "user-agent"})
_PLAIN_CODINGS = frozenset({"", "identity", "none", "binary", "aws-chunked"})
_WORTH = 250_000  # bytes a second that a connection of its own is worth when the rate is limited
_UNLIMITED = 1 << 30
_AHEAD = 8  # the part of a second that a server may send ahead of a limited rate
_BUFFER = 8 << 10, 128 << 10  # bytes of a socket: the least to ask for, and what systems begin with
_FIRST_TRIES = 2  # retries while nobody has answered yet: more likely a wrong address than a passing failure
_AT_FAULT = "the server or something before it is at fault: try again later, or another source"
# What OpenSSL, by its version, calls an answer that is no TLS at all.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
)
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard, how patiently and how widely to ask. Sizes in bytes, times in seconds."""

    connections: int = 16  # for one file
    files: int = 4  # at once
    per_host: int = 32  # connections to one server, for all files of the process
    block: int = 8 << 20  # what one connection asks for at a time once there are several
    chunk: int = 1 << 20  # what is read and written at a time, at most
    enough: float = 100e6  # bytes a second of one connection that make more of them pointless
    min_speed: float = 1024  # bytes a second over `window`; a slower connection is dropped
    window: float = 30
    connect_timeout: float = 10
    read_timeout: float = 20
    header_timeout: float = 30  # from the request to the end of the answer's headers
    retries: int = 5  # failures in a row, without progress between them
    backoff: float = 1  # before the first retry; doubles
    longest_wait: float = 60  # whatever a server asks for
    redirects: int = 10

    def within(self, rate: int) -> "Limits":
        """What is worth doing at once where `rate` bytes a second is all there may be; 0 is no limit."""
        useful = max(rate // _WORTH, 1) if rate else _UNLIMITED
        return replace(
            self,
            connections=min(self.connections, useful),
            files=min(self.files, useful),
            min_speed=min(self.min_speed, rate / 4 or self.min_speed),
        )


DEFAULTS = Limits()


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe: `ca` is a file of authorities besides the system's; `insecure` are the hosts (with the
    port, if there is one) whose certificates are not looked at."""

    ca: str = ""
    insecure: frozenset[str] = frozenset()


SYSTEM = Trust()


class Authority(Protocol):
    """Who speaks for us at one server. Safe to use from several threads."""

    def headers(self) -> Mapping[str, str]:
        """What goes along with a request as things are now."""

    def renew(self, used: Mapping[str, str], challenge: str) -> Mapping[str, str] | None:
        """Better ones after a 401 to `used`, by its WWW-Authenticate; None where there are none."""


@dataclass(frozen=True, slots=True, repr=False)
class Remote:
    """Where bytes are. `headers` may hold secrets: they are sent to the origin of `url` only, and so are
    those of `authority`, which are renewed once when the server refuses them."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authority: Authority | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            origin_of(self.url)
        except ValueError as error:
            raise UsageError(f"not an address: {error}", hint="write it as https://host/path") from None

    def __repr__(self) -> str:
        return f"Remote({shown(self.url)!r})"


@dataclass(frozen=True, slots=True)
class Response:
    """A small answer, read whole. `headers` has lower-case names; `url` is where the redirects led."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    url: str = field(repr=False)


class Transient(NetworkError):
    """A failure that may pass; `wait` is how many seconds the server asked for.

    `refusal`: it may have been one connection too many. `news`: that nobody may ask the server now is new.
    `crowded` is set by who knows that the server is busy with others of ours.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        wait: float | None = None,
        *,
        refusal: bool = False,
        news: bool = False,
    ) -> None:
        super().__init__(message, hint or "check the connection and run it again: it goes on from here")
        self.wait, self.refusal, self.news = wait, refusal, news
        self.crowded = False


class Untrusted(NetworkError):
    """The server's certificate is not one to believe."""


class Stopped(Exception):
    """The client was stopped while it was at work."""


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http or https URL. Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"only http and https can be asked, not {parts.scheme[:20]!r}")
    if not parts.hostname or not re.fullmatch(r"[^\x00-\x20\x7f]+", url):
        raise ValueError("it has no host, or spaces or control characters")
    if "\\" in parts.netloc:  # where urllib3 ends the host, so that it would ask another one than this
        raise ValueError("its host has a backslash")
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def is_among(url: str, hosts: Collection[str]) -> bool:
    """Whether the host of an address, with its port or without, is one of these."""
    netloc = urllib.parse.urlsplit(url).netloc.rpartition("@")[2].lower()
    return netloc in hosts or origin_of(url)[1] in hosts


def proxy_for(url: str, proxies: Mapping[str, str]) -> str | None:
    """The address of the proxy to ask for a URL; `proxies` as Client has them."""
    scheme, host, port = origin_of(url)
    if urllib.request.proxy_bypass_environment(f"{host}:{port}", proxies):  # type: ignore[attr-defined]
        return None
    return proxies.get(scheme) or proxies.get("all")


def shown(url: str) -> str:
    """`url` as messages may show it: without user, password, query and fragment, where secrets are."""
    scheme, host, port = origin_of(url)
    number = "" if port in (80, 443) else f":{port}"
    path = urllib.parse.quote(urllib.parse.urlsplit(url).path, safe="/%:@~!$&'()*+,;=")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}{number}{path[:300]}"


class Answer:
    """An open response. `remote` is where the redirects led, with the headers that may go there. Close it."""

    def __init__(
        self, raw: "BaseHTTPResponse", remote: Remote, redirected: bool, closed: Callable[[], object]
    ) -> None:
        self._raw, self.remote, self.redirected, self._closed = raw, remote, redirected, closed
        self.url = remote.url
        self.status = raw.status
        self.headers = {name.lower(): value for name, value in raw.headers.items()}

    def read(self, size: int) -> bytes:
        """What has come, at most `size` bytes; empty at the end. Raises Transient when it is cut off."""
        with _network_errors(self.url):
            return self._raw.read1(size, decode_content=False)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it."""
        self._closed()
        if getattr(self._raw, "length_remaining", None) != 0:
            self._raw.close()
        self._raw.drain_conn()  # else http.client takes it for unread, and fails the next on this connection
        self._raw.release_conn()

    @property
    def length(self) -> int | None:
        """Content-Length, None if there is none or the body is chunked. Raises NetworkError for nonsense."""
        text = self.headers.get("content-length")
        if text is None or "transfer-encoding" in self.headers:
            return None
        values = {value.strip() for value in text.split(",")}
        if len(values) != 1 or not re.fullmatch(r"[0-9]{1,19}", text.split(",")[0].strip()):
            raise NetworkError(
                f"{shown(self.url)} sent a Content-Length that is no length: {text[:40]!r}", _AT_FAULT
            )
        return int(values.pop())

    @property
    def extent(self) -> tuple[int, int, int | None] | None:
        """Content-Range as (start, end, total), None where it does not say so."""
        match = _RANGE.fullmatch(self.headers.get("content-range", "").strip())
        if not match or int(match[1]) > int(match[2]):
            return None
        return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])

    @property
    def validator(self) -> str | None:
        """What If-Range may be given: a strong ETag or Last-Modified (RFC 9110 8.8.2.2), else None."""
        etag = self.headers.get("etag", "")
        if re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', etag):
            return etag
        modified, date = (_date(self.headers.get(name)) for name in ("last-modified", "date"))
        strong = modified and date and date - modified >= datetime.timedelta(seconds=60)
        return self.headers["last-modified"] if strong else None

    def refuse_coding(self) -> None:
        """Raise NetworkError if the body is compressed: its size and digest would be of something else."""
        coding = self.headers.get("content-encoding", "").strip().lower()
        if coding not in _PLAIN_CODINGS:
            raise NetworkError(
                f"{shown(self.url)} sent compressed bytes ({coding[:20]}) though plain ones were asked for",
                _AT_FAULT,
            )


class Client:
    """Asks servers. Safe to use from several threads; `stop` ends what they are doing."""

    def __init__(
        self,
        limits: Limits = DEFAULTS,
        proxies: Mapping[str, str] | None = None,
        trust: Trust = SYSTEM,
        traffic: Traffic | None = None,
    ) -> None:
        """`proxies` maps a scheme, `all` or `no` to an address; None means what the system says.

        `traffic` is shared with other clients. Its rate is for who reads answers to keep to.
        """
        self.limits, self._trust = limits, trust
        self.traffic = traffic or Traffic()
        self._proxies = urllib.request.getproxies() if proxies is None else dict(proxies)
        self._managers: dict[tuple[str, str | None, bool], PoolManager] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._answered: set[str] = set()
        self._busy: dict[int, tuple[socket.socket, float]] = {}

    def get(self, remote: Remote, max_bytes: int, *, method: str = "GET") -> Response:
        """A small body with whatever status, after retries and redirects.

        Raises NetworkError, also for a body of more than `max_bytes`.
        """

        def once() -> Response:
            answer = self.send(remote, {}, method)
            try:
                answer.refuse_coding()
                body = _read_whole(answer, max_bytes) if method != "HEAD" else b""
                return Response(answer.status, answer.headers, body, answer.url)
            finally:
                answer.close()

        return self.patiently(once)

    def post(self, remote: Remote, fields: Mapping[str, str], max_bytes: int) -> Response:
        """The small answer to a form; redirects are not followed, since what is sent is a secret."""
        headers = {**remote.headers, "Content-Type": "application/x-www-form-urlencoded"}
        body = urllib.parse.urlencode(fields).encode()

        def once() -> Response:
            answer = self._opened(self._request("POST", remote.url, headers, body), remote)
            try:
                if answer.status in PASSING:
                    raise self.slowed(answer)
                return Response(answer.status, answer.headers, _read_whole(answer, max_bytes), answer.url)
            finally:
                answer.close()

        return self.patiently(once)

    def peek(self, remote: Remote, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` of a larger file, fewer at its end. Raises MdlError."""

        def once() -> bytes:
            answer = self.open(remote, {"Range": f"bytes={start}-{start + size - 1}"})
            try:
                answer.refuse_coding()
                begins = answer.extent[0] if answer.extent else 0 if answer.status == 200 else None
                if begins != start:
                    raise NetworkError(f"{shown(answer.url)} cannot send a part of the file", _AT_FAULT)
                return _read_up_to(answer, size)
            finally:
                answer.close()

        return self.patiently(once)

    def open(self, remote: Remote, headers: Mapping[str, str]) -> Answer:
        """The answer to one GET: 200, 206, or 416 to a range. Raises MdlError; Transient if that may pass."""
        answer = self.send(remote, headers)
        if answer.status in (200, 206) or (answer.status == 416 and "Range" in headers):
            return answer
        answer.close()
        elsewhere = origin_of(answer.url) != origin_of(remote.url)
        raise refusal(answer.status, answer.url, elsewhere)

    def send(self, remote: Remote, headers: Mapping[str, str], method: str = "GET") -> Answer:
        """One request and its redirects. Raises Transient for an answer that asks to come again."""
        authority = remote.authority
        used = authority.headers() if authority else {}
        answer = self._follow(remote, {**remote.headers, **used}, headers, method)
        if answer.status == 401 and authority and origin_of(answer.url) == origin_of(remote.url):
            better = authority.renew(used, answer.headers.get("www-authenticate", ""))
            if better is not None:
                answer.close()
                answer = self._follow(remote, {**remote.headers, **better}, headers, method)
        if answer.status in PASSING:
            answer.close()
            raise self.slowed(answer)
        return answer

    def ask(
        self, remote: Remote, method: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """The answer to one request, whatever its status: nothing is followed, renewed or tried again."""
        raw = self._request(method, remote.url, {**remote.headers, **(headers or {})}, body)
        return self._opened(raw, remote)

    def _follow(
        self, remote: Remote, own: Mapping[str, str], headers: Mapping[str, str], method: str
    ) -> Answer:
        url, seen = remote.url, {remote.url}
        while True:
            raw = self._request(method, url, {**own, **headers})
            if raw.status not in REDIRECTS or "location" not in raw.headers:
                break
            raw.close()
            url, previous = self._next(url, raw.headers["location"]), url
            if url in seen or len(seen) > self.limits.redirects:
                raise NetworkError(f"{shown(remote.url)} redirects in circles", hint="check the address")
            seen.add(url)
            if origin_of(url) != origin_of(previous):  # never given back, even if the chain returns
                own = {name: value for name, value in own.items() if name.lower() in _HARMLESS}
        return self._opened(raw, Remote(url, own), redirected=len(seen) > 1)

    def _opened(self, raw: "BaseHTTPResponse", remote: Remote, redirected: bool = False) -> Answer:
        closed = functools.partial(self._busy.pop, threading.get_ident(), None)
        return Answer(raw, remote, redirected=redirected, closed=closed)

    def patiently(self, attempt: Callable[[], T], tell: Callable[[str, float], None] | None = None) -> T:
        """What `attempt` returns, tried again while it raises Transient and the retries last.

        `tell` is called with the reason and the seconds before each wait.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except Transient as trouble:
                failures += 1
                if failures > self._patience():
                    raise
                self.pause(failures, trouble, tell)

    def _patience(self) -> int:
        return self.limits.retries if self._answered else min(self.limits.retries, _FIRST_TRIES)

    def pause(
        self, failures: int, trouble: Transient, tell: Callable[[str, float], None] | None = None
    ) -> None:
        """Wait after so many failures in a row, of which `trouble` was the last. Raises Stopped."""
        seconds = self.delay(failures, trouble.wait)
        if tell and not self._stopping.is_set():
            tell(trouble.message, seconds)
        self.sleep(seconds)

    def delay(self, failures: int, asked: float | None) -> float:
        """Seconds to wait after so many failures in a row, longer if the server asked for it, bounded."""
        own: float = self.limits.backoff * 2 ** (failures - 1) * random.uniform(0.5, 1.5)
        return min(max(own, asked or 0), self.limits.longest_wait)

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Stopped."""
        if self._stopping.wait(max(seconds, 0)):
            raise Stopped

    def stop(self) -> None:
        """End every request under way and refuse new ones. A thread that waits for a name or a connection
        notices when that wait ends, at the latest after `connect_timeout`."""
        self._stopping.set()
        self.cut(list(self._busy))

    def cut(self, threads: list[int | None]) -> None:
        """Break the connections that these threads (by ident) are using."""
        for ident in threads:
            if busy := self._busy.get(ident or 0):
                _shut(busy[0])

    def asked(self, thread: int | None) -> float | None:
        """When this thread (by ident) began to wait for the answer that it is at, if it is at one."""
        busy = self._busy.get(thread or 0)
        return busy[1] if busy else None

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> "BaseHTTPResponse":
        import urllib3

        host = origin_of(url)[1]
        self.sleep(self.traffic.held(host))
        own = {"User-Agent": f"mdl/{__version__}", "Accept-Encoding": "identity"}
        timeout = urllib3.Timeout(connect=self.limits.connect_timeout, read=self.limits.read_timeout)
        with _network_errors(url, known=host in self._answered):
            raw = self._manager(url).urlopen(
                method, url, body=body, headers={**own, **headers}, timeout=timeout,
                redirect=False, retries=False, preload_content=False, decode_content=False,
            )  # fmt: skip
        self._answered.add(host)
        return raw

    def _next(self, url: str, location: str) -> str:
        try:
            target = urllib.parse.urljoin(url, location.strip()).partition("#")[0]
            scheme, _, _ = origin_of(target)
            target = _without_user(target)
        except ValueError:
            raise NetworkError(f"{shown(url)} redirects to what is no web address", _AT_FAULT) from None
        if url.startswith("https:") and scheme != "https":
            raise NetworkError(f"{shown(url)} redirects to plain http, which is refused", _AT_FAULT)
        return target

    def slowed(self, answer: Answer) -> Transient:
        """The error for an answer that asks to come again; who asks that host next waits as long."""
        asked = _retry_after(answer.headers.get("retry-after"))
        host, reason = origin_of(answer.url)[1], f"{origin_of(answer.url)[1]} answered {answer.status}"
        wait = min(asked or 0, self.limits.longest_wait)
        refusal = answer.status in (429, 503)
        news = bool(refusal and wait and self.traffic.hold(host, wait))
        if asked and asked > wait:
            reason += f" and asks to wait {asked:.0f} s (trying again after {wait:.0f} s)"
        return Transient(reason, hint="try again later", wait=wait, refusal=refusal, news=news)

    def _manager(self, url: str) -> "PoolManager":
        key = origin_of(url)[0], proxy_for(url, self._proxies), is_among(url, self._trust.insecure)
        with self._lock:
            if key not in self._managers:
                self._managers[key] = self._connect(*key)
            return self._managers[key]

    def _connect(self, scheme: str, proxy: str | None, insecure: bool) -> "PoolManager":
        import urllib3

        options: dict[str, Any] = {"maxsize": self.limits.per_host + self.limits.files}
        options["socket_options"] = _socket_options(self.traffic.rate.limit)
        if scheme == "https" or (proxy or "").startswith("https"):  # reading all authorities takes 20 ms
            options["ssl_context"] = tls(self._trust.ca, insecure)
        if insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the user wanted it so
        manager = urllib3.PoolManager(**options) if proxy is None else _proxy_manager(proxy, options)
        manager.pool_classes_by_scheme = _watched_pools(self)
        return manager


def refusal(status: int, url: str, elsewhere: bool = False) -> MdlError:
    """The error for an answer of that status; `elsewhere` if a redirect led to another origin."""
    where = shown(url)
    if status in (401, 403) and elsewhere:  # a signed address that ran out: the origin gives a new one
        return Transient(f"{where} answered {status} (the address may have expired)")
    if status in (401, 403):
        return AuthError(f"{where} wants other credentials ({status})", hint="check the token and its rights")
    if status in (404, 410):
        return NotFound(f"{where} does not exist ({status})", hint="check the spelling")
    if status == 407:
        return NetworkError("the proxy wants credentials (407)", hint="put them into the proxy's address")
    return NetworkError(f"{where} answered {status}", hint="check the address")


def _read_whole(answer: Answer, max_bytes: int) -> bytes:
    body = _read_up_to(answer, max_bytes + 1)
    if len(body) > max_bytes:
        raise NetworkError(
            f"{shown(answer.url)} sent more than {max_bytes} bytes where little was expected", _AT_FAULT
        )
    return body


def _read_up_to(answer: Answer, size: int) -> bytes:
    body = bytearray()
    while len(body) < size and (data := answer.read(min(size - len(body), 64 << 10))):
        body += data
    return bytes(body)


def _without_user(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _date(text: str | None) -> datetime.datetime | None:
    try:
        when = email.utils.parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)


def _retry_after(text: str | None) -> float | None:
    """Seconds that a Retry-After asks for (RFC 9110 10.2.3), None for nonsense."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return float(text)
    when = _date(text)
    return max((when - datetime.datetime.now(datetime.UTC)).total_seconds(), 0) if when else None


def tls(ca: str, insecure: bool) -> ssl.SSLContext:
    """Which certificates are believed; `ca` and `insecure` as Trust has them. Raises UsageError."""
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{ca} holds no certificate authorities ({_words(error)})", "check --ca"
            ) from None
    return context


def _proxy_manager(proxy: str, options: dict[str, Any]) -> "PoolManager":
    import urllib3

    address = proxy if "://" in proxy else f"http://{proxy}"
    try:
        origin_of(address)
    except ValueError as error:
        raise UsageError(f"the proxy's address cannot be used: {error}", hint="check HTTPS_PROXY") from None
    parts = urllib.parse.urlsplit(address)
    headers = {}
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=pair)
    return urllib3.ProxyManager(_without_user(address), proxy_headers=headers, **options)


def _socket_options(rate: int) -> list[tuple[int, int, int]]:
    """A limited rate leaves little room for what the server sends ahead; a fast one is left to the system,
    which gives a connection room by how fast it is read."""
    from urllib3.connection import HTTPConnection

    options = list(HTTPConnection.default_socket_options)
    if rate and rate / _AHEAD < _BUFFER[1]:
        options.append((socket.SOL_SOCKET, socket.SO_RCVBUF, max(rate // _AHEAD, _BUFFER[0])))
    return options


def _watched_pools(client: Client) -> dict[str, Any]:
    """Pools whose connections can be broken by another thread, and give up on headers that drip."""
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection

    # urllib3 keeps the connections of a pool until the pool goes: they must not keep what has the pool.
    stopping, busy, timeout = client._stopping, client._busy, client.limits.header_timeout

    class Watched:
        def getresponse(self) -> Any:
            connection: socket.socket = self.sock  # type: ignore[attr-defined]
            busy[threading.get_ident()] = connection, time.monotonic()
            if stopping.is_set():
                raise Stopped
            cut = threading.Timer(timeout, _shut, [connection])
            cut.daemon = True
            cut.start()
            try:
                return super().getresponse()  # type: ignore[misc]
            finally:
                cut.cancel()

    class Plain(Watched, HTTPConnection):
        pass

    class Secure(Watched, HTTPSConnection):
        pass

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError, TypeError):  # closed already; or TLS in TLS, which is no socket
        # The base class's method: SSLSocket's own forgets its TLS state, and the reader would then be given
        # what is left in the kernel's buffer as if it were plain text.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _network_errors:  # noqa: N801  reads as a statement
    """Turn what urllib3 and sockets raise into errors that name the cause in words."""

    def __init__(self, url: str, known: bool = True) -> None:
        self.url, self.known = url, known

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import urllib3

        if isinstance(error, urllib3.exceptions.HTTPError | OSError):
            raise self.translate(error) from error

    def translate(self, error: BaseException) -> NetworkError:
        from urllib3 import exceptions

        host = origin_of(self.url)[1]
        cause = _deepest(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message or "the certificate cannot be verified"
            return Untrusted(
                f"{host} is not trusted: {reason}",
                hint="if it is your own authority, name its file: --ca FILE, or SSL_CERT_FILE",
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return NetworkError(
                f"{host} does not speak https", hint="a registry may be asked by http with --insecure"
            )
        if isinstance(error, exceptions.ProxyError):
            return _proxy_error(cause)
        if isinstance(error, exceptions.NameResolutionError):
            return self._unresolved(host, cause)
        if isinstance(cause, ConnectionRefusedError):  # asked first: urllib3 counts it among the timeouts
            return Transient(f"{host} refused the connection", refusal=True)
        if isinstance(error, TimeoutError | exceptions.TimeoutError):
            return Transient(f"{host} did not answer in time", refusal=True)
        return Transient(f"the connection to {host} broke ({_words(cause)})", refusal=True)

    def _unresolved(self, host: str, cause: BaseException) -> NetworkError:
        unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        if unknown and not self.known:
            message = f"{host} is not known to the name server"
            return NetworkError(message, hint="check the network, and the spelling")
        return Transient(f"the name {host} cannot be looked up")


def _proxy_error(cause: BaseException) -> NetworkError:
    if " 407 " in str(cause):
        return NetworkError("the proxy wants credentials (407)", hint="put them into the proxy's address")
    return Transient(f"the proxy failed ({_words(cause)})", hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY")


def _deepest(error: BaseException) -> BaseException:
    """The error that urllib3 wrapped: it keeps it as cause, context, reason or argument."""
    for _ in range(8):
        inner = [error.__cause__, getattr(error, "original_error", None), getattr(error, "reason", None)]
        inner += [*error.args, error.__context__]
        found = next((one for one in inner if isinstance(one, Exception)), None)
        if found is None:
            break
        error = found
    return error


def _words(error: BaseException) -> str:
    if type(error).__name__ == "IncompleteRead":  # of urllib3 and of http.client; both only count bytes
        return "it ended early"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120].lower()
