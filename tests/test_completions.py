"""Completions are current, and work in the shells themselves. Needs the Debian packages zsh, fish and
bash-completion; a shell that is missing is skipped."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from mdl.cli import build, completion
from mdl.complete import is_inert, spellings
from mdl.config import Settings
from mdl.library import Library
from mdl.reference import Reference

COMPLETIONS = Path(__file__).parent.parent / "completions"
FILES = {"bash": "mdl.bash", "zsh": "_mdl", "fish": "mdl.fish"}
PACKAGE = Path("/usr/share/bash-completion/bash_completion")
DEMO = Path(__file__).parent.parent / "mdl" / "models" / "mdl-demo-Q8_0.gguf"
VERSIONS = (
    "quay.io/ai-lab/models/granite-7b-lab/v1.1",
    "quay.io/ai-lab/models/granite-7b-lab/v1.2",
    "huggingface.co/Qwen/Qwen3-0.6B-GGUF/Q8_0",
    "huggingface.co/one/twin/Q8_0",
    "huggingface.co/two/twin/Q8_0",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with some versions, each the demo model."""
    home = tmp_path_factory.mktemp("completions") / "home"
    for version in VERSIONS:
        folder = home / "models" / version
        folder.mkdir(parents=True)
        (folder / "model.gguf").symlink_to(DEMO)
        reference = Reference.from_path_parts(version.split("/"), versioned=True)
        (folder / ".metadata").write_text(
            f'schema = 1\nreference = "{reference}"\ncreated = 2026-11-01T12:00:00Z\n'
        )
    return home


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    """What a shell of a user with that cache has; `mdl` is the one under test."""
    script = home.parent / "bin" / "mdl"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mdl "$@"\n')
    script.chmod(0o755)
    (home.parent / "work" / "folder").mkdir(parents=True)
    (home.parent / "work" / "weights.gguf").touch()
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    config = home.parent / "config.toml"
    config.write_text('version = 2\n[aliases]\nfast = "Qwen/Qwen3-0.6B-GGUF:Q8_0"\n')
    places = {"MDL_HOME": str(home), "MDL_CONFIG": str(config), "HOME": str(home.parent)}
    return {**os.environ, "PATH": path, "TERM": "dumb", **places}


