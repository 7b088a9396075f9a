"""The cache on disk: what becomes visible when, what is shared, what is freed, what a damaged one does."""

import hashlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mdl import leftovers
from mdl.describing import describe
from mdl.disk import exchange
from mdl.errors import Busy, DiskError, IntegrityError
from mdl.model import METADATA_NAME, File, Model, Revision
from mdl.reference import Reference
from mdl.store import Store

DEMO = Path(__file__).parent.parent / "mdl" / "models" / "mdl-demo-Q8_0.gguf"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", describe)


def put(store: Store, content: bytes) -> str:
    """A content as a blob, as a download leaves it."""
    sha256 = hashlib.sha256(content).hexdigest()
    partial = store.partial(sha256)
    partial.write_bytes(content)
    store.keep(partial, sha256)
    return sha256


def add(store: Store, name: str, contents: dict[str, bytes] | None = None, *, at: int = 0) -> Model:
    """A version, as a download makes it visible."""
    contents = {"model.gguf": DEMO.read_bytes()} if contents is None else contents
    files = tuple(File(file, len(data), put(store, data), role="weights") for file, data in contents.items())
    moment = datetime.fromtimestamp(1_800_000_000 + at, UTC)
    reference = Reference.parse(name)
    return store.commit(Model(reference, Path(), files, source="test", modified=moment))


def test_a_version_lies_in_the_tree_as_its_name_says(store: Store) -> None:
    model = add(store, "quay.io/ai-lab/models/granite:v1.1")
    assert model.folder == store.root / "models/quay.io/ai-lab/models/granite/v1.1"
    assert (model.folder / "model.gguf").read_bytes() == DEMO.read_bytes()
    assert store.find(model.reference) == model
    assert model.summary.architecture == "llama"
    assert model.summary.quantization == "Q8_0"


def test_metadata_say_everything_again(store: Store) -> None:
    file = File("model.gguf", DEMO.stat().st_size, put(store, DEMO.read_bytes()), "a" * 40, "weights")
    revision = Revision("branch", "main", "b" * 40)
    written = store.commit(
        Model(
            Reference.parse("o/n:Q8_0@main"),
            Path(),
            (file,),
            revision=revision,
            source="https://x",
            partial=True,
        )
    )
    read = store.find(Reference.parse("o/n:Q8_0@main"))
    assert read == written
    assert (read.files, read.revision, read.source, read.partial) == ((file,), revision, "https://x", True)


def test_one_content_is_stored_once_whatever_it_is_called(store: Store) -> None:
    models = [add(store, name) for name in ("o/a:Q8_0", "o/b:Q8_0", "quay.io/c/d:1")]
    inodes = {(model.folder / "model.gguf").stat().st_ino for model in models}
    assert len(inodes) == 1
    assert (models[0].folder / "model.gguf").stat().st_nlink == 4
    assert not (models[0].folder / "model.gguf").stat().st_mode & 0o222


def test_removing_frees_what_nothing_else_uses(store: Store) -> None:
    one, two = add(store, "o/a:Q8_0"), add(store, "o/b:Q8_0")
    size = DEMO.stat().st_size
    assert store.remove(one) == 0
    assert store.find(one.reference) is None
    assert store.find(two.reference) == two
    assert store.remove(two) == size
    assert list(store.blobs.iterdir()) == []
    assert not (store.tree / "huggingface.co").exists()


def test_what_is_in_use_is_not_removed(store: Store) -> None:
    model = add(store, "o/a:Q8_0")
    with store.locks.lease(model.folder), store.locks.lease(model.folder):
        with pytest.raises(Busy):
            store.remove(model)
        assert store.find(model.reference) == model
    assert store.remove(model) > 0


