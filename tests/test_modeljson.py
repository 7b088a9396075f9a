"""model.json: read as people write it, written strictly; models that have one, several, or nothing else."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ggufmaker import MODEL, make
from ggufmaker import model as weights
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st
from serving import Server, text
from test_cli import Mdl, documents, mdl  # noqa: F401
from tiny import DEMO

from mdl import header, inspection, layers, modeljson, runnable
from mdl.errors import MdlError, NotFound, UnsupportedModel, UsageError
from mdl.library import Library
from mdl.modeljson import STATES, Card, parse
from mdl.store import Store
from mdl.usage import measure
from mdl.verification import Verification

Q4, Q8 = weights({"general.name": "small"}), weights({"general.name": "large"})
PROJECTOR = make({"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True})
EXAMPLE = """
{
  // written by hand
  'source_url': "https://huggingface.co/org/demo-GGUF/blob/main/demo-Q8_0.gguf"
  "type": "model", "id": "demo", "name": "Demo" # its name
  "description": "A model\\nfor trying", "version": 1.5, "owned_by": "me", "created": "1700000000",
  "state": "to_download", "format": "GGUF",
  "settings": {"ctx_len": "1024", "ngl": "0",},
  "parameters": {"temperature": "0.5", "top_k": 7, "stop": ["END"], "n_parallel": 2},
  "metadata": {"engine": "llamacpp", "quantization": "Q8_0", "binaries": ["demo-Q8_0.gguf"],
               "size": "3972544"},
  "assets": ["./cover.png"],
}
"""


def put(library: Library, place: str, content: bytes | str | dict[str, Any]) -> Path:
    """A file in the tree of models."""
    path = library.store.tree / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def names(library: Library) -> list[str]:
    return [str(model.reference) for model in library.list()]


def set_of(library: Library, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and parameters that are in force for a model."""
    profile = layers.of(library, library.here(name)).merged()
    return dict(profile.settings), dict(profile.sampling)


# What a model.json says


def test_all_fields_of_a_model_json_are_read() -> None:
    card = parse(EXAMPLE)
    assert card == Card(
        source_url="https://huggingface.co/org/demo-GGUF/blob/main/demo-Q8_0.gguf",
        object="model",
        id="demo",
        name="Demo",
        description="A model for trying",
        version="1.5",
        owned_by="me",
        created=1_700_000_000,
        state="not-downloaded",
        format="gguf",
        settings={"ctx_len": "1024", "ngl": "0"},
        parameters={"temperature": "0.5", "top_k": 7, "stop": ["END"], "n_parallel": 2},
        engine="llamacpp",
        quantization="Q8_0",
        binaries=("demo-Q8_0.gguf",),
        size=3_972_544,
        assets=("./cover.png",),
    )


def test_all_fields_are_optional_even_an_empty_one_is_a_model_json() -> None:
    assert parse("{}") == Card()


def test_what_mdl_writes_is_strict_and_reads_back() -> None:
    card = parse(EXAMPLE)
    assert parse(modeljson.dumps(card)) == card
    written = json.loads(modeljson.dumps(card))
    assert list(written) == [
        *("source_url", "object", "id", "name", "description", "version", "owned_by", "created", "state"),
        *("format", "settings", "parameters", "metadata", "assets"),
    ]
    assert list(written["metadata"]) == ["engine", "quantization", "binaries", "size"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    "source_url object type id name description version owned_by created state format settings parameters "
    "metadata assets sources binaries engine size quantization temperature n_ctx".split()
)
CARDS = st.dictionaries(FIELDS | st.text(), JSON, max_size=8)


@given(CARDS)
def test_whatever_the_fields_hold_it_is_read_and_what_is_written_reads_back(fields: dict[str, Any]) -> None:
    card = parse(json.dumps(fields))
    again = parse(modeljson.dumps(card))
    assert replace(again, notes=(), ignored=()) == replace(card, notes=(), ignored=())


