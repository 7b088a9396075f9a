"""Markdown, drawn as it streams: text in, text for a terminal out. Knows no terminal but its width.

Nothing is drawn twice, so that there is no flicker, and resizing or scrolling harms nothing: a word appears
when it is whole, emphasis when it closes, a line of code when it ends, a table when it is over. However the
text is cut into pieces, the same is drawn.

It is the Markdown that models write, not all of CommonMark: what is not known here stays as it is.
"""

import re
from collections.abc import Callable

from mdl.chat import table
from mdl.chat.inline import BOLD, CODE, DIM, Inline
from mdl.chat.wrap import Lines

# The start of a line that may still become something else than a paragraph.
_UNDECIDED = re.compile(r"[ \t]*(?:#{0,6}|[-*_+]*|\d{0,9}[.)]?|>|`{0,2}|```.*|~{0,2}|~~~.*|\|.*)")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[^`]*")
_RULE = re.compile(r"[ \t]*([-*_])\1{2,}[ \t]*")
_HEADING = re.compile(r"[ \t]*(#{1,6})[ \t]")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])[ \t]")
_QUOTE = re.compile(r"([ \t]*)>[ \t]?")
_INDENT = re.compile(r"[ \t]*")


class Markdown:
    """`feed` it an answer piece by piece and write what it returns; then `end`.

    Not `styled`, it wraps words and changes nothing else. `base` is a style for all of it.
    """

    def __init__(self, columns: Callable[[], int], styled: bool = True, base: str = "") -> None:
        self._columns = columns
        self._styled = styled
        self._base = base
        self._lines = Lines(columns)
        self._inline = Inline(self._lines, styled)
        self._held = ""
        self._within = False  # a line whose beginning is drawn
        self._fence = ""
        self._table: list[str] = []

    def feed(self, text: str) -> str:
        self._held += text
        while self._advance(over=False):
            pass
        return self._lines.take()

    def end(self) -> str:
        """What was held back. The last line is not ended."""
        while self._held and self._advance(over=True):
            pass
        self._draw_table()
        self._lines.flush()
        return self._lines.take()

    def _advance(self, over: bool) -> bool:
        line, newline, _ = self._held.partition("\n")
        whole = bool(newline) or over
        if not self._within:
            return (whole or self._is_decided(line)) and self._begin(line, bool(newline), whole)
        used = self._inline.feed(line, whole)
        if whole:
            return self._consume(used, bool(newline))
        self._held = self._held[used:]
        return False

    def _is_decided(self, line: str) -> bool:
        return not self._fence and not _UNDECIDED.fullmatch(line)

    def _begin(self, line: str, newline: bool, whole: bool) -> bool:
        if self._fence or (whole and (_FENCE.fullmatch(line) or _RULE.fullmatch(line))):
            self._draw_table()
            self._draw_whole(line)
            return self._consume(len(line), newline)
        if self._styled and line.lstrip().startswith("|"):
            self._table.append(self._held[: len(line) + newline])
            self._held = self._held[len(line) + newline :]
            return newline
        self._draw_table()
        self._held = self._held[self._open(line) :]
        self._within = True
        return True

    def _consume(self, size: int, newline: bool) -> bool:
        """The end of a line."""
        self._held = self._held[size + newline :]
        if newline:
            self._lines.newline()
            self._within = False
        return newline

    def _draw_whole(self, line: str) -> None:
        """A line that is not wrapped: code, its fences, a rule."""
        mark = _FENCE.fullmatch(line)
        style = CODE if self._fence and self._styled else self._base
        if mark and self._closes(mark[1], line):
            self._fence = "" if self._fence else mark[1]
            style = self._base + DIM if self._styled else self._base
        elif not self._fence and self._styled:
            line, style = "─" * min(self._columns(), 40), DIM
        if line:
            self._lines.put(line, style)

    def _closes(self, marks: str, line: str) -> bool:
        """Whether a fence ends the code, or, outside of one, begins it."""
        return not self._fence or (marks.startswith(self._fence) and line.strip() == marks)

    def _open(self, line: str) -> int:
        """Draws how a line begins, and says how many characters of it that was."""
        lines, style = self._lines, self._base
        lines.hang = ""
        if not self._styled:
            indent = _INDENT.match(line)
            lines.put(indent[0] if indent else "", style)
            size = indent.end() if indent else 0
        elif heading := _HEADING.match(line):
            style += BOLD
            size = heading.end()
        elif item := _ITEM.match(line):
            mark = "•" if item[2] in "-*+" else item[2]
            lines.put(f"{item[1]}{mark}", style)
            lines.flush()
            lines.space()
            lines.hang = " " * (len(item[1].expandtabs(4)) + len(mark) + 1)
            size = item.end()
        elif quote := _QUOTE.match(line):
            lines.put("│", style + DIM)
            lines.flush()
            lines.space()
            lines.hang = "│ "
            size = quote.end()
        else:
            indent = _INDENT.match(line)
            lines.hang = (indent[0] if indent else "").expandtabs(4)
            if lines.hang:
                lines.put(lines.hang)
            size = indent.end() if indent else 0
        self._inline.begin(style)
        return size

    def _draw_table(self) -> None:
        rows, self._table = self._table, []
        for row, drawn in zip(
            rows, table.draw([row.rstrip("\n") for row in rows], self._columns()), strict=True
        ):
            self._lines.put(drawn)
            if row.endswith("\n"):
                self._lines.newline()
