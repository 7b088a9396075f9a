"""Bytes at an address: one HTTP request with its redirects, secrets, limits and failures. Knows no files.

Redirects are followed here and not by urllib3, because what may go along with them is our promise: the
caller's headers go to the origin they were given for and to nobody else, and https never becomes http.
"""

import functools
import random
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mdl import __version__
from mdl.address import Remote, is_among, origin_of, proxy_for, shown, without_user
from mdl.connection import SYSTEM, Busy, Trust, proxy_manager, shut, socket_options, tls, watched_pools
from mdl.errors import NetworkError
from mdl.response import Answer, Response, read_up_to, read_whole, retry_after
from mdl.traffic import Traffic
from mdl.trouble import AT_FAULT, Stopped, Transient, network_errors, refusal

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

T = TypeVar("T")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_HARMLESS = frozenset({"accept", "accept-language", "user-agent"})
_WORTH = 250_000  # bytes a second that a connection of its own is worth when the rate is limited
_UNLIMITED = 1 << 30
_FIRST_TRIES = 2  # retries while nobody has answered yet: more likely a wrong address than a passing failure


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
        self._busy: Busy = {}

    def get(self, remote: Remote, max_bytes: int, *, method: str = "GET") -> Response:
        """A small body with whatever status, after retries and redirects.

        Raises NetworkError, also for a body of more than `max_bytes`.
        """

        def once() -> Response:
            answer = self.send(remote, {}, method)
            try:
                answer.refuse_coding()
                body = read_whole(answer, max_bytes) if method != "HEAD" else b""
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
                return Response(answer.status, answer.headers, read_whole(answer, max_bytes), answer.url)
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
                    raise NetworkError(f"{shown(answer.url)} cannot send a part of the file", AT_FAULT)
                return read_up_to(answer, size)
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
                shut(busy[0])

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
        with network_errors(url, known=host in self._answered):
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
            target = without_user(target)
        except ValueError:
            raise NetworkError(f"{shown(url)} redirects to what is no web address", AT_FAULT) from None
        if url.startswith("https:") and scheme != "https":
            raise NetworkError(f"{shown(url)} redirects to plain http, which is refused", AT_FAULT)
        return target

    def slowed(self, answer: Answer) -> Transient:
        """The error for an answer that asks to come again; who asks that host next waits as long."""
        asked = retry_after(answer.headers.get("retry-after"))
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
        options["socket_options"] = socket_options(self.traffic.rate.limit)
        if scheme == "https" or (proxy or "").startswith("https"):  # reading all authorities takes 20 ms
            options["ssl_context"] = tls(self._trust.ca, insecure)
        if insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the user wanted it so
        manager = urllib3.PoolManager(**options) if proxy is None else proxy_manager(proxy, options)
        manager.pool_classes_by_scheme = watched_pools(self._busy, self._stopping, self.limits.header_timeout)
        return manager
