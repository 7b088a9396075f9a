"""JSON as people write it by hand, read without guessing. Pure: knows no files and no models.

Read beside strict JSON: comments (//, /* */ and #), a comma after the last value, no comma between two
values, and texts in single quotes. What strict JSON means is read the same; everything else is an error with
its place. Numbers are finite, and what is nested too deeply is an error, so that no text can do harm.
"""

import json
import math
import re
from json import decoder
from typing import Any

DEEPEST = 64  # lists and objects in each other
LONGEST_NUMBER = 308  # characters; a whole number of these is one that fits into a float too
_scan = decoder.scanstring  # type: ignore[attr-defined]  # reads texts exactly as json does
_SPACE = r"(?:[ \t\r\n]+|//[^\n]*|\#[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)*"
_NUMBER = r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![\w.+-])"
_WORDS = {"true": True, "false": False, "null": None}
_WORD = r"(true|false|null)(?![\w.+-])"
_QUOTED = r"'((?:[^'\\\x00-\x1f]|\\.)*)'"  # a text in single quotes; what is escaped in it is read later


class Malformed(ValueError):
    """A text that is no JSON, not even of this kind. Lines and columns count from 1."""

    def __init__(self, what: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {what}")
        self.what, self.line, self.column = what, line, column


def loads(text: str) -> Any:
    """What a text says. Raises Malformed. Of keys that are given twice the last one counts."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1 if text.startswith("\ufeff") else 0
        self.space = re.compile(_SPACE)

    def read(self) -> Any:
        self._skip()
        value = self._value(0)
        self._skip()
        if self.at < len(self.text):
            raise self._wrong("something follows after the end")
        return value

    def _value(self, depth: int) -> Any:
        first = self.text[self.at : self.at + 1]
        if first in ('"', "'"):
            return self._string()
        if first and first in "{[":
            if depth >= DEEPEST:
                raise self._wrong(f"it is nested more than {DEEPEST} deep")
            self.at += 1
            return self._object(depth + 1) if first == "{" else self._list(depth + 1)
        if match := self._match(_WORD):
            return _WORDS[match[1]]
        return self._number()

    def _object(self, depth: int) -> dict[str, Any]:
        found = {}
        while not self._ends("}"):
            if self.text[self.at] not in "\"'":
                raise self._wrong("a name in quotes should be here")
            name = self._string()
            self._skip()
            if not self._take(":"):
                raise self._wrong("a colon should be here")
            self._skip()
            found[name] = self._value(depth)
            self._step()
        return found

    def _list(self, depth: int) -> list[Any]:
        found = []
        while not self._ends("]"):
            found.append(self._value(depth))
            self._step()
        return found

    def _ends(self, bracket: str) -> bool:
        self._skip()
        if self.at >= len(self.text):
            raise self._wrong(f"it ends where a {bracket} should be")
        return self._take(bracket)

    def _step(self) -> None:
        """Over the comma between two values, the one after the last, or none."""
        self._skip()
        self._take(",")

    def _string(self) -> str:
        if self.text[self.at] == "'":
            return self._quoted()
        try:
            value, self.at = _scan(self.text, self.at + 1, True)
        except json.JSONDecodeError as error:
            raise self._wrong(
                "a text that does not end, or is not written as JSON has it", error.pos
            ) from None
        return str(value)

    def _quoted(self) -> str:
        start = self.at
        match = self._match(_QUOTED)
        if match is None:
            raise self._wrong("a text that does not end on its line")
        inner = re.sub(r'\\(.)|"', lambda m: {"\\'": "'", '"': '\\"'}.get(m[0], m[0]), match[1])
        try:
            return str(_scan(f'{inner}"', 0, True)[0])
        except json.JSONDecodeError:
            raise self._wrong("a text that is not written as JSON has it", start) from None

    def _number(self) -> int | float:
        start = self.at
        match = self._match(_NUMBER)
        if match is None:
            raise self._wrong("a value should be here")
        if len(match[0]) > LONGEST_NUMBER:
            raise self._wrong("a number with too many digits", start)
        value = float(match[0]) if match[1] or match[2] else int(match[0])
        if not math.isfinite(value):
            raise self._wrong("a number that is too large", start)
        return value

    def _skip(self) -> None:
        match = self.space.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _take(self, character: str) -> bool:
        found = self.text.startswith(character, self.at)
        self.at += found
        return found

    def _match(self, pattern: str) -> "re.Match[str] | None":
        match = re.compile(pattern).match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def _wrong(self, what: str, place: int | None = None) -> Malformed:
        place = self.at if place is None else place
        line = self.text.count("\n", 0, place) + 1
        return Malformed(what, line, place - self.text.rfind("\n", 0, place))
