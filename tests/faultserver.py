"""A small real HTTP server that serves files honestly, or cuts, stalls, lies and redirects on order.

Speaks raw sockets, because no HTTP library lets a server misbehave. Knows nothing of mdl.
"""

import contextlib
import email.utils
import hashlib
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import trustme

MODIFIED = 1_700_000_000


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    when: float

    @property
    def range(self) -> tuple[int, int] | None:
        """The asked range as (start, end)."""
        if "range" not in self.headers:
            return None
        start, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1


@dataclass(frozen=True)
class Reply:
    """What is sent. `keep` body bytes are sent before the end (None: all); `reset` ends with RST.

    `drip` is (bytes, seconds) for the body, `slow_headers` the seconds between two bytes of the headers,
    `rate` in bytes a second. `raw` headers go out as they are, after those of `headers`.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep: int | None = None
    reset: bool = False
    stall: float = 0
    drip: tuple[int, float] | None = None
    slow_headers: float = 0
    rate: float | None = None
    chunked: bool = False
    raw: str = ""

    def without(self, *names: str) -> "Reply":
        return replace(self, headers={name: v for name, v in self.headers.items() if name not in names})

    def having(self, **headers: str) -> "Reply":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.headers, **named})


Fault = Callable[[Request, Reply], Reply]


class File:
    """Content at a path. `faults` change the next replies, one each; `always` every one after them."""

    def __init__(
        self, content: bytes, *faults: Fault, always: Fault | None = None, ranges: bool = True
    ) -> None:
        self.faults, self.always, self.ranges = deque(faults), always, ranges
        self.modified: float | None = None
        self.replace(content)

    def replace(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def reply(self, request: Request) -> Reply:
        honest = self._honest(request)
        fault = self.faults.popleft() if self.faults else self.always
        return fault(request, honest) if fault else honest

    def _honest(self, request: Request) -> Reply:
        size, asked = len(self.content), request.range
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        headers |= {"ETag": self.etag} if self.etag else {}
        headers |= {"Last-Modified": _http_date(self.modified)} if self.modified else {}
        headers |= {"Accept-Ranges": "bytes"} if self.ranges else {}
        validators = {self.etag, _http_date(self.modified)} if self.modified else {self.etag}
        if not asked or not self.ranges or request.headers.get("if-range", self.etag) not in validators:
            return Reply(200, headers, self.content)
        start, end = asked[0], min(asked[1], size)
        if start >= size:
            return Reply(416, headers | {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
        headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
        return Reply(206, headers, self.content[start:end])


class FaultServer:
    """Serves `files` by path, on plain http or, with `authority`, on https. `requests` is what was asked.

    With `admits` it serves so many at once and turns the others away as `away` says: with that reply, with a
    reset, by letting them wait for their turn, or by never answering. `refused` are those requests.
    """

    def __init__(self, authority: trustme.CA | None = None, name: str = "127.0.0.1") -> None:
        self.files: dict[str, File] = {}
        self.pages: dict[str, Callable[[Request], Reply]] = {}
        self.requests: list[Request] = []
        self.sent: dict[str, int] = {}
        self.now = self.most = 0
        self.admits: int | None = None
        self.away: Reply | Literal["reset", "queue", "stall"] = "reset"
        self._served = 0
        self.refused: list[Request] = []
        self.connections: list[socket.socket] = []
        self.proxied: list[str] = []
        self.name, self._lock, self._stopped = name, threading.Lock(), threading.Event()
        self._context = _context(authority, name) if authority else None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "/file") -> str:
        return f"{'https' if self._context else 'http'}://{self.name}:{self.port}{path}"

    def put(self, content: bytes, *faults: Fault, path: str = "/file", always: Fault | None = None,
            ranges: bool = True) -> File:  # fmt: skip
        self.files[path] = File(content, *faults, always=always, ranges=ranges)
        return self.files[path]

    def close(self) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # or the thread in accept() takes one more
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as reader:
                while request := _read_request(reader):
                    if not self._answer(connection, request):
                        return

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        if request.method == "CONNECT":
            self.proxied.append(request.path)
            return _tunnel(connection, request.path)
        with self._lock:
            self.requests.append(request)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if not self._admit() and not self._turn_away(connection, request):
                return False
            try:
                return self._send(connection, request, self._reply(request))
            finally:
                with self._lock:
                    self._served -= 1
        finally:
            with self._lock:
                self.now -= 1

    def _admit(self) -> bool:
        """Whether there is a place now, or in a moment: it notices a little late that a client has gone."""
        for _ in range(10):
            with self._lock:
                admitted = self.admits is None or self._served < self.admits
                self._served += admitted
            if admitted:
                return True
            self._stopped.wait(0.01)
        return False

    def _turn_away(self, connection: socket.socket, request: Request) -> bool:
        """Whether it may be served after all."""
        self.refused.append(request)
        if isinstance(self.away, Reply):
            self._send(connection, request, self.away)
        if self.away == "reset":
            _reset(connection)
        while self.away in ("queue", "stall") and not _gone(connection):
            if self.away == "queue" and self._admit():
                return True
            self._stopped.wait(0.02)
        return False

    def _reply(self, request: Request) -> Reply:
        path = request.path
        if path.startswith("http://"):  # asked as a proxy
            self.proxied.append(path)
            path = "/" + path.split("/", 3)[3]
        path = path.partition("?")[0]
        if path in self.pages:
            return self.pages[path](request)
        if path in self.files:
            return self.files[path].reply(request)
        return Reply(404, {"Content-Length": "0"})

    def _send(self, connection: socket.socket, request: Request, reply: Reply) -> bool:
        names = {"Date": email.utils.formatdate(usegmt=True), **reply.headers}
        if reply.chunked:
            names = {**reply.without("Content-Length").headers, "Transfer-Encoding": "chunked"}
        head = f"HTTP/1.1 {reply.status} X\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in names.items()) + reply.raw + "\r\n"
        self._trickle(connection, head.encode("latin-1"), reply.slow_headers)
        if request.method == "HEAD":
            return True
        for part in _parts(reply):
            self._stopped.wait(_pause(reply, len(part)))
            if reply.rate and _gone(connection):
                return False
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n" if reply.chunked else part)
            with self._lock:
                self.sent[request.path] = self.sent.get(request.path, 0) + len(part)
        self._stopped.wait(reply.stall)
        return self._end(connection, reply)

    def _trickle(self, connection: socket.socket, head: bytes, seconds: float) -> None:
        if not seconds:
            connection.sendall(head)
            return
        for byte in head:
            connection.sendall(bytes([byte]))
            self._stopped.wait(seconds)

    def _end(self, connection: socket.socket, reply: Reply) -> bool:
        """Whether the connection is kept."""
        if reply.reset:
            _reset(connection)
            return False
        if reply.chunked and reply.keep is None:
            connection.sendall(b"0\r\n\r\n")
        return reply.keep is None and (reply.chunked or "Content-Length" in reply.headers) and not reply.raw


def _reset(connection: socket.socket) -> None:
    """Let its end be an RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def cut(keep: int, reset: bool = False) -> Fault:
    """Sends so many bytes of the body and ends, by FIN or RST."""
    return lambda _, honest: replace(honest, keep=keep, reset=reset)


