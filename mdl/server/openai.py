"""What the routes of OpenAI's API share: how the next token is chosen, what an answer has to be, what it
took. Knows no messages, no tokens, paths or sockets.

The fields are those of OpenAI's published OpenAPI document, and of llama.cpp's server where that has more.
What is not supported is refused by name.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import time
from typing import Any, TypeVar

from mdl.engine.request import MOST_BIASES, Chat, Completion, Format, Usage
from mdl.model import Model
from mdl.server.fields import Fields

MOST_STOPS = 64
MOST_BREAKERS = 64
LONGEST_BREAKER = 64
MOST_ANSWERS = 16
MOST_TOKENS = LARGEST = 2**31 - 1
SEEDS = 2**64
ANY_SEED = -1  # as llama.cpp's server has it
FOREVER = -1.0
UNLIKELY = -9999.0  # what OpenAI writes for "very unlikely", where JSON has no minus infinity

R = TypeVar("R", Chat, Completion)

# What may be asked for without an effect here: the values that are taken (None: any of the kind), and why
# they change nothing. Others are refused.
Harmless = Mapping[str, tuple[type, tuple[Any, ...] | None, str]]


def pass_over(fields: Fields, harmless: Harmless) -> None:
    for name, (kind, values, _) in harmless.items():
        value = fields.take(name)
        if value is None:
            continue
        if type(value) is not kind or (values is not None and value not in values):
            taken = ", ".join(json.dumps(value) for value in values or ())
            what = "a string" if kind is str else "an object"
            fields.fail(name, f"can only be {taken}" if taken else f"has to be {what}")


def include_usage(fields: Fields, stream: bool) -> bool:
    """Whether a stream tells at its end what it took."""
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        fields.fail("stream_options", "goes only with stream: true")
    include = options.flag("include_usage") or False
    options.flag("include_obfuscation")  # padding against guesses from sizes: OpenAI leaves it out on request
    options.done()
    return include


def is_token(value: Any) -> bool:
    """Whether it can be one. Whether a model has it is for that to say."""
    return type(value) is int and 0 <= value <= LARGEST


# How the next token is chosen


NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "top_n_sigma": (0.0, 100.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repeat_penalty": (0.01, 100.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 100.0),
}
INTEGERS = {
    "top_k": (0, LARGEST),
    "mirostat": (0, 2),
    "seed": (-(2**63), SEEDS - 1),
    "repeat_last_n": (-1, LARGEST),
    "dry_allowed_length": (1, LARGEST),
    "dry_penalty_last_n": (-1, LARGEST),
}


def sampling(fields: Fields, fewest: int = 1) -> dict[str, Any]:
    """What a request says of Sampling, by the names there. What it leaves open is not in it. `fewest` tokens
    can be asked for."""
    values: dict[str, Any] = {
        **{name: fields.number(name, low, high) for name, (low, high) in NUMBERS.items()},
        **{name: fields.integer(name, low, high) for name, (low, high) in INTEGERS.items()},
        "typical_p": _typical(fields),
        "stop": _strings(fields, "stop", MOST_STOPS),
        "dry_sequence_breakers": _strings(fields, "dry_sequence_breakers", MOST_BREAKERS, LONGEST_BREAKER),
        "logit_bias": _biases(fields),
        "ignore_eos": fields.flag("ignore_eos"),
        "max_tokens": _most_tokens(fields, fewest),
    }
    given = {name: value for name, value in values.items() if value is not None}
    if given.get("seed") == ANY_SEED:
        given["seed"] = None  # said, so that none of a profile is taken
    return given


def _most_tokens(fields: Fields, fewest: int) -> int | None:
    most = fields.integer("max_tokens", fewest, MOST_TOKENS)
    newer = fields.integer("max_completion_tokens", fewest, MOST_TOKENS)
    if None not in (most, newer) and most != newer:
        fields.fail("max_tokens", "says something else than max_completion_tokens, its newer name")
    return most if newer is None else newer


def _typical(fields: Fields) -> float | None:
    typical, short = fields.number("typical_p", 0, 1), fields.number("typical", 0, 1)
    if None not in (typical, short) and typical != short:
        fields.fail("typical", "says something else than typical_p, its longer name")
    return short if typical is None else typical


def _strings(fields: Fields, name: str, most: int, longest: int | None = None) -> tuple[str, ...] | None:
    texts = fields.take(name)
    texts = [texts] if isinstance(texts, str) else texts
    if texts is None:
        return None
    if not isinstance(texts, list) or len(texts) > most:
        fields.fail(name, f"has to be a string, or an array of at most {most}")
    if not all(isinstance(text, str) and text for text in texts):
        fields.fail(name, "has to hold strings that are not empty")
    if longest is not None and any(len(text) > longest for text in texts):
        fields.fail(name, f"has to hold strings of at most {longest} characters")
    return tuple(texts)


def _biases(fields: Fields) -> tuple[tuple[int, float], ...] | None:
    biases = fields.take("logit_bias")
    if biases is None:
        return None
    if not isinstance(biases, dict) or len(biases) > MOST_BIASES:
        fields.fail("logit_bias", f"has to be an object of at most {MOST_BIASES:,} tokens and their biases")
    values = Fields(biases, fields.path("logit_bias"))
    return tuple(_bias(values, token) for token in biases)


def _bias(values: Fields, token: str) -> tuple[int, float]:
    if not re.fullmatch("[0-9]{1,9}", token):
        values.fail(token[:20], "is no token: those have numbers")
    values.needs(token)
    return int(token), values.number(token, -100, 100) or 0.0


def several(request: R, answers: int) -> tuple[R, ...]:
    """The same request as many times. With a seed each one has its own, so that they are not all the same."""
    seed = request.sampling.seed
    if seed is None or answers == 1:
        return (request,) * answers
    return tuple(_seeded(request, (seed + index) % SEEDS) for index in range(answers))


def _seeded(request: R, seed: int) -> R:
    return replace(request, sampling=replace(request.sampling, seed=seed))


# What an answer has to be


def form(fields: Fields, response_format: bool = True) -> Format | None:
    """By OpenAI's `response_format`, or by `grammar` or `json_schema`, which llama.cpp has."""
    grammar = fields.text("grammar")
    forms = {
        "response_format": _response_format(fields) if response_format else None,
        "json_schema": _schema(fields, "json_schema"),
        "grammar": Format("gbnf", grammar) if grammar else None,
    }
    given = [name for name, form in forms.items() if form is not None]
    if len(given) > 1:
        fields.fail(given[1], f"cannot go with {given[0]}: an answer has one form")
    return forms[given[0]] if given else None


