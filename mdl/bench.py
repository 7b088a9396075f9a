"""How fast a model is on this machine: prompts, answers, and answers to several at once. Knows no terminal.

What is measured is the engine, as `mdl chat` and `mdl serve` use it. Prompts are random tokens, new ones each
time, so that nothing of them is in the cache; the tokens that would end an answer are forbidden, so that all
have the length that was asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from mdl.engine import Engine
from mdl.engine.request import Completion, Delta, Loaded, Sampling, Usage
from mdl.errors import MdlError, UsageError

PROMPTS, LONGEST, STREAMS = (128, 512), 2048, (1, 2, 4, 8)
OPENING = 8  # tokens of a prompt where answers are what is measured
PATIENCE = 30.0  # seconds for a figure: past that it is not measured once more


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: prompts of so many tokens, so many streams at once, answers of so many tokens.
    None are the usual prompts, as far as they fit. Each figure is measured up to `repeat` times.

    Raises UsageError for what is out of range.
    """

    prompts: tuple[int, ...] | None = None
    streams: tuple[int, ...] = STREAMS
    tokens: int = 64
    repeat: int = 3

    def __post_init__(self) -> None:
        _check("a prompt has", self.prompts or (), 1, 1 << 20, "tokens")
        _check("there are", self.streams, 1, 64, "streams")
        _check("an answer has", (self.tokens,), 2, 1 << 16, "tokens")
        _check("it is repeated", (self.repeat,), 1, 100, "times")

    def lengths(self, context: int, cells: int) -> tuple[int, ...]:
        """The prompts, in order, for an engine with a context of so many tokens for one request, and cells
        for all. Raises UsageError where what was asked for does not fit."""
        room = context - self.tokens
        most = cells // (OPENING + self.tokens)
        if room < OPENING or most < max(self.streams):
            raise UsageError(
                f"{max(self.streams)} answers of {self.tokens:,} tokens do not fit into a context of "
                f"{context:,} tokens, and {cells:,} for all",
                hint="give it a larger context (--ctx), or ask for less (--streams, --tokens)",
            )
        if self.prompts is None:
            longest = min(LONGEST, room)
            return (*(length for length in PROMPTS if length < longest), longest)
        if max(self.prompts) > room:
            raise UsageError(
                f"a prompt of {max(self.prompts):,} tokens and an answer of {self.tokens:,} do not fit into "
                f"a context of {context:,}",
                hint="give it a larger one (--ctx), or ask for less (--prompt, --tokens)",
            )
        return tuple(sorted(set(self.prompts)))


class Figure(NamedTuple):
    """What was measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure":
        known = sorted(values)
        return cls(median(known), known[0], known[-1])


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of `tokens`: how many of them a second, seconds to the first token of the answer, and how many
    of its tokens a second then."""

    tokens: int
    speed: Figure
    first: Figure
    generation: Figure


@dataclass(frozen=True, slots=True)
class Load:
    """Answers to `streams` requests at once: tokens a second of all together."""

    streams: int
    speed: Figure


@dataclass(frozen=True, slots=True)
class Report:
    """`start` are the seconds from nothing to a loaded model, `memory` the bytes that its process takes, None
    where the system does not tell."""

    loaded: Loaded
    start: float
    memory: int | None
    prompts: tuple[Prompt, ...]
    loads: tuple[Load, ...]


Watch = Callable[[str], None]


def run(engine: Engine, plan: Plan, watch: Watch) -> Report:
    """Measures an engine that has been told to load; `watch` hears what comes next. Takes about a minute for
    a small model, more for a large one. Raises what the load or an answer fails with."""
    begin = perf_counter()
    watch("loading the model")
    loaded = engine.ready()
    start = perf_counter() - begin
    if loaded.task != "generate":
        raise UsageError("this model was not made for answers", hint="measure one that is for text or chat")
    lengths = plan.lengths(loaded.context, loaded.cells)
    bench = Bench(engine, plan, loaded.vocabulary)
    bench.answer(OPENING, min(plan.tokens, 8))  # the first one pays for what is done once
    prompts = tuple(bench.prompt(length) for length in _told(lengths, watch, "a prompt of {:,} tokens"))
    loads = tuple(bench.load(count) for count in _told(plan.streams, watch, "answers at once: {}"))
    return Report(loaded, start, resident(engine.pid), prompts, loads)


