"""From a manifest to files on disk, through the library, with a hub on the other side."""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ggufmaker import model
from hub import GOOD, Answer, Hub, sha256

from mdl.errors import AuthError, DiskError, IntegrityError, MdlError
from mdl.library import Library, Watch
from mdl.model import METADATA_NAME

NAME = "Org/Model-GGUF"
Q4, Q8 = model({"general.name": "small"}), model({"general.name": "large"})
FILES = {"README.md": b"# A model", "m-Q4_K_M.gguf": Q4, "m-Q8_0.gguf": Q8}


def part(number: int, count: int = 3) -> bytes:
    split = {"split.no": number - 1, "split.count": count, "split.tensors.count": count}
    return model({**split, "general.name": f"part {number}"})


SPLIT = {f"m-Q8_0-0000{number}-of-00003.gguf": part(number) for number in (1, 2, 3)}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != METADATA_NAME)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def transferred(hub: Hub) -> list[str]:
    """Which files came over the network, however often they were asked for."""
    return [seen.path.partition("?")[0].rsplit("/", 1)[-1] for seen in hub.requests(port="cdn")]


def leftovers(library: Library) -> list[str]:
    return [path.name for path in library.store.incoming.iterdir()]


# What a version is


def test_a_version_is_plain_files_with_a_record_of_where_they_are_from(hub: Hub, library: Library) -> None:
    commit = hub.add(NAME, FILES).branches["main"]
    found = library.download(f"{NAME}:q8_0")
    assert found.folder == library.store.tree / "huggingface.co" / "Org" / "Model-GGUF" / "Q8_0"
    assert contents(found.folder) == {"README.md": b"# A model", "m-Q8_0.gguf": Q8}
    record = tomllib.loads((found.folder / METADATA_NAME).read_text())
    assert record["schema"] == 1
    assert record["reference"] == f"huggingface.co/{NAME}:Q8_0"
    assert record["source"] == f"{hub.url}/{NAME}"
    assert record["revision"] == {"kind": "branch", "name": "main", "commit": commit}
    assert record["partial"] is False
    assert record["header"]["architecture"] == "llama"
    assert record["files"][0] == {
        "name": "m-Q8_0.gguf", "size": len(Q8), "sha256": sha256(Q8), "role": "weights"
    }  # fmt: skip
    assert record["files"][1]["sha256"] == sha256(b"# A model")
    assert leftovers(library) == []


def test_versions_lie_side_by_side_and_share_what_is_the_same(hub: Hub, library: Library) -> None:
    repository = hub.add(NAME, FILES)
    repository.tags["v1.0"] = repository.branches["main"]
    texts = [f"{NAME}:Q4_K_M", f"{NAME}:Q8_0", f"{NAME}:Q8_0@v1.0"]
    found = [library.download(text) for text in texts]
    assert [version.folder.name for version in found] == ["Q4_K_M", "Q8_0", "Q8_0@v1.0"]
    assert [str(library.get(text).reference) for text in texts] == [
        f"huggingface.co/{text}" for text in texts
    ]
    assert sorted(transferred(hub)) == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert len({(version.folder / "README.md").stat().st_ino for version in found}) == 1


