"""A client that keeps many streams of server-sent events apart and looks at nothing but when they move.

One thread, which asks the system which sockets have something to read: in Python nothing takes less time
from the servers that it measures, which run on the same machine.
"""

import json
import re
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any

_SAYS = re.compile(rb'"(?:content|reasoning_content|text)": ?"[^"]')
_ENDS = re.compile(rb'"finish_reason": ?"length"')
_DONE = b"data: [DONE]"
PATIENCE = 600.0


class Answer:
    """When it was asked, and when each piece of text arrived; seconds."""

    def __init__(self, body: dict[str, Any], after: int = 0) -> None:
        self.tokens = int(body["max_tokens"])
        self.after = after  # asked only when that many of the others have begun
        self.sent = 0.0
        self.arrivals: list[float] = []
        self._request = _request({**body, "stream": True})
        self._tail = b""

    @property
    def first(self) -> float:
        """Seconds from asking to the first piece."""
        return self.arrivals[0] - self.sent

    @property
    def whole(self) -> float:
        return self.arrivals[-1] - self.sent

    @property
    def pace(self) -> float:
        """Seconds between two tokens, after the first."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Between two pieces, however many tokens are in one."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    def ask(self, connection: socket.socket) -> None:
        self.sent = time.perf_counter()
        connection.sendall(self._request)

    def hear(self, connection: socket.socket) -> bool:
        """Whether that was the last. Raises AssertionError for an answer that is not of full length."""
        data = connection.recv(1 << 16)
        now = time.perf_counter()
        if _SAYS.search(data):
            self.arrivals.append(now)
        self._tail = self._tail[-600:] + data
        done = _DONE in self._tail
        assert data or done, self._tail
        assert not done or (_ENDS.search(self._tail) and self.arrivals), self._tail
        return done


def ask(port: int, answers: Sequence[Answer]) -> float:
    """Asks for all; the seconds from the first question to the last end."""
    with selectors.DefaultSelector() as selector:
        for answer in answers:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ, answer)
        start, open_ones = time.perf_counter(), len(answers)
        _begin(selector, answers)
        while open_ones:
            ready = selector.select(PATIENCE)
            assert ready, "nothing comes any more"
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if key.data.hear(key.fileobj):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    open_ones -= 1
            _begin(selector, answers)
        return time.perf_counter() - start


def _begin(selector: selectors.BaseSelector, answers: Sequence[Answer]) -> None:
    """Sends what may be sent by now."""
    if all(answer.sent for answer in answers):
        return
    begun = sum(bool(answer.arrivals) for answer in answers)
    for key in list(selector.get_map().values()):
        if not key.data.sent and key.data.after <= begun:
            assert isinstance(key.fileobj, socket.socket)
            key.data.ask(key.fileobj)


def _request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
