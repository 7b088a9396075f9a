"""The header of a GGUF file on the other side of the world, by requests for ranges. Never reads the weights.

A header with a large vocabulary takes 5 to 15 MB, and nothing says so before it ends: longer and longer
beginnings are asked for until the reader is content.
"""

import threading
from functools import partial

from mdl import gguf
from mdl.address import Remote, shown
from mdl.connection import SYSTEM, Trust
from mdl.errors import NetworkError, UnsupportedModel
from mdl.header import FIRST_READ, NeedMore
from mdl.remote import Client, Limits
from mdl.response import Answer

MOST_READ = 32 << 20  # bytes for all headers of a model together
_CHUNK = 1 << 16
PART = 1 << 16  # bytes that hold the header of most parts of a split model: only the first has a vocabulary
_LIMITS = Limits(retries=3, backoff=0.5, longest_wait=30)  # somebody waits


class Ranges:
    """Beginnings of files. `read` counts the bytes that were taken for them. For several threads."""

    def __init__(self, trust: Trust = SYSTEM) -> None:
        self.read = 0
        self._counting = threading.Lock()
        self._client = Client(_LIMITS, trust=trust)

    def header(self, remote: Remote, size: int | None, first: int = FIRST_READ) -> gguf.Header:
        """The header of a file of `size` bytes.

        Raises UnsupportedModel for a damaged one, or when that took more than `MOST_READ` bytes; NotFound,
        AuthError, NetworkError.
        """
        prefix, wanted = b"", first
        while True:
            wanted = wanted if size is None else min(wanted, size)
            prefix += self._client.patiently(partial(self._piece, remote, len(prefix), wanted - len(prefix)))
            try:
                return gguf.parse(prefix, size)
            except NeedMore as short:
                if len(prefix) < wanted:
                    raise UnsupportedModel("the file ends within its header", "try again later") from None
                wanted = max(short.n, 2 * len(prefix))

    def _piece(self, remote: Remote, start: int, size: int) -> bytes:
        """`size` bytes from `start`, fewer at the end of the file."""
        answer = self._client.open(remote, {"Range": f"bytes={start}-{start + size - 1}"})
        try:
            answer.refuse_coding()
            if answer.status == 200:  # no ranges here: it is read from its start, and no further than needed
                return self._take(answer, start + size)[start:]
            if (answer.extent or (None,))[0] != start:
                raise NetworkError(
                    f"{shown(answer.url)} sent another part of the file than was asked for", "try again later"
                )
            return self._take(answer, size)
        finally:
            answer.close()

    def _take(self, answer: Answer, size: int) -> bytes:
        if self.read + size > MOST_READ:
            raise UnsupportedModel(
                f"its header takes more than {MOST_READ >> 20} MiB", "download it to see it"
            )
        body = bytearray()
        while len(body) < size and (data := answer.read(min(size - len(body), _CHUNK))):
            body += data
            with self._counting:
                self.read += len(data)
        return bytes(body)