def asked(environment: dict[str, str], *words: str) -> list[str]:
    """What `mdl __complete` prints; it must have nothing else to say."""
    command = [sys.executable, "-m", "mdl", "__complete", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# What is offered


def test_a_prefix_without_a_slash_finds_short_names_full_ones_and_the_catalog(
    environment: dict[str, str],
) -> None:
    granite = ["granite-7b-lab", "granite-7b-lab:v1.1", "granite-7b-lab:v1.2"]
    assert asked(environment, "model", "granite-") == granite
    assert asked(environment, "model", "granite-7b-lab:v1.2") == ["granite-7b-lab:v1.2"]
    assert asked(environment, "model", "dem") == ["demo"]
    assert asked(environment, "model", "mistral-s") == ["mistral-small"]
    assert asked(environment, "model", "granite3.3:") == ["granite3.3:2b", "granite3.3:8b"]
    everything = asked(environment, "model", "")
    assert {"demo", "huggingface.co/one/twin:Q8_0", *granite} <= set(everything)


def test_a_prefix_with_a_slash_finds_references(environment: dict[str, str]) -> None:
    assert asked(environment, "model", "Qwen/") == ["Qwen/Qwen3-0.6B-GGUF:Q8_0"]
    assert asked(environment, "model", "quay.io/") == [
        "quay.io/ai-lab/models/granite-7b-lab:v1.1",
        "quay.io/ai-lab/models/granite-7b-lab:v1.2",
    ]


def test_checkpoints_are_offered_and_the_latest_of_each_run(
    environment: dict[str, str], tmp_path: Path
) -> None:
    for name in ("run/checkpoint-90", "run/checkpoint-500", "my run/checkpoint-1"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    found = asked(environment | {"MDL_CHECKPOINTS": str(tmp_path / "runs")}, "model", "run")
    assert found == ["run:checkpoint-500", "run:checkpoint-90", "run@latest"]


def test_where_the_cache_is_meant_nothing_else_is_offered(environment: dict[str, str]) -> None:
    assert asked(environment, "cached", "dem") == asked(environment, "cached", "mistral") == []
    assert asked(environment, "cached", "fa") == ["fast"]
    assert "granite-7b-lab:v1.1" in asked(environment, "cached", "granite-")


def test_a_name_that_two_models_share_is_not_offered(environment: dict[str, str]) -> None:
    assert asked(environment, "model", "tw") == []
    assert asked(environment, "model", "two/") == ["two/twin:Q8_0"]


@pytest.mark.parametrize("prefix", ["", "Qwen/", "quay.io/"])
def test_every_name_that_is_offered_resolves(prefix: str, environment: dict[str, str], home: Path) -> None:
    library = Library(Settings(home, aliases={"fast": "Qwen/Qwen3-0.6B-GGUF:Q8_0"}))
    assert [name for name in asked(environment, "model", prefix) if not library.resolve(name).reference] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"MDL_HOME": "/dev/null/nowhere"},
        {"MDL_CONFIG": "/dev/null/nowhere"},
        {"MDL_PULL": "perhaps"},
        {"MDL_HOME": "", "HOME": "", "XDG_CACHE_HOME": ""},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_completing_never_complains(changes: dict[str, str], environment: dict[str, str]) -> None:
    assert "demo" in asked({**environment, **changes}, "model", "")


@pytest.mark.parametrize("words", [(), ("model",), ("no such kind", "x"), ("model", "\udcff\n$(ls)")])
def test_odd_questions_get_no_complaint(words: tuple[str, ...], environment: dict[str, str]) -> None:
    asked(environment, *words)


def test_a_shell_that_stops_listening_hears_no_complaint(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mdl", "__complete", "model", ""]
    done = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=30)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


HOSTILE = [
    "$(touch x)",
    "a`id`",
    "a;b",
    "a b",
    "a\x1b[31m",
    "a\u202eb",
    "~root",
    "-rf",
    "a'b",
    'a"b',
    "a\nb",
    "*",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_a_shell_would_read_as_more_is_not_offered(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    for place in ("harmless", name, f"quay.io/{name}", f"quay.io/ai-lab/{name}/v1"):
        folder = tmp_path / "models" / place
        folder.mkdir(parents=True)
        (folder / "model.gguf").touch()
    offered = asked({**environment, "MDL_HOME": str(tmp_path)}, "model", "")
    assert all(re.fullmatch(r"[\w./:@-]+", text) for text in offered)
    assert {"demo", "harmless"} <= set(offered)


@given(st.text())
def test_inert_names_are_one_harmless_word(text: str) -> None:
    if is_inert(text):
        assert text.isprintable()
        assert not set(text) & set(" \t\n'\"\\$`;&|<>(){}[]*?!#~=^")


def test_addresses_and_pins_are_offered_in_full_only() -> None:
    texts = ("https://example.org/some/model.gguf", "hf.co/one/two:Q8_0@main")
    references = [Reference.parse(text) for text in texts]
    assert spellings(references, slashes=False) == {str(reference) for reference in references}


def test_keys_aliases_and_profiles_are_offered_where_they_are_meant(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert asked(environment, "key", "j") == ["jobs"]
    assert asked(environment, "key", "network.j") == ["network.jobs"]
    assert asked(environment, "key", "al") == ["aliases.fast"]
    assert asked(environment, "alias", "") == ["fast"]
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.toml").write_text(
        '[[profile]]\ntitle = "mine"\nnames = ["gpt-4"]\nmodels = ["demo"]\n'
    )
    (tmp_path / "config.toml").touch()
    mine = {**environment, "MDL_CONFIG": str(tmp_path / "config.toml")}
    assert "mine" in asked(mine, "profile", "mi")
    assert asked(mine, "model", "gpt-4") == ["gpt-4"]


def test_a_broken_configuration_costs_only_what_it_says(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[")
    broken = {**environment, "MDL_CONFIG": str(tmp_path / "config.toml")}
    assert asked(broken, "alias", "") == []
    assert asked(broken, "model", "granite-7b-lab:v1.2") == ["granite-7b-lab:v1.2"]


# The scripts


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_scripts_are_current(shell: str) -> None:
    """If not: for each shell, `mdl completion SHELL` into its file of completions/."""
    assert (COMPLETIONS / FILES[shell]).read_text() == completion.script(shell)


def test_the_help_fits_a_terminal_of_80_columns() -> None:
    group: Any = typer.main.get_command(build())
    whole = typer.Context(group, info_name="mdl", terminal_width=80)
    assert "..." not in group.get_help(whole).replace("[ARGS]...", "")
    for name, command in group.commands.items():
        lines = command.get_help(typer.Context(command, info_name=name, parent=whole)).splitlines()
        assert [line for line in lines if len(line) > 80] == []


def test_every_option_that_takes_something_says_what() -> None:
    kinds = {
        (command.name, name): option.words or option.kind
        for command in completion.commands()
        for option in command.options
        for name in option.names
    }
    assert kinds["chat", "-m"] == kinds["chat", "--adapter"] == "model"
    assert kinds["rm", "-m"] == kinds["verify", "-m"] == "cached"
    assert kinds["download", "--destination"] == "folder"
    assert kinds["chat", "--pull"] == ("missing", "never", "always", "newer")
    assert "-size" in kinds["list", "--sort"]
    assert kinds["chat", "--think"] == kinds["chat", "--no-think"] == kinds["mdl", "--version"] == ""


class Terminal:
    """A shell on a terminal, in which somebody types and presses Tab."""

    def __init__(self, command: list[str], setup: list[str], environment: dict[str, str]) -> None:
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            env=environment,
            cwd=str(Path(environment["HOME"]) / "work"),
            encoding="utf-8",
            dimensions=(50, 200),
            timeout=20,
        )
        self.child.delaybeforesend = None
        for line in setup:
            self.child.sendline(line)
        self.child.sendline("echo re''ady")
        self.child.expect("ready\r\n")

    def complete(self, line: str) -> tuple[str, str]:
        """The line after Tab, and all that was shown meanwhile. Ctrl-G prints the line between << and >>."""
        self.child.send(f"{line}\t\x07")
        self.child.expect("<<(.*?)>>")
        shown, after = self.child.before, self.child.match[1]
        self.child.send("\x15")  # Ctrl-U: forget it
        return after, shown

    def close(self) -> None:
        self.child.close(force=True)


BASH_SETUP = [
    "PS1='> '",
    "bind 'set enable-bracketed-paste off'",
    "bind 'set show-all-if-ambiguous on'",
    "bind 'set completion-query-items 0'",
    "bind 'set page-completions off'",
    "bind 'set bell-style none'",
    r"""bind -x '"\C-g": printf "<<%s>>" "$READLINE_LINE"'""",
]
ZSH_SETUP = [
    "PS1='> '; setopt no_beep no_list_ambiguous no_prompt_cr no_prompt_sp; LISTMAX=0; bindkey -e",
    'show() { printf "<<%s>>" "$BUFFER" }; zle -N show; bindkey "^G" show',
]


@pytest.fixture(scope="module", params=["bash", "bash with bash-completion", "zsh"])
def terminal(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[Terminal]:
    shell, _, package = request.param.partition(" with ")
    if not shutil.which(shell) or (package and not PACKAGE.exists()):
        pytest.skip(f"{package or shell} is not installed")
    if shell == "bash":
        load = [f"source {PACKAGE}"] if package else []
        started = Terminal(
            ["bash", "--norc", "--noprofile", "-i"],
            [*load, f"source '{COMPLETIONS}/mdl.bash'", *BASH_SETUP],
            environment,
        )
    else:
        load = [f"fpath=('{COMPLETIONS}' $fpath)", "autoload -U compinit", "compinit -u -D"]
        started = Terminal(["zsh", "-f", "-i"], [*load, *ZSH_SETUP], environment)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("mdl ch", "mdl chat "),
        ("mdl chat --stat", "mdl chat --stats "),
        ("mdl chat --pull mi", "mdl chat --pull missing "),
        ("mdl list --sort -mo", "mdl list --sort -modified "),
        ("mdl chat dem", "mdl chat demo "),
        ("mdl run dem", "mdl run demo "),
        ("mdl chat --temperature 1 -m dem", "mdl chat --temperature 1 -m demo "),
        ("mdl chat --model=dem", "mdl chat --model=demo "),
        ("mdl chat granite-", "mdl chat granite-7b-lab"),
        ("mdl chat granite-7b-lab:", "mdl chat granite-7b-lab:v1."),
        ("mdl chat granite-7b-lab:v1.2", "mdl chat granite-7b-lab:v1.2 "),
        ("mdl chat --model=granite-7b-lab:v1.2", "mdl chat --model=granite-7b-lab:v1.2 "),
        ("mdl chat Qwen/", "mdl chat Qwen/Qwen3-0.6B-GGUF:Q8_0 "),
        ("mdl rm demo Qwen/", "mdl rm demo Qwen/Qwen3-0.6B-GGUF:Q8_0 "),
        ("mdl inspect ./wei", "mdl inspect ./weights.gguf "),
        ("mdl inspect ~/work/wei", "mdl inspect ~/work/weights.gguf "),
        ("mdl download demo --destination fol", "mdl download demo --destination folder/"),
        ("mdl download demo --destination wei", "mdl download demo --destination wei"),
        ("mdl chat --seed dem", "mdl chat --seed dem"),
        ("mdl chat demo > wei", "mdl chat demo > weights.gguf "),
        ("mdl chat 'granite-7b-lab:v1.2", "mdl chat 'granite-7b-lab:v1.2' "),
        ("mdl config uns", "mdl config unset "),
        ("mdl config get conn", "mdl config get connections "),
        ("mdl config --json get conn", "mdl config --json get connections "),
        ("mdl config set conn", "mdl config set connections "),
        ("mdl config set connections conn", "mdl config set connections conn"),
        ("mdl config path conn", "mdl config path conn"),
        ("mdl config unset aliases.fa", "mdl config unset aliases.fast "),
        ("mdl alias set new dem", "mdl alias set new demo "),
        ("mdl alias set dem", "mdl alias set dem"),
        ("mdl alias rm fa", "mdl alias rm fast "),
        ("mdl catalog sh", "mdl catalog show "),
        ("mdl catalog show gemm", "mdl catalog show gemma"),
        ("mdl profile show mdl-d", "mdl profile show mdl-demo "),
        ("mdl profile check wei", "mdl profile check weights.gguf "),
        ("mdl import wei", "mdl import weights.gguf "),
    ],
)
def test_tab_completes(line: str, after: str, terminal: Terminal) -> None:
    assert terminal.complete(line)[0] == after


def test_tab_lists(terminal: Terminal) -> None:
    commands = terminal.complete("mdl ")[1]
    assert all(name in commands for name in ("download", "list", "chat", "serve"))
    assert "pull" not in commands  # another spelling that works but is not shown
    assert all(name in terminal.complete("mdl serve --")[1] for name in ("--host", "--port", "--idle"))
    assert all(version in terminal.complete("mdl rm granite-7b-lab:")[1] for version in ("v1.1", "v1.2"))


def fish(environment: dict[str, str], line: str) -> list[str]:
    """The candidates that fish has for a line."""
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source '{COMPLETIONS}/mdl.fish'; complete -C '{line}'"],
        env=environment,
        cwd=Path(environment["HOME"]) / "work",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("mdl ch", ["chat"]),
        ("mdl chat --ses", ["--session"]),
        ("mdl chat --pull mi", ["missing"]),
        ("mdl run dem", ["demo"]),
        ("mdl chat --temperature 1 -m dem", ["demo"]),
        ("mdl chat --model=dem", ["--model=demo"]),
        ("mdl chat granite-7b-lab:", ["granite-7b-lab:v1.1", "granite-7b-lab:v1.2"]),
        ("mdl chat Qwen/", ["Qwen/Qwen3-0.6B-GGUF:Q8_0"]),
        ("mdl rm demo Qwen/", ["Qwen/Qwen3-0.6B-GGUF:Q8_0"]),
        ("mdl chat demo ", []),
        ("mdl inspect ./wei", ["./weights.gguf"]),
        ("mdl inspect ~/work/wei", ["~/work/weights.gguf"]),
        ("mdl download demo --destination ", ["folder/"]),
        ("mdl chat --seed dem", []),
        ("mdl config uns", ["unset"]),
        ("mdl config get conn", ["connections"]),
        ("mdl config --json set conn", ["connections"]),
        ("mdl config set connections conn", []),
        ("mdl config path conn", []),
        ("mdl config unset aliases.fa", ["aliases.fast"]),
        ("mdl alias set new dem", ["demo"]),
        ("mdl alias rm fa", ["fast"]),
        ("mdl catalog show demo", ["demo"]),
        ("mdl profile show mdl-d", ["mdl-demo"]),
        ("mdl profile check wei", ["weights.gguf"]),
        ("mdl import wei", ["weights.gguf"]),
    ],
)
def test_fish_completes(line: str, candidates: list[str], environment: dict[str, str]) -> None:
    assert fish(environment, line) == candidates


def test_fish_lists_the_commands_that_people_see(environment: dict[str, str]) -> None:
    shown = [command.name for command in completion.commands()[1:]]
    assert fish(environment, "mdl ") == sorted(shown)
