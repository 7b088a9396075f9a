"""What a server answers: the body as it comes, and what the headers say of it that can be believed."""

import datetime
import email.utils
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mdl.address import Remote, shown
from mdl.errors import NetworkError
from mdl.trouble import AT_FAULT, network_errors

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_PLAIN_CODINGS = frozenset({"", "identity", "none", "binary", "aws-chunked"})
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(frozen=True, slots=True)
class Response:
    """A small answer, read whole. `headers` has lower-case names; `url` is where the redirects led."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    url: str = field(repr=False)


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
        with network_errors(self.url):
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
                f"{shown(self.url)} sent a Content-Length that is no length: {text[:40]!r}", AT_FAULT
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
                AT_FAULT,
            )


def read_whole(answer: Answer, max_bytes: int) -> bytes:
    body = read_up_to(answer, max_bytes + 1)
    if len(body) > max_bytes:
        raise NetworkError(
            f"{shown(answer.url)} sent more than {max_bytes} bytes where little was expected", AT_FAULT
        )
    return body


def read_up_to(answer: Answer, size: int) -> bytes:
    body = bytearray()
    while len(body) < size and (data := answer.read(min(size - len(body), 64 << 10))):
        body += data
    return bytes(body)


def retry_after(text: str | None) -> float | None:
    """Seconds that a Retry-After asks for (RFC 9110 10.2.3), None for nonsense."""
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return float(text)
    when = _date(text)
    return max((when - datetime.datetime.now(datetime.UTC)).total_seconds(), 0) if when else None


def _date(text: str | None) -> datetime.datetime | None:
    try:
        when = email.utils.parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
