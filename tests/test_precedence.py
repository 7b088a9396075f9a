"""Settings and parameters: every spelling is understood, and one order decides between those who set them."""

import json
from pathlib import Path
from typing import Any

import ggufmaker
import pytest
from commands import Mdl, command
from hypothesis import given
from hypothesis import strategies as st
from serving import DEMO, Server, text

from mdl import layers, parameters, runnable
from mdl.engine import Engine
from mdl.engine.request import CACHE_TYPES, Chat, EngineFiles, EngineSettings, Message, Sampling
from mdl.errors import UnsupportedModel, UsageError
from mdl.library import Library
from mdl.profiles import Profile

QUESTION = Chat((Message("user", "What is the capital of France?"),), Sampling(temperature=0))


@pytest.fixture
def mdl(tmp_path: Path) -> Mdl:
    return command(tmp_path)


def test_settings_and_parameters_are_read_by_the_names_that_other_tools_have_for_them() -> None:
    jan = {"ctx_len": "2048", "ngl": 100, "cpu_threads": 2, "temperature": "0.7", "stop": ["</s>"]}
    ollama = {"num_ctx": 2048, "num_gpu": 100, "num_thread": 2, "temperature": 0.7, "stop": "</s>"}
    server = {"n_ctx": 2048, "n-gpu-layers": 100, "--threads": 2, "Temp": 0.7, "stop_words": ["</s>"]}
    found = [parameters.profile(values, "test") for values in (jan, ollama, server)]
    assert found[0] == found[1] == found[2]
    assert found[0].settings == {"context": 2048, "gpu_layers": 100, "threads": 2}
    assert found[0].sampling == {"temperature": 0.7, "stop": ("</s>",)}


@pytest.mark.parametrize("known", parameters.NAMES, ids=lambda known: known.name)
def test_every_name_is_a_field_of_what_the_engine_takes(known: parameters.Name) -> None:
    record = EngineSettings() if known.kind == "setting" else Sampling()
    assert hasattr(record, known.name)
    assert all(parameters.find(spelling) == known for spelling in (known.name, *known.also))


def test_no_field_of_the_engine_is_without_a_name() -> None:
    named = {known.name for known in parameters.NAMES}
    assert {*EngineSettings.__slots__, *Sampling.__slots__} - named == {"logprobs"}


