"""Emphasis and code within a line of Markdown, as it comes. Knows no lines, lists or tables."""

import re

from mdl.chat.wrap import Lines, is_wide

BOLD, DIM, ITALIC, STRIKE, CODE = (f"\x1b[{n}m" for n in (1, 2, 3, 9, 36))
LONGEST_SPAN = 400  # characters that wait for emphasis to close

_SPAN = re.compile(
    r"(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
    r"|(?P<two>\*\*|__)(?=\S)(?P<bold>.+?)(?<=\S)(?P=two)(?![*_])"
    r"|(?P<one>[*_])(?![\s*_])(?P<italic>[^*_]*[^\s*_])(?P=one)(?![*_\w])"
    r"|~~(?=\S)(?P<strike>[^~]+)(?<=\S)~~"
)
_MARKS = re.compile(r"`+|[*_]+|~+")
_OPENING = "([{\"'“‘«「（"  # emphasis may begin after these


class Inline:
    """Emphasis and code within lines."""

    def __init__(self, lines: Lines, styled: bool) -> None:
        self.lines = lines
        self.styled = styled
        self.style = ""
        self._opens = True  # a span may begin here

    def begin(self, style: str) -> None:
        self.style, self._opens = style, True

    def feed(self, text: str, whole: bool) -> int:
        """Draws what is decided of a line's rest, and says how many characters that was."""
        at = 0
        while at < len(text) and (size := self._draw(text, at, whole)):
            at += size
        return at

    def _draw(self, text: str, at: int, whole: bool) -> int:
        character = text[at]
        if character in " \t":
            self.lines.space(character)
            self._opens = True
            return 1
        if character == "`" or (character in "*_~" and self._opens):
            return self._draw_marked(text, at, whole)
        self.lines.put(character, self.style)
        self._opens = character in _OPENING
        if is_wide(character):
            self._opens = True
            self.lines.flush()
        return 1

    def _draw_marked(self, text: str, at: int, whole: bool) -> int:
        """A span, or its marks where it is none; nothing while it may become one."""
        marks = _MARKS.match(text, at)
        assert marks, "called where there are some"
        end = marks.end()
        if end == len(text) and not whole:
            return 0
        found = _SPAN.match(text, at, at + LONGEST_SPAN) if _may_open(marks[0], text[end : end + 1]) else None
        if found and (whole or found.end() < len(text)):
            self._draw_span(found)
            return found.end() - at
        if not whole and _may_open(marks[0], text[end : end + 1]) and len(text) - at < LONGEST_SPAN:
            return 0
        self.lines.put(marks[0], self.style)
        self._opens = False
        return end - at

    def _draw_span(self, found: "re.Match[str]") -> None:
        kind = found.lastgroup or ""
        if not self.styled:
            self.lines.words(found[0], self.style)
        elif kind == "code":
            self.lines.words(found["code"].strip(), self.style + CODE)
        else:
            outer = self.style
            self.begin(outer + {"bold": BOLD, "italic": ITALIC, "strike": STRIKE}[kind])
            self.feed(found[kind], whole=True)
            self.style = outer
        self._opens = False


def _may_open(marks: str, following: str) -> bool:
    return marks[0] == "`" or (not following.isspace() and (marks[0] != "~" or marks == "~~"))
