"""Texts to vectors and scores: what is computed together, and whose it is. Knows no llama.cpp and no pipes.

Texts of all requests share each step, by turns, so that nobody waits for somebody's thousands; what a request
asks for is read bit by bit, beside the computing. A text that is longer than a step is computed alone, in
pieces where the model reads forwards only.
"""

import struct
from array import array
from base64 import b64encode
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import hypot, isfinite
from typing import Any, NamedTuple, Protocol, TypeAlias

from mdl.engine import wire
from mdl.engine.request import Embed, Rank
from mdl.errors import EngineError, MdlError, TooLong, UsageError

READ_CHARACTERS = 1 << 16  # between two steps: takes a few milliseconds
MEAN, CLS = 1, 2  # enum llama_pooling_type: the vector of the tokens' mean, or of the first one

Values: TypeAlias = "array[float]"


class Piece(NamedTuple):
    """Tokens in a row, of which so many of the same text were computed before."""

    tokens: Sequence[int]
    start: int = 0


class Vectors(Protocol):
    """A model. It computes `step` tokens of up to `most` texts at once, or one text of up to `limit` tokens,
    which `splits` says can be computed in pieces. `pooling` is llama.cpp's number for how the vectors of a
    text's tokens become one."""

    limit: int
    step: int
    most: int
    width: int
    splits: bool
    pooling: int

    def read(self, text: str) -> list[int]:
        """The tokens of a text with what the model has around it; perhaps only the first ones, more than
        `limit`, of a text that is too long."""

    def read_pair(self, query: str, document: str) -> list[int]: ...

    def checked(self, tokens: Sequence[int]) -> list[int]: ...

    def cut(self, tokens: list[int]) -> list[int]:
        """At most `limit`."""

    def begin(self, room: int) -> None:
        """Forgets what was read. The texts that come have at most `room` tokens."""

    def run(self, pieces: Sequence[Piece]) -> list[Values]:
        """A vector for each. Raises EngineError."""


@dataclass(slots=True, eq=False)
class Text:
    """One that is to be computed, and what the pieces so far have come to."""

    job: "Job"
    index: int
    tokens: list[int]
    computed: int = 0
    values: "Values | None" = None


@dataclass(slots=True, eq=False)
class Job:
    """A request: inputs that are to be read, texts that wait to be computed (the shortest first), results.
    `about` is the field that has the inputs."""

    request: int
    inputs: Iterator[tuple[int, list[int]]]
    left: int
    result: Callable[["Job"], Any]
    about: str = ""
    waiting: list[Text] = field(default_factory=list)
    size: int = 0  # tokens that wait
    values: dict[int, Values] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)

    def add(self, index: int, tokens: list[int]) -> None:
        self.lengths[index] = len(tokens)
        self.size += len(tokens)
        insort(self.waiting, Text(self, index, tokens), key=_length)

    def take(self, most: int) -> Text | None:
        """The longest text of at most so many tokens."""
        return self._pop(bisect_right(self.waiting, most, key=_length) - 1)

    def first(self) -> Text | None:
        """The shortest."""
        return self._pop(0 if self.waiting else -1)

    def _pop(self, place: int) -> Text | None:
        if place < 0:
            return None
        text = self.waiting.pop(place)
        self.size -= len(text.tokens)
        return text


def _length(text: Text) -> int:
    return len(text.tokens)


def pack(jobs: Sequence[Job], step: int, most: int, ending: bool = True) -> list[Text]:
    """The texts of the next step, which are taken: with `ending` those of requests that end with it, then by
    turns from each one, the long ones first. At most `step` tokens, or one text alone that has more."""
    batch: list[Text] = []
    room = step
    for job in jobs if ending else ():
        if job.size <= room and len(job.waiting) == job.left <= most - len(batch):
            room -= job.size
            batch += iter(job.first, None)
    turns = deque(jobs)
    while turns and len(batch) < most:
        job = turns.popleft()
        text = job.take(room)
        if text is None and not batch and (long := job.first()):
            return [long]
        if text is not None:
            batch.append(text)
            room -= len(text.tokens)
            turns.append(job)
    return batch


