"""JSON schemas (draft 2020-12) made ready for llguidance, or refused. Knows no tokens.

llguidance keeps to nearly all that it reads. What it would not keep to, would not say, or would say without
the place, is refused here.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from mdl.engine.pattern import translated
from mdl.errors import UsageError

# As json.dumps writes it: an answer has one form, so that whitespace cannot go on for ever, and what has to
# come next is often a known string. Escapes by number are left out: a name that may be written in two ways
# could stand twice.
_OPTIONS = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
}
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly discriminator $comment "
    "contentEncoding contentMediaType contentSchema".split()
)
_DIALECTS = tuple(
    f"{scheme}://json-schema.org/{draft}/schema"
    for scheme in ("http", "https")
    for draft in ("draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12")
)
_EXACT = 2**53  # as a float: whole numbers beyond it are not told apart
_LARGEST = 2**63 - 1024  # the last one below 2**63, where llguidance ends


def prepared(schema: object) -> dict[str, Any]:
    """The same schema for llguidance. Raises UsageError with the place of what is wrong or not supported."""
    return {"x-guidance": _OPTIONS} | (
        _object(schema, "#") if isinstance(schema, dict) else {"allOf": [_schema(schema, "#")]}
    )


def parsed(text: str) -> Any:
    """Of JSON text. Raises UsageError."""
    try:
        schema = json.loads(text, parse_constant=_no_number)
        json.dumps(schema, ensure_ascii=False).encode()
    except RecursionError:
        raise UsageError("the JSON schema is nested too deeply") from None
    except UnicodeEncodeError:
        raise UsageError("the JSON schema holds half of a character") from None
    except ValueError as error:
        raise UsageError(f"the JSON schema is no JSON: {error}") from None
    return schema


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _schema(schema: object, place: str) -> object:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise _wrong(place, "has to be an object, true or false")
    return _object(schema, place)


def _object(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    _distinct(schema, place)
    written = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS or key.startswith("x-") or (key == "uniqueItems" and value is False):
            continue
        if key not in _KEYWORDS:
            raise _wrong(place, f"{key!r:.60} is not supported")
        written[key] = _KEYWORDS[key](value, f"{place}/{key}")
    return written


def _distinct(schema: Mapping[str, Any], place: str) -> None:
    """Names that are not told may come twice; only one of them, besides those that are required, is sure."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > len(set(map(str, required))) + 1:
        raise _wrong(place, f"minProperties of {least} is not supported: name what is required")


def _wrong(place: str, what: str) -> UsageError:
    return UsageError(f"the JSON schema cannot be used: {what}, at {place:.200}")


def _list(value: object, place: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(place, "a list is needed")
    return [_schema(item, f"{place}/{index}") for index, item in enumerate(value)]


def _items(value: object, place: str) -> object:
    return _list(value, place) if isinstance(value, list) else _schema(value, place)


def _named(value: object, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(place, "an object is needed")
    return {name: _schema(item, f"{place}/{name}") for name, item in value.items()}


def _patterned(value: Any, place: str) -> dict[str, object]:
    written = {_pattern(name, place): item for name, item in _named(value, place).items()}
    if len(written) != len(value):
        raise _wrong(place, "two patterns that are one")
    return written


def _pattern(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(place, "a string is needed")
    try:
        return translated(value)
    except UsageError as error:
        raise _wrong(place, error.message) from None


def _format(value: object, place: str) -> object:
    if value not in FORMATS:
        raise _wrong(place, f"the format {value!r:.60} is not supported")
    return value


def _type(value: object, place: str) -> object:
    names = value if isinstance(value, list) else [value]
    if not names or any(name not in _TYPES for name in names):
        raise _wrong(place, f"{value!r:.60} is no type")
    return value


def _reference(value: object, place: str) -> object:
    if not isinstance(value, str) or not value.startswith("#"):
        raise _wrong(place, f"{value!r:.60} is not within the schema")
    return value


def _dialect(value: object, place: str) -> object:
    if not isinstance(value, str) or value.rstrip("#") not in _DIALECTS:
        raise _wrong(place, f"the dialect {value!r:.80} is not supported")
    return value


def _required(value: object, place: str) -> object:
    if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
        raise _wrong(place, "a list of strings is needed")
    return value


def _count(value: object, place: str) -> object:
    if isinstance(value, int) and value > _EXACT:
        raise _wrong(place, f"{value!r:.40} is too large a number")
    return value


def _least(value: object, place: str) -> object:
    return _told_apart(max(value, -_LARGEST) if isinstance(value, int) else value, place)


def _most(value: object, place: str) -> object:
    return _told_apart(min(value, _LARGEST) if isinstance(value, int) else value, place)


def _told_apart(value: object, place: str) -> object:
    """From the whole numbers beside it."""
    if isinstance(value, int) and (abs(value) > _LARGEST or float(value) != value):
        raise _wrong(place, f"{value!r:.40} is too large a number")
    return value


def _constant(value: object, place: str) -> object:
    """Any value, which is to be written exactly."""
    if isinstance(value, dict):
        return {_constant(name, place): _constant(item, place) for name, item in value.items()}
    if isinstance(value, list):
        return [_constant(item, place) for item in value]
    if isinstance(value, str) and any(
        (ord(sign) < 32 and sign not in "\n\r\b\t\f") or sign == "\x7f" for sign in value
    ):
        raise _wrong(place, f"{value!r:.40} has a control character")
    if isinstance(value, int | float) and abs(value) > _EXACT:
        raise _wrong(place, f"{value!r:.40} is too large a number")
    return value


def _constants(value: object, place: str) -> object:
    if not isinstance(value, list):
        raise _wrong(place, "a list is needed")
    return [_constant(item, place) for item in value]


def _as_it_is(value: object, _: str) -> object:
    return value


_KEYWORDS: dict[str, Callable[[Any, str], object]] = {
    "$schema": _dialect,
    "$id": _as_it_is,
    "$anchor": _as_it_is,
    "$ref": _reference,
    "$defs": _named,
    "definitions": _named,
    "type": _type,
    "enum": _constants,
    "const": _constant,
    "anyOf": _list,
    "allOf": _list,
    "oneOf": _list,
    "properties": _named,
    "patternProperties": _patterned,
    "additionalProperties": _schema,
    "required": _required,
    "minProperties": _count,
    "maxProperties": _count,
    "prefixItems": _list,
    "items": _items,
    "additionalItems": _schema,
    "minItems": _count,
    "maxItems": _count,
    "pattern": _pattern,
    "format": _format,
    "minLength": _count,
    "maxLength": _count,
    "minimum": _least,
    "maximum": _most,
    "exclusiveMinimum": _least,
    "exclusiveMaximum": _most,
    "multipleOf": _count,
}
