"""What people and scripts see: tables, questions, errors, JSON. Knows no models.

Data goes to stdout, talk to stderr. What comes from files, servers and models is made inert first.
"""

import contextlib
import json as json_module
import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from mdl.errors import DiskError, MdlError

NARROWEST = 12  # columns of a name that still tells something
SOME_WORDS = 24  # columns of a sentence that still do
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
AGES = (
    ("year", 31557600),
    ("month", 2629800),
    ("week", 604800),
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
)
_INERT = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class Unwritable(DiskError):
    """Where the data should go does not take them."""


def out(text: str, end: str = "\n") -> None:
    """Data, for people and programs. Raises Unwritable: nobody should miss some of it unknowingly."""
    try:
        _write(sys.stdout, text + end)
    except OSError as failure:
        raise _unwritable(failure) from None


def talk(text: str, end: str = "\n") -> None:
    """What is said beside the data. Where nobody can hear it, the work goes on."""
    try:
        _write(sys.stderr, text + end)
    except OSError:
        _silence(sys.stderr)


def end_line() -> None:
    """After Ctrl-C: what a shell asks next begins on a line of its own."""
    if sys.stderr is not None and sys.stderr.isatty():
        talk("")


def show_json(document: dict[str, Any]) -> None:
    out(as_json({"schema": 1, **document}, indent=2))


def as_json(document: dict[str, Any], indent: int | None = None) -> str:
    """JSON that reads well in all languages; what could fool a terminal is escaped, which parses back."""
    text = json_module.dumps(document, indent=indent, ensure_ascii=not _takes_utf8(sys.stdout), default=str)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(json_module.dumps(c)[1:-1] if _is_hidden(c) or "\x7f" <= c < "\xa0" else c for c in text)


def _takes_utf8(stream: TextIO) -> bool:
    """JSON in any other encoding would be no JSON (RFC 8259, 8.1)."""
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def told(failure: MdlError) -> dict[str, Any]:
    """A failure as JSON has it."""
    message, hint = inert(failure.message, one_line=True), inert(failure.hint)
    return {"code": failure.code, "message": message, "hint": hint}


def error(failure: MdlError, *, json: bool) -> None:
    """A failure: the cause on one line, what to do on the next."""
    body = told(failure)
    if json and not isinstance(failure, Unwritable):
        with contextlib.suppress(Unwritable):
            return out(as_json({"error": body}))
    return talk(f"mdl: {body['message']}" + (f"\n{body['hint']}" if body["hint"] else ""))


def refused(failure: OSError, *, json: bool) -> int:
    """The exit code for what the system refused where nobody expected it, told like any failure."""
    if failure.filename:
        is_gone = isinstance(failure, FileNotFoundError)
        hint = "something may have removed it meanwhile: try again" if is_gone else "check its permissions"
        told: MdlError = DiskError(f"{failure.strerror}: {failure.filename}", hint=hint)
    else:
        told = _unwritable(failure)
    error(told, json=json)
    return told.code


def _unwritable(failure: OSError) -> Unwritable:
    _silence(sys.stdout)
    if isinstance(failure, BrokenPipeError):
        # Whoever read has gone (`| head -1`): end like every tool that a closed pipe ends, without a word.
        raise SystemExit(141) from None
    return Unwritable(f"the output cannot be written: {failure.strerror}", hint="check where it goes to")


def confirm(question: str) -> bool:
    """Ask a person, who says no by just pressing Enter."""
    talk(f"{inert(question)} [y/N] ", end="")
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        talk("")
    return answer.strip().lower() in ("y", "yes")


def choose(question: str, answers: Sequence[str]) -> int | None:
    """Ask a person for one of several; None from one who names none."""
    talk(inert(question))
    for number, answer in enumerate(answers, 1):
        talk(f"  {number}. {inert(answer, one_line=True)}")
    talk(f"Number, 1 to {len(answers)}: ", end="")
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        talk("")
    text = answer.strip()
    return int(text) - 1 if text.isdecimal() and 1 <= int(text[:9]) <= len(answers) else None


