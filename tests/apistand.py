"""An API that answers as it is told to, on loopback, and remembers what it was asked: OpenAI's or Azure's
addresses, whichever are asked for.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

EVENTS = "text/event-stream; charset=utf-8"


class Asked(NamedTuple):
    """A request; the names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """A status, headers, and pieces of a body. `cut`: the connection ends there, without the body's end."""

    pieces: Iterable[bytes] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def answer(content: Any, status: int = 200, **headers: str) -> Reply:
    """JSON."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([json.dumps(content).encode()], status, {"content-type": "application/json", **named})


def failure(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return answer({"error": error}, status, **headers)


def chunk(text: str = "", finish: str | None = None, **delta: Any) -> bytes:
    """An event of a streamed chat completion."""
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def stream(*pieces: bytes, cut: bool = False) -> Reply:
    return Reply(pieces, headers={"content-type": EVENTS}, cut=cut)


def said(*texts: str) -> Reply:
    """A whole streamed answer."""
    return stream(*map(chunk, texts), chunk(finish="stop"), b"data: [DONE]\n\n")


class Stand:
    """Gives the replies in the order in which they were prepared, the last one again and again. `sent` counts
    the bytes of bodies, and `gone` is set when somebody leaves in the middle of an answer."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.replies: list[Reply] = []
        self.sent = 0
        self.gone = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def gives(self, *replies: Reply) -> Self:
        """From now on; what was asked before is forgotten."""
        self.replies, self.asked, self.sent = list(replies), [], 0
        self.gone.clear()
        return self

    def next(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def _handler(stand: Stand) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            stand.asked.append(Asked(self.command, self.path, headers, body))
            self._give(stand.next())

        def _give(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            try:
                for piece in reply.pieces:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    stand.sent += len(piece)
                if not reply.cut:
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = reply.cut
            except OSError:
                stand.gone.set()
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    return Handler
