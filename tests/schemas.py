"""Schemas by chance, of all the keywords that answers are held to, and of some that they are not."""

from typing import Any

from hypothesis import strategies as st

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
