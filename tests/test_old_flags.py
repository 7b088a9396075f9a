"""Flags that have other names now (A10): accepted, hidden, and warned about once, with what to write."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mdl import __version__, cli
from mdl.cli import completion, old

ROOT = Path(__file__).parent.parent
Mdl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mdl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mdl:
    monkeypatch.setenv("MDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MDL_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("MDL_DATA_HOME", str(tmp_path / "data"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mdl", *arguments]
        return subprocess.run(command, input="", capture_output=True, text=True, timeout=60, cwd=tmp_path)

    return run


def warning(flag: str, instead: str) -> str:
    return f"mdl: {flag} is deprecated and goes in mdl {old.GOES}: write {instead}\n"


@pytest.mark.parametrize("flag", ["--model-path", "--model-name", "--model-dir"])
@pytest.mark.parametrize("sign", [" ", "="])
def test_other_model_flags_are_accepted_and_warn_once(mdl: Mdl, flag: str, sign: str) -> None:
    done = mdl("inspect", *f"{flag}{sign}demo".split(" "), "--files")
    assert done.returncode == 0
    assert done.stdout == mdl("inspect", "--model", "demo", "--files").stdout
    assert done.stderr == warning(flag, "--model")


def test_chat_takes_the_prompt_beside_them(mdl: Mdl) -> None:
    done = mdl("chat", "--model-path", "demo", "--temperature", "0", "What is 7 plus 5?")
    assert done.stdout == "7 plus 5 is 12.\n"
    assert done.stderr.startswith(warning("--model-path", "--model"))


def test_download_puts_files_into_the_model_dir(mdl: Mdl, tmp_path: Path) -> None:
    done = mdl("download", "--model-dir", str(tmp_path / "here"), "--model-name", "demo", "-q")
    assert done.returncode == 0
    assert [file.suffix for file in (tmp_path / "here").iterdir()] == [".gguf"]
    assert done.stderr == warning("--model-dir", "--destination") + warning("--model-name", "--model")


def test_list_checkpoints_lists_checkpoints(mdl: Mdl, tmp_path: Path) -> None:
    run = tmp_path / "data" / "checkpoints" / "run" / "checkpoint-7"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (run / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    done = mdl("list", "--list-checkpoints", "--list-checkpoints")
    assert done.stdout == mdl("list", "--checkpoints").stdout
    assert "run" in done.stdout
    assert done.stderr.count(warning("--list-checkpoints", "--checkpoints")) == 1


@pytest.mark.parametrize("tree", ["", "/models"])
def test_list_shows_what_is_in_a_model_dir(mdl: Mdl, tmp_path: Path, tree: str) -> None:
    model = tmp_path / "other" / "models" / "quay.io" / "org" / "mine" / "v1"
    model.mkdir(parents=True)
    (model / "m.gguf").symlink_to(ROOT / "mdl" / "models" / "mdl-demo-Q8_0.gguf")
    done = mdl("list", f"--model-dir={tmp_path}/other{tree}", "--model-name", "min")
    assert "quay.io/org/mine" in done.stdout
    assert warning("--model-dir", "MDL_HOME=DIR mdl list") in done.stderr
    assert warning("--model-name", "the name alone") in done.stderr
    assert "quay.io/org/mine" not in mdl("list").stdout


@pytest.mark.parametrize("arguments", [["list", "--model-dir"], ["inspect", "--model-path"]])
def test_one_without_its_value_is_an_error(mdl: Mdl, arguments: list[str]) -> None:
    assert mdl(*arguments).returncode == 2


def test_what_follows_two_dashes_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["chat", "demo", "--", "--model-path"]
    assert old.renewed(given) == given
    assert old.renewed([]) == []
    assert old.renewed(["rm", "--model-path", "x"]) == ["rm", "--model-path", "x"]
    assert capsys.readouterr().err == ""


def test_each_replacement_exists_and_no_old_one_is_shown_in_help_or_completions(mdl: Mdl) -> None:
    shown = {
        command.name: {name for option in command.options for name in option.names}
        for command in completion.commands()
    }
    for command, flags in old.FLAGS.items():
        options = shown[cli.ALIASES.get(command, command)]
        assert not options & set(flags)
        assert {new for new in flags.values() if new.startswith("--")} <= options
    scripts = "".join(path.read_text() for path in (ROOT / "completions").iterdir())
    assert not any(flag in scripts for flags in old.FLAGS.values() for flag in flags)
    assert "--model-path" not in mdl("chat", "--help").stdout


def test_the_changelog_calls_them_out_with_the_release_in_which_they_go() -> None:
    _, _, deprecated = (ROOT / "CHANGELOG.md").read_text().partition("\nDeprecated\n")
    flags = {flag for flags in old.FLAGS.values() for flag in flags}
    assert all(f"{flag}`" in deprecated for flag in flags)
    assert f"until {old.GOES}" in " ".join(deprecated.split())
    assert __version__.split(".") < old.GOES.split(".")  # or they are to be taken out
