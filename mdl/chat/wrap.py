"""Words on lines of the terminal's width, as they come. Knows no markup.

What was written is never written again: a word is held back until it is whole, and that is all.
"""

import re
import unicodedata
from collections.abc import Callable

from mdl.ui import width

RESET = "\x1b[0m"
_SPACES = re.compile(r"([ \t]+)")


def is_wide(character: str) -> bool:
    """Whether a character takes two columns, and a line may be broken beside it: Chinese, Japanese, emoji."""
    return unicodedata.east_asian_width(character) in "WF"


class Lines:
    """`put` words and `space` between them; `take` is what can be written so far.

    `hang` starts each line that a wrap begins.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self.column = 0
        self.hang = ""
        self._columns = columns
        self._written: list[str] = []
        self._word: list[tuple[str, str]] = []
        self._width = 0
        self._gap = ""

    def put(self, text: str, style: str = "") -> None:
        """A piece of a word, in a style (the escape sequences that turn it on)."""
        self._width += width(text)
        if self._word and self._word[-1][1] == style:
            text = self._word.pop()[0] + text
        self._word.append((text, style))

    def words(self, text: str, style: str = "") -> None:
        """Words and the spaces between them."""
        for part in _SPACES.split(text):
            if part.isspace():
                self.space(part)
            elif part:
                self.put(part, style)

    def space(self, text: str = " ") -> None:
        """What is between two words, where a line may end. At the start of a line it is nothing."""
        self.flush()
        if self.column:
            self._gap += text.expandtabs(4)

    def flush(self) -> None:
        """The word is whole."""
        if not self._word:
            return
        if self.column + len(self._gap) + self._width > self._columns() and self.column > width(self.hang):
            self._written.append(f"\n{self.hang}")
            self.column = width(self.hang)
        else:
            self._written.append(self._gap)
            self.column += len(self._gap)
        self._written += [f"{style}{text}{RESET}" if style else text for text, style in self._word]
        self.column += self._width
        self._word, self._width, self._gap = [], 0, ""

    def newline(self) -> None:
        self.flush()
        self._written.append("\n")
        self.column, self._gap = 0, ""

    def take(self) -> str:
        text = "".join(self._written)
        self._written = []
        return text
