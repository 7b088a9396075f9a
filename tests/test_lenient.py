"""JSON as people write it: strict JSON is read the same, the rest is read or refused with its place."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mdl import lenient

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=20
)
COMMENTS = st.sampled_from(["", " ", "\n", "// a 'b' \"c\n", "# {[\n", "/* ] } * / */", "\t\r\n"])


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 3]))
def test_what_strict_json_says_is_read_the_same(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert lenient.loads(text) == json.loads(text)
    assert type(lenient.loads(text)) is type(json.loads(text))


@given(st.text(alphabet='{}[]",:0123456789.eE+-\\untrefalsb \n', max_size=40))
@example('{"a": 1, "a": 2}')
@example("-0")
@example('"\\ud800"')
def test_a_text_that_strict_json_takes_is_taken(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        return
    assert lenient.loads(text) == expected


@given(st.text(max_size=80))
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example("/*" * 100_000)
@example("'" * 100_000)
@example("1" * 100_000)
@example("1" * 310)
@example("-1" + "0" * 399)
@example("#\n" * 50_000)
@example('"\\u')
@example("'\\")
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        lenient.loads(text)
    except lenient.Malformed as failure:
        assert 1 <= failure.line <= text.count("\n") + 1
        assert 1 <= failure.column <= len(text) + 1


@given(st.lists(st.integers() | st.text(), max_size=6), st.data())
def test_comments_may_stand_wherever_space_may(values: list[Any], data: st.DataObject) -> None:
    spaced = "".join(f"{data.draw(COMMENTS)}{json.dumps(value)}{data.draw(COMMENTS)}," for value in values)
    assert lenient.loads(f"{data.draw(COMMENTS)}[{spaced}]{data.draw(COMMENTS)}") == values


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=6))
def test_commas_may_be_missing_or_trail(values: dict[str, Any]) -> None:
    pairs = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
    assert lenient.loads("{" + "\n".join(pairs) + "}") == values
    assert lenient.loads("{" + "".join(f"{pair}," for pair in pairs) + "}") == values


@given(st.text())
def test_texts_may_be_in_single_quotes(text: str) -> None:
    quoted = json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'")
    assert lenient.loads(f"'{quoted}'") == text


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("", 1, 1),
        ('{\n  "a": 1,\n  "b": \n}', 4, 1),
        ('{"a" 1}', 1, 6),
        ("[1,,2]", 1, 4),
        ("[,]", 1, 2),
        ("[1 2] 3", 1, 7),
        ("[NaN]", 1, 2),
        ("[1e999]", 1, 2),
        ("[1-2]", 1, 2),
        ("{a: 1}", 1, 2),
        ('["a\nb"]', 1, 4),
        ("[1", 1, 3),
        ("[1] /* no end", 1, 5),
        ("[" * 65, 1, 65),
    ],
)
def test_errors_have_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(lenient.Malformed) as caught:
        lenient.loads(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"line {line}, column {column}: ")


def test_numbers_are_as_exact_as_they_were_written() -> None:
    assert lenient.loads("[12345678901234567890, 0.1, -0.0]") == [12345678901234567890, 0.1, -0.0]
    assert math.copysign(1, lenient.loads("-0.0")) == -1
