"""One request in flight: its tokens, what of them is computed, and the answer that they become. Knows no
llama.cpp."""

from time import perf_counter
from typing import Any

from mdl.engine.answer import Answer
from mdl.engine.request import Delta, Finish, Logprob, Usage


class Sequence:
    """Prompt and answer tokens, at most `limit`, of which the first `computed` are in the cache of `slot`.

    `sampler` is the runner's. `constraint` holds the answer to a form, once it is done thinking. `logprobs`
    is how many alternatives are told of each token, None where nothing is; with `echoes` of the prompt's too.
    """

    __slots__ = (
        "_first_token",
        "_prompt_length",
        "_started",
        "_told",
        "answer",
        "cached",
        "computed",
        "constraint",
        "echoes",
        "finish",
        "limit",
        "logprobs",
        "request",
        "sampler",
        "slot",
        "tokens",
    )

    def __init__(self, request: int, prompt: list[int], limit: int, answer: Answer) -> None:
        self.request = request
        self.tokens = prompt
        self.limit = limit
        self.answer = answer
        self.computed = 0
        self.cached = 0
        self.slot = -1
        self.sampler: Any = None
        self.constraint: Any = None
        self.logprobs: int | None = None
        self.echoes = False
        self.finish: Finish | None = None
        self._prompt_length = len(prompt)
        self._told: list[Logprob] = []
        self._started = self._first_token = 0.0

    def begin(self, slot: int) -> None:
        """It has its place, and is computed from now on; again, if it had to give way."""
        self.slot = slot
        self._started = self._started or perf_counter()

    def tell(self, logprob: Logprob) -> None:
        """Of the token that is accepted next."""
        self._told.append(logprob)

    def accept(self, token: int, piece: bytes | None) -> bool:
        """The token that was sampled, as bytes, or None if it ends the answer. True when the answer is
        finished."""
        if not self._first_token:
            self._first_token = perf_counter()
        if piece is None:
            self._end("stop")
            return True
        self.tokens.append(token)
        self.answer.feed(piece)
        if self.answer.stopped:
            self._end("stop")
        elif len(self.tokens) >= self.limit:
            self._end("length")
        return self.finish is not None

    def drain(self) -> Delta:
        """What has come since the last time."""
        text, reasoning, calls = self.answer.drain()
        told, self._told = tuple(self._told), []
        return Delta(text, reasoning, calls=calls, logprobs=told)

    def last(self) -> Delta:
        """The end of a finished answer: what is left of it, how it ended, what it took."""
        text, reasoning, calls = self.answer.drain()
        return Delta(text, reasoning, self.finish, self._usage(), calls, tuple(self._told))

    def _end(self, finish: Finish) -> None:
        if not self.answer.stopped:
            self.answer.end()
        self.finish = "tool_calls" if finish == "stop" and self.answer.called else finish

    def _usage(self) -> Usage:
        now = perf_counter()
        first = self._first_token or now
        return Usage(
            prompt_tokens=self._prompt_length,
            cached_tokens=self.cached,
            completion_tokens=len(self.tokens) - self._prompt_length,
            prompt_seconds=first - self._started,
            completion_seconds=now - first,
        )