def test_a_lease_ends_with_the_process_that_held_it(store: Store) -> None:
    model = add(store, "o/a:Q8_0")
    code = f"""
        import sys, time
        from pathlib import Path
        from mdl.store import Store
        from mdl.describing import describe
        from mdl.reference import Reference
        store = Store(Path({str(store.root)!r}), describe)
        with store.locks.lease(store.find(Reference.parse("o/a:Q8_0")).folder):
            print("held", flush=True)
            time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Busy):
        store.remove(model)
    holder.kill()
    holder.wait()
    assert store.remove(model) > 0


def test_a_version_is_replaced_in_one_step(store: Store) -> None:
    """Somebody who looks all the time sees the old one or the new one, never none and never a mixture."""
    contents = [{"a": b"a%d" % n, "b": b"b%d" % n} for n in range(2)]
    reference = add(store, "o/a:main", contents[0]).reference
    seen: set[tuple[bytes, bytes]] = set()
    missing = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            found = [store.find(reference), *store.versions(reference), *store.models()]
            if [model and (model.reference, model.problem) for model in found] != [(reference, "")] * 3:
                missing.append(found)

    watcher = threading.Thread(target=look)
    watcher.start()
    for turn in range(60):
        model = add(store, "o/a:main", contents[turn % 2])
        seen.add(((model.folder / "a").read_bytes(), (model.folder / "b").read_bytes()))
    stop.set()
    watcher.join()
    assert missing == []
    assert seen == {(b"a0", b"b0"), (b"a1", b"b1")}
    assert [path.name for path in store.incoming.iterdir()] == []


def test_without_an_atomic_exchange_the_new_version_still_gets_there(tmp_path: Path) -> None:
    one, other = tmp_path / "one.version", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    exchange(one, other)
    assert (other / "name").read_text() == "one.version"


def test_a_blob_that_vanished_is_told_and_nothing_appears(store: Store) -> None:
    sha256 = put(store, b"x")
    store.blob(sha256).unlink()
    with pytest.raises(FileNotFoundError):
        store.commit(Model(Reference.parse("o/a:1"), Path(), (File("x", 1, sha256),)))
    assert store.find(Reference.parse("o/a:1")) is None
    assert [path.name for path in store.incoming.iterdir()] == []


def test_metadata_cut_at_every_byte_flag_one_model_and_no_other(store: Store) -> None:
    good = add(store, "o/good:1")
    bad = add(store, "o/bad:1", {"notes": b"x"})
    whole = (bad.folder / METADATA_NAME).read_bytes()
    for length in range(0, len(whole), 7):
        (bad.folder / METADATA_NAME).unlink()
        (bad.folder / METADATA_NAME).write_bytes(whole[:length])
        listed = {str(model.reference.model): model for model in store.models()}
        assert listed["huggingface.co/o/good"] == good
        assert listed["huggingface.co/o/bad"].problem or listed["huggingface.co/o/bad"].files == bad.files


@pytest.mark.parametrize(
    "garbage",
    [
        b"schema = " + b"9" * 5000,
        b"\x00\xff",
        b"schema = 99\n",
        b"schema = 'x'\n",
        b"reference = []\nschema = 1\n",
        b"a" * 100_000,
    ],
)
def test_unreadable_metadata_are_a_problem_of_that_model(store: Store, garbage: bytes) -> None:
    model = add(store, "o/a:1")
    (model.folder / METADATA_NAME).unlink()
    (model.folder / METADATA_NAME).write_bytes(garbage)
    assert [found.problem != "" for found in store.models()] == [True]
    found = store.find(model.reference)
    assert found is not None
    assert found.problem
    assert store.remove(found) == 0


def test_damage_is_remembered_until_the_version_is_put_together_again(store: Store) -> None:
    model = add(store, "o/a:1", {"model.gguf": DEMO.read_bytes(), "LICENSE": b"MIT"})
    store.mark(model, ["model.gguf", "no file of it"])
    marked = store.find(model.reference)
    assert marked == replace(model, damaged=("model.gguf",), problem="damaged or missing: model.gguf")
    assert store.models() == [marked]
    assert store.commit(marked) == model
    assert [path.name for path in store.incoming.iterdir()] == []


@pytest.mark.parametrize("damaged", ["5", "[5]", "'model.gguf'", "[['model.gguf']]", "['../x', 'other']"])
def test_nonsense_about_damage_leads_nowhere(store: Store, damaged: str) -> None:
    model = add(store, "o/a:1")
    metadata = model.folder / METADATA_NAME
    metadata.write_text(f"damaged = {damaged}\n" + metadata.read_text())
    found = store.find(model.reference)
    assert found is not None
    assert set(found.damaged) <= {"model.gguf"}
    assert [listed.reference for listed in store.models()] == [model.reference]


def test_a_link_to_itself_damages_what_it_is_in_and_nothing_else(store: Store) -> None:
    model = add(store, "quay.io/org/whole:v1")
    (store.tree / "quay.io" / "org" / "torn").mkdir()
    for name in ("self", "torn/weights.gguf", "torn/.metadata"):
        path = store.tree / "quay.io" / "org" / name
        path.symlink_to(path)
    found = {each.folder.name: bool(each.problem) for each in store.models()}
    assert found == {"v1": False, "torn": True}
    assert store.versions(model.reference) == [model]


def test_a_damaged_index_costs_time_and_nothing_else(store: Store) -> None:
    model = add(store, "o/a:1")
    assert store.models() == [model]
    for garbage in (
        b"",
        b"{",
        b"[]",
        b'{"schema": 1, "entries": 5}',
        b'{"schema": 1, "entries": {"x": [1]}}',
        b"[" * 100_000,
    ):
        (store.root / "index.json").write_bytes(garbage)
        assert store.models() == [model]


def test_the_index_notices_what_changed(store: Store) -> None:
    first = add(store, "o/a:1")
    assert store.models() == [first]
    second = add(store, "o/b:1", at=5)
    assert store.models() == [first, second]
    store.remove(first)
    assert store.models() == [second]


def test_a_model_put_there_by_hand_has_no_version(store: Store) -> None:
    folder = store.tree / "quay.io" / "me" / "mine"
    folder.mkdir(parents=True)
    (folder / "mine.gguf").write_bytes(DEMO.read_bytes())
    [model] = store.models()
    assert str(model.reference) == "quay.io/me/mine"
    assert model.version == "n/a"
    assert model.summary.quantization == "Q8_0"
    assert store.find(Reference.parse("quay.io/me/mine")) == model
    assert store.find(Reference.parse("quay.io/me/mine:n/a")) == model
    assert store.versions(Reference.parse("quay.io/me/mine")) == [model]
    assert store.models() == [model]  # from the index


def test_a_folder_that_was_moved_is_called_by_its_new_place(store: Store) -> None:
    model = add(store, "quay.io/me/mine:v1")
    place = store.tree / "localhost" / "other" / "v2"
    place.parent.mkdir(parents=True)
    model.folder.rename(place)
    [moved] = store.models()
    assert str(moved.reference) == "localhost/other:v2"
    assert moved.files == model.files


def test_what_was_put_there_under_bad_names_hides_nothing_and_can_be_removed(store: Store) -> None:
    good = add(store, "quay.io/me/mine:v1")
    bad = Reference.parse("quay.io/me/mine/bad")
    for folder, file in ((store.folder(bad), "\x1b[5m.gguf"), (good.folder.parent / "\u202eevil", "a.gguf")):
        folder.mkdir()
        (folder / file).write_bytes(DEMO.read_bytes())
    assert good in store.versions(good.reference)
    found = store.find(bad)
    assert found is not None
    assert "not safe" in found.problem
    assert [model.problem != "" for model in store.models()] == [True, False, True]
    store.remove(found)
    assert store.find(bad) is None


def test_versions_come_newest_first(store: Store) -> None:
    for at, version in ((1, "v9"), (3, "v10"), (2, "v11")):
        add(store, f"quay.io/a/b:{version}", at=at)
    assert [model.version for model in store.versions(Reference.parse("quay.io/a/b"))] == ["v10", "v11", "v9"]


def test_nothing_is_written_or_removed_behind_a_planted_link(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "a" / "1").mkdir(parents=True)
    (outside / "a" / "1" / "precious.gguf").write_text("precious")
    store.tree.mkdir(parents=True)
    (store.tree / "quay.io").symlink_to(outside)
    with pytest.raises(DiskError):
        add(store, "quay.io/a:2")
    found = store.find(Reference.parse("quay.io/a:1"))
    assert found is not None
    with pytest.raises(DiskError):
        store.remove(found)
    assert (outside / "a" / "1" / "precious.gguf").read_text() == "precious"
    assert sorted(path.name for path in (outside / "a").iterdir()) == ["1"]


def test_a_link_in_the_place_of_a_blob_is_no_blob(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    sha256 = hashlib.sha256(b"y").hexdigest()
    store.blobs.mkdir(parents=True)
    store.blob(sha256).symlink_to(tmp_path / "other")
    assert not store.has_blob(File("x", 1, sha256))


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "a/../x",
        "",
        ".",
        "a//b",
        "a\\b",
        "a\0b",
        ".metadata",
        ".METADATA",
        "a\nb",
        "a:b",
        "x" * 300,
        "\x1b[1m",
    ],
)
def test_a_file_cannot_be_called_what_leads_elsewhere(name: str) -> None:
    with pytest.raises(IntegrityError):
        File(name, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": -1},
        {"size": 1, "sha256": "../x"},
        {"size": 1, "sha256": "A" * 64},
        {"size": 1, "git_id": "x"},
    ],
)
def test_a_file_cannot_promise_the_impossible(fields: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        File("x", **fields)  # type: ignore[arg-type]


LYING = """
#include <sys/file.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int fd, int operation) { return 0; }
int lockf(int fd, int cmd, off_t len) { return 0; }
"""


@pytest.fixture
def lying_locks(tmp_path: Path) -> Path:
    """A library that, loaded before all others, says that every lock was taken."""
    source, library = tmp_path / "lying.c", tmp_path / "lying.so"
    source.write_text(LYING)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_locks_that_lie_are_noticed(store: Store, lying_locks: Path) -> None:
    code = f"""
        from pathlib import Path
        from mdl.store import Store
        from mdl.describing import describe
        store = Store(Path({str(store.root)!r}), describe)
        with store.locks.transfer("key", lambda: None) as trusted:
            print(trusted)
    """
    honest, lying = (
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, **extra},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for extra in ({}, {"LD_PRELOAD": str(lying_locks)})
    )
    assert (honest, lying) == ("True\n", "False\n")


def test_a_full_name_is_found_without_looking_at_anything_else(store: Store) -> None:
    """The cost of `find` does not grow with the cache: it opens what lies in one folder."""
    target = add(store, "quay.io/a/wanted:1")
    add(store, "quay.io/a/other:1", at=1)

    def opened(action: Callable[[], object]) -> set[str]:
        paths = set()
        active = True

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if active and event in ("open", "os.scandir"):
                paths.add(str(arguments[0]))

        sys.addaudithook(hook)
        action()
        active = False
        return paths

    assert not any("other" in path for path in opened(lambda: store.find(target.reference)))
    assert any("other" in path for path in opened(store.models))


def test_leftovers_of_killed_processes_are_swept_when_old(store: Store) -> None:
    """A partial download can be gone on with, and while one is published its note belongs to it."""
    store.incoming.mkdir(parents=True)
    folders = ["a.version", "b.removed", "m.marked", "u.unpacked"]
    useless = [*folders, "c.0f.partial", "c.0f.partial.parts", "lonely.partial.parts"]
    useful = ["d.partial", "d.partial.parts", "e.partial.1-2.publishing", "e.partial.parts", "README.md"]
    for name in folders:
        (store.incoming / name / "folder").mkdir(parents=True)
    for name in (*useless[4:], *useful):
        (store.incoming / name).write_text("half")
    leftovers.sweep(store)
    assert sorted(path.name for path in store.incoming.iterdir()) == sorted(useless + useful)
    for path in store.incoming.iterdir():
        os.utime(path, (0, 0))
    leftovers.sweep(store)
    assert sorted(path.name for path in store.incoming.iterdir()) == sorted(useful)


def test_a_folder_that_is_called_like_weights_is_one_model_and_not_two(store: Store) -> None:
    addressed = add(store, "https://x.org/models/m.gguf")
    assert store.models() == [addressed]
    assert store.versions(addressed.reference) == [addressed]