def rated(rate: float) -> Fault:
    """Sends so many bytes a second."""
    return lambda _, honest: replace(honest, rate=rate)


def status(code: int, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda *_: Reply(code, {"Content-Length": "0", **named})


def redirect(location: str, code: int = 302) -> Fault:
    return status(code, Location=location)


def _parts(reply: Reply) -> Iterator[bytes]:
    body = reply.body if reply.keep is None else reply.body[: reply.keep]
    step = reply.drip[0] if reply.drip else 16 << 10 if reply.rate else 64 << 10
    return (body[start : start + step] for start in range(0, len(body), step))


def _pause(reply: Reply, count: int) -> float:
    if reply.drip:
        return reply.drip[1]
    return count / reply.rate if reply.rate else 0


def _gone(connection: socket.socket) -> bool:
    """Whether the client has closed its end: such a connection counts no longer."""
    ready, _, _ = select.select([connection], [], [], 0)
    return (
        bool(ready) and not isinstance(connection, ssl.SSLSocket) and not connection.recv(1, socket.MSG_PEEK)
    )


def _http_date(when: float | None) -> str:
    return email.utils.formatdate(when, usegmt=True)


def _context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def _read_request(reader) -> Request | None:
    line = reader.readline(65536).decode("latin-1").split()
    if len(line) != 3:
        return None
    headers = {}
    while (text := reader.readline(65536).decode("latin-1").strip()) != "":
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Request(line[0], line[1], headers, time.monotonic())


def _tunnel(client: socket.socket, target: str) -> bool:
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port))) as server:
        client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        while True:
            ready, _, _ = select.select([client, server], [], [], 10)
            for one in ready:
                data = one.recv(65536)
                if not data:
                    return False
                (server if one is client else client).sendall(data)
            if not ready:
                return False
