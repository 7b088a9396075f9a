"""From a string to a model: the order of the steps, short names, pull policies. Over a real cache and hub."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ggufmaker import model
from hub import Answer, Hub, sha256

from mdl import runnable
from mdl.config import Settings
from mdl.errors import Busy, MdlError, NetworkError, NotFound, UnsupportedModel, UsageError
from mdl.library import Library, Watch
from mdl.model import METADATA_NAME, File, Model
from mdl.reference import Reference

NAME = "Org/Model-GGUF"
Q4, Q8 = model({"general.name": "small"}), model({"general.name": "large"})
FILES = {"m-Q4_K_M.gguf": Q4, "m-Q8_0.gguf": Q8}


def plant(library: Library, text: str, content: bytes = Q4) -> Model:
    """Put a version into the cache as if it had been fetched."""
    partial = library.store.partial(os.urandom(4).hex())
    partial.write_bytes(content)
    library.store.keep(partial, sha256(content))
    file = File("m.gguf", len(content), sha256(content), role="weights")
    return library.store.commit(Model(Reference.parse(text), Path(), (file,), source="planted"))


def put_by_hand(library: Library, place: str, content: bytes = Q4) -> Path:
    folder = library.store.tree / place
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(content)
    return folder


def steps(library: Library, text: str) -> list[tuple[str, str]]:
    return [(step.step, step.outcome) for step in library.resolve(text).steps]


def with_settings(library: Library, **changes: Any) -> Library:
    return Library(replace(library.settings, **changes))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is the home folder too."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


# The order: a path, the cache, what ships with mdl, a remote source


@pytest.mark.parametrize(
    "text",
    [
        *("m.gguf", "./m.gguf", "../here/m.gguf", "~/m.gguf", "{here}/../here/m.gguf", "{here}/m.gguf"),
        "file://{here}/m.gguf",
    ],
)
def test_a_path_to_a_model_comes_first_however_it_is_written(library: Library, here: Path, text: str) -> None:
    (here / "m.gguf").write_bytes(Q4)
    text = text.format(here=here)
    found = library.here(text)
    assert (found.folder, found.place) == (here, here / "m.gguf")
    assert steps(library, text) == [("path", "found")]
    assert library.get(text) == found


def test_a_folder_is_a_path_too_and_goes_before_the_cache(library: Library, here: Path) -> None:
    plant(library, f"{NAME}:Q4_K_M")
    (here / "Org" / "Model-GGUF").mkdir(parents=True)
    (here / "Org" / "Model-GGUF" / "m.gguf").write_bytes(Q8)
    found = library.here(NAME)
    assert found.folder == here / "Org" / "Model-GGUF"


@pytest.mark.parametrize("kind", ["checkpoint", "adapter"])
def test_folders_of_the_other_format_are_models_by_path(library: Library, here: Path, kind: str) -> None:
    from test_safetensors import SMALL

    weights = "model.safetensors" if kind == "checkpoint" else "adapter_model.safetensors"
    config = "config.json" if kind == "checkpoint" else "adapter_config.json"
    (here / "x").mkdir()
    (here / "x" / weights).write_bytes(SMALL)
    (here / "x" / config).write_text("{}")
    found = library.here("./x")
    assert found.summary.format == "safetensors"
    assert found.summary.kind == ("model" if kind == "checkpoint" else "adapter")


def test_a_version_in_the_cache_can_be_named_by_its_folder(library: Library, here: Path) -> None:
    planted = plant(library, f"{NAME}:Q4_K_M")
    assert library.here(str(planted.folder)).folder == planted.folder


def test_a_path_that_is_no_model_falls_through_to_the_cache(library: Library, here: Path) -> None:
    (here / "Org" / "Model-GGUF").mkdir(parents=True)
    planted = plant(library, f"{NAME}:Q4_K_M")
    assert library.resolve(NAME).model == planted
    assert steps(library, NAME) == [("path", "miss"), ("cache", "found")]


def test_a_path_that_is_no_model_falls_through_to_the_source(library: Library, here: Path) -> None:
    (here / "Org").mkdir()
    (here / "Org" / "Model-GGUF").write_text("notes about the model")
    assert steps(library, NAME) == [
        ("path", "miss"), ("cache", "miss"), ("catalog", "miss"), ("remote", "found")
    ]  # fmt: skip
    assert str(library.resolve(NAME).reference) == f"huggingface.co/{NAME}"


@pytest.mark.parametrize("text", ["./notes", "{here}/notes", "~/notes", "notes.gguf", "file://{here}/notes"])
def test_what_is_written_as_a_path_and_is_no_model_is_the_error(
    library: Library, here: Path, text: str
) -> None:
    for name in ("notes", "notes.gguf"):
        (here / name).write_text("no model")
    with pytest.raises(UnsupportedModel, match="text file"):
        library.resolve(text.format(here=here))


def test_the_root_of_all_folders_is_no_model(library: Library) -> None:
    with pytest.raises(UnsupportedModel):
        library.resolve("/")


@pytest.mark.parametrize("text", ["./x", "/nowhere/x", "~/x", "x.gguf", "../x", "file:///nowhere/x.gguf"])
def test_what_is_written_as_a_path_and_is_not_there_is_the_error(
    library: Library, here: Path, text: str
) -> None:
    with pytest.raises(NotFound, match="there is no file or folder"):
        library.resolve(text)


def test_a_damaged_model_is_the_error_even_if_it_is_not_written_as_a_path(
    library: Library, here: Path
) -> None:
    (here / "model").write_bytes(Q4[:100])
    with pytest.raises(UnsupportedModel):
        library.resolve("model")


def test_what_ships_with_mdl_comes_after_the_cache(library: Library, here: Path) -> None:
    assert steps(library, "demo")[-1] == ("catalog", "found")
    assert library.get("demo").reference == Reference("short", "", "demo")
    planted = plant(library, "quay.io/me/demo:v1")
    assert library.get("demo") == planted


def test_a_resolution_never_asks_the_network(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    for text in (NAME, f"{NAME}:Q9", "quay.io/a/b:c", "https://x.org/m.gguf", "nothing", "sha256:abcdef"):
        library.resolve(text)
    assert hub.seen == []


def test_a_name_without_a_source_is_said_to_be_one(library: Library, here: Path) -> None:
    assert library.resolve("granite").reference is None
    assert steps(library, "granite")[-1] == ("remote", "miss")
    with pytest.raises(NotFound, match="no model is called 'granite'"):
        library.get("granite")


@pytest.mark.parametrize("ask", [Library.get, Library.download])
def test_a_name_that_means_nothing_is_answered_with_the_nearest_of_the_catalog(
    library: Library, here: Path, ask: Callable[[Library, str], Model]
) -> None:
    with pytest.raises(NotFound, match="'llama3'") as failure:
        ask(library, "llama3")
    assert "did you mean llama3." in failure.value.hint
    with pytest.raises(NotFound, match="'xyzzy'") as failure:
        ask(library, "xyzzy")
    assert "mdl search" in failure.value.hint


def test_a_name_in_another_case_is_answered_with_the_one_that_is_here(library: Library, here: Path) -> None:
    plant(library, f"{NAME}:Q8_0")
    with pytest.raises(NotFound) as failure:
        library.get("model-gguf:q8_0")
    assert failure.value.hint == "did you mean Model-GGUF?"


def test_a_file_that_is_no_model_is_told_where_its_name_means_nothing_else(
    library: Library, here: Path
) -> None:
    (here / "granite.txt").write_text("A stone.")
    with pytest.raises(NotFound, match=r"no model is called 'granite\.txt'") as failure:
        library.get("granite.txt")
    assert failure.value.hint == "granite.txt exists but is no model: a text file (A stone.)"


def test_no_name_is_not_the_folder_one_is_in(library: Library, here: Path) -> None:
    (here / "m.gguf").write_bytes(Q4)
    with pytest.raises(UsageError, match="empty"):
        library.download("")


# Names of what is here


@pytest.mark.parametrize(
    "text",
    [
        "quay.io/ai-lab/models/granite-7b-lab:v1.1",
        "quay.io/ai-lab/models/granite-7b-lab/v1.1",
        "oci://quay.io/ai-lab/models/granite-7b-lab:v1.1",
        "models/granite-7b-lab/v1.1",
        "models/granite-7b-lab:v1.1",
        "ai-lab/models/granite-7b-lab:v1.1",
        "ai-lab/models/granite-7b-lab/v1.1",
        "ai-lab/models/granite-7b-lab",
        "granite-7b-lab:v1.1",
        "granite-7b-lab/v1.1",
        "granite-7b-lab",
    ],
)
def test_a_model_is_found_by_its_full_and_by_its_short_name(library: Library, here: Path, text: str) -> None:
    planted = plant(library, "quay.io/ai-lab/models/granite-7b-lab:v1.1")
    plant(library, "quay.io/ai-lab/models/merlinite-7b-lab:v1.1")
    assert library.resolve(text).model == planted


def test_many_names_are_found_with_one_look_at_the_cache(library: Library, here: Path) -> None:
    planted = plant(library, "quay.io/ai-lab/models/granite-7b-lab:v1.1")
    resolver = library.resolver.at_once()
    later = plant(library, "quay.io/ai-lab/models/merlinite-7b-lab:v1.1")
    assert resolver.resolve("granite-7b-lab").model == planted
    assert resolver.resolve("merlinite-7b-lab").model is None
    assert resolver.resolve("quay.io/ai-lab/models/merlinite-7b-lab:v1.1").model == later
    assert library.resolve("merlinite-7b-lab").model == later


@pytest.mark.parametrize(
    "text", ["granite-7b", "lab", "-lab", "7b-lab:v1.1", "granite-7b-lab:v1", "granite-7b-lab:v1.10"]
)
def test_half_a_name_finds_nothing(library: Library, here: Path, text: str) -> None:
    plant(library, "quay.io/ai-lab/models/granite-7b-lab:v1.1")
    try:
        assert library.resolve(text).model is None
    except UsageError as error:
        assert text.startswith("-"), error


def test_several_candidates_are_an_error_that_lists_them(library: Library, here: Path) -> None:
    plant(library, "quay.io/me/granite:v1")
    plant(library, "docker.io/you/granite:v2")
    with pytest.raises(UsageError) as caught:
        library.resolve("granite")
    assert "quay.io/me/granite" in caught.value.message
    assert "docker.io/you/granite" in caught.value.message
    assert library.here("granite:v2").reference.host == "docker.io"


def test_the_order_of_hosts_decides_between_candidates(library: Library, here: Path) -> None:
    for place in ("quay.io/a/m:v1", "docker.io/a/m:v1", "ghcr.io/a/m:v1"):
        plant(library, place)
    ordered = with_settings(library, hosts=("docker.io", "quay.io"))
    assert str(ordered.resolve("m").reference) == "docker.io/a/m:v1"
    assert str(with_settings(library, hosts=("ghcr.io/a",)).resolve("m:v1").reference) == "ghcr.io/a/m:v1"
    with pytest.raises(UsageError, match=r"docker.io/a/m, ghcr.io/a/m, quay.io/a/m"):
        with_settings(library, hosts=("example.com", "quay.io/b")).resolve("m")


def test_a_person_is_asked_which_is_meant_when_nothing_decides(library: Library, here: Path) -> None:
    for place in ("quay.io/a/m:v1", "quay.io/b/m:v1", "ghcr.io/a/m:v1"):
        plant(library, place)
    asked: list[tuple[str, list[str]]] = []

    def answer(question: str, answers: Sequence[str]) -> int | None:
        asked.append((question, list(answers)))
        return 1 if len(asked) == 1 else None

    asking = Library(replace(library.settings, hosts=("quay.io",)), answer)
    assert str(asking.resolve("m").reference) == "quay.io/b/m:v1"
    assert asked == [("Which m?", ["quay.io/a/m", "quay.io/b/m"])]
    with pytest.raises(UsageError):  # who names none of them has not said which
        asking.resolve("m")


def test_a_short_name_that_is_not_here_is_looked_for_at_the_hosts_in_order(
    hub: Hub, library: Library, here: Path
) -> None:
    hub.add("team/Model-GGUF", FILES)
    hosts = ("huggingface.co/nobody", "huggingface.co/team", "huggingface.co/late")
    ordered = with_settings(library, hosts=hosts)
    resolution = ordered.resolve("Model-GGUF:Q8_0")
    assert [str(place) for place in (resolution.reference, *resolution.others)] == [
        f"huggingface.co/{org}/Model-GGUF:Q8_0" for org in ("nobody", "team", "late")
    ]
    assert str(ordered.download("Model-GGUF:Q8_0").reference) == "huggingface.co/team/Model-GGUF:Q8_0"
    with pytest.raises(NotFound, match=r"'other' is nowhere: .*nobody/other.*team/other.*late/other"):
        ordered.download("other")


def test_an_alias_stands_for_what_it_was_set_to(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    plant(library, "quay.io/a/fast:v1")
    (here / "mine.gguf").write_bytes(Q4)
    names = {"fast": f"{NAME}:Q8_0", "mine": str(here / "mine.gguf"), "loop": "loop"}
    named = with_settings(library, aliases=names)
    assert [step.step for step in named.resolve("fast").steps] == [
        "path",
        "alias",
        "path",
        "cache",
        "catalog",
        "remote",
    ]
    assert str(named.download("fast").reference) == f"huggingface.co/{NAME}:Q8_0"
    assert named.resolve("fast").model == named.removable("fast") == library.resolve(f"{NAME}:Q8_0").model
    assert named.resolve("mine").model == library.resolve("./mine.gguf").model
    assert str(named.resolve("fast:v1").reference) == "quay.io/a/fast:v1"  # another name
    assert named.resolve("loop").reference is None  # an alias is looked up once


def test_how_an_ambiguous_name_was_decided_can_be_explained(library: Library, here: Path) -> None:
    for place in ("quay.io/a/m:v1", "quay.io/b/m:v1"):
        plant(library, place)
    resolution, failure = library.resolver.explain("m")
    assert isinstance(failure, UsageError)
    assert [(step.step, step.outcome) for step in resolution.steps] == [
        ("path", "skipped"), ("cache", "found"), ("end", "error")
    ]  # fmt: skip


def test_the_newest_version_is_the_default(library: Library, here: Path) -> None:
    older, newer = (plant(library, f"quay.io/me/granite:{version}") for version in ("v10", "v9"))
    for version, date in ((older, "2026-01-01"), (newer, "2026-02-01")):
        record = version.folder / METADATA_NAME
        created = next(line for line in record.read_text().splitlines() if line.startswith("created"))
        record.write_text(record.read_text().replace(created, f"created = {date}T00:00:00Z"))
    assert library.here("granite").version == "v9"
    assert library.here("quay.io/me/granite").version == "v9"


def test_any_cached_file_is_found_by_its_digest(library: Library, here: Path) -> None:
    planted = plant(library, "quay.io/me/granite:v1")
    for length in (64, 12, 6):
        assert library.resolve(f"sha256:{sha256(Q4)[:length]}").model == planted
    assert library.resolve("sha256:000000").model is None
    with pytest.raises(UsageError, match="is no digest"):
        library.resolve("sha256:0000")
    with pytest.raises(UsageError, match="is no digest"):
        library.resolve("sha256:../../etc")


def test_digests_that_begin_alike_are_listed(library: Library, here: Path) -> None:
    contents = [model({"general.name": f"number {number}"}) for number in range(300)]
    heads: dict[str, bytes] = {}
    first, second = next(
        (heads[sha256(content)[:2]], content)
        for content in contents
        if heads.setdefault(sha256(content)[:2], content) is not content
    )
    for number, content in enumerate((first, second)):
        planted = plant(library, f"quay.io/me/granite:v{number}", content)
        record = planted.folder / METADATA_NAME  # digests with six equal digits cannot be found in a test
        head = sha256(content)[:6]
        record.write_text(record.read_text().replace(head, "abcdef"))
    with pytest.raises(UsageError, match="may be any of") as caught:
        library.resolve("sha256:abcdef")
    assert "granite:v0" in caught.value.message
    assert "granite:v1" in caught.value.message


@pytest.mark.parametrize(
    ("place", "texts"),
    [
        ("mine", ["mine"]),
        ("quay.io/me/mine", ["quay.io/me/mine", "mine", "me/mine"]),
        ("huggingface.co/Org/Mine-GGUF", ["Org/Mine-GGUF", "Mine-GGUF", "hf://Org/Mine-GGUF"]),
    ],
)
def test_a_folder_put_there_by_hand_is_listed_and_can_be_used(
    library: Library, here: Path, place: str, texts: list[str]
) -> None:
    folder = put_by_hand(library, place)
    (listed,) = library.list()
    assert (listed.version, listed.folder) == ("n/a", folder)
    for text in texts:
        assert library.get(text).folder == folder
        assert runnable.weights(library.get(text)).first == folder / "m.gguf"


def test_a_damaged_record_flags_its_model_and_hides_no_other(library: Library, here: Path) -> None:
    damaged = plant(library, "quay.io/me/damaged:v1")
    plant(library, "quay.io/me/whole:v1")
    (damaged.folder / METADATA_NAME).write_text("schema = [")
    by_name = {found.reference.name: found for found in library.list()}
    assert "unreadable" in by_name["damaged"].problem
    assert by_name["whole"].problem == ""
    with pytest.raises(UnsupportedModel, match="unreadable"):
        runnable.weights(library.here("damaged"))


def test_a_download_mends_a_damaged_record(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    found = library.download(NAME)
    (found.folder / METADATA_NAME).write_text("schema = [")
    mended = library.download(f"{NAME}:Q4_K_M")
    assert (mended.problem, mended.folder) == ("", found.folder)
    assert library.get(NAME) == mended


# Quantizations, files and pins of what is here


@pytest.mark.parametrize("version", ["Q8_0", "q8_0", "m-Q8_0.gguf", "m-Q8_0"])
def test_a_cached_quantization_is_found_by_every_name_that_fetched_it(
    hub: Hub, library: Library, here: Path, version: str
) -> None:
    hub.add(NAME, FILES)
    library.download(f"{NAME}:Q4_K_M")
    fetched = library.download(f"{NAME}:{version}")
    library.download(f"{NAME}:Q4_K_M")
    hub.forget()
    assert library.get(f"{NAME}:{version}") == fetched
    assert library.get(f"Model-GGUF:{version}") == fetched
    assert library.get("Model-GGUF/q8_0") == fetched  # the version as the last segment, as it lies there
    assert hub.seen == []


def test_a_pin_is_found_as_it_was_written_and_by_its_commit(hub: Hub, library: Library, here: Path) -> None:
    repository = hub.add(NAME, FILES)
    commit = repository.branches["main"]
    repository.tags["v1"] = commit
    pinned = library.download(f"{NAME}:Q8_0@v1")
    for version in ("Q8_0", "q8_0", "m-Q8_0"):
        assert library.resolve(f"{NAME}:{version}").model is None  # what that is now is not known here
    repository.commit({"m-Q8_0.gguf": Q4})
    latest = library.download(f"{NAME}:Q8_0")
    hub.forget()
    assert library.get(f"{NAME}:Q8_0@v1") == library.get(f"{NAME}@v1") == pinned
    assert library.get(f"{NAME}:Q8_0@{commit}") == library.get(f"{NAME}@{commit[:7]}") == pinned
    assert library.get(f"{NAME}:Q8_0") == latest
    assert library.resolve(f"{NAME}:Q8_0@v2").model is None
    assert hub.seen == []


# What happens when it is not here


def test_a_script_is_told_the_command_to_run(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    with pytest.raises(NotFound) as caught:
        library.get(NAME)
    assert caught.value.code == 3
    assert caught.value.hint == f"mdl download huggingface.co/{NAME}"
    assert hub.seen == []


def test_a_terminal_is_asked(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    asked: list[str] = []

    def answer(reply: bool) -> Callable[[str], bool]:
        def answered(question: str) -> bool:
            asked.append(question)
            return reply

        return answered

    with pytest.raises(NotFound):
        library.get(NAME, Watch(confirm=answer(False)))
    assert library.get(NAME, Watch(confirm=answer(True))).version == "Q4_K_M"
    library.get(NAME, Watch(confirm=answer(False)))
    assert asked == [f"huggingface.co/{NAME} is not on this machine. Download it?"] * 2


def test_missing_fetches_what_is_not_here_and_asks_nobody_about_what_is(
    hub: Hub, library: Library, here: Path
) -> None:
    repository = hub.add(NAME, FILES)
    library = with_settings(library, pull="missing")
    first = library.get(NAME)
    repository.commit({"m-Q4_K_M.gguf": Q8})
    hub.forget()
    assert library.get(NAME) == first
    assert hub.seen == []


@pytest.mark.parametrize("changes", [{"pull": "never"}, {"pull": "always", "offline": True}])
def test_never_and_offline_use_what_is_here_and_fetch_nothing(
    hub: Hub, library: Library, here: Path, changes: dict[str, Any]
) -> None:
    hub.add(NAME, FILES)
    library.download(NAME)
    hub.forget()
    limited = with_settings(library, **changes)
    assert limited.get(NAME).version == "Q4_K_M"
    with pytest.raises(NotFound):
        limited.get(f"{NAME}:Q8_0", Watch(confirm=lambda _: True))
    assert hub.seen == []


@pytest.mark.parametrize("pull", ["always", "newer"])
def test_always_and_newer_fetch_what_has_changed(hub: Hub, library: Library, here: Path, pull: str) -> None:
    repository = hub.add(NAME, FILES)
    library = with_settings(library, pull=pull)
    first = library.get(NAME)
    repository.commit({"m-Q4_K_M.gguf": Q8})
    second = library.get(NAME)
    assert second.revision.commit == repository.branches["main"] != first.revision.commit
    assert (second.folder / "m-Q4_K_M.gguf").read_bytes() == Q8


@pytest.mark.parametrize("trouble", ["down", "gone"])
def test_without_its_source_newer_uses_what_is_here_and_always_fails(
    hub: Hub, library: Library, here: Path, trouble: str
) -> None:
    hub.add(NAME, FILES)
    first = library.download(NAME)
    if trouble == "gone":
        del hub.repositories[NAME]
    else:
        hub.answer("/api/models/", *[Answer(418)] * 2)
    notes: list[str] = []
    assert with_settings(library, pull="newer").get(NAME, Watch(note=notes.append)) == first
    assert notes[0].endswith("is used as it is")
    with pytest.raises((NetworkError, NotFound)):
        with_settings(library, pull="always").get(NAME)


def test_what_is_no_sources_is_never_looked_for_changes(hub: Hub, library: Library, here: Path) -> None:
    """A path, a folder put there by hand, and parts that were fetched on purpose."""
    hub.add(NAME, FILES)
    library = with_settings(library, pull="always")
    (here / "m.gguf").write_bytes(Q4)
    put_by_hand(library, "huggingface.co/Org/Mine-GGUF")
    part = library.download(NAME, include=["*"])
    assert not part.partial
    hub.add(NAME, {**FILES, "README.md": b"#"})
    part = library.download(NAME, include=["*.gguf"])
    assert part.partial
    hub.forget()
    assert library.get("./m.gguf").folder == here
    assert library.get("Org/Mine-GGUF").version == "n/a"
    assert library.get(NAME) == part
    assert hub.seen == []
    assert not (library.store.tree / "file").exists()


def test_offline_a_download_of_what_is_here_is_said_and_done(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    first = library.download(NAME)
    offline = with_settings(library, offline=True)
    hub.forget()
    notes: list[str] = []
    assert offline.download(NAME, Watch(note=notes.append)) == first
    assert notes == [f"offline: huggingface.co/{NAME}:Q4_K_M is used as it is"]
    with pytest.raises(NotFound, match="mdl is offline"):
        offline.download(f"{NAME}:Q8_0")
    assert hub.seen == []


def test_offline_files_of_this_machine_can_be_copied(library: Library, here: Path) -> None:
    (here / "m.gguf").write_bytes(Q4)
    assert with_settings(library, offline=True).download("./m.gguf").folder != here


def test_the_choice_that_was_made_is_said(hub: Hub, library: Library, here: Path) -> None:
    hub.add(NAME, FILES)
    notes: list[str] = []
    library.download(NAME, Watch(note=notes.append))
    assert notes == ["Q4_K_M was chosen; there are also Q8_0"]


def test_a_short_name_of_what_is_here_is_fetched_from_where_it_came(
    hub: Hub, library: Library, here: Path
) -> None:
    repository = hub.add(NAME, FILES)
    library.download(f"{NAME}:Q8_0")
    repository.commit({"m-Q8_0.gguf": Q4})
    again = library.download("Model-GGUF")
    assert str(again.reference) == f"huggingface.co/{NAME}:Q8_0"
    assert (again.folder / "m-Q8_0.gguf").read_bytes() == Q4


def test_what_ships_with_mdl_goes_to_a_destination_without_a_network(
    hub: Hub, library: Library, here: Path
) -> None:
    library.download("demo", destination=here / "out")
    assert [path.name for path in (here / "out").iterdir()] == ["mdl-demo-Q8_0.gguf"]
    assert library.plan("demo").missing == []
    assert hub.seen == []


@pytest.mark.parametrize(
    "text",
    ["", " ", "-x", "a\nb/c", "a/b:c:d@", "../../etc/passwd.gguf/..", "a/../b", "sha256:", "x" * 3000, "hf://../x"],
)  # fmt: skip
def test_what_cannot_be_a_name_is_one_line(library: Library, here: Path, text: str) -> None:
    with pytest.raises(MdlError) as caught:
        library.get(text)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_settings_are_all_that_a_library_needs(tmp_path: Path) -> None:
    assert Library(Settings(tmp_path / "nothing")).list() == []
    assert not (tmp_path / "nothing").exists()


def test_a_model_that_is_being_removed_is_refused_in_words(library: Library) -> None:
    planted = plant(library, "o/a:1")
    being_removed = pytest.raises(Busy, match=r"o/a:1 is being removed")
    with library.store.locks.exclusive(planted.folder), ExitStack() as leases, being_removed:
        runnable.hold(library.store, planted, leases)
    with ExitStack() as leases:
        runnable.hold(library.store, planted, leases)
        with pytest.raises(Busy, match="is in use"):
            library.store.remove(planted)