@pytest.mark.parametrize(
    ("values", "cause", "hint"),
    [
        ({"temprature": 1}, "temprature is no setting", "did you mean temperature?"),
        ({"nctx": 1}, "nctx is no setting", "did you mean context?"),
        ({"temperature": -1}, "temperature is -1", ""),
        ({"top_k": "many"}, "top_k cannot be 'many'", ""),
        ({"context": 3}, "context is 3", ""),
        ({"cache_type_k": "q2_k"}, "cache_type_k cannot be 'q2_k'", "q8_0"),
        ({"flash_attention": "perhaps"}, "flash_attention cannot be", "auto"),
    ],
)
def test_unknown_and_impossible_values_are_errors_with_the_nearest_name(
    values: dict[str, Any], cause: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parameters.profile(values, "mine.toml")
    assert caught.value.message.startswith("mine.toml: ")
    assert cause in caught.value.message
    assert hint in caught.value.hint


def test_files_of_others_are_read_as_far_as_they_go() -> None:
    written = {"temperature": "hot", "top_k": 20, "colour": 1, "temprature": 0.5}
    found = parameters.profile(written, "model.json", lenient=True)
    assert (found.sampling, found.ignored) == ({"top_k": 20}, ("colour",))
    assert found.notes == (
        "model.json: temperature cannot be 'hot'",
        "model.json: temprature is no setting and no parameter: did you mean temperature?",
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
spellings = st.sampled_from([name for known in parameters.NAMES for name in (known.name, *known.also)])


@given(st.dictionaries(spellings | st.text(max_size=20), json_values, max_size=8))
def test_whatever_a_file_says_becomes_values_that_the_engine_takes(values: dict[str, Any]) -> None:
    found = parameters.profile(values, "x.json", lenient=True)
    Sampling(**found.sampling)
    for name, value in found.settings.items():
        EngineSettings(**{"parallel": 1, "batch": 8192, name: value})


def test_the_cache_can_be_kept_in_fewer_bits_and_answers_stay_right() -> None:
    for kind in ("q8_0", "bf16", "f32"):
        settings = EngineSettings(context=256, parallel=1, cache_type_k=kind, cache_type_v=kind)
        with Engine() as engine:
            engine.load(EngineFiles(DEMO), settings)
            assert "".join(piece.text for piece in engine.chat(QUESTION)) == "The capital of France is Paris."


def test_a_smaller_cache_gives_more_room() -> None:
    sizes = {kind: EngineSettings(cache_type_k=kind, cache_type_v=kind).cache_share for kind in CACHE_TYPES}
    assert sizes["f16"] == 1
    assert sizes["f32"] == 2
    assert sizes["q8_0"] == 8.5 / 16
    assert sizes["q4_0"] == 4.5 / 16


def test_values_in_fewer_bits_need_flash_attention_and_say_so() -> None:
    with pytest.raises(UsageError, match="without flash attention"):
        EngineSettings(cache_type_v="q8_0", flash_attention=False)


def test_the_file_can_be_read_instead_of_mapped() -> None:
    with Engine() as engine:
        engine.load(EngineFiles(DEMO), EngineSettings(context=256, parallel=1, mmap=False))
        assert "".join(piece.text for piece in engine.chat(QUESTION)) == "The capital of France is Paris."


def test_what_a_header_says_of_sampling_is_used_and_a_file_beside_it_goes_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = {"general.sampling.temp": 0.25, "general.sampling.top_k": 7, "general.sampling.sequence": "tk"}
    (folder / "model.gguf").write_bytes(ggufmaker.model({**ggufmaker.MODEL, **wanted}))
    (folder / "generation_config.json").write_text(
        json.dumps({"top_k": 9, "max_new_tokens": 5, "eos_token_id": 2, "transformers_version": "4.51"})
    )
    found = settled(tmp_path, str(folder))
    assert found.parameters()["temperature"] == (0.25, "the model's header")
    assert found.parameters()["top_k"] == (9, "the model's files")
    assert found.parameters()["max_tokens"] == (None, "default")


def settled(home: Path, name: str) -> layers.Layers:
    from mdl.config import Settings

    library = Library(Settings(home / "home"))
    model = library.here(name)
    return layers.of(library, model, runnable.weights(model), name)


def test_the_environment_goes_before_files_and_after_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(ggufmaker.model({**ggufmaker.MODEL, "general.sampling.temp": 0.25}))
    monkeypatch.setenv("MDL_TEMPERATURE", "0.5")
    monkeypatch.setenv("MDL_CONTEXT", "128")
    found = settled(tmp_path, str(folder))
    assert found.parameters()["temperature"] == (0.5, "MDL_TEMPERATURE")
    assert found.settings()["context"] == (128, "MDL_CONTEXT")
    merged = found.merged()
    assert merged.engine_settings(EngineSettings(context=64)).context == 64  # as a flag says
    assert merged.chat(QUESTION, {"temperature": 0}).sampling.temperature == 0  # as a request says


def test_a_profile_decides_about_parallel_requests_unless_a_flag_does() -> None:
    profile = Profile(settings={"parallel": 8})
    assert profile.engine_settings(EngineSettings()).parallel == 4
    assert profile.engine_settings(EngineSettings(), {"parallel"}).parallel == 8
    wide = Profile(settings={"parallel": 64}).engine_settings(EngineSettings(batch=16), {"parallel", "batch"})
    assert (wide.parallel, wide.batch) == (64, 64)


def test_what_the_environment_sets_is_what_the_server_loads_and_answers_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDL_CONTEXT", "96")
    monkeypatch.setenv("MDL_MAX_TOKENS", "3")
    with Server(tmp_path / "home") as server:
        assert text(server.chat()[1]) == "The capital of"
        assert text(server.chat(max_tokens=4)[1]) == "The capital of France"
        assert server.ask("GET", "/mdl/engines")[1]["engines"][0]["context"] == 96


def test_inspect_shows_each_value_and_where_it_comes_from(mdl: Mdl) -> None:
    shown = mdl("inspect", "demo", "--settings", MDL_TOP_P="0.5")
    rows = {line.split()[1]: line.split(None, 3)[2:] for line in shown.stdout.splitlines()}
    assert rows["top_p"] == ["0.5", "MDL_TOP_P"]
    assert rows["parallel"] == ["4", "default"]
    found = json.loads(mdl("inspect", "demo", "--settings", "--json", MDL_TOP_P="0.5").stdout)
    assert found["parameters"]["top_p"] == {"value": 0.5, "source": "MDL_TOP_P"}
    assert {*found["settings"], *found["parameters"]} == {known.name for known in parameters.NAMES}


def test_the_environment_is_read_by_every_spelling_and_what_is_like_one_is_told(mdl: Mdl) -> None:
    given = {"MDL_CTX": "256", "MDL_TEMP": "0.5", "MDL_TEMPERATURE": "0.25", "MDL_TOPK": "7", "MDL_JOBS": "2"}
    found = json.loads(mdl("inspect", "demo", "--settings", "--json", **given).stdout)
    assert found["settings"]["context"] == {"value": 256, "source": "MDL_CTX"}
    assert found["parameters"]["temperature"] == {"value": 0.25, "source": "MDL_TEMPERATURE"}
    assert found["notes"] == ["MDL_TOPK means nothing: did you mean MDL_TOP_K?"]


def test_an_environment_that_cannot_be_is_an_error_that_names_the_variable(mdl: Mdl) -> None:
    failed = mdl("chat", "demo", "Hello", MDL_TEMPERATURE="warm")
    assert failed.returncode == 2
    assert failed.stderr.startswith("mdl: MDL_TEMPERATURE: temperature cannot be 'warm'\n")


def test_a_profile_can_bring_a_chat_template_of_its_own_for_some_requests_alone() -> None:
    loud = Profile(template="{{ messages[0].content | replace('France', 'Japan') }}\n<|im_start|>assistant")
    with Engine() as engine:
        engine.load(EngineFiles(DEMO), EngineSettings(context=256, parallel=1))
        assert "France" in engine.render(QUESTION)
        assert engine.render(loud.chat(QUESTION, {})) == (
            "What is the capital of Japan?\n<|im_start|>assistant"
        )
        assert "France" in engine.render(Profile().chat(QUESTION, {}))
        with pytest.raises(UnsupportedModel):
            engine.render(Profile(template="{% if %}").chat(QUESTION, {}))
        assert "France" in engine.render(QUESTION)


def test_each_place_goes_before_the_one_that_is_more_general(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header < model.json < a user's profile < environment < flag or request."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(ggufmaker.model({**ggufmaker.MODEL, "general.sampling.temp": 0.1}))
    assert settled(tmp_path, str(folder)).parameters()["temperature"].value == 0.1
    (folder / "model.json").write_text('{"parameters": {"temperature": "0.2"},}')
    assert settled(tmp_path, str(folder)).parameters()["temperature"].value == 0.2
    monkeypatch.setenv("MDL_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "profiles").mkdir(parents=True)
    (tmp_path / "config" / "profiles" / "mine.toml").write_text(
        f"models = [{str(folder)!r}]\n[parameters]\ntemperature = 0.3\n"
    )
    assert settled(tmp_path, str(folder)).parameters()["temperature"].value == 0.3
    monkeypatch.setenv("MDL_TEMPERATURE", "0.4")
    found = settled(tmp_path, str(folder))
    assert found.parameters()["temperature"].value == 0.4
    assert found.merged().chat(QUESTION, {}).sampling.temperature == 0.4
