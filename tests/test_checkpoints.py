"""Training checkpoints: found in folders of runs, listed with step and time, and used by name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import peftmaker
import pytest
import serving
from hypothesis import given
from hypothesis import strategies as st
from serving import DEMO, cache

from mdl import checkpoints, config
from mdl.config import Settings
from mdl.errors import NotFound, UnsupportedModel, UsageError
from mdl.library import Library
from mdl.reference import Reference

MODELS = Path(__file__).parent / "models"
FRANCE = "What is the capital of France?"
PLAIN, PIRATE = "The capital of France is Paris.", "The capital of France is Paris, arr!"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where mdl looks when nothing is configured."""
    folder = tmp_path / "data" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def mdl(tmp_path: Path, runs: Path) -> Run:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        places = {"MDL_HOME": "home", "MDL_CONFIG": "config.toml", "MDL_DATA_HOME": "data"}
        environment = os.environ | {name: str(tmp_path / place) for name, place in places.items()}
        return subprocess.run(
            [sys.executable, "-m", "mdl", *arguments], env=environment | variables, cwd=tmp_path,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def trained(folder: Path, state: object = None) -> Path:
    """A checkpoint of a whole model as transformers' Trainer saves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    (folder / "model.safetensors").write_bytes(peftmaker.safetensors(peftmaker.pair("model", 8, 8)))
    (folder / "optimizer.pt").write_bytes(b"never read")
    if state is not None:
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def pirate(folder: Path) -> Path:
    return shutil.copytree(MODELS / "mdl-demo-pirate", folder)


def converted(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO, path)
    return path


def library(*folders: Path) -> Library:
    return Library(Settings(folders[0].parent / "home", checkpoints=folders))


def named(folder: Path, text: str) -> str | None:
    found = checkpoints.find([folder], text)
    return found and str(found.path.relative_to(folder))


# Which there are


@pytest.mark.parametrize(
    ("name", "step", "unit"),
    [
        ("checkpoint-500", 500, "steps"),
        ("checkpoint_500", 500, "steps"),
        ("step_20", 20, "steps"),
        ("step-20", 20, "steps"),
        ("global_step1000", 1000, "steps"),
        ("ckpt-7", 7, "steps"),
        ("iter_0000100", 100, "steps"),
        ("samples_1024", 1024, "samples"),
        ("epoch_3", 3, "epochs"),
        ("epoch-0", 0, "epochs"),
    ],
)
def test_the_name_of_a_checkpoint_tells_its_step(runs: Path, name: str, step: int, unit: str) -> None:
    trained(runs / "run" / name)
    (found,) = checkpoints.everything([runs])
    assert (found.run, found.name, found.step, found.unit) == ("run", name, step, unit)


def test_trainer_state_tells_the_step_where_the_name_does_not(runs: Path) -> None:
    trained(runs / "run" / "epoch_1", {"global_step": 120})
    trained(runs / "run" / "best", {"global_step": 60})
    trained(runs / "run" / "checkpoint-90", {"global_step": 1})
    found = [(each.name, each.step, each.unit) for each in checkpoints.everything([runs])]
    assert found == [("best", 60, "steps"), ("checkpoint-90", 90, "steps"), ("epoch_1", 120, "steps")]


@pytest.mark.parametrize(
    "state", ["", "[", "[1]", '{"global_step": "x"}', '{"global_step": -1}', "{" * 90_000]
)
def test_a_broken_trainer_state_tells_nothing_and_hides_nothing(runs: Path, state: str) -> None:
    folder = trained(runs / "run" / "last")
    (folder / "trainer_state.json").write_text(state)
    assert [(each.name, each.counted) for each in checkpoints.everything([runs])] == [("last", "-")]


def test_what_is_no_checkpoint_is_not_listed(runs: Path) -> None:
    trained(runs / "run" / "logs")
    trained(runs / "run" / ".checkpoint-1")
    trained(runs / "run" / "checkpoint-final-3")
    trained(runs / "run" / "tmp-checkpoint-5")
    (runs / "run" / "best").mkdir()
    (runs / "run" / "checkpoint-9").write_text("a file")
    for name in ("self", "run/checkpoint-6", "run/checkpoint-7.gguf", "run/last"):
        (runs / name).symlink_to(runs / name)
    assert checkpoints.everything([runs]) == []


def test_runs_may_lie_deeper_and_a_folder_may_be_a_run(tmp_path: Path) -> None:
    trained(tmp_path / "ilab" / "hf_format" / "samples_96")
    trained(tmp_path / "run" / "checkpoint-1")
    trained(tmp_path / "a" / "b" / "c" / "d" / "checkpoint-1")  # too deep
    found = checkpoints.everything([tmp_path, tmp_path / "run"])
    assert [each.run for each in found] == ["ilab/hf_format", "run"]
    assert [each.run for each in checkpoints.everything([tmp_path / "run"])] == ["run"]
    assert checkpoints.find([tmp_path / "run"], "run@1") is not None


def test_of_runs_with_one_name_the_first_folder_has_the_one(tmp_path: Path) -> None:
    trained(tmp_path / "b" / "run" / "checkpoint-1")
    trained(tmp_path / "a" / "run" / "checkpoint-2")
    folders = [tmp_path / "b", tmp_path / "a"]
    assert [each.name for each in checkpoints.everything(folders)] == ["checkpoint-1"]
    found = checkpoints.find(folders, "run@latest")
    assert found and found.name == "checkpoint-1"


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints.everything([tmp_path / "gone", tmp_path / "gone" / "deeper"]) == []
    assert checkpoints.find([tmp_path / "gone"], "run@latest") is None


# By name


@pytest.fixture
def several(runs: Path) -> Path:
    for step in (1000, 500, 90):
        trained(runs / "run" / f"checkpoint-{step}")
    (runs / "run" / "checkpoint-2000").mkdir()  # being saved
    trained(runs / "ilab" / "hf_format" / "samples_96")
    file = converted(runs / "ilab" / "hf_format" / "samples_96.gguf")
    os.utime(file, (1e9, 1e9))  # copied from elsewhere, with its time
    converted(runs / "files" / "step-5.gguf")
    return runs


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("run/checkpoint-500", "run/checkpoint-500"),
        ("run:checkpoint-500", "run/checkpoint-500"),
        ("run@checkpoint-500", "run/checkpoint-500"),
        ("run@500", "run/checkpoint-500"),
        ("run@2000", "run/checkpoint-2000"),
        ("run@latest", "run/checkpoint-1000"),
        ("run", "run/checkpoint-1000"),
        ("ilab/hf_format/samples_96", "ilab/hf_format/samples_96"),
        ("ilab/hf_format@96", "ilab/hf_format/samples_96.gguf"),
        ("ilab/hf_format@latest", "ilab/hf_format/samples_96.gguf"),
        ("ilab/hf_format:samples_96.gguf", "ilab/hf_format/samples_96.gguf"),
        ("files/step-5", "files/step-5.gguf"),
        ("files/step-5.gguf", "files/step-5.gguf"),
        ("files@5", "files/step-5.gguf"),
        ("other@latest", None),
        ("other/checkpoint-500", None),
        ("run/readme", None),
        ("run:Q4_K_M", None),
        ("ilab", None),
    ],
)
def test_a_checkpoint_is_named_by_run_and_name_step_or_latest(
    several: Path, text: str, path: str | None
) -> None:
    assert named(several, text) == path


@pytest.mark.parametrize("text", ["run/checkpoint-7", "run@7", "run@main", "run:step_7", "run@checkpoint-7"])
def test_a_run_without_this_checkpoint_tells_those_it_has(several: Path, text: str) -> None:
    with pytest.raises(NotFound, match="the run run has no checkpoint") as missing:
        named(several, text)
    assert missing.value.hint == "its last ones: checkpoint-500, checkpoint-1000, checkpoint-2000"


def test_latest_is_the_newest_where_different_things_are_counted(runs: Path) -> None:
    for age, name in enumerate(["epoch_1", "checkpoint-900", "epoch_2"]):
        os.utime(trained(runs / "run" / name), (1e9 + age, 1e9 + age))
    assert named(runs, "run@latest") == "run/epoch_2"


@pytest.mark.parametrize(
    "text", ["../run@latest", "a/../run@latest", "/run@latest", "run/../../x", ".hidden@1", "run@", "@1"]
)
def test_a_name_leads_nowhere_else(several: Path, text: str) -> None:
    inner = several / "a"
    inner.mkdir()
    trained(several / ".hidden" / "checkpoint-1")
    assert checkpoints.find([inner, several], text) is None


@given(st.text(max_size=40))
def test_any_text_names_a_checkpoint_or_none(text: str) -> None:
    try:
        assert checkpoints.find([Path(__file__).parent], text) is None
    except NotFound:
        pytest.fail("there is no run here")


def test_a_checkpoint_comes_after_aliases_and_the_cache(several: Path, tmp_path: Path) -> None:
    found = library(several)
    assert found.here("run").summary.kind == "checkpoint"
    steps = [(step.step, step.outcome) for step in found.resolve("run@500").steps]
    assert steps == [("path", "skipped"), ("cache", "miss"), ("checkpoint", "found")]
    cache(several.parent / "home", "run")
    assert found.here("run").reference.host == "quay.io"
    aliased = Library(Settings(tmp_path / "home", checkpoints=(several,), aliases={"mine": "run@500"}))
    assert str(aliased.here("mine").reference) == "run:checkpoint-500"


def test_what_a_list_shows_is_a_name(several: Path) -> None:
    found = library(several)
    for state, model in found.checkpoints():
        assert found.here(str(model.reference)).place == state.path


# Used


def test_checkpoints_are_listed_with_step_and_time_in_a_section_of_their_own(mdl: Run, several: Path) -> None:
    for place in several.rglob("*"):
        os.utime(place, (1.7e9, 1.7e9))
    pirate(several / "pirates" / "checkpoint-3")
    assert "Checkpoints" not in mdl("list").stdout
    section = mdl("list", "--checkpoints").stdout.partition("\nCheckpoints\n")[2].splitlines()
    rows = [line.split()[:3] for line in section]
    assert rows == [
        ["NAME", "VERSION", "STEP"],
        ["files", "step-5", "5"],
        ["ilab/hf_format", "samples_96", "96"],
        ["ilab/hf_format", "samples_96.gguf", "96"],
        ["pirates", "checkpoint-3", "3"],
        ["run", "checkpoint-90", "90"],
        ["run", "checkpoint-500", "500"],
        ["run", "checkpoint-1000", "1000"],
        ["run", "checkpoint-2000", "(no"],
    ]
    assert section[0].split()[-2:] == ["SIZE", "MODIFIED"] and "years ago" in section[1]
    names = mdl("list", "--checkpoints", "-q", "run").stdout.split()
    assert names == [f"run:checkpoint-{step}" for step in (90, 500, 1000, 2000)]


def test_checkpoints_in_json_have_kind_step_and_base(mdl: Run, runs: Path) -> None:
    pirate(runs / "pirates" / "checkpoint-500")
    trained(runs / "ilab" / "samples_96")
    first, second = json.loads(mdl("list", "--checkpoints", "--json").stdout)["models"]
    assert {key: first[key] for key in ("reference", "kind", "format", "step", "unit", "base_model")} == {
        "reference": "ilab:samples_96",
        "kind": "checkpoint",
        "format": "safetensors",
        "step": 96,
        "unit": "samples",
        "base_model": None,
    }
    assert (second["step"], second["unit"], second["base_model"]) == (500, "steps", "mdl-demo")


def test_a_checkpoint_that_is_gguf_runs(mdl: Run, runs: Path) -> None:
    converted(runs / "run" / "checkpoint-500" / "ggml-model-Q8_0.gguf")
    for name in ("run/checkpoint-500", "run@latest"):
        assert mdl("chat", name, FRANCE, "--temperature", "0").stdout == f"{PLAIN}\n"


def test_an_adapter_checkpoint_is_used_with_its_base(mdl: Run, runs: Path) -> None:
    pirate(runs / "run" / "checkpoint-500")
    pirate(runs / "run" / "checkpoint-90")
    for name in ("run@latest", "run/checkpoint-90=0.8"):
        done = mdl("chat", "demo", FRANCE, "--temperature", "0", "--adapter", name)
        assert done.stdout == f"{PIRATE}\n", done.stderr
    done = mdl("chat", "run@latest", FRANCE)
    assert (done.returncode, done.stderr.splitlines()[1]) == (
        9,
        "name its base model, and the adapter with --adapter",
    )


def test_a_checkpoint_that_is_safetensors_is_inspected_and_refused_with_what_to_do(
    mdl: Run, runs: Path
) -> None:
    trained(runs / "run" / "checkpoint-500")
    shown = mdl("inspect", "run@latest").stdout
    assert "kind          checkpoint (safetensors)" in shown and "reference     run:checkpoint-500" in shown
    done = mdl("chat", "run@latest", "hi")
    assert done.returncode == UnsupportedModel.code
    assert done.stderr == (
        "mdl: run:checkpoint-500 has its weights as safetensors, which llama.cpp does not load\n"
        "make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py, and put it beside it\n"
    )


def test_a_checkpoint_without_a_model_says_what_it_is(mdl: Run, runs: Path) -> None:
    folder = runs / "run" / "epoch_1"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"PK\x03\x04")
    done = mdl("chat", "run@1", "hi")
    assert done.returncode == UnsupportedModel.code and str(folder) in done.stderr
    assert "mdl rm" not in done.stderr


def test_a_server_answers_with_a_checkpoint_by_its_name(tmp_path: Path, runs: Path) -> None:
    converted(runs / "run" / "checkpoint-500.gguf")
    environment = os.environ | {"MDL_HOME": str(tmp_path / "home"), "MDL_CHECKPOINTS": str(runs)}
    command = [sys.executable, "-m", "mdl", "serve", "run@latest", "--port", "0", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")["url"]
            body = {"model": "run@latest", "temperature": 0, "messages": serving.FRANCE}
            answer = json.load(urlopen(f"{url}{serving.CHAT}", json.dumps(body).encode(), timeout=30))
        finally:
            server.terminate()
    assert serving.text(answer) == PLAIN


def test_mdl_removes_no_checkpoint(runs: Path) -> None:
    trained(runs / "run" / "checkpoint-500")
    with pytest.raises(UsageError, match="is not in the cache"):
        library(runs).removable("run@500")


@pytest.mark.parametrize("run", ["my run", "a..b", "läuft"])
def test_a_name_that_no_reference_can_have_is_listed_by_its_path(runs: Path, run: str) -> None:
    folder = trained(runs / run / "checkpoint-500")
    ((_, model),) = library(runs).checkpoints()
    assert model.reference == Reference.parse(f"file://{folder}")
    assert library(runs).here(str(model.reference)).place == folder


# Configured


def test_the_folders_are_configured_by_file_and_environment(mdl: Run, tmp_path: Path) -> None:
    trained(tmp_path / "one" / "run-a" / "checkpoint-1")
    trained(tmp_path / "two" / "run-b" / "checkpoint-1")
    (tmp_path / "config.toml").write_text(f'checkpoints = ["{tmp_path / "one"}"]\n')
    assert mdl("list", "--checkpoints", "-q").stdout == "run-a:checkpoint-1\n"
    both = os.pathsep.join(str(tmp_path / name) for name in ("one", "two"))
    listed = mdl("list", "--checkpoints", "-q", MDL_CHECKPOINTS=both).stdout
    assert listed == "run-a:checkpoint-1\nrun-b:checkpoint-1\n"


def test_by_default_checkpoints_lie_in_the_folder_for_data(tmp_path: Path) -> None:
    environment = {"MDL_HOME": str(tmp_path), "MDL_CONFIG": str(tmp_path / "c"), "HOME": str(tmp_path)}
    assert config.load(environment | {"MDL_DATA_HOME": str(tmp_path / "data")}).checkpoints == (
        tmp_path / "data" / "checkpoints",
    )


@pytest.mark.parametrize("value", ["3", "[3]", "true"])
def test_folders_that_are_no_folders_are_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.toml").write_text(f"checkpoints = {value}\n")
    with pytest.raises(UsageError, match="checkpoints"):
        config.load({"MDL_HOME": str(tmp_path), "MDL_CONFIG": str(tmp_path / "config.toml")})
