"""One request in flight: its tokens, and its answer on the way from tokens to text. Knows no llama.cpp.

Bytes become characters when they are whole, reasoning is told from the answer, and what could be the start of
a stop string waits until it is known.
"""

import codecs
from time import perf_counter
from typing import Any

from mdl.engine.request import Delta, Finish, Usage
from mdl.engine.template import Reasoning

_decoder = codecs.getincrementaldecoder("utf-8")


class Stops:
    """Text up to the one of some strings that is whole first. The string is kept out of it."""

    def __init__(self, strings: tuple[str, ...]) -> None:
        self.strings = strings
        self.held = ""
        self._longest = max(map(len, strings))

    def feed(self, text: str) -> tuple[str, bool]:
        """What is certain of the text so far, and whether it ended at a stop string."""
        text = self.held + text
        found = [(start + len(string), start) for string in self.strings if (start := text.find(string)) >= 0]
        if found:
            self.held = ""
            return text[: min(found)[1]], True
        cut = self._undecided(text)
        self.held = text[cut:]
        return text[:cut], False

    def _undecided(self, text: str) -> int:
        """Where a stop string may have begun."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(string.startswith(text[start:]) for string in self.strings):
                return start
        return len(text)


class Sequence:
    """Prompt and answer tokens, at most `limit`, of which the first `computed` are in the cache of `slot`.

    `sampler` is the runner's.
    """

    __slots__ = (
        "_decode",
        "_first_token",
        "_prompt_length",
        "_reasoning",
        "_started",
        "_stops",
        "_text",
        "_thought",
        "computed",
        "finish",
        "limit",
        "request",
        "sampler",
        "slot",
        "tokens",
    )

    def __init__(
        self, request: int, prompt: list[int], limit: int, reasoning: Reasoning, stop: tuple[str, ...] = ()
    ) -> None:
        self.request = request
        self.tokens = prompt
        self.limit = limit
        self.computed = 0
        self.slot = -1
        self.sampler: Any = None
        self.finish: Finish | None = None
        self._prompt_length = len(prompt)
        self._decode = _decoder("replace").decode
        self._reasoning = reasoning
        self._stops = Stops(stop) if stop else None
        self._text = self._thought = ""
        self._started = self._first_token = 0.0

    def begin(self, slot: int) -> None:
        """It has its place, and is computed from now on; again, if it had to give way."""
        self.slot = slot
        self._started = self._started or perf_counter()

    def accept(self, token: int, piece: bytes | None) -> bool:
        """The token that was sampled, as bytes, or None if it ends the answer. True when the answer is
        finished."""
        if not self._first_token:
            self._first_token = perf_counter()
        if piece is None:
            self.finish = "stop"
            self._flush()
            return True
        self.tokens.append(token)
        text = self._decode(piece)
        if text:
            self._take(text)
        if self.finish is None and len(self.tokens) >= self.limit:
            self.finish = "length"
            self._flush()
        return self.finish is not None

    def drain(self) -> tuple[str, str]:
        """Text and reasoning since the last time."""
        drained = self._text, self._thought
        self._text = self._thought = ""
        return drained

    def last(self) -> Delta:
        """The end of a finished answer: what is left of it, how it ended, what it took."""
        text, thought = self.drain()
        return Delta(text, thought, self.finish, self._usage())

    def _take(self, text: str) -> None:
        if not self._reasoning.over:
            thought, text = self._reasoning.feed(text)
            self._thought += thought
        if self._stops is not None and text:
            text, ended = self._stops.feed(text)
            if ended:
                self.finish = "stop"
        self._text += text

    def _flush(self) -> None:
        """What was held back is text after all."""
        self._take(self._decode(b"", True))
        thought, text = self._reasoning.end()
        self._thought += thought
        self._text += text if self._stops is None else self._stops.feed(text)[0] + self._stops.held

    def _usage(self) -> Usage:
        now = perf_counter()
        first = self._first_token or now
        return Usage(
            prompt_tokens=self._prompt_length,
            completion_tokens=len(self.tokens) - self._prompt_length,
            prompt_seconds=first - self._started,
            completion_seconds=now - first,
        )
