"""Where a conversation is seen: an answer as it comes, notes and errors. Knows no engine and no commands.

The answer goes to `out`, all else to `err`. In a pipe the answer is what the model said, as UTF-8, unchanged:
a program wants all of it, and knows no escape sequences. On a terminal, what could control one is made inert.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from mdl.chat.inline import DIM
from mdl.chat.markdown import Markdown
from mdl.chat.wrap import RESET, Lines
from mdl.engine.request import Delta
from mdl.errors import MdlError
from mdl.ui import inert, width

CLOSED_PIPE = 141  # 128 + SIGPIPE, which Python does not let end it
NARROWEST = 20  # columns


class Sink(Protocol):
    """Takes an answer piece by piece."""

    def put(self, delta: Delta) -> None: ...

    def end(self) -> None: ...


class Pipe:
    """Takes the answer alone, without the reasoning, and ends it with a newline."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = "\n"

    def put(self, delta: Delta) -> None:
        if delta.text:
            self._write(delta.text)

    def end(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        self._last = text[-1]
        self._out.flush()
        self._out.buffer.write(text.encode("utf-8", "replace"))
        self._out.buffer.flush()


class Screen:
    """Draws the reasoning dim and the answer's Markdown, as they come."""

    def __init__(self, terminal: "Terminal") -> None:
        self._terminal = terminal
        styled = terminal.color
        self._thought = Markdown(terminal.columns, styled=False, base=DIM if styled else "")
        self._answer = Markdown(terminal.columns, styled=styled)
        self._now: Markdown | None = None

    def put(self, delta: Delta) -> None:
        if delta.reasoning:
            self._draw(self._thought, delta.reasoning)
        if delta.text:
            self._draw(self._answer, delta.text)

    def end(self) -> None:
        if self._now is not None:
            self._terminal.write(self._now.end() + "\n")

    def _draw(self, part: Markdown, text: str) -> None:
        if self._now is not part:
            self._terminal.write(self._between(part))
            self._now = part
        self._terminal.write(part.feed(inert(text.replace("\r", ""))))

    def _between(self, part: Markdown) -> str:
        """Without colour the reasoning needs words to tell where it begins and ends."""
        self._terminal.clear()
        plain = not self._terminal.color
        if part is self._thought:
            return "Thinking…\n" if plain else ""
        if self._now is None:
            return ""
        return f"{self._now.end()}\n{'…done thinking.' if plain else ''}\n" + ("\n" if plain else "")


@dataclass(slots=True)
class Terminal:
    """The two streams of a conversation. `color` is whether a terminal may get escape sequences (NO_COLOR,
    TERM=dumb); what is no terminal never does."""

    out: TextIO
    err: TextIO
    color: bool
    _status: bool = field(default=False, init=False)

    def sink(self) -> Sink:
        """For one answer."""
        return Screen(self) if self.out.isatty() else Pipe(self.out)

    def abandon(self) -> int:
        """The exit code when whoever read `out` has gone. What is left in its buffer goes nowhere, or the
        interpreter would complain at its end."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())
        return CLOSED_PIPE

    def columns(self) -> int:
        """Asked for each word, as a window may change its size at any time."""
        try:
            columns = os.get_terminal_size(self.out.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        return max(columns or 80, NARROWEST)

    def write(self, text: str) -> None:
        _write(self.out, text)

    def ask(self, text: str) -> None:
        """What stands before the cursor while a person types."""
        self._tell(text)

    def gap(self) -> None:
        """An empty line between turns, which belongs to no answer."""
        if self.out.isatty():
            self.write("\n")

    def say(self, text: str) -> None:
        """What a command tells: plain lines."""
        self._talk(text, "")

    def show(self, rows: tuple[tuple[str, str], ...]) -> None:
        """A table of two columns, the second of which wraps."""
        self.clear()
        first = max(width(name) for name, _ in rows) + 2
        lines = Lines(self.columns)
        lines.hang = " " * first
        for name, text in rows:
            start = name + " " * (first - width(name))
            for line in inert(text).splitlines() or [""]:
                lines.put(start)
                lines.words(line)
                lines.newline()
                start = lines.hang
        self._tell(lines.take())

    def note(self, text: str) -> None:
        """Something said in passing."""
        self._talk(text, DIM)

    def fail(self, error: MdlError) -> None:
        """The cause on a line, what to do on the next."""
        self._talk(f"mdl: {inert(error.message, one_line=True)}", "")
        if error.hint:
            self._talk(error.hint, DIM)

    def status(self, text: str) -> None:
        """What is being waited for, until `clear`."""
        if self.color and self.err.isatty():
            self.clear()
            self._status = True
            self._tell(f"{DIM}{inert(text)}{RESET}")

    def clear(self) -> None:
        if self._status:
            self._status = False
            self._tell("\r\x1b[K")

    def _tell(self, text: str) -> None:
        """Where nobody can hear it, the conversation goes on."""
        with suppress(OSError):
            _write(self.err, text)

    def _talk(self, text: str, style: str) -> None:
        """Lines for a person, wrapped and in style; for a file or a program, as they are."""
        self.clear()
        text = inert(text)
        if self.err.isatty():
            drawn = Markdown(self.columns, styled=False, base=style if self.color else "")
            text = drawn.feed(text) + drawn.end()
        self._tell(f"{text}\n")


def _write(stream: TextIO, text: str) -> None:
    """What the stream's encoding does not have becomes a question mark."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
