"""What can go wrong, one class for each exit code. Knows no terminal: `cli` catches these once.

MdlError            1  anything else that is not a bug
├── UsageError      2  a bad reference, option or value
│   └── TooLong     2  more than the model's context has room for
├── NotFound        3  no such model, version, file or revision
├── AuthError       4  a token is missing, wrong or not enough
├── NetworkError    5  still failing after the retries
├── IntegrityError  6  the bytes are not what was promised
├── DiskError       7  full, read-only, no permission
├── Busy            8  in use, locked, timed out
├── UnsupportedModel 9 unreadable, damaged, or of a kind that cannot run here
└── EngineError    10  the process that ran the model died
"""

from collections.abc import Iterator
from contextlib import contextmanager

OFFLINE = "leave out --offline, or see what else says so: mdl config show"  # a hint


class MdlError(Exception):
    """A failure that a person can act on: one line for the cause, one for what to do. `field` is what of a
    request is wrong, by its name in `engine.request`, where that is known."""

    code = 1

    def __init__(self, message: str, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field


class UsageError(MdlError):
    code = 2


class TooLong(UsageError):
    """A prompt, or another text, that does not fit into what the model can see at once."""


class NotFound(MdlError):
    code = 3


class AuthError(MdlError):
    code = 4


class NetworkError(MdlError):
    code = 5


class IntegrityError(MdlError):
    code = 6


class DiskError(MdlError):
    code = 7


class Busy(MdlError):
    code = 8


class UnsupportedModel(MdlError):
    code = 9


class EngineError(MdlError):
    code = 10


@contextmanager
def about(field: str) -> Iterator[None]:
    """What is refused inside is refused for this field of a request, unless it says another one."""
    try:
        yield
    except UsageError as error:
        error.field = error.field or field
        raise
