"""The names and values of settings, used when a model is loaded, and of parameters, used for each answer.
Knows no file.

Every place where people write such values (profiles, model.json, the files of other tools, the environment)
is read with the one table here: each name has the spellings that other tools have for it.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mdl.engine.request import CACHE_TYPES, EngineSettings, Sampling
from mdl.errors import MdlError, UsageError
from mdl.header import encodable, line
from mdl.profiles import Profile, merged

Kind = Literal["setting", "parameter"]
MOST = 200  # names in one place; llama.cpp's server has some hundred
LONGEST_NUMBER = LONGEST_NAME = 40  # characters
SURE = 0.85  # how like a known name one is that was meant to be it, and not another tool's own
_TRUE, _FALSE = {"true", "yes", "on", "1", "enabled"}, {"false", "no", "off", "0", "disabled"}


@dataclass(frozen=True, slots=True)
class Name:
    """A setting of EngineSettings or a parameter of Sampling. `also` are other spellings. A number of
    `unset` or less, where there is one, is how others say that it is not set."""

    name: str
    kind: Kind
    read: Callable[[Any], Any]
    help: str
    also: tuple[str, ...] = ()
    unset: float | None = None


def profile(values: Mapping[str, Any], where: str, *, lenient: bool = False) -> Profile:
    """What values set, by any of their names, mixed together. `where` is what errors and notes begin with.

    Raises UsageError, with the nearest name, for a name that is not known and for values out of range. Read
    leniently, as files of others are, the former are `ignored`, and the latter notes.
    """
    if len(values) > MOST:
        return _refused(UsageError(f"{where}: more than {MOST} names"), lenient)
    found = [_one(name, value, where, lenient) for name, value in values.items()]
    return merged(*found)


def find(name: str) -> Name | None:
    """By any of its spellings; case, hyphens and leading dashes do not matter."""
    return _BY_SPELLING.get(_plain(name))


def is_plain(name: str) -> bool:
    """Whether this is the name itself, and not one of the other spellings."""
    known = find(name)
    return known is not None and known.name == _plain(name)


def meant(name: str) -> Name | None:
    """What a name that is not known was surely meant to be, if that can be told."""
    return _nearest(name, SURE)


def nearest(name: str) -> str:
    """A hint for a name that is not known."""
    near = _nearest(name, 0.6)
    return f"did you mean {near.name}?" if near else "mdl inspect MODEL --settings has all"


def _nearest(name: str, cutoff: float) -> Name | None:
    near = difflib.get_close_matches(_plain(name[:LONGEST_NAME]), _BY_SPELLING, n=1, cutoff=cutoff)
    return _BY_SPELLING[near[0]] if near else None


def _one(name: str, value: Any, where: str, lenient: bool) -> Profile:
    shown = line(name) or "a name"
    known = find(name)
    if known is None and _plain(name) in _WITHOUT_EFFECT:
        return Profile(ignored=(shown,))
    if known is None:
        unknown = f"{where}: {shown} is no setting and no parameter"
        if not lenient:
            raise UsageError(unknown, nearest(name))
        if (near := meant(name)) is not None:
            return Profile(notes=(f"{unknown}: did you mean {near.name}?",))
        return Profile(ignored=(shown,))
    if value is None:
        return Profile()
    try:
        if _plain(name) in _BOTH:  # keys and values alike
            return merged(*(_set(_BY_SPELLING[each], value) for each in ("cache_type_k", "cache_type_v")))
        return _set(known, value)
    except (ValueError, OverflowError, TypeError):
        error: MdlError = UsageError(f"{where}: {shown} cannot be {value!r:.40}", hint=known.help)
    except UsageError as failure:
        error = UsageError(f"{where}: {shown}: {failure.message}", hint=known.help)
    return _refused(error, lenient)


def _set(known: Name, value: Any) -> Profile:
    """Raises UsageError, ValueError."""
    read = known.read(value)
    if known.unset is not None and not isinstance(read, str | tuple) and read <= known.unset:
        return Profile()
    given: dict[str, Any] = {known.name: read}
    if known.kind == "parameter":
        replace(Sampling(), **given)
        return Profile(sampling=given)
    replace(_LARGEST, **given)  # each by itself: how they go together shows when the model is loaded
    return Profile(settings=given)


def _refused(error: MdlError, lenient: bool) -> Profile:
    if lenient:
        return Profile(notes=(error.message,))
    raise error


def _plain(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").casefold()


# Values: from what TOML, JSON and the environment have


def _number(value: Any) -> float:
    if isinstance(value, list) and len(value) == 1:  # older models of Ollama
        value = value[0]
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value):
        return int(value)
    if type(value) is int:
        return value
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).casefold() if isinstance(value, str | int) else ""
    if text not in _TRUE | _FALSE:
        raise ValueError(value)
    return text in _TRUE


def _switch(value: Any) -> bool | None:
    return None if isinstance(value, str) and value.casefold() == "auto" else _flag(value)


def _cache_type(value: Any) -> str:
    text = str(value).casefold() if isinstance(value, str) else ""
    if text not in CACHE_TYPES:
        raise ValueError(value)
    return text


def _layers(value: Any) -> int:
    """All of them is more than any model has."""
    if isinstance(value, str) and value.casefold() == "auto":
        return -1
    if isinstance(value, str) and value.casefold() in ("all", "max"):
        return ALL_LAYERS
    return min(_whole(value), ALL_LAYERS)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UsageError("has to be a text, or a list of texts")
    return tuple(dict.fromkeys(encodable(text) for text in texts if text))


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise UsageError("has to be a table of tokens and their biases")
    return tuple((_whole(token), _number(bias)) for token, bias in value.items())


# The table

ALL_LAYERS = 10_000
_LARGEST = EngineSettings(parallel=1, batch=8192)

NAMES: tuple[Name, ...] = (
    Name(
        "context",
        "setting",
        _whole,
        "tokens of prompt and answer together",
        (
            *("ctx", "num_ctx", "n_ctx", "ctx_len", "ctx_size", "context_size", "context_length"),
            *("context_window", "max_seq_len", "max_model_len", "n_ctx_per_seq"),
        ),
        unset=0,
    ),
    Name(
        "gpu_layers",
        "setting",
        _layers,
        "layers on the GPU: a number, or auto for as many as fit",
        ("ngl", "n_gpu_layers", "num_gpu", "num_gpu_layers", "gpulayers"),
        unset=-1,
    ),
    Name(
        "threads",
        "setting",
        _whole,
        "threads on the CPU",
        ("n_threads", "num_thread", "num_threads", "cpu_threads"),
        unset=0,
    ),
    Name(
        "parallel",
        "setting",
        _whole,
        "requests answered at once, 1 to 64",
        ("n_parallel", "num_parallel", "parallel_slots", "slots", "n_slots"),
        unset=0,
    ),
    Name(
        "batch",
        "setting",
        _whole,
        "tokens of prompts computed in one step",
        ("n_batch", "num_batch", "batch_size", "n_ubatch", "ubatch_size"),
        unset=0,
    ),
    Name("cells", "setting", _whole, "tokens of the cache for all requests together", unset=0),
    Name("shared", "setting", _flag, "whether all requests share the cache", ("kv_unified", "kvu")),
    Name(
        "cache_type_k",
        "setting",
        _cache_type,
        f"what the cache keeps keys as: {', '.join(CACHE_TYPES)}",
        ("type_k", "ctk", "cache_k", "kv_cache_type", "cache_type"),
    ),
    Name(
        "cache_type_v",
        "setting",
        _cache_type,
        f"what the cache keeps values as: {', '.join(CACHE_TYPES)}",
        ("type_v", "ctv", "cache_v"),
    ),
    Name(
        "flash_attention",
        "setting",
        _switch,
        "true, false, or auto",
        ("flash_attn", "fa", "flashattention"),
    ),
    Name("mmap", "setting", _flag, "map the file instead of reading it", ("use_mmap",)),
    Name("mlock", "setting", _flag, "keep the weights in memory", ("use_mlock",)),
    Name(
        "temperature",
        "parameter",
        _number,
        "0 takes the likeliest word each time",
        ("temp", "sampling_temp"),
    ),
    Name("top_k", "parameter", _whole, "choose among this many; 0 is off"),
    Name("top_p", "parameter", _number, "choose among the likeliest, up to this sum; 1 is off"),
    Name("min_p", "parameter", _number, "leave out what is less likely than this share of the likeliest"),
    Name("typical_p", "parameter", _number, "choose what is typical; 1 is off", ("typical",)),
    Name(
        "repeat_penalty",
        "parameter",
        _number,
        "against repetitions; 1 is off",
        ("repetition_penalty", "penalty_repeat"),
    ),
    Name(
        "repeat_last_n",
        "parameter",
        _whole,
        "tokens that are looked at for repetitions; -1: all",
        ("penalty_last_n",),
    ),
    Name("frequency_penalty", "parameter", _number, "against frequent tokens; 0 is off"),
    Name("presence_penalty", "parameter", _number, "against tokens that were there; 0 is off"),
    Name("top_n_sigma", "parameter", _number, "choose within so many deviations; 0 is off"),
    Name("xtc_probability", "parameter", _number, "how often top choices are left out; 0 is off"),
    Name("xtc_threshold", "parameter", _number, "what counts as a top choice"),
    Name("dry_multiplier", "parameter", _number, "against repeated sequences; 0 is off"),
    Name("dry_base", "parameter", _number, "how the former grows"),
    Name("dry_allowed_length", "parameter", _whole, "sequences that may be repeated"),
    Name("dry_penalty_last_n", "parameter", _whole, "tokens that are looked at for them; -1: all"),
    Name("dry_sequence_breakers", "parameter", _texts, "texts that end a sequence"),
    Name("mirostat", "parameter", _whole, "0, 1 or 2", ("mirostat_mode",)),
    Name("mirostat_tau", "parameter", _number, "how surprising text should be"),
    Name("mirostat_eta", "parameter", _number, "how fast that is learned"),
    Name("logit_bias", "parameter", _biases, "a table of tokens and what is added to their logits"),
    Name("ignore_eos", "parameter", _flag, "never end by itself"),
    Name("seed", "parameter", _whole, "the same seed gives the same answer", unset=-1),
    Name(
        "max_tokens",
        "parameter",
        _whole,
        "the longest answer",
        (
            "n_predict",
            "num_predict",
            "max_new_tokens",
            "max_completion_tokens",
            "max_output_tokens",
            "token_limit",
        ),
        unset=0,
    ),
    Name(
        "stop",
        "parameter",
        _texts,
        "texts before which an answer ends",
        ("stop_words", "stopwords", "stop_sequences", "stop_strings"),
    ),
)

# What others set that means nothing here: it is decided otherwise, or for each request.
_WITHOUT_EFFECT = frozenset(
    (
        *("embedding", "embeddings", "stream", "numa", "num_keep", "n_keep", "low_vram", "main_gpu"),
        *(
            "f16_kv",
            "vocab_only",
            "tfs_z",
            "penalize_newline",
            "logits_all",
            "cont_batching",
            "caching_enabled",
        ),
        *("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "transformers_version"),
        "_from_model_config",
    )
)


_BOTH = ("cache_type", "kv_cache_type")


def _spellings() -> Iterator[tuple[str, Name]]:
    for known in NAMES:
        for spelling in (known.name, *known.also):
            yield spelling, known


_BY_SPELLING = dict(_spellings())
