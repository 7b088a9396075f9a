"""Which models a list shows and in which order. Pure: knows no disk and no terminal."""

import fnmatch
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mdl.errors import UsageError
from mdl.model import Model

Key = Callable[[Model], Any]

KEYS: dict[str, Key] = {
    "name": lambda model: str(model.reference.model).casefold(),
    "version": lambda model: model.version,
    "size": lambda model: model.size,
    "modified": lambda model: model.modified.timestamp(),
    "kind": lambda model: model.summary.kind,
    "format": lambda model: model.summary.format,
    "quantization": lambda model: model.summary.quantization,
    "architecture": lambda model: model.summary.architecture,
    "parameters": lambda model: model.summary.parameters,
    "context_length": lambda model: model.summary.context_length,
}
SORTS = ("name", "version", "size", "modified")
NUMBERS = ("size", "parameters", "context_length")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_RULE = r"\s*(\w+)\s*(>=|<=|!=|==?|>|<)\s*(.+?)\s*"
_NUMBER = r"(?i)(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def select(models: Sequence[Model], pattern: str | None, rules: Sequence[str], sort: str) -> list[Model]:
    """The models that match a pattern and all rules, in order. Raises UsageError for unknown keys."""
    tests = [_rule(text) for text in rules]
    if pattern:
        tests.append(_pattern(pattern))
    found = [model for model in models if all(test(model) for test in tests)]
    name = sort.removeprefix("-")
    if name not in SORTS:
        raise UsageError(
            f"cannot sort by {sort!r}", hint=f"one of {', '.join(SORTS)}; a - before it turns it round"
        )
    return sorted(found, key=KEYS[name], reverse=sort.startswith("-"))


def newest(models: Sequence[Model]) -> list[Model]:
    """Of each model the version that its name alone means, in the place of its first one."""
    best: dict[str, Model] = {}
    for model in models:
        name = str(model.reference.model)
        if name not in best or _rank(model) > _rank(best[name]):
            best[name] = model
    return list(best.values())


def counts(models: Sequence[Model]) -> dict[str, int]:
    """How many versions each model has, by name."""
    return Counter(str(model.reference.model) for model in models)


def _rank(model: Model) -> tuple[bool, float]:
    return not model.problem, model.modified.timestamp()


def _pattern(pattern: str) -> Callable[[Model], bool]:
    wanted = pattern.casefold()
    if not any(character in wanted for character in "*?["):
        wanted = f"*{wanted}*"
    return lambda model: fnmatch.fnmatchcase(str(model.reference).casefold(), wanted)


def _rule(text: str) -> Callable[[Model], bool]:
    match = re.fullmatch(_RULE, text)
    if match is None or match[1] not in KEYS or match[1] == "modified":
        known = ", ".join(key for key in KEYS if key != "modified")
        raise UsageError(
            f"the filter {text!r} cannot be read", hint=f"KEY OPERATOR VALUE, such as size>1GB; keys: {known}"
        )
    key, sign, value = KEYS[match[1]], match[2].replace("==", "="), match[3]
    compare = OPERATORS[sign]
    wanted: Any = _number(value, text) if match[1] in NUMBERS else value.casefold()

    def test(model: Model) -> bool:
        actual = key(model)
        if actual is None:
            return sign == "!="
        return compare(actual.casefold() if isinstance(actual, str) else actual, wanted)

    return test


def _number(text: str, rule: str) -> float:
    """1.5GB, 7B, 4096: sizes and counts, in powers of 1000."""
    match = re.fullmatch(_NUMBER, text)
    if match is None:
        raise UsageError(
            f"the filter {rule!r} has no number", hint="write a number with an optional unit: 1.5GB"
        )
    billions = text[-1:] in "bB" and not match[2] and float(match[1]) < 10_000
    power = 3 if billions else _POWERS[match[2].lower()]
    return float(match[1] + f"e{3 * power}")
