"""`mdl config` as people and scripts use it, and what goes on when config.toml is broken: real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from mdl.settings import KEYS

Mdl = Callable[..., subprocess.CompletedProcess[str]]
BROKEN = "version = 2\n\n[network]\noffline = perhaps\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MDL_", "HF_"))}
    places = {"MDL_CONFIG": str(tmp_path / "config.toml"), "MDL_HOME": str(tmp_path / "home")}
    return {**own, **places, "MDL_DATA_HOME": str(tmp_path / "data")}


@pytest.fixture
def mdl(tmp_path: Path, environment: dict[str, str]) -> Mdl:
    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mdl", *arguments]
        return subprocess.run(
            command,
            env={**environment, **variables},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema"] == 1
    return found


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """Value and source of each key, as the table has them."""
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["KEY", "VALUE", "FROM"]
    return {row[0]: row[1:] for row in rows}


# show


def test_show_tells_each_value_and_where_it_comes_from(mdl: Mdl, path: Path) -> None:
    path.write_text("pull = 'never'\n[network]\njobs = 2\n[aliases]\nfast = 'org/name'\n")
    found = shown(mdl("config", MDL_JOBS="3", HF_HUB_OFFLINE="1"))
    assert found["pull"] == ["never", "config.toml"]
    assert found["network.jobs"] == ["3", "MDL_JOBS"]
    assert found["network.offline"] == ["true", "HF_HUB_OFFLINE"]
    assert found["aliases.fast"] == ["org/name", "config.toml"]
    assert found["network.connections"] == ["16", "default"]
    assert set(found) == {"KEY", "aliases.fast", *(key.place for key in KEYS.values())} - {"aliases"}


def test_show_as_json_documents_each_key(mdl: Mdl, path: Path) -> None:
    path.write_text("hosts = ['quay.io']\n")
    found = document(mdl("config", "show", "--json"))
    assert (found["path"], found["problem"]) == (str(path), None)
    settings = {each["key"]: each for each in found["settings"]}
    assert settings["hosts"]["value"] == ["quay.io"]
    assert settings["network.jobs"] == {
        "key": "network.jobs",
        "value": 4,
        "from": "default",
        "type": "number, 1 to 64",
        "default": 4,
        "variable": "MDL_JOBS",
        "secret": False,
        "help": "Files to fetch at once.",
    }


def test_secrets_are_masked(mdl: Mdl, path: Path) -> None:
    path.write_text("[server]\napi_key = 'geheim'\n")
    for arguments in ("show",), ("show", "--json"), ("unset", "jobs", "--json"):
        done = mdl("config", *arguments)
        assert done.returncode == 0
        assert "geheim" not in done.stdout + done.stderr
    assert shown(mdl("config"))["server.api_key"] == ["(hidden)", "config.toml"]
    assert mdl("config", "get", "api_key").stdout == "geheim\n"  # who asks for it by name means it


# get, set, unset, path


@pytest.mark.parametrize(
    ("key", "values", "written", "got"),
    [
        ("jobs", ["8"], "[network]\njobs = 8\n", "8\n"),
        ("network.jobs", ["8"], "[network]\njobs = 8\n", "8\n"),
        ("offline", ["yes"], "[network]\noffline = true\n", "true\n"),
        ("limit_rate", ["20M"], '[network]\nlimit_rate = "20M"\n', "20000000\n"),
        ("memory", ["0"], "memory = 0\n", "0\n"),
        (
            "hosts",
            ["quay.io", "hf.co"],
            'hosts = ["quay.io", "huggingface.co"]\n',
            "quay.io\nhuggingface.co\n",
        ),
        ("hosts", ["quay.io,ghcr.io"], 'hosts = ["quay.io", "ghcr.io"]\n', "quay.io\nghcr.io\n"),
        ("checkpoints", ["/a", "/b"], 'checkpoints = ["/a", "/b"]\n', "/a\n/b\n"),
        ("aliases.fast", ["org/name:Q8_0"], '[aliases]\nfast = "org/name:Q8_0"\n', "org/name:Q8_0\n"),
        ("api_key", ["x"], '[server]\napi_key = "x"\n', "x\n"),
    ],
)
def test_what_is_set_is_written_and_got_and_unset(
    mdl: Mdl, path: Path, key: str, values: list[str], written: str, got: str
) -> None:
    before = mdl("config", "get", key)
    assert mdl("config", "set", key, *values).returncode == 0
    assert path.read_text().replace("\n\n", "\n") == "version = 2\n" + written
    assert mdl("config", "get", key).stdout == got
    assert mdl("config", "unset", key).returncode == 0
    assert mdl("config", "get", key).stdout == before.stdout


def test_set_keeps_comments_and_order(mdl: Mdl, path: Path) -> None:
    path.write_text("# mine\npull = 'ask'  # always\n\n[network]\n# slow\njobs = 2\nca = ''\n")
    assert mdl("config", "set", "jobs", "3").returncode == 0
    assert path.read_text() == "# mine\npull = 'ask'  # always\n\n[network]\n# slow\njobs = 3\nca = ''\n"


def test_a_secret_comes_by_a_pipe_and_its_file_is_private(mdl: Mdl, path: Path) -> None:
    assert mdl("config", "set", "api_key", stdin="geheim\n").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert mdl("config", "get", "api_key", "--json").stdout.count("geheim") == 1
    assert mdl("config", "set", "api_key").returncode == 2


def test_a_person_types_a_secret_unseen(environment: dict[str, str], path: Path) -> None:
    command = ["-m", "mdl", "config", "set", "api_key"]
    child = pexpect.spawn(sys.executable, command, env=environment, timeout=30, encoding="utf-8")  # type: ignore[arg-type]
    child.expect("api_key: ")
    child.sendline("geheim")
    child.expect(pexpect.EOF)
    assert "geheim" not in child.before
    assert 'api_key = "geheim"' in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("set", "jobs", "99"), "jobs cannot be '99'"),
        (("set", "jobs"), "set jobs to what?"),
        (("set", "pull", "sometimes"), "one of ask, missing, never, always, newer"),
        (("set", "pull", "ask", "never"), "pull cannot be"),
        (("set", "jobz", "3"), "did you mean jobs?"),
        (("set", "server.jobs", "3"), "'server.jobs' is not a setting"),
        (("set", "aliases", "x"), "mdl config set aliases.NAME VALUE"),
        (("set", "aliases.a/b", "org/name"), "'a/b' cannot be an alias"),
        (("set", "aliases.fast", "or g"), "or g"),
        (("set", "aliases.fast", ""), "the model's name is empty"),
        (("set", "aliases.fast", "~nobody_/m"), "'~nobody_' cannot be part of a model's name"),
        (("set", "aliases.fast", "a/" + "m" * 300), "a part of the name is too long"),
        (("get", "jobz"), "did you mean jobs?"),
        (("get",), "get what?"),
        (("get", "jobs", "3"), "too much"),
        (("show", "jobs"), "too much"),
        (("change",), "mdl config does not know 'change'"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(
    mdl: Mdl, path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = mdl("config", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert not path.exists()


def test_an_alias_that_is_not_there_is_not_found(mdl: Mdl) -> None:
    assert mdl("config", "get", "aliases.fast").returncode == 3


def test_a_variable_that_goes_before_what_was_set_is_told(mdl: Mdl) -> None:
    done = mdl("config", "set", "jobs", "3", "--json", MDL_JOBS="5")
    assert "MDL_JOBS is set, and goes before" in done.stderr
    assert document(done) == {"schema": 1, "key": "jobs", "value": 5, "from": "MDL_JOBS"}


def test_path_is_where_the_file_is_or_would_be(mdl: Mdl, path: Path) -> None:
    assert mdl("config", "path").stdout == f"{path}\n"
    assert document(mdl("config", "path", "--json")) == {"schema": 1, "path": str(path), "exists": False}


# edit


def editor(tmp_path: Path, *texts: str) -> str:
    """A program that writes these texts, one each time it is called, and notes what it found."""
    script = tmp_path / "editor"
    for number, text in enumerate(texts, 1):
        (tmp_path / f"text{number}").write_text(text)
    script.write_text(
        f'#!/bin/sh\ncd "{tmp_path}"\necho >> calls\ncat "$2" >> seen\n'
        'cat "text$(wc -l < calls | tr -d " ")" > "$2"\ntest "$1" = -x\n'
    )
    script.chmod(0o755)
    return f"'{script}' -x"


def test_edit_opens_the_editor_on_a_copy(mdl: Mdl, path: Path, tmp_path: Path) -> None:
    path.write_text("pull = 'ask'\n")
    done = mdl("config", "edit", VISUAL=editor(tmp_path, "pull = 'never'\n"), EDITOR="false")
    assert (done.returncode, done.stderr) == (0, f"{path} is changed\n")
    assert path.read_text() == "pull = 'never'\n"
    assert (tmp_path / "seen").read_text() == "pull = 'ask'\n"


def test_edit_of_no_file_begins_with_all_keys_in_comments(mdl: Mdl, path: Path, tmp_path: Path) -> None:
    done = mdl("config", "edit", EDITOR=editor(tmp_path, "[network]\njobs = 3\n"))
    assert done.returncode == 0, done.stderr
    assert "# Files to fetch at once.\n# jobs = 4\n" in (tmp_path / "seen").read_text()
    assert mdl("config", "get", "jobs").stdout == "3\n"


def test_edit_refuses_what_is_broken_with_line_and_column(mdl: Mdl, path: Path, tmp_path: Path) -> None:
    path.write_text("pull = 'ask'\n")
    done = mdl("config", "edit", EDITOR=editor(tmp_path, BROKEN))
    assert done.returncode == 2
    assert f"{path}, line 4, column 11: " in done.stderr
    assert "nothing was changed" in done.stderr
    assert path.read_text() == "pull = 'ask'\n"


def test_edit_offers_to_go_on_with_what_is_broken(
    environment: dict[str, str], path: Path, tmp_path: Path
) -> None:
    environment["EDITOR"] = editor(tmp_path, BROKEN, "[network]\noffline = true\n")
    child = pexpect.spawn(sys.executable, ["-m", "mdl", "config", "edit"], env=environment, timeout=30)  # type: ignore[arg-type]
    child.expect("line 4, column 11")
    child.expect(r"Edit it again\? \[y/N\]")
    assert not path.exists()
    child.sendline("y")
    child.expect("is changed")
    child.expect(pexpect.EOF)
    assert (tmp_path / "seen").read_text().endswith(BROKEN)  # not lost
    assert path.read_text() == "[network]\noffline = true\n"


def test_edit_without_a_person_opens_no_editor_that_nobody_named(mdl: Mdl) -> None:
    done = mdl("config", "edit", VISUAL="", EDITOR="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mdl: nobody is here to edit that\n")


def test_edit_mends_a_broken_file(mdl: Mdl, path: Path, tmp_path: Path) -> None:
    path.write_text(BROKEN)
    done = mdl("config", "edit", EDITOR=editor(tmp_path, "pull = 'never'\n"))
    assert done.returncode == 0, done.stderr
    assert mdl("config", "get", "pull").stdout == "never\n"


@pytest.mark.parametrize(("command", "code"), [("false", 2), ("no-such-editor", 2), ("'", 2), ("true", 0)])
def test_an_editor_that_fails_or_changes_nothing_changes_nothing(
    mdl: Mdl, path: Path, command: str, code: int
) -> None:
    path.write_text("pull = 'ask'\n")
    assert mdl("config", "edit", VISUAL=command).returncode == code
    assert path.read_text() == "pull = 'ask'\n"


# A broken file


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "--json"),
        ("inspect", "demo"),
        ("resolve", "demo"),
        ("df",),
        ("alias",),
        ("config",),
        ("config", "get", "jobs"),
        ("completion", "bash"),
    ],
)
def test_what_only_looks_goes_on_with_defaults_where_the_file_is_broken(
    mdl: Mdl, path: Path, arguments: tuple[str, ...]
) -> None:
    path.write_text(BROKEN)
    done = mdl(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("line 4, column 11") == (0 if arguments[0] == "completion" else 1)
    if "--json" in arguments:
        document(done)


@pytest.mark.parametrize(
    "arguments",
    [
        ("download", "org/name"),
        ("inspect", "--remote", "demo"),
        ("search", "llama"),
        ("chat", "demo", "Hello"),
        ("serve", "demo", "--port", "0"),
        ("rm", "-y", "demo"),
        ("prune",),
        ("login", "quay.io", "--user", "me", "--password-stdin"),
        ("ps",),
        ("alias", "set", "fast", "demo"),
        ("config", "set", "jobs", "3"),
    ],
)
def test_what_uses_the_network_credentials_or_serves_is_an_error_there(
    mdl: Mdl, path: Path, arguments: tuple[str, ...]
) -> None:
    path.write_text(BROKEN)
    done = mdl(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("line 4, column 11") == 1
    assert path.read_text() == BROKEN


def test_a_broken_file_is_a_problem_of_show(mdl: Mdl, path: Path) -> None:
    path.write_text(BROKEN)
    found = document(mdl("config", "show", "--json"))
    assert "line 4, column 11" in found["problem"]
    assert {each["from"] for each in found["settings"]} <= {"default", "MDL_HOME"}


def test_an_older_file_is_converted_by_whatever_reads_it(mdl: Mdl, path: Path) -> None:
    path.write_text("jobs = 2\n")
    assert mdl("list").returncode == 0
    assert path.read_text() == "version = 2\n\n[network]\njobs = 2\n"
    assert (path.parent / "config.toml.v1.bak").read_text() == "jobs = 2\n"


def test_a_newer_file_is_an_error_that_says_to_update(mdl: Mdl, path: Path) -> None:
    path.write_text("version = 3\n")
    done = mdl("download", "org/name")
    assert (done.returncode, "version 3" in done.stderr, "update mdl" in done.stderr) == (2, True, True)
