"""How a model wants to be used: values in their types and ranges, hostile files, what goes before what."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl import packaged, profiles
from mdl.engine.request import Chat, EngineSettings, Message, Sampling
from mdl.filename import role
from mdl.model import File, Model, Summary
from mdl.profiles import Profile, merged
from mdl.reference import Reference

GO = "{{ if .System }}[{{ .System }}]{{ end }}{{ .Prompt }}"
QUESTION = Message("user", "Hello")


def model(folder: Path, trained: int | None = 2048, **files: str | bytes) -> Model:
    """A version of Ollama's with these files: `params` is params.json, and so on."""
    names = {"params": "params.json", "messages": "messages.json", "config": "ollama.json"}
    files = {"config": "{}", **files}
    for key, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / names.get(key, key)).write_bytes(data)
    listed = tuple(File(path.name, path.stat().st_size, role=role(path.name)) for path in folder.iterdir())
    return Model(
        Reference.parse("ollama://demo"), folder, listed, Summary(format="gguf", context_length=trained)
    )


def of(folder: Path, **parameters: Any) -> Profile:
    return packaged.of(model(folder, params=json.dumps(parameters)))


def test_a_model_that_brings_nothing_has_an_empty_profile(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    found = Model(Reference.parse("a/b"), tmp_path, (File("model.gguf", 4, role="weights"),))
    assert packaged.of(found) == Profile()
    assert packaged.of(model(tmp_path)) == Profile()


@pytest.mark.parametrize(
    ("name", "value", "ours", "expected"),
    [
        ("temperature", 0, "temperature", 0.0),
        ("temperature", "0.7", "temperature", 0.7),  # as older versions wrote them
        ("temperature", ["0.7"], "temperature", 0.7),
        ("top_k", 40.0, "top_k", 40),
        ("top_k", "20", "top_k", 20),
        ("top_p", 1, "top_p", 1.0),
        ("min_p", 0.05, "min_p", 0.05),
        ("typical_p", 0.7, "typical_p", 0.7),
        ("repeat_penalty", 1.1, "repeat_penalty", 1.1),
        ("repeat_last_n", -1, "repeat_last_n", -1),
        ("presence_penalty", 1.5, "presence_penalty", 1.5),
        ("frequency_penalty", -0.5, "frequency_penalty", -0.5),
        ("seed", 42, "seed", 42),
        ("num_predict", 128, "max_tokens", 128),
        ("stop", "User:", "stop", ("User:",)),
        ("stop", ["a", "b", "a", ""], "stop", ("a", "b")),
    ],
)
def test_parameters_become_ours(tmp_path: Path, name: str, value: Any, ours: str, expected: Any) -> None:
    found = of(tmp_path, **{name: value})
    assert found.sampling == {ours: expected}
    assert type(found.sampling[ours]) is type(expected)
    assert (found.notes, found.ignored, found.settings) == ((), (), {})


@pytest.mark.parametrize(
    ("name", "value", "settings"),
    [
        ("num_ctx", 1024, {"context": 1024}),
        ("num_ctx", "1024", {"context": 1024}),
        ("num_gpu", 0, {"gpu_layers": 0}),
        ("num_thread", 4, {"threads": 4}),
        ("num_gpu", -1, {}),
        ("num_thread", 0, {}),
        ("num_predict", -1, {}),
        ("num_predict", -2, {}),
        ("seed", -1, {}),
    ],
)
def test_settings_become_ours_and_what_says_unset_is(
    tmp_path: Path, name: str, value: Any, settings: dict[str, int]
) -> None:
    found = of(tmp_path, **{name: value})
    assert (dict(found.settings), dict(found.sampling), found.notes) == (settings, {}, ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "hot"}, {"temperature": True}, {"temperature": -1},
        {"temperature": "1e999"}, {"temperature": "nan"}, {"temperature": "inf"}, {"temperature": {}},
        {"temperature": 10**400}, {"top_k": 1.5}, {"top_k": 2**40}, {"top_k": "1e400"}, {"top_p": 2},
        {"min_p": [1, 2]}, {"num_ctx": 1}, {"num_ctx": 2**60}, {"seed": 2**80}, {"stop": 3}, {"stop": [1]},
        {"stop": ["x"] * 3 + [None]}, {"stop": [str(n) for n in range(100)]}, {"num_thread": "9" * 4000},
    ],
    ids=repr,
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_left_out_and_said(tmp_path: Path, wrong: dict[str, Any]) -> None:
    found = of(tmp_path, **wrong, top_p=0.5) if "top_p" not in wrong else of(tmp_path, **wrong)
    assert dict(found.sampling) == ({} if "top_p" in wrong else {"top_p": 0.5})
    assert found.settings == {}
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"params.json: {next(iter(wrong))}")
    assert len(found.notes[0]) < 200


def test_a_parameter_without_an_effect_is_named(tmp_path: Path) -> None:
    found = of(tmp_path, mirostat=1, num_keep=4, **{"a\nb\x1b[31m": 1})
    assert found.sampling == {"mirostat": 1}
    assert found.ignored == ("num_keep", "a b\x1b[31m")
    assert found.notes == ()


