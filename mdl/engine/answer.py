"""An answer on its way from the bytes of tokens to text. Knows no tokens and no llama.cpp.

Bytes become characters when they are whole, reasoning is told from the answer, and what could be the start of
a stop string waits until it is known.
"""

import codecs
from dataclasses import replace
from typing import Protocol

from mdl.engine.request import CallPiece
from mdl.engine.tools import Calls, undecided

_decoder = codecs.getincrementaldecoder("utf-8")


class Reader(Protocol):
    """Tells one kind of text from another as it comes: `feed` and `end` give (what it took, the rest). `over`
    is True once all is the rest, `thinks` while none is."""

    over: bool

    @property
    def thinks(self) -> bool: ...

    def feed(self, text: str) -> tuple[str, str]: ...

    def end(self) -> tuple[str, str]: ...


class Stops:
    """Text up to the one of some strings that is whole first. The string is kept out of it."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self.strings = strings
        self.held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """What is certain of the text so far, and whether it ended at a stop string."""
        text = self.held + text
        found = [(start + len(string), start) for string in self.strings if (start := text.find(string)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)[1]], True
        cut = undecided(text, *self.strings)
        self.held = text[cut:]
        return text[:cut], False


class Answer:
    """What has come of it since the last `drain`: reasoning first, calls and text after it, and stop strings
    in the text. `reasoning` None: there is none, `calls` None: all of the rest is text."""

    __slots__ = ("_calls", "_decode", "_pieces", "_reasoning", "_stops", "_text", "_thought", "stopped")

    def __init__(
        self, reasoning: Reader | None = None, stop: tuple[str, ...] = (), calls: Calls | None = None
    ) -> None:
        self.stopped = False
        self._calls = calls
        self._pieces: tuple[CallPiece, ...] = ()
        self._decode = _decoder("replace").decode
        self._reasoning = reasoning
        self._stops = Stops(stop) if stop else None
        self._text = self._thought = ""

    @property
    def thinks(self) -> bool:
        """Whether it is within its reasoning."""
        return self._reasoning is not None and self._reasoning.thinks

    @property
    def called(self) -> bool:
        """Whether it has called a tool."""
        return self._calls is not None and self._calls.count > 0

    def say(self, text: str) -> None:
        """Text before the answer: the prompt, where it is told again."""
        self._text += text

    def feed(self, piece: bytes) -> None:
        """The bytes of the next token. `stopped` is True from a stop string on."""
        text = self._decode(piece)
        if text:
            self._take(text)

    def end(self) -> None:
        """What was held back is text after all."""
        self._take(self._decode(b"", True))
        text = ""
        if self._reasoning is not None:
            thought, text = self._reasoning.end()
            self._thought += thought
        if self._calls is not None:
            text = self._call(text)
            pieces, held = self._calls.end()
            self._pieces += tuple(pieces)
            text += held
        self._text += text if self._stops is None else self._stops.feed(text)[0] + self._stops.held

    def drain(self) -> tuple[str, str, tuple[CallPiece, ...]]:
        """Text, reasoning and calls since the last time."""
        drained = self._text, self._thought, self._pieces
        self._text = self._thought = ""
        self._pieces = ()
        return drained

    def _take(self, text: str) -> None:
        if self._reasoning is not None and not self._reasoning.over:
            thought, text = self._reasoning.feed(text)
            self._thought += thought
        if self._calls is not None and text:
            text = self._call(text)
        if self._stops is not None and text:
            text, ended = self._stops.feed(text)
            self.stopped |= ended
        self._text += text

    def _call(self, text: str) -> str:
        """What of it is no call."""
        assert self._calls is not None
        pieces, text = self._calls.feed(text)
        for piece in pieces:
            self._pieces = _joined(self._pieces, piece)
        self.stopped |= self._calls.full
        return text


def _joined(pieces: tuple[CallPiece, ...], piece: CallPiece) -> tuple[CallPiece, ...]:
    """With one more; what goes on with the last one is put to it."""
    if not pieces or piece.id:
        return (*pieces, piece)
    last = pieces[-1]
    return (*pieces[:-1], replace(last, arguments=last.arguments + piece.arguments))