@pytest.mark.parametrize("state", STATES)
def test_every_spelling_of_a_state_is_known(state: str) -> None:
    for spelling in (state, *STATES[state]):
        for said in (spelling, spelling.upper(), spelling.replace("-", "_"), spelling.replace("-", " ")):
            assert parse(json.dumps({"state": said})).state == state
    assert parse('{"state": "toDownload"}').state == "not-downloaded"
    assert parse('{"state": null}').state == ""
    assert parse('{"state": true}').state == "ready"
    assert parse('{"state": "lost"}').notes == ("model.json: state is none that is known: 'lost'",)


@pytest.mark.parametrize(
    "fields",
    [
        {"settings": {"n_ctx": 512}, "parameters": {"temperature": 0.5}},
        {"settings": {"n_ctx": "512"}, "parameters": {"temperature": "0.5"}},
        {"parameters": {"n_ctx": 512, "temperature": 0.5}},
        {"parameters": {"init": {"ctx_len": "512"}, "runtime": {"temperature": "0.5"}}},
        {"parameters": [{"key": "n_ctx", "value": 512}, {"key": "temperature", "value": 0.5}]},
        {"n_ctx": 512, "temperature": 0.5},
    ],
)
def test_settings_mixed_into_parameters_and_every_layout_of_them_mean_the_same(
    library: Library, fields: dict[str, Any]
) -> None:
    put(library, "demo/demo.gguf", Q8)
    put(library, "demo/model.json", fields)
    assert set_of(library, "demo") == ({"context": 512}, {"temperature": 0.5})


