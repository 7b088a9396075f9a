"""One request in flight: its tokens, what of them is computed, and the answer that they become. Knows no
llama.cpp."""

from time import perf_counter
from typing import Any

from mdl.engine.answer import Answer
from mdl.engine.request import Delta, Finish, Logprob, Usage
from mdl.errors import MdlError

MOST_ECHOED = 32  # tokens in a step of which logits are asked for: each takes a row of the vocabulary


class Sequence:
    """Prompt and answer tokens, at most `limit`, of which the first `computed` are in the cache of `slot`.

    `sampler` is the runner's. `constraint` holds the answer to a form, once it is done thinking. `logprobs`
    is how many alternatives are told of each token, None where nothing is; with `echoes` of the prompt's too.
    `fresh`: nothing that is in the cache is gone on with. `forbids` is the field that forbids some tokens, if
    one does. `most` of its tokens can be in one step. `branch`
    is the scheduler's.
    """

    __slots__ = (
        "_echoed",
        "_first_token",
        "_prompt_length",
        "_started",
        "_told",
        "answer",
        "branch",
        "cached",
        "computed",
        "constraint",
        "echoes",
        "failure",
        "finish",
        "forbids",
        "fresh",
        "limit",
        "logprobs",
        "most",
        "plain",
        "request",
        "sampler",
        "slot",
        "tokens",
    )

    def __init__(
        self,
        request: int,
        prompt: list[int],
        limit: int,
        answer: Answer,
        *,
        sampler: Any = None,
        constraint: Any = None,
        logprobs: int | None = None,
        echoes: bool = False,
        fresh: bool = False,
        forbids: str = "",
    ) -> None:
        self.request = request
        self.tokens = prompt
        self.limit = limit
        self.answer = answer
        self.sampler = sampler
        self.constraint = constraint
        self.logprobs = logprobs
        self.echoes = echoes and logprobs is not None
        self.fresh = fresh or self.echoes
        self.forbids = forbids
        self.most = MOST_ECHOED if self.echoes else limit
        self.plain = constraint is None and logprobs is None
        self.computed = 0
        self.cached = 0
        self.branch = 0
        self.slot = -1
        self.finish: Finish | None = None
        self.failure: MdlError | None = None
        self._prompt_length = len(prompt)
        self._told: list[Logprob] = []
        self._echoed = 0
        self._started = self._first_token = 0.0

    def begin(self) -> None:
        """It has its place, and is computed from now on; again, if it had to give way."""
        if not self._started:
            self._started = perf_counter()
            self.cached = self.computed

    def tell(self, logprob: Logprob) -> None:
        """Of the token that is accepted next."""
        self._told.append(logprob)

    def tell_prompt(self, position: int, logprob: Logprob) -> None:
        """Of a token of the prompt; once, however often it is computed."""
        if self._echoed < position < self._prompt_length:
            self._echoed = position
            self._told.append(logprob)

    def accept(self, token: int, piece: bytes | None) -> bool:
        """The token that was sampled, as bytes, or None if it ends the answer. True when the answer is
        finished."""
        if not self._first_token:
            self._first_token = perf_counter()
        full = len(self.tokens) >= self.limit
        if full or piece is None:
            if self.logprobs is not None:
                self._told.pop()  # it is no part of the answer
            self._end("length" if full else "stop")
            return True
        self.tokens.append(token)
        self.answer.feed(piece)
        if self.answer.stopped:
            self._end("stop")
        elif len(self.tokens) >= self.limit:
            self._end("length")
        return self.finish is not None

    def complete(self) -> None:
        """Nothing may follow: what would say so is not waited for."""
        self._end("stop")

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