def is_interactive() -> bool:
    """Whether a person is there to answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def inert(text: str, *, one_line: bool = False) -> str:
    """Text from outside, so that it cannot move a terminal's cursor, hide itself or change direction."""
    if not text.isascii() or not text.isprintable():
        text = text.translate(_INERT)
        text = "".join(f"\\u{ord(c):04x}" if _is_hidden(c) else c for c in text)
    return " ".join(text.split()) if one_line else text


def _is_hidden(character: str) -> bool:
    hidden = unicodedata.category(character) in {"Cf", "Cs", "Co", "Zl", "Zp"}
    return hidden and character not in "\u200d\u200c"  # these two join letters and emoji


def size(count: int | None) -> str:
    """Bytes as people read them, in powers of 1000: 4.1 GB."""
    if count is None:
        return "-"
    number, unit = float(count), 0
    while number >= 999.5 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {UNITS[unit]}" if unit == 0 or number >= 99.95 else f"{number:.1f} {UNITS[unit]}"


def amount(count: int | None) -> str:
    """A number of parameters as people say it: 7.2B."""
    if count is None:
        return "-"
    for unit, one in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= one:
            return f"{count / one:.1f}{unit}".replace(".0", "")
    return str(count)


def ago(moment: datetime, now: datetime | None = None) -> str:
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for unit, length in AGES:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def ahead(moment: datetime, now: datetime | None = None) -> str:
    """How long it is until then, as "4 minutes from now"."""
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    for unit, length in AGES:
        if seconds >= length:
            count = round(seconds / length)
            return f"{count} {unit}{'s' if count > 1 else ''} from now"
    return f"{max(0, round(seconds))} seconds from now"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), *, prose: bool = False
) -> None:
    """Columns without borders. Where a terminal is too narrow, and only there, they are made to fit: of
    `prose` in the last column the beginning stays, as long as there is room for some words."""
    lines = [list(head), *([inert(cell, one_line=True) for cell in row] for row in rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(head))]
    if sys.stdout.isatty():
        if prose:
            room = columns() - sum(widths[:-1]) - 2 * (len(widths) - 1)
            widths[-1] = min(widths[-1], max(room, SOME_WORDS))
            lines = [[*line[:-1], clipped(line[-1], widths[-1])] for line in lines]
        widths = fitted(widths, columns())
    for line in lines:
        cells = [
            _pad(shorten(cell, wide), wide, column in right)
            for column, (cell, wide) in enumerate(zip(line, widths, strict=False))
        ]
        out("  ".join(cells).rstrip())


def fitted(widths: list[int], available: int) -> list[int]:
    """Widths of columns that fit: the last ones go where there is no room, then the first becomes shorter."""
    while len(widths) > 2 and NARROWEST + sum(widths[1:]) + 2 * (len(widths) - 1) > available:
        widths = widths[:-1]
    rest = sum(widths[1:]) + 2 * (len(widths) - 1)
    return [max(min(widths[0], available - rest), NARROWEST), *widths[1:]]


def columns() -> int:
    return shutil.get_terminal_size().columns


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def shorten(text: str, wide: int) -> str:
    """The end of a name tells more than its beginning: the host goes first."""
    if width(text) <= wide:
        return text
    while text and width(text) > wide - 1:
        text = text[1:]
    return "…" + text


def clipped(text: str, wide: int) -> str:
    """The beginning of a sentence."""
    if width(text) <= wide:
        return text
    while text and width(text) > wide - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def _pad(text: str, wide: int, right: bool) -> str:
    space = " " * (wide - width(text))
    return space + text if right else text + space


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a terminal or pipe that is not UTF-8
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _silence(stream: TextIO) -> None:
    """Let what could not be written go nowhere, or the interpreter tries and complains again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