def test_a_context_is_at_most_what_the_model_learned(tmp_path: Path) -> None:
    found = packaged.of(model(tmp_path, trained=2048, params='{"num_ctx": 131072}'))
    assert found.settings == {"context": 2048}
    assert found.notes == ("params.json: num_ctx 131,072 is more than the model learned: 2,048",)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"temperature": NaN}', b'{"top_k": ' + b"9" * 10_000 + b"}", b"[" * 100_000,
        b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, b"\xff\xfe", b'"text"', b" " * (1 << 20) + b"{}",
        json.dumps({str(n): n for n in range(1000)}).encode(),
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
@pytest.mark.parametrize("name", ["params", "messages", "config", "template", "system"])
def test_a_hostile_file_costs_a_note_and_nothing_else(tmp_path: Path, name: str, content: bytes) -> None:
    given = {"template": GO, "params": '{"top_k": 7}', "system": "Be brief."}
    found = packaged.of(model(tmp_path, **{**given, name: content}))
    assert len(found.notes) <= 1
    assert all("\n" not in note and len(note) < 300 for note in found.notes)
    if name != "params":
        assert found.sampling == {"top_k": 7}
    if name != "template":
        assert found.template is not None


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["temperature", "top_k", "stop", "num_ctx", "seed", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_whatever_parameters_say_what_is_taken_can_be_used(
    tmp_path_factory: pytest.TempPathFactory, parameters: dict[str, Any]
) -> None:
    found = packaged.of(model(tmp_path_factory.mktemp("model"), params=json.dumps(parameters)))
    Sampling(**found.sampling)
    found.engine_settings(EngineSettings())
    json.dumps(profiles.as_document(found)).encode()


def test_what_a_file_that_is_gone_said_is_a_note(tmp_path: Path) -> None:
    found = model(tmp_path, system="Be brief.")
    (tmp_path / "system").unlink()
    assert packaged.of(found).notes == ("system cannot be read: No such file or directory",)


# The template


def test_a_go_template_that_can_be_followed_goes_before_the_models_own(tmp_path: Path) -> None:
    found = packaged.of(model(tmp_path, template=GO))
    assert found.template is not None
    assert found.template_source == "template, from Go's language"


@pytest.mark.parametrize(
    ("files", "source", "notes"),
    [
        ({"template": "{{ .Prompt }}"}, "the model's own: Ollama's only passes the prompt on", 0),
        ({"template": "{{ unknown .Prompt }}"}, "the model's own", 1),
        (
            {"template": GO, "config": '{"renderer": "qwen3-coder"}'},
            "the model's own: Ollama has code for it (qwen3-coder)",
            0,
        ),
    ],
)
def test_else_the_models_own_is_used_and_it_is_said_why(
    tmp_path: Path, files: dict[str, str], source: str, notes: int
) -> None:
    found = packaged.of(model(tmp_path, **files))
    assert (found.template, found.template_source, len(found.notes)) == (None, source, notes)


def test_a_jinja_template_packed_into_an_artifact_is_used(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    files = (File("chat_template.jinja", 14, role="template"),)
    packed = packaged.of(Model(Reference.parse("oci://quay.io/a/b:1"), tmp_path, files))
    assert (packed.template, packed.template_source) == ("{{ messages }}", "chat_template.jinja")
    assert packaged.of(Model(Reference.parse("hf://a/b"), tmp_path, files)) == Profile()


# What it comes to


def test_first_messages_come_after_the_system_and_before_what_is_said(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    found = packaged.of(model(tmp_path, system=" Be brief. ", messages=json.dumps(said)))
    begun = found.chat(Chat((QUESTION,)), {})
    first = (Message("user", "1"), Message("assistant", "2"))
    assert begun.messages == (Message("system", "Be brief."), *first, QUESTION)
    own = Message("system", "Be rude.")
    assert found.chat(Chat((own, QUESTION)), {}).messages == (own, *first, QUESTION)
    assert found.chat(Chat((QUESTION, own)), {}).messages == (*first, QUESTION, own)


def test_what_a_request_says_goes_before_the_profile_and_that_before_the_rest() -> None:
    found = Profile(sampling={"temperature": 0.0, "top_k": 3, "stop": ("a", "b")})
    given = {"temperature": 1.5, "stop": ("c",)}
    sampling = found.chat(Chat((QUESTION,), Sampling(**given)), given).sampling
    assert sampling == Sampling(temperature=1.5, top_k=3, stop=("c",))
    assert found.chat(Chat((QUESTION,)), {"stop": ()}).sampling == Sampling(temperature=0.0, top_k=3)


def test_settings_fill_in_what_is_open() -> None:
    found = Profile(settings={"context": 512, "gpu_layers": 0})
    asked = EngineSettings(context=64, parallel=2)
    assert found.engine_settings(asked) == EngineSettings(context=64, gpu_layers=0, parallel=2)
    assert found.engine_settings(EngineSettings()).context == 512


def test_of_several_the_later_goes_before() -> None:
    first = Profile("a", {"top_k": 1, "seed": 1}, {"context": 64}, "x", "here", (QUESTION,), notes=("n",))
    second = Profile(sampling={"top_k": 2}, system="", notes=("m",))
    assert merged(first, second) == Profile(
        "", {"top_k": 2, "seed": 1}, {"context": 64}, "x", "here", (QUESTION,), notes=("n", "m")
    )
    assert merged() == Profile()