def test_the_same_content_from_another_repository_costs_no_transfer(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    hub.add("Copycat/Other-GGUF", {"renamed-Q8_0.gguf": Q8})
    library.download(f"{NAME}:Q8_0")
    hub.forget()
    found = library.download("Copycat/Other-GGUF")
    assert transferred(hub) == []
    assert contents(found.folder) == {"renamed-Q8_0.gguf": Q8}


def test_contents_are_read_only(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    found = library.download(NAME)
    assert (found.folder / "m-Q4_K_M.gguf").stat().st_mode & 0o777 == 0o444


# Of one piece


def test_a_commit_that_lands_between_shards_changes_nothing(hub: Hub, library: Library) -> None:
    repository = hub.add(NAME, SPLIT)
    before = repository.branches["main"]
    library.settings = replace(library.settings, jobs=1)
    hub.before("00002-of-00003.gguf?", lambda: repository.commit(dict.fromkeys(SPLIT, b"another model")))
    found = library.download(NAME)
    assert repository.branches["main"] != before
    assert found.revision.commit == before
    assert contents(found.folder) == SPLIT


def test_a_changed_repository_is_fetched_when_it_is_downloaded_again(hub: Hub, library: Library) -> None:
    repository = hub.add(NAME, FILES)
    first = library.download(NAME)
    assert library.download(NAME) == first
    repository.commit({**FILES, "README.md": b"# New words"})
    hub.forget()
    second = library.download(NAME)
    assert transferred(hub) == []  # only the small file was: it does not come from the CDN
    assert (second.folder, second.revision.commit) == (first.folder, repository.branches["main"])
    assert (second.folder / "README.md").read_bytes() == b"# New words"


def test_a_small_file_that_is_the_same_in_another_commit_is_not_fetched_again(
    hub: Hub, library: Library
) -> None:
    repository = hub.add(NAME, FILES)
    library.download(NAME)
    repository.commit({**FILES, "m-Q4_K_M.gguf": Q8})
    hub.forget()
    assert contents(library.download(NAME).folder) == {"README.md": b"# A model", "m-Q4_K_M.gguf": Q8}
    assert not hub.requests("README.md")


def test_a_private_model_comes_from_a_cdn_that_never_sees_the_token(
    hub: Hub, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.add(NAME, FILES, private=True)
    found = library.download(NAME)
    assert contents(found.folder)["m-Q4_K_M.gguf"] == Q4
    assert hub.requests(port="cdn")
    assert {seen.authorization for seen in hub.requests(port="cdn")} == {None}
    assert {seen.authorization for seen in hub.requests(port="hub")} == {f"Bearer {GOOD}"}
    files = (path for path in library.settings.home.rglob("*") if path.is_file())
    assert not [path for path in files if GOOD.encode() in path.read_bytes()]


def test_a_gate_leaves_nothing_behind(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES, gated="manual")
    with pytest.raises(AuthError):
        library.download(NAME)
    assert library.list() == []


# Wrong, short and lost


@pytest.mark.parametrize("name", ["m-Q4_K_M.gguf", "README.md"])
def test_bytes_that_are_not_what_was_promised_are_refused_and_the_next_run_gets_there(
    hub: Hub, library: Library, name: str
) -> None:
    hub.add(NAME, FILES)
    wrong = Answer(200, bytes([FILES[name][0] ^ 1]) + FILES[name][1:], {"ETag": '"x"'})
    place = "/resolve-cache/" if name == "README.md" else "Signature"
    hub.answer(place, wrong)
    with pytest.raises(IntegrityError) as caught:
        library.download(NAME)
    assert name in caught.value.message
    assert library.list() == []
    assert contents(library.download(NAME).folder)[name] == FILES[name]


def test_a_connection_that_is_cut_is_taken_up_where_it_was(hub: Hub, library: Library) -> None:
    large = model({"general.name": "x" * (3 << 20)})
    hub.add(NAME, {"m-Q8_0.gguf": large})
    hub.cut("Signature", after=2 << 20)
    assert contents(library.download(NAME).folder)["m-Q8_0.gguf"] == large
    assert hub.requests(port="cdn")[-1].range == f"bytes={2 << 20}-{len(large) - 1}"


def test_what_was_killed_goes_on_in_the_next_run(hub: Hub, library: Library) -> None:
    large = model({"general.name": "x" * (3 << 20)})
    hub.add(NAME, {"m-Q8_0.gguf": large})
    hub.cut("Signature", after=2 << 20)
    hub.before("Signature", lambda: time.sleep(5))
    with running(library, NAME) as process:
        wait_for(lambda: len(hub.requests(port="cdn")) > 1)
        process.kill()
    assert library.list() == []
    hub.forget()
    assert contents(library.download(NAME).folder)["m-Q8_0.gguf"] == large
    assert hub.requests(port="cdn")[0].range == f"bytes={2 << 20}-{len(large) - 1}"


def test_a_content_that_was_lost_is_fetched_again(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    found = library.download(NAME)
    library.store.blob(sha256(Q4)).unlink()
    (found.folder / "m-Q4_K_M.gguf").unlink()
    assert contents(library.download(NAME).folder)["m-Q4_K_M.gguf"] == Q4


def test_force_fetches_all_of_it_anew(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    found = library.download(NAME)
    weights = found.folder / "m-Q4_K_M.gguf"
    weights.chmod(0o644)
    weights.write_bytes(bytes(len(Q4)))
    assert contents(library.download(NAME).folder)["m-Q4_K_M.gguf"] != Q4
    assert contents(library.download(NAME, force=True).folder)["m-Q4_K_M.gguf"] == Q4


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    lfs = {"oid": "0" * 64, "size": 1 << 60, "pointerSize": 134}
    entry = {"type": "file", "path": "m-Q4_K_M.gguf", "size": 1 << 60, "oid": "0" * 40, "lfs": lfs}
    hub.answer("/tree/", Answer(200, json.dumps([entry]).encode()))
    with pytest.raises(DiskError, match="not enough space"):
        library.download(NAME)
    assert not hub.requests("/resolve/")


# Less than all, and elsewhere


def test_a_plan_says_what_is_here_and_what_would_come_and_transfers_nothing(
    hub: Hub, library: Library
) -> None:
    hub.add(NAME, FILES)
    plan = library.plan(NAME)
    assert [file.name for file in plan.missing] == ["m-Q4_K_M.gguf", "README.md"]
    assert not library.settings.home.exists() or library.list() == []
    library.download(f"{NAME}:Q8_0")
    plan = library.plan(NAME)
    assert plan.present == frozenset({"README.md"})
    assert [file.name for file in plan.missing] == ["m-Q4_K_M.gguf"]
    hub.forget()
    library.download(NAME)
    assert library.plan(NAME).missing == []


def test_included_files_alone_are_marked_partial_until_the_rest_is_fetched(
    hub: Hub, library: Library
) -> None:
    hub.add(NAME, SPLIT | {"README.md": b"#"})
    some = library.download(NAME, include=["*-00001-*", "*.md"])
    assert some.partial
    assert sorted(contents(some.folder)) == ["README.md", "m-Q8_0-00001-of-00003.gguf"]
    hub.forget()
    whole = library.download(NAME)
    assert not whole.partial
    assert len(contents(whole.folder)) == 4
    assert sorted(transferred(hub)) == ["m-Q8_0-00002-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf"]


def test_a_pattern_that_matches_nothing_is_an_error(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    with pytest.raises(MdlError, match=r"no file of .* matches \*\.bin"):
        library.download(NAME, include=["*.bin"])


def test_a_destination_gets_plain_files_and_the_cache_none(
    hub: Hub, library: Library, tmp_path: Path
) -> None:
    hub.add(NAME, FILES)
    out = tmp_path / "out"
    found = library.download(NAME, destination=out)
    assert found.folder == out
    assert contents(out) == {"README.md": b"# A model", "m-Q4_K_M.gguf": Q4}
    assert tomllib.loads((out / METADATA_NAME).read_text())["files"][0]["sha256"] == sha256(Q4)
    assert sorted(path.name for path in out.iterdir()) == [METADATA_NAME, "README.md", "m-Q4_K_M.gguf"]
    assert library.list() == []
    assert (out / "m-Q4_K_M.gguf").stat().st_mode & 0o200


def test_in_a_destination_only_what_is_wrong_is_fetched_again(
    hub: Hub, library: Library, tmp_path: Path
) -> None:
    hub.add(NAME, FILES)
    library.download(NAME, destination=tmp_path / "out")
    (tmp_path / "out" / "README.md").write_bytes(b"# A mistak")
    hub.forget()
    library.download(NAME, destination=tmp_path / "out")
    assert contents(tmp_path / "out") == {"README.md": b"# A model", "m-Q4_K_M.gguf": Q4}
    assert transferred(hub) == []


def test_what_is_cached_is_copied_to_a_destination_unless_it_is_damaged(
    hub: Hub, library: Library, tmp_path: Path
) -> None:
    hub.add(NAME, FILES)
    library.download(NAME)
    hub.forget()
    library.download(NAME, destination=tmp_path / "one")
    assert transferred(hub) == []
    blob = library.store.blob(sha256(Q4))
    assert (tmp_path / "one" / "m-Q4_K_M.gguf").stat().st_ino != blob.stat().st_ino
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(Q4)))
    library.download(NAME, destination=tmp_path / "two")
    assert contents(tmp_path / "two")["m-Q4_K_M.gguf"] == Q4


# Files of this machine


def test_a_file_of_this_machine_is_copied_into_the_cache_with_its_parts(
    library: Library, tmp_path: Path
) -> None:
    for name, content in SPLIT.items():
        (tmp_path / name).write_bytes(content)
    found = library.download(str(tmp_path / "m-Q8_0-00001-of-00003.gguf"))
    assert contents(found.folder) == SPLIT
    assert found.folder.is_relative_to(library.store.tree)
    assert found.reference.scheme == "file"


def test_a_file_that_has_not_changed_is_not_copied_again(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(Q4)
    library.download(str(path))
    assert library.plan(str(path)).missing == []
    path.write_bytes(Q8)
    assert contents(library.download(str(path)).folder) == {"m.gguf": Q8}


def test_a_copy_that_does_not_fit_is_not_begun(library: Library, tmp_path: Path) -> None:
    """In a process that cannot write large files: a test that fails must not fill the disk."""
    path = tmp_path / "m.gguf"
    path.write_bytes(Q4)
    os.truncate(path, 1 << 43)
    bounded = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, 1 << 24));" + _DOWNLOAD
    with running(library, str(path), code=bounded) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "not enough space" in errors
    assert leftovers(library) == []


def test_of_a_folder_what_belongs_to_the_model_is_copied(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, content in {
        "m-Q8_0.gguf": Q8,
        "LICENSE": b"MIT",
        "notes.txt": b"x",
        "training.bin": b"x",
    }.items():
        (folder / name).write_bytes(content)
    assert contents(library.download(f"{folder}/").folder) == {"m-Q8_0.gguf": Q8, "LICENSE": b"MIT"}


# Several at once

_DOWNLOAD = (
    "import sys; from pathlib import Path; from mdl.config import load; from mdl.library import Library;"
    "destination = Path(sys.argv[2]) if sys.argv[2:] else None;"
    "print(Library(load()).download(sys.argv[1], destination=destination).folder)"
)


class running:  # noqa: N801  reads as a statement
    """A process that downloads a model."""

    def __init__(self, library: Library, *arguments: str, code: str = _DOWNLOAD) -> None:
        environment = {"MDL_HOME": str(library.settings.home), "HF_ENDPOINT": library.settings.hf_endpoint}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "subprocess.Popen[str]":
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def wait_for(condition: object, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def eight(hub: Hub, library: Library) -> Iterator[list["subprocess.Popen[str]"]]:
    hub.add(NAME, SPLIT | {"README.md": b"# A model"})
    hub.before("Signature", lambda: time.sleep(2))  # so that all of them are there before the first is done
    started = [running(library, NAME) for _ in range(8)]
    yield [one.process for one in started]
    for one in started:
        one.__exit__()


def test_eight_processes_that_want_one_model_transfer_it_once(
    hub: Hub, library: Library, eight: list["subprocess.Popen[str]"]
) -> None:
    results = [process.communicate(timeout=60) for process in eight]
    assert [process.returncode for process in eight] == [0] * 8, results
    assert len({out for out, _ in results}) == 1
    assert sorted(transferred(hub)) == sorted(SPLIT)
    assert len(hub.requests("/resolve-cache/")) == 1
    assert contents(Path(results[0][0].strip())) == SPLIT | {"README.md": b"# A model"}
    assert leftovers(library) == []


def test_two_processes_with_one_destination_transfer_it_once(
    hub: Hub, library: Library, tmp_path: Path
) -> None:
    hub.add(NAME, SPLIT)
    hub.before("Signature", lambda: time.sleep(1))
    out = tmp_path / "out"
    with running(library, NAME, str(out)) as one, running(library, NAME, str(out)) as other:
        results = [process.communicate(timeout=60) for process in (one, other)]
        assert (one.returncode, other.returncode) == (0, 0), results
    assert contents(out) == SPLIT
    assert sorted(transferred(hub)) == sorted(SPLIT)


def test_waiting_for_another_process_is_said(hub: Hub, library: Library) -> None:
    hub.add(NAME, {"m-Q8_0.gguf": Q8})
    hub.before("Signature", lambda: time.sleep(1))
    notes: list[str] = []
    with running(library, NAME):
        wait_for(lambda: hub.requests(port="cdn"))
        library.download(NAME, Watch(note=notes.append))
    assert notes == ["another mdl fetches m-Q8_0.gguf: waiting"]
    assert transferred(hub) == ["m-Q8_0.gguf"]
