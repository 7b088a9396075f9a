"""A sampling setting as a person types it. Knows no conversation."""

import json
from dataclasses import fields, replace
from typing import Any

from mdl.chat.nearest import nearest
from mdl.engine.request import Sampling
from mdl.errors import UsageError

_MDL = Sampling()
# What a conversation has no use for: it names no tokens, has to end, and shows no probabilities.
_ELSEWHERE = ("logit_bias", "ignore_eos", "logprobs")
NAMES = tuple(field.name for field in fields(Sampling) if field.name not in _ELSEWHERE)
TEXTS = ("stop", "dry_sequence_breakers")
_WHOLE = ("seed", "max_tokens", *(name for name in NAMES if isinstance(getattr(_MDL, name), int)))
# The ways to choose that few know are shown when one of them is set.
_SELDOM = ("top_n_sigma", "xtc_", "dry_", "mirostat")


def changed(sampling: Sampling, name: str, text: str, defaults: Sampling = _MDL) -> Sampling:
    """The settings with one set to what `text` says; `default` is as it was at first, in `defaults`.

    `stop` and `dry_sequence_breakers` take one text, or a JSON list of them. Raises UsageError for unknown
    names and values out of range.
    """
    name = name.lower().replace("-", "_")
    if name not in NAMES:
        raise UsageError(
            f"{name} is no setting", hint=nearest(name, NAMES) or f"there are: {', '.join(NAMES)}"
        )
    text = text.strip()
    value = getattr(defaults, name) if text.lower() == "default" else _value(name, text)
    return replace(sampling, **{name: value})


def telling(sampling: Sampling) -> tuple[str, ...]:
    """The names of those that are worth showing."""
    return tuple(
        name
        for name in NAMES
        if not name.startswith(_SELDOM) or getattr(sampling, name) != getattr(_MDL, name)
    )


def shown(sampling: Sampling, name: str) -> str:
    value = getattr(sampling, name)
    if name in TEXTS:
        return " ".join(json.dumps(text, ensure_ascii=False) for text in value) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return _texts(text)
    if text.lower() in ("none", "off") and getattr(_MDL, name) is None:
        return None
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(f"{name} is {text!r:.40}, and has to be {kind}") from None


def _texts(text: str) -> tuple[str, ...]:
    if text.lower() in ("none", "off"):
        return ()
    if text.startswith(("[", '"')):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return (text,)
        return tuple(value) if isinstance(value, list) else (value,)
    return (text,)
