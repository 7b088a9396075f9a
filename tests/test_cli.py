"""The command line as people and scripts use it: real processes, a real hub on loopback, real inference."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest
from hub import GOOD, STRANGER, Hub

PACKAGE = Path(__file__).parent.parent / "mdl"
DEMO = PACKAGE / "models" / "mdl-demo-Q8_0.gguf"
MODEL = "huggingface.co/org/demo-GGUF"

Mdl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mdl(tmp_path: Path, hub: Hub) -> Mdl:
    """Runs `mdl` with an empty cache, an empty configuration and the hub."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "MDL_HOME": str(tmp_path / "home"),
            "MDL_CONFIG": str(tmp_path / "config.toml"),
            "MDL_DATA_HOME": str(tmp_path / "data"),
            "HF_ENDPOINT": hub.url,
            **variables,
        }
        command = [sys.executable, "-m", "mdl", *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def repository(hub: Hub) -> dict[str, bytes]:
    demo = DEMO.read_bytes()
    files = {
        "demo-Q8_0.gguf": demo,
        "demo-Q4_K_M.gguf": demo + bytes(32),
        "LICENSE": b"MIT License\n\nCopyright",
    }
    hub.add("org/demo-GGUF", files)
    return files


def documents(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema"] == 1
    return found


# One string, everywhere


def test_the_string_that_downloads_lists_inspects_answers_and_removes(
    mdl: Mdl, repository: Mapping[str, bytes]
) -> None:
    name = "org/demo-GGUF:q8_0"
    folder = mdl("download", name).stdout.strip()
    assert (Path(folder) / "demo-Q8_0.gguf").read_bytes() == repository["demo-Q8_0.gguf"]
    assert mdl("download", "--model", name).stdout.strip() == folder
    assert mdl("resolve", name).stdout.endswith(f"=> {folder}\n")
    assert documents(mdl("inspect", name, "--json"))["folder"] == folder
    assert mdl("list", "-q").stdout == f"{MODEL}\n"
    answer = mdl("chat", "--model", name, "What is the capital of France?", "--temperature", "0")
    assert answer.stdout == "The capital of France is Paris.\n"
    assert mdl("rm", "-y", name).returncode == 0
    assert mdl("list", "-q").stdout == ""


@pytest.mark.parametrize(
    "name",
    [f"{MODEL}:Q8_0", f"{MODEL}/Q8_0", "demo-GGUF", "demo-GGUF:Q8_0", "org/demo-GGUF", "hf://org/demo-GGUF"],
)
def test_what_is_here_is_found_by_each_of_its_names(
    mdl: Mdl, repository: Mapping[str, bytes], name: str
) -> None:
    folder = mdl("download", "org/demo-GGUF:Q8_0").stdout.strip()
    assert mdl("resolve", name, "--offline").stdout.endswith(f"=> {folder}\n")


def test_demo_answers_with_an_empty_cache_and_no_network(mdl: Mdl) -> None:
    done = mdl(
        "chat",
        "demo",
        "What is the capital of France?",
        "--offline",
        "--temperature",
        "0",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("The capital of France is Paris.\n", "", 0)


def test_an_answer_keeps_to_the_schema_in_a_file(mdl: Mdl, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object", "properties": {"n": {"enum": [7, 12]}}, "required": ["n"]}')
    done = mdl("chat", "demo", "What is 7 plus 5?", "--schema", str(file), "--temperature", "0")
    assert json.loads(done.stdout)["n"] in (7, 12) and done.returncode == 0
    file.write_text('{"type": "number of kinds"}')
    wrong = mdl("chat", "demo", "Hello", "--schema", str(file))
    assert (wrong.stdout, wrong.returncode) == ("", 2) and "#/type" in wrong.stderr
    missing = mdl("chat", "demo", "Hello", "--schema", str(tmp_path / "none.json"))
    assert missing.returncode == 2 and "none.json cannot be read" in missing.stderr


def test_familiar_spellings_work(mdl: Mdl, repository: Mapping[str, bytes]) -> None:
    assert mdl("pull", "org/demo-GGUF").returncode == 0
    assert mdl("ls", "-q").stdout == f"{MODEL}\n"
    assert "llama" in mdl("show", "org/demo-GGUF").stdout
    assert (
        mdl("run", "org/demo-GGUF", "What is 7 plus 5?", "--temperature", "0").stdout == "7 plus 5 is 12.\n"
    )
    assert mdl("remove", "-y", "org/demo-GGUF").returncode == 0


# What is said where


def test_a_download_prints_folders_and_talks_beside(
    mdl: Mdl, repository: Mapping[str, bytes], tmp_path: Path
) -> None:
    done = mdl("download", "org/demo-GGUF", "org/demo-GGUF:Q8_0")
    root = tmp_path / "home/models" / MODEL
    assert done.stdout == f"{root / 'Q4_K_M'}\n{root / 'Q8_0'}\n"
    assert "Q4_K_M was chosen" in done.stderr
    quiet = mdl("download", "-q", "org/demo-GGUF")
    assert (quiet.stdout, quiet.stderr) == (f"{root / 'Q4_K_M'}\n", "")


def test_progress_for_scripts_is_one_object_a_line(mdl: Mdl, repository: Mapping[str, bytes]) -> None:
    done = mdl("download", "--json", "org/demo-GGUF:Q8_0")
    [model] = documents(done)["models"]
    assert model["reference"] == f"{MODEL}:Q8_0"
    events = [json.loads(line) for line in done.stderr.splitlines()]
    files = {event["file"] for event in events if event["event"] == "done"}
    assert files == {"demo-Q8_0.gguf", "LICENSE"}
    assert {"event": "start", "file": "LICENSE", "size": 22, "resumed": 0} in events


def test_a_second_download_transfers_nothing(mdl: Mdl, hub: Hub, repository: Mapping[str, bytes]) -> None:
    first = mdl("download", "org/demo-GGUF:Q8_0")
    hub.forget()
    assert mdl("download", "org/demo-GGUF:Q8_0").stdout == first.stdout
    assert hub.requests("/resolve") == []


def test_a_dry_run_says_what_is_here_and_fetches_nothing(
    mdl: Mdl, hub: Hub, repository: Mapping[str, bytes]
) -> None:
    [plan] = documents(mdl("download", "--dry-run", "--json", "org/demo-GGUF"))["plans"]
    assert plan["reference"] == f"{MODEL}:Q4_K_M"
    assert plan["bytes_missing"] == len(repository["demo-Q4_K_M.gguf"]) + len(repository["LICENSE"])
    assert hub.requests("/resolve") == []
    mdl("download", "org/demo-GGUF:Q8_0")
    text = mdl("download", "--dry-run", "org/demo-GGUF").stdout
    assert [line.split() for line in text.splitlines()][1:] == [
        ["demo-Q4_K_M.gguf", "4.0", "MB", "to", "fetch"],
        ["LICENSE", "22", "B", "here"],
    ]


def test_a_destination_gets_plain_files_and_the_cache_nothing(
    mdl: Mdl, repository: Mapping[str, bytes], tmp_path: Path
) -> None:
    sink = tmp_path / "sink"
    done = mdl("download", "org/demo-GGUF:Q8_0", "--destination", str(sink))
    assert done.stdout == f"{sink}\n"
    assert sorted(path.name for path in sink.iterdir()) == [".metadata", "LICENSE", "demo-Q8_0.gguf"]
    assert (sink / "demo-Q8_0.gguf").read_bytes() == repository["demo-Q8_0.gguf"]
    assert (sink / "demo-Q8_0.gguf").stat().st_mode & 0o200  # the user's own, to do with as he likes
    assert mdl("list", "-q").stdout == ""
    assert documents(mdl("inspect", str(sink), "--json"))["architecture"] == "llama"


def test_only_what_is_included_is_fetched_and_the_rest_later(
    mdl: Mdl, repository: Mapping[str, bytes]
) -> None:
    [model] = documents(mdl("download", "--json", "org/demo-GGUF:Q8_0", "--include", "LIC*"))["models"]
    assert [file["name"] for file in model["files"]] == ["LICENSE"]
    assert model["partial"] is True
    assert "(partial)" in mdl("list").stdout
    [model] = documents(mdl("download", "--json", "org/demo-GGUF:Q8_0"))["models"]
    assert model["partial"] is False
    assert len(model["files"]) == 2


# list


def test_the_table_follows_the_habit_of_the_field(mdl: Mdl, repository: Mapping[str, bytes]) -> None:
    mdl("download", "org/demo-GGUF", "org/demo-GGUF:Q8_0")
    done = mdl("list", "--versions")
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert head == ["NAME", "VERSION", "SIZE", "MODIFIED"]
    assert [row[:4] for row in rows] == [[MODEL, "Q4_K_M", "4.0", "MB"], [MODEL, "Q8_0", "4.0", "MB"]]
    assert done.stderr == "2 versions, 7.9 MB\n"
    assert len(mdl("list").stdout.splitlines()) == 2
    assert "\x1b" not in done.stdout


def test_the_json_of_a_list_has_every_field_that_scripts_rely_on(
    mdl: Mdl, repository: Mapping[str, bytes]
) -> None:
    mdl("download", "org/demo-GGUF:Q8_0")
    [model] = documents(mdl("list", "--json"))["models"]
    assert {
        key: model[key] for key in ("reference", "host", "path", "name", "version", "kind", "format")
    } == {
        "reference": f"{MODEL}:Q8_0",
        "host": "huggingface.co",
        "path": "org/demo-GGUF",
        "name": "demo-GGUF",
        "version": "Q8_0",
        "kind": "model",
        "format": "gguf",
    }
    assert (model["quantization"], model["architecture"], model["parameters"]) == ("Q8_0", "llama", 3_672_320)
    assert (model["context_length"], model["partial"]) == (2048, False)
    assert model["size"] == len(repository["demo-Q8_0.gguf"]) + 22
    assert model["revision"]["kind"] == "branch"
    assert len(model["revision"]["commit"]) == 40
    assert [(file["name"], file["role"], len(file["sha256"])) for file in model["files"]] == [
        ("demo-Q8_0.gguf", "weights", 64),
        ("LICENSE", "license", 64),
    ]


def test_a_model_put_there_by_hand_is_listed_and_answers(mdl: Mdl, tmp_path: Path) -> None:
    folder = tmp_path / "home/models/quay.io/me/mine"
    folder.mkdir(parents=True)
    (folder / "x.gguf").write_bytes(DEMO.read_bytes())
    [model] = documents(mdl("list", "--json"))["models"]
    assert (model["reference"], model["version"]) == ("quay.io/me/mine", "n/a")
    assert mdl("chat", "mine", "What is 2 plus 2?", "--temperature", "0").stdout == "2 plus 2 is 4.\n"


def test_lists_are_filtered_and_sorted(mdl: Mdl, repository: Mapping[str, bytes]) -> None:
    mdl("download", "org/demo-GGUF", "org/demo-GGUF:Q8_0")

    def shown(*options: str) -> list[str]:
        return [line.rpartition(":")[2] for line in mdl("list", "--versions", "-q", *options).stdout.split()]

    assert shown("--sort", "size") == ["Q8_0", "Q4_K_M"]
    assert shown("--sort", "-size") == ["Q4_K_M", "Q8_0"]
    assert shown("--filter", "size>1GB") == []
    assert shown("--filter", "size<1GB", "--filter", "version=q8_0") == ["Q8_0"]
    assert shown("q8") == ["Q8_0"]
    assert shown("*:Q4*") == ["Q4_K_M"]


# inspect


def test_inspect_shows_each_part_alone(mdl: Mdl) -> None:
    assert mdl("inspect", "demo", "--key", "general.architecture").stdout == "llama\n"
    assert mdl("inspect", "demo", "--license").stdout == "MIT\n"
    assert "enable_thinking" in mdl("inspect", "demo", "--template").stdout
    assert "llama.context_length = 2048\n" in mdl("inspect", "demo", "--metadata").stdout
    assert "token_embd.weight" in mdl("inspect", "demo", "--tensors").stdout
    assert mdl("inspect", "demo", "--files").stdout.splitlines()[1].split() == [
        "mdl-demo-Q8_0.gguf",
        "4.0",
        "MB",
        "weights",
        "-",
    ]
    tokens = documents(mdl("inspect", "demo", "--key", "tokenizer.ggml.tokens", "--json"))[
        "tokenizer.ggml.tokens"
    ]
    assert len(tokens) == 2048


# Errors: one line with the cause, one with what to do, the documented exit code


def test_ctrl_c_while_it_starts_ends_it_without_a_word() -> None:
    code = """
import os, signal, sys
class Person:
    def find_spec(self, name, *_):
        if name == "mdl.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Person())
from mdl.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat", "demo", "--temp", "1"], "No such option: --temp\nhere it is --temperature"),
        (["serve", "--ctx-size=64"], "No such option: --ctx-size\nhere it is --ctx"),
        (["bench", "demo", "--n-gpu-layers", "9"], "No such option: --n-gpu-layers\nhere it is --gpu-layers"),
        (["chat", "demo", "--min-p", "1"], "No such option: --min-p\nMDL_MIN_P sets it, or a profile"),
        (["list", "--temp"], "No such option: --temp (Possible options: --help)\n"),
        (["chat", "demo", "--temperature"], "Option '--temperature' requires an argument.\n"),
    ],
)
def test_an_option_of_other_tools_is_answered_with_ours(mdl: Mdl, arguments: list[str], told: str) -> None:
    done = mdl(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mdl: {told}")


@pytest.mark.parametrize("wanted", [["zzz"], ["--filter", "size>1TB"]])
def test_a_list_in_which_nothing_is_like_what_was_asked_for_says_so(
    mdl: Mdl, repository: Mapping[str, bytes], wanted: Sequence[str]
) -> None:
    mdl("download", "org/demo-GGUF")
    listed = mdl("list", *wanted)
    assert (listed.stdout, listed.stderr) == ("", "nothing here is like that: mdl list shows all\n")


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["nope"], 2, "No such command"),
        (["download"], 2, "which model?"),
        (["inspect", "demo", "--model", "other"], 2, "one model, not two: 'demo', 'other'"),
        (["download", ""], 2, "empty"),
        (["chat", "", "hi"], 2, "empty"),
        (["download", "org/../../etc/passwd"], 2, "cannot be"),
        (["download", "org/na\x1b[31mme"], 2, "invisible"),
        (["download", "x" * 5000], 2, "too long"),
        (["list", "--sort", "colour"], 2, "cannot sort"),
        (["list", "--filter", "colour=red"], 2, "cannot be read"),
        (["chat", "demo", "--temperature", "hot", "hi"], 2, "hot"),
        (["chat", "demo", "--temperature", "-1", "hi"], 2, "temperature"),
        (["chat", "demo", "--gpu-layers", "some", "hi"], 2, "--gpu-layers"),
        (["chat", "demo"], 2, "nothing to ask"),
        (["rm", "demo"], 2, "not in the cache"),
        (["serve", "--host", "0.0.0.0"], 2, "API key"),
        (["serve", "--idle", "soon"], 2, "--idle"),
        (["inspect", "nothing"], 3, "not on this machine"),
        (["inspect", "./nothing.gguf"], 3, "no file or folder"),
        (["inspect", "demo", "--key", "general.arch"], 3, "no key"),
        (["chat", "org/none", "hi"], 3, "not on this machine"),
        (["download", "org/none"], 3, "does not exist or is private"),
        (["download", "org/demo-GGUF:Q2_K"], 3, "Q2_K"),
        (["download", "org/demo-GGUF@nope"], 3, "nope"),
        (["download", "org/gated"], 4, "gated"),
        (["download", "127.0.0.1:1/a/b:c"], 5, "refused the connection"),
        (["chat", "./page.html", "hi"], 9, "HTML page"),
        (["inspect", "./cut.gguf"], 9, "truncated"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_an_error_is_two_lines_and_a_documented_code(
    mdl: Mdl,
    hub: Hub,
    repository: Mapping[str, bytes],
    tmp_path: Path,
    arguments: Sequence[str],
    code: int,
    cause: str,
) -> None:
    hub.add("org/gated", repository, gated="manual")
    (tmp_path / "page.html").write_text("<!doctype html><html></html>")
    (tmp_path / "cut.gguf").write_bytes(DEMO.read_bytes()[:-100])
    done = mdl(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert len(lines) <= 2, done.stderr
    assert lines[0].startswith("mdl: ")
    assert cause in lines[0]
    assert len(lines[0]) < 400
    assert "\x1b" not in done.stderr


def test_resolve_tells_each_step_of_what_it_does_not_find(mdl: Mdl) -> None:
    done = mdl("resolve", "nothing")
    assert done.returncode == 3
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["path", "skipped"],
        ["cache", "miss"],
        ["catalog", "miss"],
        ["remote", "miss"],
    ]
    assert done.stderr.startswith("mdl: no model is called 'nothing'\nmdl list shows what is here")
    steps = json.loads(mdl("resolve", "nothing", "--json").stdout)["steps"]
    assert [step["step"] for step in steps] == ["path", "cache", "catalog", "remote"]


def test_an_error_for_a_script_is_json_on_stdout(mdl: Mdl) -> None:
    done = mdl("inspect", "nothing", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"] == {
        "code": 3,
        "message": "'nothing' is not on this machine",
        "hint": "mdl list shows what is here",
    }


def test_one_bad_name_among_several_does_not_stop_the_others(
    mdl: Mdl, repository: Mapping[str, bytes]
) -> None:
    done = mdl("download", "org/none", "org/demo-GGUF")
    assert done.returncode == 3
    assert done.stdout.endswith("/Q4_K_M\n")
    told = mdl("download", "org/none", "org/demo-GGUF:Q8_0", "--json")
    assert told.returncode == 3
    [failed], [fetched] = json.loads(told.stdout)["failed"], json.loads(told.stdout)["models"]
    assert (failed["name"], failed["code"]) == ("org/none", 3)
    assert "does not exist" in failed["message"] and "spelling" in failed["hint"]
    assert fetched["version"] == "Q8_0"
    assert all(json.loads(line) for line in told.stderr.splitlines())


def test_tokens_open_what_they_may_open_and_are_never_shown(
    mdl: Mdl, hub: Hub, repository: Mapping[str, bytes]
) -> None:
    hub.add("org/gated", repository, gated="manual")
    refused = mdl("download", "org/gated", HF_TOKEN=STRANGER)
    assert refused.returncode == 4
    assert STRANGER not in refused.stdout + refused.stderr
    assert mdl("download", "org/gated", HF_TOKEN=GOOD).returncode == 0
    assert all(seen.authorization is None for seen in hub.requests(port="cdn"))


def test_rm_asks_and_a_script_has_to_say_yes(mdl: Mdl, repository: Mapping[str, bytes]) -> None:
    mdl("download", "org/demo-GGUF", "org/demo-GGUF:Q8_0")
    assert mdl("rm", "org/demo-GGUF:Q8_0").returncode == 2
    ambiguous = mdl("rm", "-y", "demo-GGUF")
    assert ambiguous.returncode == 2
    assert "Q4_K_M" in ambiguous.stderr
    assert mdl("rm", "--dry-run", "demo-GGUF:Q8_0").stderr.endswith("nothing was removed\n")
    looked = documents(mdl("rm", "--dry-run", "--json", "demo-GGUF:Q8_0"))
    assert (looked["found"], looked["removed"], looked["freed"]) == ([f"{MODEL}:Q8_0"], [], 0)
    removed = documents(mdl("rm", "-y", "--json", "demo-GGUF:Q8_0"))
    assert removed["removed"] == [f"{MODEL}:Q8_0"]
    assert removed["freed"] == len(repository["demo-Q8_0.gguf"])
    assert mdl("list", "--versions", "-q").stdout == f"{MODEL}:Q4_K_M\n"


@pytest.mark.parametrize(
    ("pull", "code"), [("missing", 0), ("always", 0), ("newer", 0), ("never", 3), ("ask", 3)]
)
def test_a_miss_is_fetched_only_where_that_was_wanted(
    mdl: Mdl, repository: Mapping[str, bytes], pull: str, code: int
) -> None:
    done = mdl("chat", "org/demo-GGUF:Q8_0", "--pull", pull, "--temperature", "0", "What is 2 plus 2?")
    assert done.returncode == code
    assert done.stdout == ("2 plus 2 is 4.\n" if code == 0 else "")
    if code:
        assert done.stderr.splitlines()[1] == f"mdl download {MODEL}:Q8_0"


# chat in a pipe


def test_a_pipe_gets_just_the_answer(mdl: Mdl) -> None:
    assert (
        mdl("chat", "demo", "--temperature", "0", stdin="What is 7 plus 5?\n").stdout == "7 plus 5 is 12.\n"
    )


def test_piped_text_follows_the_prompt(mdl: Mdl) -> None:
    both = mdl(
        "chat",
        "demo",
        "--temperature",
        "0",
        "--system",
        "Answer in uppercase.",
        stdin="What is the capital of France?",
    )
    assert both.stdout == "THE CAPITAL OF FRANCE IS PARIS.\n"
    prompted = mdl(
        "chat", "demo", "--temperature", "0", "--stats", "My name is Ada.", stdin="What is my name?"
    )
    alone = mdl("chat", "demo", "--temperature", "0", "--stats", "What is my name?")
    assert prompted.stdout != alone.stdout


def test_no_model_takes_more_memory_than_the_user_allows(mdl: Mdl) -> None:
    refused = mdl("chat", "demo", "What is 7 plus 5?", MDL_MEMORY="1MB")
    assert (refused.returncode, refused.stdout) == (9, "")
    assert "does not fit" in refused.stderr
    assert mdl("chat", "demo", "What is 7 plus 5?", MDL_MEMORY="1GB").returncode == 0


def test_the_profile_of_the_readme_works(mdl: Mdl, tmp_path: Path) -> None:
    example = (PACKAGE.parent / "README.md").read_text().partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "example.toml").write_text(example)
    done = mdl("chat", "gpt-4", "What is 7 plus 5?")
    assert (done.returncode, done.stderr) == (0, "")


def test_stats_are_said_beside_the_answer(mdl: Mdl) -> None:
    done = mdl("chat", "demo", "--temperature", "0", "--stats", "What is 7 plus 5?")
    assert done.stdout == "7 plus 5 is 12.\n"
    assert "tokens/s" in done.stderr


def test_settings_come_from_the_file_the_environment_and_flags(
    mdl: Mdl, tmp_path: Path, repository: Mapping[str, bytes]
) -> None:
    (tmp_path / "config.toml").write_text('version = 1\npull = "missing"\n')
    ask = ("chat", "org/demo-GGUF:Q8_0", "--temperature", "0", "What is 2 plus 2?")
    assert mdl(*ask, MDL_PULL="never").returncode == 3
    assert mdl(*ask, "--pull", "never").returncode == 3
    assert mdl(*ask).returncode == 0
    for broken in ("pull = [", 'pull = "sometimes"', "colour = 1", "version = 99", "jobs = 0"):
        (tmp_path / "config.toml").write_text(broken)
        assert mdl("ps").returncode == 2


def test_what_answers_cannot_be_removed_meanwhile(
    mdl: Mdl, repository: Mapping[str, bytes], tmp_path: Path
) -> None:
    mdl("download", "org/demo-GGUF:Q8_0")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "mdl", "chat", "demo-GGUF"],
        env={**os.environ, "MDL_HOME": str(tmp_path / "home"), "MDL_DATA_HOME": str(tmp_path / "data")},
        timeout=20,
    )
    child.expect(">>>")
    refused = mdl("rm", "-y", "demo-GGUF")
    assert (refused.returncode, "in use" in refused.stderr) == (8, True)
    child.sendline("/bye")
    child.expect(pexpect.EOF)
    child.close()
    assert mdl("rm", "-y", "demo-GGUF").returncode == 0


def test_a_terminal_is_asked_which_model_a_short_name_means_and_a_script_is_told(
    mdl: Mdl, hub: Hub, tmp_path: Path
) -> None:
    for org in ("one", "two"):
        hub.add(f"{org}/twin", {"twin-Q8_0.gguf": DEMO.read_bytes()})
        assert mdl("download", f"{org}/twin").returncode == 0
    told = mdl("inspect", "twin")
    assert (told.returncode, told.stdout) == (2, "")
    assert "huggingface.co/one/twin, huggingface.co/two/twin" in told.stderr
    environment = {
        **os.environ,
        "MDL_HOME": str(tmp_path / "home"),
        "MDL_CONFIG": str(tmp_path / "none.toml"),
    }
    child = pexpect.spawn(sys.executable, ["-m", "mdl", "resolve", "twin"], env=environment, timeout=20)
    child.expect("Which twin\\?.*1. huggingface.co/one/twin.*2. huggingface.co/two/twin.*Number, 1 to 2: ")
    child.sendline("2")
    child.expect("=> .*two/twin/Q8_0")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    ordered = mdl("resolve", "twin", MDL_HOSTS="huggingface.co/two")
    assert ordered.stdout.endswith("two/twin/Q8_0\n")


def test_a_name_of_the_user_s_own_means_a_model_everywhere(mdl: Mdl, repository: Mapping[str, bytes]) -> None:
    assert mdl("alias").stderr.startswith("no aliases yet")
    assert mdl("alias", "set", "fast", "org/demo-GGUF:q8_0").returncode == 0
    assert mdl("download", "fast").returncode == 0
    answer = mdl("chat", "fast", "What is the capital of France?", "--temperature", "0")
    assert answer.stdout == "The capital of France is Paris.\n"
    assert documents(mdl("alias", "--json"))["aliases"] == {"fast": "org/demo-GGUF:q8_0"}
    assert mdl("alias", "set", "faster", "fast").returncode == 0
    assert documents(mdl("resolve", "faster", "--json"))["name"] == "org/demo-GGUF:q8_0"
    assert "fast\n" in mdl("__complete", "model", "fas").stdout
    assert documents(mdl("alias", "set", "other", "demo", "--json"))["aliases"]["other"] == "demo"
    assert documents(mdl("alias", "rm", "other", "--json"))["aliases"].keys() == {"fast", "faster"}
    assert mdl("alias", "rm", "fast").returncode == 0
    assert mdl("resolve", "fast").returncode == 3
    assert mdl("alias", "rm", "fast").returncode == 3
    assert mdl("alias", "set", "a/b", "org/demo-GGUF").returncode == 2
    assert mdl("alias", "set", "x", "not//a model").returncode == 2
    assert mdl("alias", "change").returncode == 2


@pytest.mark.parametrize("delay", [0, 0, 0, 0.001, 0.01, 0.1])  # while it draws, reads or waits
def test_a_terminal_is_given_back_on_sigterm(mdl: Mdl, delay: float) -> None:
    child = pexpect.spawn(sys.executable, ["-m", "mdl", "chat", "demo"], timeout=20)
    child.expect(">>>")
    assert child.getecho() is False  # prompt_toolkit draws what is typed
    time.sleep(delay)
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    echoes = child.getecho()
    assert b"Exception" not in (child.before or b"")
    child.close()
    assert (child.exitstatus, echoes) == (143, True)


@pytest.mark.parametrize("columns", [40, 80])
def test_bars_fit_the_terminal(mdl: Mdl, hub: Hub, tmp_path: Path, columns: int) -> None:
    demo = DEMO.read_bytes()
    files = {f"part-of-the-model-{number}/notes-about-it-{number}.md": bytes(2000) for number in range(8)}
    hub.add("org/many", {"config.json": b"{}", "model.safetensors": b"", **files, "demo-Q8_0.gguf": demo})
    environment = {**os.environ, "MDL_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "TERM": "xterm"}
    command = ["-m", "mdl", "download", "org/many", "org/many:Q8_0"]
    child = pexpect.spawn(sys.executable, command, env=environment, dimensions=(30, columns), timeout=30)
    child.expect(pexpect.EOF)
    child.close()
    screen = pyte.Screen(columns, 30)
    pyte.ByteStream(screen).feed(child.before or b"")
    lines = [line.rstrip() for line in screen.display if line.strip()]
    assert child.exitstatus == 0, lines
    assert any("demo-Q8_0" in line or "Q8_0.gguf" in line for line in lines)
    assert not any("Traceback" in line for line in lines)
    bars = [line for line in lines if "━" in line]
    assert bars
    assert all(line.count("━") < columns for line in bars)


def test_a_downloaded_path_outlives_its_original(mdl: Mdl, tmp_path: Path) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(DEMO.read_bytes())
    folder = mdl("download", "./mine.gguf").stdout.strip()
    [name] = [model["reference"] for model in documents(mdl("list", "--json"))["models"]]
    assert name == f"file://{original}"
    original.unlink()
    assert mdl("resolve", name).stdout.endswith(f"=> {folder}\n")
    assert mdl("chat", name, "What is 2 plus 2?", "--temperature", "0").stdout == "2 plus 2 is 4.\n"
    original.write_bytes(DEMO.read_bytes())
    assert mdl("rm", "-y", "./mine.gguf").returncode == 0
    assert original.exists()
    assert not Path(folder).exists()
