"""Which models a list shows: filters, order, the version that a name alone means."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mdl import listing
from mdl.errors import UsageError
from mdl.model import File, Model, Summary
from mdl.reference import Reference


def model(name: str, size: int, at: int, **summary: object) -> Model:
    facts = Summary(**{"format": "gguf", **summary})  # type: ignore[arg-type]
    moment = datetime.fromtimestamp(at, UTC)
    return Model(Reference.parse(name), Path(), (File("x", size),), facts, modified=moment)


MODELS = [
    model("org/Big:Q8_0", 8_000_000_000, 1, parameters=7_000_000_000, quantization="Q8_0"),
    model("org/Big:Q4_K_M", 4_000_000_000, 3, parameters=7_000_000_000, quantization="Q4_K_M"),
    model("quay.io/a/small:v1", 900_000, 2, architecture="llama"),
]


def names(*rules: str, pattern: str | None = None, sort: str = "name") -> list[str]:
    return [str(found.reference).rpartition("/")[2] for found in listing.select(MODELS, pattern, rules, sort)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("size>1GB", ["Big:Q8_0", "Big:Q4_K_M"]),
        ("size >= 4 GB", ["Big:Q8_0", "Big:Q4_K_M"]),
        ("size<1.5MB", ["small:v1"]),
        ("size<=900k", ["small:v1"]),
        ("size=900000", ["small:v1"]),
        ("parameters=7B", ["Big:Q8_0", "Big:Q4_K_M"]),
        ("parameters>8B", []),
        ("quantization=q8_0", ["Big:Q8_0"]),
        ("quantization!=Q8_0", ["Big:Q4_K_M", "small:v1"]),
        ("architecture==LLAMA", ["small:v1"]),
        ("format=gguf", ["Big:Q8_0", "Big:Q4_K_M", "small:v1"]),
        ("version=v1", ["small:v1"]),
    ],
)
def test_a_filter_keeps_what_matches(rule: str, expected: list[str]) -> None:
    assert names(rule) == expected


def test_all_filters_have_to_match() -> None:
    assert names("size>1GB", "quantization=Q4_K_M") == ["Big:Q4_K_M"]


@pytest.mark.parametrize(
    "rule", ["", "size", "size>", "size>big", "size>1XB", "colour=red", "modified>1", "=1"]
)
def test_a_filter_that_cannot_be_read_is_an_error(rule: str) -> None:
    with pytest.raises(UsageError):
        names(rule)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["Big:Q8_0", "Big:Q4_K_M", "small:v1"]),
        ("size", ["small:v1", "Big:Q4_K_M", "Big:Q8_0"]),
        ("-size", ["Big:Q8_0", "Big:Q4_K_M", "small:v1"]),
        ("modified", ["Big:Q8_0", "small:v1", "Big:Q4_K_M"]),
        ("-version", ["small:v1", "Big:Q8_0", "Big:Q4_K_M"]),
    ],
)
def test_a_list_is_sorted_by_what_was_asked(sort: str, expected: list[str]) -> None:
    assert names(sort=sort) == expected


def test_a_pattern_is_part_of_a_name_or_a_glob() -> None:
    assert names(pattern="big") == ["Big:Q8_0", "Big:Q4_K_M"]
    assert names(pattern="*:q4*") == ["Big:Q4_K_M"]
    assert names(pattern="nothing") == []


def test_a_name_alone_means_the_version_that_came_last() -> None:
    assert [found.version for found in listing.newest(MODELS)] == ["Q4_K_M", "v1"]
    assert listing.counts(MODELS) == {"huggingface.co/org/Big": 2, "quay.io/a/small": 1}