def test_what_is_wrong_in_a_model_json_becomes_a_note_and_the_model_still_runs(library: Library) -> None:
    put(library, "demo/demo.gguf", Q8)
    put(library, "demo/model.json", '{"parameters": {"temperature": "hot", "foo": 1}, "bar": 2, "name": []}')
    profile = modeljson.profile(library.here("demo"))
    assert profile.sampling == {}
    assert profile.ignored == ("bar", "foo")
    assert profile.notes == (
        "model.json: name has to be a text",
        "model.json: temperature cannot be 'hot'",
    )
    inspected = inspection.describe(library, library.here("demo"), runnable.weights(library.here("demo")))
    assert inspected["profile"]["notes"] == list(profile.notes)
    put(library, "demo/model.json", '{\n  "name": oops')
    profile = modeljson.profile(library.here("demo"))
    assert profile.notes == ("model.json: line 2, column 11: a value should be here",)
    assert runnable.weights(library.here("demo")).first.name == "demo.gguf"


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": ', "{" * 1000, "\0", '{"a": 1} x'])
def test_a_model_json_that_is_none_has_line_and_column(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"^model\.json(: line \d+, column \d+: | holds no object)"):
        modeljson.read(tmp_path / "model.json")


def test_a_model_json_that_is_too_long_or_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    for content in (b"{}" + b" " * header.LARGEST_TEXT, b'{"a": "\xff"}'):
        path.write_bytes(content)
        with pytest.raises(UnsupportedModel, match=r"^model\.json is "):
            modeljson.read(path)


# Defaults


def test_defaults_come_from_the_folder_and_the_file_name(library: Library) -> None:
    put(library, "acme/llama/llama-Q4_K_M.gguf", Q4)
    put(library, "acme/llama/model.json", "{}")
    card = modeljson.of(library.here("llama"))
    assert (card.id, card.name, card.object) == ("acme/llama", "llama", "model")
    assert (card.state, card.format, card.version) == ("ready", "gguf", "n/a")
    assert card.quantization == library.here("llama").summary.quantization
    assert card.binaries == ("llama-Q4_K_M.gguf",)
    assert card.size == library.here("llama").size


@pytest.mark.parametrize("name", ["My model (1)", "日本語", "a%20b"])
def test_a_model_that_was_put_here_by_hand_is_used_by_the_name_that_it_is_listed_by(
    library: Library, name: str
) -> None:
    put(library, f"{name}/x.gguf", Q8)
    put(library, "other/x.gguf", Q4)
    [called] = [str(model.reference) for model in library.list() if model.folder.name == name]
    found = library.here(called)
    assert (found.folder.name, found.version, library.meant(called)) == (name, "n/a", [found])
    library.store.remove(library.removable(called))
    assert [str(model.reference) for model in library.list()] == ["other"]
    with pytest.raises(UsageError, match="cannot be part of a model's name"):
        library.resolve("not (here)")


def test_an_empty_model_json_runs(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "home/models/mine"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    shutil.copy(DEMO, folder / "x.gguf")
    assert mdl("chat", "mine", "What is 2 plus 2?", "--temperature", "0").stdout == "2 plus 2 is 4.\n"


def test_parameters_of_a_model_json_change_the_answer(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "home/models/two"
    folder.mkdir(parents=True)
    for name, stop in (("whole", "[]"), ("short", '["capital"]')):
        shutil.copy(DEMO, folder / f"{name}.gguf")
        (folder / f"{name}.json").write_text(f"{{'parameters': {{'temperature': '0', 'stop': {stop}}}}}")
    question = "What is the capital of France?"
    assert mdl("chat", "two/whole", question).stdout == "The capital of France is Paris.\n"
    assert mdl("chat", "two/short", question).stdout.strip() == "The"


def test_what_of_a_model_json_cannot_be_used_is_told(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "home/models/mine"
    folder.mkdir(parents=True)
    shutil.copy(DEMO, folder / "x.gguf")
    (folder / "model.json").write_text('{"temperature": "hot", "parameters": {"max_token": 3}}')
    done = mdl("chat", "mine", "What is 2 plus 2?", "--temperature", "0")
    assert (done.stdout, done.stderr) == (
        "2 plus 2 is 4.\n",
        "model.json: temperature cannot be 'hot'\n"
        "model.json: max_token is no setting and no parameter: did you mean max_tokens?\n",
    )


# One folder with a JSON for each quantization, or a folder for each


def test_one_folder_may_hold_a_json_for_each_quantization(library: Library) -> None:
    for name, content in (("q4", Q4), ("q8", Q8)):
        put(library, f"llama/{name}.gguf", content)
        put(library, f"llama/{name}.json", {"parameters": {"top_k": 4 if name == "q4" else 8}})
    assert names(library) == ["llama:q4", "llama:q8"]
    assert names(library) == ["llama:q4", "llama:q8"]  # from the index
    for name in ("q4", "q8"):
        for asked in (f"llama/{name}", f"llama:{name}"):
            found = library.here(asked)
            assert runnable.weights(found).first.name == f"{name}.gguf"
            assert found.place == library.store.tree / f"llama/{name}.gguf"
        assert modeljson.of(found).id == f"llama/{name}"
        assert set_of(library, f"llama/{name}")[1] == {"top_k": int(name[1])}
    assert library.here("llama").version in ("q4", "q8")


def test_there_may_be_a_folder_for_each_quantization(library: Library) -> None:
    for name in ("q4", "q8"):
        put(library, f"llama-{name}/{name}.gguf", Q4)
        put(library, f"llama-{name}/model.json", {})
    assert names(library) == ["llama-q4", "llama-q8"]
    assert [modeljson.of(model).id for model in library.list()] == ["llama-q4", "llama-q8"]


def test_one_of_several_in_a_folder_is_removed_without_the_others(library: Library) -> None:
    for name in ("q4", "q8"):
        put(library, f"llama/{name}.gguf", Q4)
        put(library, f"llama/{name}.json", {"metadata": {"binaries": [f"{name}.gguf", "mmproj.gguf"]}})
    put(library, "llama/mmproj.gguf", PROJECTOR)
    library.store.remove(library.removable("llama/q4"))
    assert names(library) == ["llama:q8"]
    assert runnable.weights(library.here("llama/q8")).projector is not None
    library.store.remove(library.removable("llama/q8"))
    assert not (library.store.tree / "llama").exists()


def test_other_json_files_are_no_models(library: Library) -> None:
    put(library, "llama/llama.gguf", Q4)
    put(library, "llama/notes.json", '{"a": 1}')
    put(library, "llama/config.json", '{"source_url": "x"}')
    assert names(library) == ["llama"]


# One model, several binaries


def test_a_projector_and_weights_are_one_model(library: Library) -> None:
    put(library, "llava/model.json", {"metadata": {"binaries": ["llava.gguf", "vision.gguf"]}})
    put(library, "llava/llava.gguf", Q4)
    put(library, "llava/vision.gguf", PROJECTOR)
    put(library, "llava/another.gguf", Q8)
    found = runnable.weights(library.here("llava"))
    assert (found.first.name, found.projector and found.projector.name) == ("llava.gguf", "vision.gguf")


def test_sharded_weights_are_one_model_under_one_json(library: Library) -> None:
    parts = split(3)
    for number, part in enumerate(parts, 1):
        put(library, f"big/big-{number:05}-of-00003.gguf", part)
        put(library, f"many/part-{number:05}-of-00003.gguf", part)
    put(
        library,
        "big/model.json",
        {"metadata": {"binaries": [f"big-{n:05}-of-00003.gguf" for n in (1, 2, 3)]}},
    )
    put(library, "many/part.json", {})
    for name in ("big", "many/part"):
        assert len(runnable.weights(library.here(name)).files) == 3
    (library.store.tree / "big/big-00002-of-00003.gguf").unlink()
    with pytest.raises(UnsupportedModel, match="missing"):
        runnable.weights(library.here("big"))


def split(count: int) -> list[bytes]:
    facts = [
        {**MODEL, "split.no": n, "split.count": count, "split.tensors.count": count} for n in range(count)
    ]
    return [make(fact, [(f"t{n}.weight", (32, 2), 1)]) for n, fact in enumerate(facts)]


# source_url


@pytest.mark.parametrize("source", ["./demo.gguf", "demo.gguf", "./", "", "file://{folder}/demo.gguf"])
def test_source_url_may_be_local(library: Library, source: str) -> None:
    path = put(library, "mine/demo.gguf", Q4)
    put(library, "mine/model.json", {"source_url": source.format(folder=path.parent)})
    assert runnable.weights(library.here("mine")).first == path


def test_a_folder_with_a_model_json_is_a_model_by_its_path_too(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(Q4)
    (tmp_path / "model.json").write_text('{"source_url": "./b.gguf", "top_k": 3}')
    assert runnable.weights(library.here(str(tmp_path))).first == tmp_path / "b.gguf"
    monkeypatch.chdir(tmp_path)
    assert {runnable.weights(library.here(name)).first for name in (".", f"../{tmp_path.name}")} == {
        tmp_path / "b.gguf"
    }
    assert set_of(library, str(tmp_path))[1] == {"top_k": 3}
    (tmp_path / "model.json").write_text('{"metadata": {"engine": "vllm"}}')
    with pytest.raises(UnsupportedModel, match="engine vllm"):
        library.here(str(tmp_path))


def test_weights_by_their_path_are_used_as_the_json_that_is_about_them_says(
    library: Library, tmp_path: Path
) -> None:
    for name in ("a/one.gguf", "a/two.gguf", "b/x.gguf", "b/y.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(Q8)
    (tmp_path / "a/one.json").write_text('{"top_k": 1}')
    (tmp_path / "b/model.json").write_text('{"top_k": 2, "metadata": {"binaries": ["x.gguf"]}}')
    said = {
        name: modeljson.profile(library.here(str(tmp_path / name))).sampling.get("top_k")
        for name in ("a/one.gguf", "a/two.gguf", "b/x.gguf", "b/y.gguf")
    }
    assert said == {"a/one.gguf": 1, "a/two.gguf": None, "b/x.gguf": 2, "b/y.gguf": None}
    (tmp_path / "a/one.json").write_text('{"metadata": {"engine": "awq"}}')
    assert runnable.weights(library.here(str(tmp_path / "a/one.gguf"))).first.name == "one.gguf"


def test_a_pipe_called_like_a_json_keeps_nobody_waiting(library: Library) -> None:
    put(library, "mine/mine.gguf", Q4)
    for name in ("mine/other.json", "mine/model.json", "pipe.json", "pipe.gguf", "pipe.zip"):
        os.mkfifo(library.store.tree / name)
    assert "mine" in names(library)


def test_source_url_may_be_in_the_home_folder(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/demo.gguf").write_bytes(Q4)
    put(library, "mine/model.json", {"source_url": "~/downloads/demo.gguf"})
    assert runnable.weights(library.here("mine")).first == tmp_path / "downloads/demo.gguf"
    assert names(library) == ["mine"]
    library.store.remove(library.removable("mine"))
    assert names(library) == []
    assert (tmp_path / "downloads/demo.gguf").exists()  # what lies elsewhere is the user's


def test_a_model_that_is_only_json_is_listed_as_not_downloaded(library: Library) -> None:
    put(library, "far/model.json", {"source_url": "org/demo-GGUF:Q8_0"})
    put(library, "many/q4.json", {"source_url": "org/demo-GGUF:Q4_K_M"})
    assert [(str(model.reference), model.state) for model in library.list()] == [
        ("far", "not-downloaded"),
        ("many:q4", "not-downloaded"),
    ]
    resolution = library.resolve("far")
    assert (resolution.model, str(resolution.reference)) == (None, "far")
    with pytest.raises(NotFound) as caught:
        library.here("far")
    assert caught.value.hint == "mdl download far"


def test_a_model_that_is_only_json_is_fetched_when_asked_for(library: Library, hub: Hub) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8, "demo-Q4_K_M.gguf": Q4, "LICENSE": b"MIT"})
    text = '{"source_url": "org/demo-GGUF", "metadata": {"quantization": "Q4_K_M"}, "top_k": 3,}'
    put(library, "far/model.json", text)
    with pytest.raises(NotFound):
        library.get("far")  # under the rules of --pull, by which nobody is asked in a script
    pulling = Library(replace(library.settings, pull="missing"))
    found = pulling.get("far")
    assert str(found.reference) == "far:Q4_K_M"
    assert (found.folder / "demo-Q4_K_M.gguf").read_bytes() == Q4
    assert (found.folder / "model.json").read_text() == text
    assert all(file.sha256 for file in found.files)
    assert names(library) == ["far:Q4_K_M"]
    assert set_of(library, "far")[1] == {"top_k": 3}
    assert library.get("far") == found
    assert library.store.is_whole(found)


def test_one_of_several_that_are_only_json_is_fetched_without_the_others(library: Library, hub: Hub) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8, "demo-Q4_K_M.gguf": Q4})
    for name in ("Q8_0", "Q4_K_M"):
        url = f"https://huggingface.co/org/demo-GGUF/blob/main/demo-{name}.gguf"
        put(library, f"many/demo-{name}.json", {"source_url": url})
    found = library.download("many/demo-Q8_0")
    assert runnable.weights(found).first.read_bytes() == Q8
    assert {str(model.reference): model.state for model in library.list()} == {
        "many:demo-Q4_K_M": "not-downloaded",
        "many:demo-Q8_0": "ready",
    }


@pytest.mark.parametrize("place", ["far/model.json", "many/far.json"])
def test_a_fetch_that_was_killed_before_its_json_went_is_there_and_listed_once(
    library: Library, hub: Hub, place: str
) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8})
    path = put(library, place, {"source_url": "org/demo-GGUF"})
    text = path.read_text()
    found = library.download("far" if place.startswith("far") else "many/far")
    path.write_text(text)
    os.utime(path, (4_000_000_000, 4_000_000_000))  # newer than what was fetched
    assert library.here(str(found.reference.model)) == found
    ready = [model for model in library.list() if model.state == "ready"]
    assert ready == [found]
    if place.startswith("many"):
        assert library.list() == ready


def test_a_dry_run_tells_what_would_be_fetched(library: Library, hub: Hub) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8, "demo-Q4_K_M.gguf": Q4})
    path = put(library, "far/model.json", {"source_url": "org/demo-GGUF", "quantization": "Q8_0"})
    plan = library.plan("far")
    assert str(plan.manifest.reference) == "far:Q8_0"
    assert {file.name for file in plan.missing} == {"demo-Q8_0.gguf", "model.json"}
    assert path.exists()