class Embeddings:
    """The requests for vectors that a model answers. `send` takes their results."""

    def __init__(self, vectors: Vectors, send: Callable[..., None]) -> None:
        self._vectors = vectors
        self._send = send
        self._jobs: deque[Job] = deque()
        self._long: Text | None = None
        self._by_turns = False
        self._turns = 0

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def embed(self, request: int, asked: wire.Wire) -> None:
        embed = wire.unpack(Embed, asked)
        width, dimensions = self._vectors.width, embed.dimensions
        if dimensions is not None and not 1 <= dimensions <= width:
            raise UsageError(
                f"dimensions is {dimensions:,}, and has to be from 1 to {width:,} for this model",
                field="dimensions",
            )
        inputs = ((index, self._read(index, each, embed.truncate)) for index, each in enumerate(embed.inputs))
        self._add(Job(request, inputs, len(embed.inputs), partial(_embedded, dimensions), "inputs"))

    def rank(self, request: int, asked: wire.Wire) -> None:
        rank = wire.unpack(Rank, asked)
        inputs = (
            (index, self._read_pair(index, rank.query, document))
            for index, document in enumerate(rank.documents)
        )
        self._add(Job(request, inputs, len(rank.documents), _ranked, "documents"))

    def _add(self, job: Job) -> None:
        self._jobs.append(job)
        self._finish(job)

    def cancel(self, request: int) -> None:
        for job in [job for job in self._jobs if job.request == request]:
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._jobs.remove(job)
        if self._long is not None and self._long.job is job:
            self._long = None

    def step(self) -> None:
        """Reads some of what was asked, and computes a batch. What goes wrong goes to whom it concerns."""
        self._read_some()
        batch = self._next()
        try:
            results = self._run(batch) if batch else []
        except MdlError as error:
            self._long = None
            for job in {text.job.request: text.job for text in batch}.values():
                self._fail(job, error)
            return
        for text, values in zip(batch, results, strict=True):
            self._take(text, values)

    def _next(self) -> list[Text]:
        """Who asks for little is served first, in the order in which they came; every other step goes by
        turns, so that those who ask for much go on, too."""
        if self._long is not None:
            return [self._long]
        step, most = self._vectors.step, self._vectors.most
        self._by_turns = not self._by_turns and any(job.size > step for job in self._jobs)
        if not self._by_turns:
            return pack(self._jobs, step, most)
        self._turns += 1
        first = self._turns % len(self._jobs)
        jobs = [*self._jobs]
        return pack(jobs[first:] + jobs[:first], step, most, ending=False)

    def _run(self, batch: list[Text]) -> list[Values]:
        if self._long is None:
            self._vectors.begin(max(map(_length, batch)))
        return self._vectors.run([self._piece(text) for text in batch])

    def _piece(self, text: Text) -> Piece:
        end = text.computed + self._vectors.step if self._vectors.splits else len(text.tokens)
        return Piece(text.tokens[text.computed : end], text.computed)

    def _take(self, text: Text, values: Values) -> None:
        count = min(self._vectors.step, len(text.tokens) - text.computed) if self._vectors.splits else 0
        text.values = joined(self._vectors.pooling, text.values, values, text.computed, count)
        text.computed = text.computed + count if count else len(text.tokens)
        self._long = text if text.computed < len(text.tokens) else None
        if self._long is None:
            text.job.values[text.index] = text.values
            text.job.left -= 1
            self._finish(text.job)

    def _finish(self, job: Job) -> None:
        if job.left:
            return
        self._jobs.remove(job)
        try:
            self._send(id=job.request, result=job.result(job))
        except MdlError as error:
            self._send(id=job.request, error=wire.pack_error(error))

    def _fail(self, job: Job, error: MdlError) -> None:
        self._drop(job)
        self._send(id=job.request, error=wire.pack_error(error))

    # Reading

    def _read_some(self) -> None:
        """By turns, one text of each request."""
        budget = READ_CHARACTERS
        turns = deque(self._jobs)
        while turns and budget > 0:
            job = turns.popleft()
            try:
                found = next(job.inputs, None)
            except MdlError as error:
                error.field = error.field or job.about
                self._fail(job, error)
                continue
            if found is not None:
                job.add(*found)
                budget -= 4 * len(found[1])
                turns.append(job)

    def _read(self, index: int, text: str | tuple[int, ...], truncate: bool) -> list[int]:
        """Raises UsageError for what is empty or no token, TooLong."""
        if not text:
            raise UsageError(f"input {index} is empty")
        vectors = self._vectors
        tokens = vectors.read(text) if isinstance(text, str) else vectors.checked(text)
        if truncate:
            return vectors.cut(tokens)
        return self._fitting(
            tokens, f"input {index}", "cut it into parts, or let it be cut at its end (truncate)"
        )

    def _read_pair(self, index: int, query: str, document: str) -> list[int]:
        if not query or not document:
            field = "documents" if query else "query"
            raise UsageError(f"document {index} is empty" if query else "the query is empty", field=field)
        tokens = self._vectors.read_pair(query, document)
        return self._fitting(tokens, f"document {index}, with the query,", "cut it into parts")

    def _fitting(self, tokens: list[int], what: str, hint: str) -> list[int]:
        limit = self._vectors.limit
        if len(tokens) > limit:
            raise TooLong(
                f"{what} has {len(tokens):,} tokens or more, and the model takes {limit:,} at most",
                hint,
            )
        return tokens


def joined(pooling: int, before: "Values | None", values: Values, computed: int, count: int) -> Values:
    """The vector of a text of which `computed` tokens came to `before`, and the `count` next to `values`."""
    if before is None or pooling not in (MEAN, CLS):
        return values
    if pooling == CLS:
        return before
    whole = computed + count
    return array("f", [(a * computed + b * count) / whole for a, b in zip(before, values, strict=True)])


def normalised(values: Values) -> Sequence[float]:
    """Of length one. Raises EngineError for what is no vector."""
    length = hypot(*values)
    if not isfinite(length):
        raise EngineError("the model computes no numbers for this text")
    return [value / length for value in values] if length else values


def _embedded(dimensions: int | None, job: Job) -> wire.Wire:
    count = range(len(job.lengths))
    vectors = (normalised(job.values[index][:dimensions]) for index in count)
    return {
        "vectors": [b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors],
        "tokens": [job.lengths[index] for index in count],
    }


def _ranked(job: Job) -> wire.Wire:
    scores = [job.values[index][0] for index in range(len(job.lengths))]
    if not all(map(isfinite, scores)):
        raise EngineError("the model computes no numbers for this text")
    return {"scores": scores, "tokens": sum(job.lengths.values())}
