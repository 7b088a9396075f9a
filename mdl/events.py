"""Server-sent events, read line by line with bounds. Pure: knows no network and no JSON.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Iterable, Iterator

from mdl.errors import NetworkError

LONGEST = 4 << 20  # bytes of one event
LARGEST = 256 << 20  # bytes of all of them


def data(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The data of each event, of a stream that comes in pieces. What is cut off in the middle is none.

    Raises NetworkError for a stream, or an event in it, that has no end.
    """
    found: list[bytes] = []
    size = 0
    for line in _lines(pieces):
        if line.startswith(b"data:"):
            found.append(line[5:].removeprefix(b" "))
            size += len(line)
            if size > LONGEST:
                raise _endless("an event")
        elif not line and found:
            yield b"\n".join(found)
            found, size = [], 0


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines end with a newline, a carriage return, or both."""
    rest, total, returned = bytearray(), 0, False
    for piece in filter(None, pieces):
        total += len(piece)
        if total > LARGEST:
            raise _endless("an answer")
        plain = piece.removeprefix(b"\n") if returned else piece  # of both, the return was in the last piece
        returned = plain.endswith(b"\r")
        rest += plain
        if b"\n" not in plain and b"\r" not in plain:
            if len(rest) > LONGEST:
                raise _endless("a line")
            continue
        *lines, last = bytes(rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = bytearray(last)
        yield from lines


def _endless(what: str) -> NetworkError:
    return NetworkError(f"the API sends {what} that is too long", hint="it is at fault: try another")
