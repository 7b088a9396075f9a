"""Schemas by chance, of all the keywords that answers are held to, and of some that they are not; and answers
by chance, of a model whose tokens are bytes."""

import ctypes
import json
import random
from decimal import Decimal, InvalidOperation
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mdl.engine.grammar import Constraint, Grammars
from mdl.engine.request import Format

PIECES = [bytes([byte]) for byte in range(256)] + [b"<|end|>", b"<|call|>"]
END, CALL = 256, 257
LIKELY = frozenset(b'"]},: 0123456789ab')

NAMES = st.sampled_from(["a", "b", "id", 'na"me', "é", "x-y"])
COUNTS = st.integers(0, 4)
NUMBERS = st.one_of(st.integers(-1000, 1000), st.floats(-100, 100).map(lambda number: round(number, 2)))
PATTERNS = ["^[a-c]+$", "x", "^a|b$", r"\d{2}", "[^a]", "^(foo|bar)*$", ".", "^.{2,3}$", r"\W\w", r"^\S+\s$",
            r'["\\]', "[a&&b]", "(?=a)b"]  # fmt: skip
FORMATS = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "nope",
]
TYPES = ["string", "integer", "null", "boolean", "object", "array", "number"]
STEPS = [1, 2, 3, 7, 0.5, 0.1, 0.01, 1.5]

Schema = st.SearchStrategy[Any]


def some(**keywords: Schema) -> Schema:
    return st.fixed_dictionaries({}, optional=keywords)


def typed(name: str, schemas: Schema) -> Schema:
    return schemas.map(lambda schema: {"type": name} | schema)


def few(schemas: Schema) -> Schema:
    return st.lists(schemas, min_size=1, max_size=2)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=2)),
    max_leaves=4,
)
STRINGS = some(
    minLength=COUNTS, maxLength=COUNTS, pattern=st.sampled_from(PATTERNS), format=st.sampled_from(FORMATS)
)
QUANTITIES = some(
    minimum=NUMBERS,
    maximum=NUMBERS,
    exclusiveMinimum=NUMBERS,
    exclusiveMaximum=NUMBERS,
    multipleOf=st.sampled_from(STEPS),
)
LEAVES = st.one_of(
    st.just({}),
    st.booleans(),
    typed("string", STRINGS),
    typed("integer", QUANTITIES),
    typed("number", QUANTITIES),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True).map(lambda types: {"type": types}),
)


def _larger(inner: Schema) -> Schema:
    objects = some(
        properties=st.dictionaries(NAMES, inner, max_size=3),
        required=st.lists(NAMES, max_size=3, unique=True),
        additionalProperties=inner,
        patternProperties=st.dictionaries(st.sampled_from(["^a", "b$", "[0-9]"]), inner, max_size=2),
        minProperties=COUNTS,
        maxProperties=COUNTS,
    )
    arrays = some(
        items=inner, prefixItems=few(inner), minItems=COUNTS, maxItems=COUNTS, uniqueItems=st.booleans()
    )
    return st.one_of(
        typed("object", objects),
        typed("array", arrays),
        objects,
        arrays,
        st.tuples(objects, arrays, STRINGS, QUANTITIES).map(
            lambda four: four[0] | four[1] | four[2] | four[3]
        ),
        few(inner).map(lambda schemas: {"anyOf": schemas}),
        few(inner).map(lambda schemas: {"allOf": schemas}),
        few(inner).map(lambda schemas: {"oneOf": schemas}),
        inner.map(lambda schema: {"not": schema}),
        st.tuples(objects, few(inner)).map(lambda two: two[0] | {"anyOf": two[1]}),
        inner.map(lambda schema: {"properties": {"own": schema, "whole": {"$ref": "#"}}}),
    )


SCHEMAS = st.recursive(LEAVES, _larger, max_leaves=6).map(
    lambda schema: schema if isinstance(schema, dict) else {"allOf": [schema]}
)


def of_bytes() -> Grammars:
    """To be closed."""
    return Grammars(PIECES, {"<|end|>": END, "<|call|>": CALL}, [END], list)


def allowed(constraint: Constraint) -> set[int]:
    """The tokens that may follow."""
    logits = (ctypes.c_float * len(PIECES))()
    constraint.mask(ctypes.addressof(logits))
    return {token for token, logit in enumerate(logits) if logit == 0}


def written(grammars: Grammars, format: Format, seed: int, most: int = 200) -> bytes | None:
    """An answer by chance; None if it has no end within so many tokens."""
    constraint, chance, text = grammars.constraint(format), random.Random(seed), bytearray()
    for _ in range(most):
        choice = sorted(allowed(constraint))
        if END in choice and (len(choice) == 1 or chance.random() < 0.3):
            return bytes(text)
        letters = [token for token in choice if token < END]
        likely = [token for token in letters if token in LIKELY]
        token = chance.choice(likely if likely and chance.random() < 0.7 else letters)
        constraint.accept(token)
        text.append(token)
    return None


def valid(content: Any, answer: str | bytes) -> bool:
    """As Python's validator sees it; it cannot count with exponents of a hundred digits."""
    try:
        return Draft202012Validator(_exactly(json.dumps(content))).is_valid(_exactly(answer))
    except InvalidOperation:
        return True


def _exactly(text: str | bytes) -> Any:
    """JSON with numbers as they are written."""
    return json.loads(text, parse_float=Decimal)