class Bench:
    """The measurements, each of them in figures."""

    def __init__(self, engine: Engine, plan: Plan, vocabulary: int) -> None:
        self._engine = engine
        self._plan = plan
        self._vocabulary = vocabulary
        self._random = Random()

    def prompt(self, tokens: int) -> Prompt:
        usages = [self.answer(tokens, self._plan.tokens) for _ in self._times()]
        return Prompt(
            tokens,
            Figure.of(usage.prompt_tokens / _some(usage.prompt_seconds) for usage in usages),
            Figure.of(usage.prompt_seconds for usage in usages),
            Figure.of((usage.completion_tokens - 1) / _some(usage.completion_seconds) for usage in usages),
        )

    def load(self, streams: int) -> Load:
        return Load(streams, Figure.of(self._together(streams) for _ in self._times()))

    def answer(self, prompt: int, tokens: int) -> Usage:
        """What one answer took."""
        return _usage([*self._engine.completion(self._request(prompt, tokens))][-1])

    def _together(self, streams: int) -> float:
        """Tokens a second of that many answers at once."""
        ends: SimpleQueue[Delta | MdlError] = SimpleQueue()
        requests = [self._request(OPENING, self._plan.tokens) for _ in range(streams)]
        begin = perf_counter()
        for request in requests:
            self._engine.submit(request, lambda piece: ends.put(piece) if _is_last(piece) else None)
        count = sum(_usage(ends.get()).completion_tokens for _ in requests)
        return count / (perf_counter() - begin)

    def _request(self, prompt: int, tokens: int) -> Completion:
        words = tuple(self._random.randrange(self._vocabulary) for _ in range(prompt))
        return Completion(words, Sampling(temperature=0, max_tokens=tokens, ignore_eos=True))

    def _times(self) -> Iterator[int]:
        begin = perf_counter()
        for time in range(self._plan.repeat):
            if time == 0 or perf_counter() - begin < PATIENCE:
                yield time


def _check(what: str, values: Iterable[int], low: int, high: int, unit: str) -> None:
    for value in values:
        if not low <= value <= high:
            raise UsageError(f"{what} {low:,} to {high:,} {unit}, not {value:,}")


def _told(values: Iterable[int], watch: Watch, text: str) -> Iterator[int]:
    for value in values:
        watch(text.format(value))
        yield value


def _is_last(piece: Delta | MdlError) -> bool:
    return isinstance(piece, MdlError) or piece.finish is not None


def _usage(last: Delta | MdlError) -> Usage:
    if isinstance(last, MdlError):
        raise last
    assert last.usage is not None, "the last piece of an answer has it"
    return last.usage


def _some(seconds: float) -> float:
    """A clock may not move during what takes no time."""
    return max(seconds, 1e-9)


def resident(pid: int | None) -> int | None:
    """Bytes of memory that a process has to itself or shares; None where Linux does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    return None


def document(report: Report, plan: Plan) -> dict[str, Any]:
    """As JSON; speeds in tokens a second, times in seconds, sizes in bytes."""
    loaded = report.loaded
    names = ("architecture", "description", "size", "parameters", "layers", "gpu_layers", "devices")
    return {
        "model": {name: getattr(loaded, name) for name in names},
        "context": loaded.context,
        "threads": loaded.threads,
        "tokens": plan.tokens,
        "repeat": plan.repeat,
        "start_seconds": report.start,
        "load_seconds": loaded.seconds,
        "memory": report.memory,
        "prompts": [_record(prompt) for prompt in report.prompts],
        "streams": [_record(load) for load in report.loads],
    }


def _record(record: Prompt | Load) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value._asdict() if isinstance(value, Figure) else value for name, value in values.items()}
