"""What `.metadata` and the index say is data, whoever wrote it: it costs one model, or another look."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_store import add

from mdl.describing import describe
from mdl.model import METADATA_NAME, Model
from mdl.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", describe)


def rewrite(model: Model, text: str) -> None:
    (model.folder / METADATA_NAME).unlink()
    (model.folder / METADATA_NAME).write_text(text)


@pytest.mark.parametrize("value", ["inf", "07:32:00", "1979-05-27", "[]", "{}", "true", "-1", "9" * 30])
@pytest.mark.parametrize(
    "key", ["created", "kind", "commit", "quantization", "context_length", "role", "size", "sha256"]
)
def test_a_value_of_another_kind_is_a_problem_of_that_model_and_of_no_other(
    store: Store, key: str, value: str
) -> None:
    good, bad = add(store, "o/good:1"), add(store, "o/bad:1")
    lines = (bad.folder / METADATA_NAME).read_text().splitlines()
    rewrite(bad, "\n".join(f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines))
    for _ in range(2):  # the second time from the index
        listed = {str(model.reference.model): model for model in store.models()}
        assert listed["huggingface.co/o/good"] == good
        assert listed["huggingface.co/o/bad"].problem


@pytest.mark.parametrize("value", ["inf", "nan", "[" * 50_000, "{a = " * 50_000])
def test_metadata_of_no_schema_are_a_problem_of_that_model(store: Store, value: str) -> None:
    model = add(store, "o/a:1")
    rewrite(model, f"schema = {value}")
    found = store.find(model.reference)
    assert found is not None and found.problem
    assert [listed.problem for listed in store.models()] == [found.problem]


A = "huggingface.co/o/a/1"


@pytest.mark.parametrize("junk", [None, 5, True, "x", [], {}, [1, 2, 3, 4], {"a": 1}])
@pytest.mark.parametrize("place", [("entries",), ("entries", A), ("entries", A, 3), ("schema",)])
def test_a_damaged_entry_of_the_index_costs_a_look_and_nothing_else(
    store: Store, place: tuple[Any, ...], junk: object
) -> None:
    models = [add(store, "o/a:1"), add(store, "o/b:1", at=1)]
    assert store.models() == models
    path = store.root / "index.json"
    content = json.loads(path.read_text())
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    path.write_text(json.dumps(content))
    assert store.models() == models