def params(body: Mapping[str, Any]) -> dict[str, str]:
    """What a request calls the fields of `engine.request` that may be called otherwise."""
    form = next((name for name in ("grammar", "json_schema") if body.get(name)), "response_format")
    return {
        "format": form,
        "thinking": "reasoning_effort" if body.get("reasoning_effort") else "chat_template_kwargs",
    }


def _response_format(fields: Fields) -> Format | None:
    form = fields.object("response_format")
    if form is None:
        return None
    form.needs("type")
    kind = form.choice("type", "text", "json_object", "json_schema")
    found = None
    if kind == "json_object":
        found = _schema(form, "schema") or Format("json")  # a schema here is llama.cpp's addition
    if kind == "json_schema":
        form.needs("json_schema")
        named = form.object("json_schema")
        assert named is not None
        found = _named_schema(named)
    form.done()
    return found


def _named_schema(fields: Fields) -> Format:
    fields.needs("name")
    fields.text("name")  # what the program that asks calls it; the model is not told
    fields.text("description")
    fields.flag("strict")  # it is kept to in any case
    found = _schema(fields, "schema") or Format("json")
    fields.done()
    return found


def _schema(fields: Fields, name: str) -> Format | None:
    schema = fields.take(name)
    if not isinstance(schema, dict | None):
        fields.fail(name, "has to be an object")
    return None if schema is None else Format("schema", json.dumps(schema, separators=(",", ":")))


# How long a model stays

LONGEST_DURATION = 100  # characters
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PARTS = re.compile(r"([0-9.]+)(ms|s|m|h)")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|s|m|h))+")


def keep_alive(fields: Fields) -> float | None:
    """Seconds for which the model stays when nobody asks for it: a number, or a text like 5m or 1h30m as
    Ollama takes it. Below zero is FOREVER."""
    value = fields.take("keep_alive")
    if value is None:
        return None
    seconds = _seconds(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds > 1e9:
        fields.fail("keep_alive", "has to be seconds, or a text like 30s, 5m or 1h; -1 is for ever")
    return float(seconds) if seconds >= 0 else FOREVER


def _seconds(text: str) -> float | None:
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    if re.fullmatch(r"[0-9]{1,9}", text):
        return sign * float(text)
    if len(text) >= LONGEST_DURATION or not _DURATION.fullmatch(text):
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))


# What comes back


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time()), "model": model}


def usage(answers: Sequence[Usage]) -> dict[str, Any]:
    """What all answers to one prompt took: the prompt counts once."""
    prompt = answers[0].prompt_tokens
    completion = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(answer.cached_tokens for answer in answers)},
    }


def timings(answers: Sequence[Usage]) -> dict[str, Any]:
    """In the form of llama.cpp's server: tokens that were computed, and milliseconds. Of several answers,
    which come side by side, the time is that of the slowest."""
    prompt = max(answer.prompt_seconds for answer in answers)
    predicted = max(answer.completion_seconds for answer in answers)
    prompt_tokens = max(answer.prompt_tokens - answer.cached_tokens for answer in answers)
    tokens = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_n": prompt_tokens,
        "prompt_ms": round(prompt * 1000, 3),
        "prompt_per_second": round(prompt_tokens / prompt, 3) if prompt else 0.0,
        "predicted_n": tokens,
        "predicted_ms": round(predicted * 1000, 3),
        "predicted_per_second": round(tokens / predicted, 3) if predicted else 0.0,
    }


def listed(name: str, model: Model) -> dict[str, Any]:
    """A model as /v1/models has it."""
    reference = model.reference
    owner = reference.path.partition("/")[0] if "/" in reference.path else reference.host or "mdl"
    if reference.scheme == "file":
        owner = "mdl"
    if reference.is_api:
        owner = reference.host
    return {"id": name, "object": "model", "created": int(model.modified.timestamp()), "owned_by": owner}