def test_weights_and_projector_may_come_from_two_places(library: Library, hub: Hub, tmp_path: Path) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8})
    hub.add("org/eyes-GGUF", {"mmproj-F16.gguf": PROJECTOR})
    urls = [
        f"https://huggingface.co/org/{name}"
        for name in ("demo-GGUF/resolve/main/demo-Q8_0.gguf", "eyes-GGUF/resolve/main/mmproj-F16.gguf")
    ]
    put(library, "seeing/model.json", {"metadata": {"binaries": urls}})
    found = runnable.weights(library.download("seeing"))
    assert (found.first.name, found.projector and found.projector.name) == (
        "demo-Q8_0.gguf",
        "mmproj-F16.gguf",
    )


def test_a_download_that_fails_leaves_the_json_where_it_is(library: Library, hub: Hub) -> None:
    path = put(library, "far/model.json", {"source_url": "org/nowhere-GGUF"})
    with pytest.raises(MdlError):
        library.download("far")
    assert path.exists()
    assert [model.state for model in library.list()] == ["not-downloaded"]


def test_what_is_damaged_is_fetched_again_from_where_the_json_says(library: Library, hub: Hub) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8})
    put(library, "far/model.json", {"source_url": "org/demo-GGUF"})
    found = library.download("far")
    path = found.folder / "demo-Q8_0.gguf"
    path.chmod(0o644)
    path.write_bytes(Q8[:-1] + b"\x01")
    assert [finding.kind for finding in Verification(library.store, library.list()).run().findings] == [
        "content"
    ]
    assert [model.state for model in library.list()] == ["error"]
    assert library.store.is_whole(library.download("far"))
    assert path.read_bytes() == Q8
    assert [model.state for model in library.list()] == ["ready"]


