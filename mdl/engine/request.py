"""What is asked of an engine and what comes back: nobody's dialect. Knows no JSON body and no llama.cpp."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mdl.errors import UsageError

Finish = Literal["stop", "length", "tool_calls"]
Task = Literal["generate", "embed", "rank"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asked for; `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is any name that the model's template knows: system, user, assistant, tool."""

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


MOST_BIASES = 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest; `seed` None draws a new one.
    One that is given makes an answer that can be had again: nothing of its prompt is taken from the cache.

    `top_k` 0, `top_p`, `typical_p` and `repeat_penalty` 1, `min_p`, `top_n_sigma`, `xtc_probability`,
    `dry_multiplier`, `mirostat` and the other penalties 0 are off.
    `repeat_penalty` looks at the last `repeat_last_n` tokens of the answer (-1: all), the other two at all of
    it. `mirostat` 1 or 2 chooses alone: what cuts off is not asked then. `logit_bias` is added to the logits
    of (token, bias); -100 and less forbids it. `ignore_eos` forbids the tokens that end answers. `max_tokens`
    None: until the context is full.
    `stop` strings are looked for in the answer (not in reasoning, nor in calls), and are not part of it.
    `logprobs` None: none are told; n: of each token of the answer, and of the n likeliest in its place,
    before anything was cut off.

    Raises UsageError for values that llama.cpp would end the process for, or that mean nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            _check(name, getattr(self, name), low, high)
        if len(self.stop) > 64 or any(not isinstance(text, str) or not text for text in self.stop):
            raise UsageError("stop takes at most 64 strings, none of them empty")
        if len(self.dry_sequence_breakers) > 64 or any(
            not isinstance(text, str) or not text or len(text) > 64 for text in self.dry_sequence_breakers
        ):
            raise UsageError("dry_sequence_breakers takes at most 64 strings of 1 to 64 characters")
        if len(self.logit_bias) > MOST_BIASES:
            raise UsageError(f"logit_bias takes at most {MOST_BIASES} tokens")
        for token, bias in self.logit_bias:
            _check("logit_bias of a token", bias, -1000.0, 1000.0)
            _check("a token of logit_bias", token, 0, 2**31 - 1)


_RANGES = (
    ("temperature", 0.0, 100.0),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repeat_penalty", 0.01, 100.0),
    ("repeat_last_n", -1, 2**31 - 1),
    ("frequency_penalty", -100.0, 100.0),
    ("presence_penalty", -100.0, 100.0),
    ("top_n_sigma", 0.0, 100.0),
    ("xtc_probability", 0.0, 1.0),
    ("xtc_threshold", 0.0, 1.0),
    ("dry_multiplier", 0.0, 100.0),
    ("dry_base", 1.0, 100.0),
    ("dry_allowed_length", 1, 2**31 - 1),
    ("dry_penalty_last_n", -1, 2**31 - 1),
    ("mirostat", 0, 2),
    ("mirostat_tau", 0.0, 100.0),
    ("mirostat_eta", 0.0, 1.0),
    ("seed", -(2**63), 2**64 - 1),
    ("max_tokens", 1, 2**31 - 1),
    ("logprobs", 0, 100),
)
_OPTIONAL = ("seed", "max_tokens", "logprobs")


def _check(name: str, value: object, low: float, high: float) -> None:
    if value is None and name in _OPTIONAL:
        return
    kinds = (int, float) if isinstance(low, float) else (int,)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not isfinite(value)
        or not low <= value <= high
    ):
        what = "a number" if isinstance(low, float) else "a whole number"
        raise UsageError(f"{name} is {value!r:.40}, and has to be {what} from {low} to {high}")


