"""Text from a file or a pipe, to go with a prompt. Knows no conversation."""

import re
import shlex
from pathlib import Path

from mdl.errors import DiskError, NotFound, UsageError

LARGEST = 1_000_000  # bytes: more text than the contexts of most models hold

_IMAGES = {
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a WebP image or sound",
}
_OTHERS = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a zip archive or an office document",
    b"\x1f\x8b": "compressed",
    b"GGUF": "a model",
    b"\x7fELF": "a program",
}


def read(written: str) -> tuple[str, str]:
    """The name and the text of a file, as it is typed or dropped on a terminal.

    Raises NotFound, DiskError, and UsageError for what is no text or too large.
    """
    try:
        path = _path(written)
        if not path.is_file():
            raise NotFound(
                f"{path} is {'a folder' if path.is_dir() else 'not there'}", hint="name a text file"
            )
        with path.open("rb") as file:
            return path.name, text(file.read(LARGEST + 1), path.name)
    except (ValueError, RuntimeError):  # a NUL in it, ~nobody
        raise NotFound(f"{written!r:.80} is no path", hint="name a text file") from None
    except OSError as error:
        raise DiskError(
            f"{written:.200} cannot be read: {error.strerror}", hint="check its permissions"
        ) from None


def text(data: bytes, name: str) -> str:
    """What `data` says. Raises UsageError, with what it is, for all but text of at most LARGEST bytes."""
    for mark, kind in _IMAGES.items():
        if data.startswith(mark):
            raise UsageError(f"{name} is {kind}: images are not supported yet", hint="attach text")
    for mark, kind in _OTHERS.items():
        if data.startswith(mark):
            raise UsageError(f"{name} is {kind}, not text", hint="attach text, or convert it first")
    if len(data) > LARGEST:
        raise UsageError(f"{name} is larger than {LARGEST:,} bytes", hint="attach a part of it")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        decoded = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not text: byte {error.start:,} is not valid {encoding[:6].upper().rstrip('-')}",
            hint="attach text, in UTF-8",
        ) from None
    if "\0" in decoded:
        raise UsageError(f"{name} is binary, not text", hint="attach text")
    return decoded


def within(prompt: str, attachments: tuple[tuple[str, str], ...]) -> str:
    """The prompt, followed by each attachment between fences that it does not have inside."""
    return "\n\n".join([prompt, *(_fenced(name, content) for name, content in attachments)])


def _path(written: str) -> Path:
    path = Path(written).expanduser()
    if path.exists():
        return path
    try:
        words = shlex.split(written)  # terminals quote what is dropped on them
    except ValueError:
        return path
    return Path(words[0]).expanduser() if len(words) == 1 else path


def _fenced(name: str, content: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", content)), default=2)
    fence = "`" * (longest + 1)
    return f"{name}:\n{fence}\n{content.rstrip()}\n{fence}"