def test_the_space_that_one_of_several_takes_is_its_own(library: Library) -> None:
    for name in ("q4", "q8"):
        put(library, f"llama/{name}.gguf", Q4)
        put(library, f"llama/{name}.json", "{}")
    put(library, "loose.gguf", Q4[:-1])
    sizes = {str(share.model.reference): share.size for share in measure(library.store).shares}
    assert sizes == {"llama:q4": len(Q4) + 2, "llama:q8": len(Q4) + 2, "loose": len(Q4) - 1}


@pytest.mark.parametrize("source", ["x://y", "https://", "../../../..", "a\x00b", "-x", "short", "//"])
def test_a_source_url_that_is_none_is_an_error(library: Library, source: str) -> None:
    put(library, "odd/model.json", {"source_url": source})
    assert len(library.list()) == 1
    with pytest.raises((UsageError, UnsupportedModel, NotFound)):
        runnable.weights(library.download("odd"))


def test_what_is_only_json_is_inspected_and_removed(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "home/models/far"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(EXAMPLE.replace('"metadata": {', '"metadata": {"\\u001b[2J": 1,', 1))
    assert "\x1b" not in mdl("inspect", "far").stdout
    shown = documents(mdl("inspect", "far", "--json"))
    assert (shown["state"], shown["model_json"]["name"]) == ("not-downloaded", "Demo")
    assert "source_url    https://huggingface.co/org/demo-GGUF" in mdl("inspect", "far").stdout
    assert "n/a (not downloaded)" in mdl("list").stdout
    done = mdl("chat", "far", "hello")
    assert (done.returncode, "mdl download far" in done.stderr) == (3, True)
    assert mdl("rm", "far", "-y").returncode == 0
    assert not folder.exists()


def test_an_inspection_of_the_source_goes_there(mdl: Mdl, tmp_path: Path, hub: Hub) -> None:  # noqa: F811
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8})
    folder = tmp_path / "home/models/far"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text('{"source_url": "org/demo-GGUF"}')
    assert documents(mdl("inspect", "far", "--remote", "--json"))["path"] == "org/demo-GGUF"