@dataclass(frozen=True, slots=True)
class Format:
    """What an answer has to be: any JSON object ("json", without a text), JSON of a schema ("schema", which
    is JSON text), or a text of a grammar ("gbnf" as llama.cpp has it, "lark" as llguidance has it,
    "regex")."""

    kind: Literal["json", "schema", "gbnf", "lark", "regex"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to be answered.

    `thinking` None leaves it to the model's template; so does an `effort` of "", and templates that know no
    efforts take any other for thinking or not. `continues`: the last message is the beginning of the
    answer, which goes on from there. `must_call` holds the answer to calls of `tools`, `only` to those of
    that name, and without `parallel_calls` there is at most one. `template` is Jinja for the prompt;
    "": the one that was loaded.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool | None = None
    format: Format | None = None
    continues: bool = False
    must_call: bool = False
    only: str = ""
    parallel_calls: bool = True
    effort: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A text, or tokens, to be gone on with as they are: no template. With a `suffix`, what comes between.

    `echo` tells the prompt's own tokens first, with their `logprobs` where those are asked for; without
    `answers` nothing follows them. `template` is Jinja that writes what is gone on with, from a `prompt` that
    is a text; "": nothing is put around it.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    suffix: str | None = None
    echo: bool = False
    answers: bool = True
    format: Format | None = None
    template: str = ""


Input = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Embed:
    """Texts, or tokens, to be turned into a vector each. `truncate` cuts those that are too long for the
    model, at their end. `dimensions` cuts the vectors, which are of length one again after that."""

    inputs: tuple[Input, ...]
    truncate: bool = False
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """Texts whose relevance to a query is to be told."""

    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector for each input, as little-endian float32 of length one; and the tokens of each."""

    vectors: tuple[bytes, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A score for each document, the higher the more relevant; and the tokens of all."""

    scores: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and seconds of one request. `cached` are prompt tokens that needed no computing."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of the call of a tool. The first one of each `index` has `id` and `name`, the others go on with
    `arguments`, which is JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, as bytes, and the natural logarithm of its probability; None of the first one of all. `top`
    are the likeliest in its place: (token, bytes, logprob), the likeliest first."""

    token: int
    piece: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one of a request has `finish` and `usage`.

    `logprobs` are those of the tokens since the last piece, whatever they became.
    """

    text: str = ""
    reasoning: str = ""
    finish: Finish | None = None
    usage: Usage | None = None
    calls: tuple[CallPiece, ...] = ()
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """What an engine loads. `model` is the first file of a split one; `adapters` are LoRA files with their
    scale.

    Raises UsageError for scales with which nothing could be computed.
    """

    model: Path
    projector: Path | None = None
    adapters: tuple[tuple[Path, float], ...] = ()
    template: str | None = None

    def __post_init__(self) -> None:
        for path, scale in self.adapters:
            _check(f"the scale of {path.name}", scale, -1000.0, 1000.0)


# What the cache can keep keys and values as, as llama.cpp has it.
CACHE_TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_BITS = {"f32": 32.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5, "iq4_nl": 4.5}
_FULL = 16.0  # bits of f16 and bf16

KEPT = 32  # finished requests that others may begin with; each is compared with each new prompt
MOST_CELLS = 16_384  # tokens of a context that nobody asked for
MOST_EACH, FEWEST_EACH = 8_192, 2_048  # the same where several requests have one each
FEWEST_CELLS = 1024


class Sizes(NamedTuple):
    """Tokens for one request, and for all; and whether they share these, or each has its part."""

    context: int
    cells: int
    shared: bool


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a model is loaded. None is "as this machine and this model need it".

    `context`: tokens that one request may use, prompt and answer together. None: what the model was trained
    for, and no more than 16,384 (8,192 where there are several) or what a quarter of the memory holds. The
    requests in flight have a cache of `cells` tokens. None: `context` times `parallel`, within that bound.
    `shared`: any of them may take any cell, or each has its part; None: as `sizes` says.
    `gpu_layers`: None puts all on the GPU where llama.cpp has one. `threads`: None is one for each physical
    core, and one alone for tiny models. `parallel`: requests answered at once. `batch`: tokens computed in
    one step. `cache_type_k` and `cache_type_v`, of CACHE_TYPES, are what the cache keeps keys and values as;
    None: f16. `flash_attention` None: where llama.cpp has it for the model. `mmap` None: the file is mapped;
    `mlock` keeps it in memory.

    Raises UsageError for values out of range, and for those that cannot go together.
    """

    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    parallel: int = 4
    batch: int = 512
    cells: int | None = None
    shared: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attention: bool | None = None
    mmap: bool | None = None
    mlock: bool | None = None

    def __post_init__(self) -> None:
        for name in ("cache_type_k", "cache_type_v"):
            if (kind := getattr(self, name)) not in (None, *CACHE_TYPES):
                raise UsageError(f"{name} is {kind!r:.40}, and has to be one of {', '.join(CACHE_TYPES)}")
        if self.flash_attention is False and _BITS.get(self.cache_type_v or "f16", _FULL) < _FULL:
            raise UsageError(f"values cannot be kept as {self.cache_type_v} without flash attention")
        for name, low, high in _SETTINGS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} is {value!r:.40}, and has to be from {low} to {high}")
        if self.batch < self.parallel:
            raise UsageError(
                f"batch is {self.batch}, and has to hold a token for each of {self.parallel} requests"
            )

    def slots(self, shares: bool, whole: bool = False) -> int:
        """Sequences that the cache can tell apart: those that run and, where it `shares` cells, those that
        are kept for others to go on from. With a `whole` state each one takes memory, as in recurrent models.
        """
        if not shares:
            return self.parallel
        return 2 * self.parallel if whole else self.parallel + KEPT

    @property
    def cache_share(self) -> float:
        """What the cache takes of what it would in f16, keys and values together."""
        return sum(_BITS.get(kind or "f16", _FULL) for kind in (self.cache_type_k, self.cache_type_v)) / 32

    def sizes(self, trained: int, cell: int, memory: int, whole: bool = False) -> Sizes:
        """The cache for a model that learned `trained` tokens (0: unknown) and keeps `cell` bytes of each in
        f16, on a machine with so much memory.

        Where there is room for the context of each request, each has cells of its own: then nobody attends
        over those of others, which takes twice the time where there are many. Else, and where a state is
        `whole`, they share what there is.
        """
        most = max(FEWEST_CELLS, memory // 4 // max(1, int(cell * self.cache_share)))
        context = self.context or self._usual(trained or 4096, most)
        wanted = context * self.parallel
        cells = max(context, self.cells or min(wanted, most))
        own = self.parallel > 1 and cells >= wanted and not whole
        return Sizes(context, cells, not own if self.shared is None else self.shared)

    def _usual(self, trained: int, most: int) -> int:
        """A context that nobody asked for: long enough to talk, and one for each where that can be."""
        each = min(self.usual(trained), most // self.parallel)
        return each if each >= min(trained, FEWEST_EACH) else min(trained, MOST_CELLS, most)

    def usual(self, trained: int) -> int:
        """A context that nobody asked for, where there is memory enough."""
        return min(trained or 4096, MOST_CELLS if self.parallel == 1 else MOST_EACH)


_SETTINGS = (
    ("context", 16, 2**26),
    ("gpu_layers", 0, 10_000),
    ("threads", 1, 512),
    ("parallel", 1, 64),
    ("batch", 1, 8192),
    ("cells", 16, 2**26),
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded. `context` is for one request, `cells` for all of them, `size` in bytes, `seconds` of
    loading.

    `template` says where the chat template came from: "model", "given" or "default" (ChatML, as the model has
    none). `task` is what the model was made for; `width` is that of its vectors. `infill`: it can fill in
    what comes before a suffix.
    """

    architecture: str
    description: str
    size: int
    parameters: int
    layers: int
    gpu_layers: int
    devices: tuple[str, ...]
    vocabulary: int
    trained_context: int
    context: int
    cells: int
    threads: int
    template: Literal["model", "given", "default"]
    seconds: float
    task: Task = "generate"
    width: int = 0
    infill: bool = False
