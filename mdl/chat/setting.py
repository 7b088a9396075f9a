"""A sampling setting as a person types it. Knows no conversation."""

import json
from dataclasses import fields, replace
from typing import Any

from mdl.chat.nearest import nearest
from mdl.engine.request import Sampling
from mdl.errors import UsageError

NAMES = tuple(field.name for field in fields(Sampling))
_MDL = Sampling()
_WHOLE = ("top_k", "repeat_last_n", "seed", "max_tokens")


def changed(sampling: Sampling, name: str, text: str, defaults: Sampling = _MDL) -> Sampling:
    """The settings with one set to what `text` says; `default` is as it was at first, in `defaults`.

    `stop` takes one text, or a JSON list of them. Raises UsageError for unknown names and values out of
    range.
    """
    name = name.lower().replace("-", "_")
    if name not in NAMES:
        raise UsageError(
            f"{name} is no setting", hint=nearest(name, NAMES) or f"there are: {', '.join(NAMES)}"
        )
    text = text.strip()
    value = getattr(defaults, name) if text.lower() == "default" else _value(name, text)
    return replace(sampling, **{name: value})


def shown(sampling: Sampling, name: str) -> str:
    value = getattr(sampling, name)
    if name == "stop":
        return " ".join(json.dumps(text, ensure_ascii=False) for text in value) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    if name == "stop":
        return _stops(text)
    if text.lower() in ("none", "off") and getattr(_MDL, name) is None:
        return None
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(f"{name} is {text!r:.40}, and has to be {kind}") from None


def _stops(text: str) -> tuple[str, ...]:
    if text.lower() in ("none", "off"):
        return ()
    if text.startswith(("[", '"')):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return (text,)
        return tuple(value) if isinstance(value, list) else (value,)
    return (text,)