def test_a_server_answers_by_each_json_and_offers_only_what_is_here(library: Library) -> None:
    for name, stop in (("whole", []), ("short", ["capital"])):
        put(library, f"two/{name}.gguf", DEMO.read_bytes())
        put(library, f"two/{name}.json", {"parameters": {"stop": stop}})
    put(library, "far/model.json", {"source_url": "org/demo-GGUF"})
    put(library, "other/model.json", {"engine": "vllm"})
    put(library, "dropped.gguf", DEMO.read_bytes())
    with Server(library.settings.home) as server:
        _, listed, _ = server.ask("GET", "/v1/models")
        ids = {model["id"] for model in listed["data"]}
        assert {"two:whole", "two:short", "dropped"} <= ids
        assert not {"far", "other"} & ids
        assert text(server.chat(model="two:whole")[1]) == "The capital of France is Paris."
        assert text(server.chat(model="two/short")[1]).strip() == "The"
        assert text(server.chat(model="dropped")[1]) == "The capital of France is Paris."
        status, answer = server.chat(model="far")
        assert (status, "mdl download far" in answer["error"]["message"]) == (404, True)
        status, answer = server.chat(model="other")
        assert (status, "engine vllm" in answer["error"]["message"]) == (422, True)


# What cannot run here


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"model.json": b'{"metadata": {"engine": "tensorrt-llm"}}'}, "a model for the engine tensorrt-llm"),
        ({"model.json": b'{"engine": "vllm"}', "m.gguf": Q4}, "a model for the engine vllm"),
        ({"pytorch_model.bin": b"\x80\x02}q\x00.", "config.json": b"{}"}, "a Python pickle"),
        ({"rank0.engine": b"ftrt" + bytes(64)}, "a TensorRT engine"),
        ({"model.onnx": b"\x08\x07\x12\x04test" + bytes(8)}, "an ONNX model"),
    ],
)
def test_what_cannot_run_here_is_recognised_listed_and_refused_with_what_it_is(
    library: Library, files: dict[str, bytes], what: str
) -> None:
    for name, content in files.items():
        put(library, f"other/{name}", content)
    for _ in range(2):  # the second time from the index
        [model] = library.list()
        assert (str(model.reference), model.state) == ("other", "unsupported")
        assert (model.summary.unsupported or "").startswith(what)
    with pytest.raises(UnsupportedModel, match=what) as caught:
        runnable.for_engine(library.here("other"))
    assert "GGUF version" in caught.value.hint


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_quantizations_of_others_are_recognised_listed_and_refused(library: Library, method: str) -> None:
    from test_safetensors import SMALL

    put(library, "other/model.safetensors", SMALL)
    put(library, "other/config.json", {"quantization_config": {"quant_method": method}})
    [model] = library.list()
    assert (
        model.summary.unsupported == f"a model quantized with {method.upper()}, which llama.cpp does not run"
    )
    with pytest.raises(UnsupportedModel, match=method.upper()):
        runnable.for_engine(model)


def test_files_that_are_only_called_like_weights_are_not_listed(library: Library) -> None:
    put(library, "data/words.bin", b"hello world")
    put(library, "llama/llama.gguf", Q4)
    put(library, "llama/onnx/model.onnx", b"\x08\x07\x12\x04test" + bytes(8))  # beside what does run
    assert names(library) == ["llama"]


def test_the_engine_of_a_model_json_may_be_an_api(library: Library) -> None:
    put(
        library,
        "api/model.json",
        {"source_url": "https://api.example.org/v1", "metadata": {"engine": "openai"}},
    )
    [model] = library.list()
    assert (model.is_api, model.state) == (True, "ready")
    library.store.remove(library.removable("api"))
    assert names(library) == []


def test_a_changed_folder_is_looked_at_again(library: Library) -> None:
    put(library, "mine/model.json", {})
    assert [model.state for model in library.list()] == ["not-downloaded"]
    put(library, "mine/mine.gguf", Q4)
    assert [model.state for model in library.list()] == ["ready"]
    put(library, "mine/model.json", {"metadata": {"engine": "vllm"}})
    assert [model.state for model in library.list()] == ["unsupported"]


def test_a_hundred_models_with_a_json_are_read_once(library: Library) -> None:
    for number in range(100):
        put(library, f"m{number}/m.gguf", Q4)
        put(library, f"m{number}/model.json", {})
    first = library.list()
    looked: list[Path] = []
    assert Store(library.store.root, lambda path: looked.append(path)).models() == first
    assert looked == []
