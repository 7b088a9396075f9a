"""`mdl df`: what it says is what the disk says, and what `rm` and `prune` would free."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from faults import MDL, Place
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import DEMO, add, put

from mdl import garbage, usage
from mdl.describing import describe
from mdl.model import METADATA_NAME
from mdl.store import Store
from mdl.usage import Share, Usage

CONTENTS = [bytes([65 + n]) * (5000 + 1000 * n) for n in range(5)]
VERSIONS = st.lists(st.lists(st.sampled_from(range(5)), min_size=1, max_size=4), min_size=1, max_size=6)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", describe)


def on_disk(root: Path) -> int:
    """Bytes of all contents under a folder, each inode once: counted another way than by mdl."""
    found = {}
    for folder, _, files in os.walk(root):
        for name in files:
            status = os.lstat(Path(folder) / name)
            if name not in (METADATA_NAME, "index.json", "verified.json"):
                found[status.st_ino] = min(status.st_size, status.st_blocks * 512)
    return sum(found.values())


def share_of(found: Usage, reference: object) -> Share:
    return next(share for share in found.shares if share.model.reference == reference)


def unlink_copies(store: Store, folder: Path) -> None:
    """What a file system without hard links would have made of a version."""
    for path in list(folder.iterdir()):
        if path.name != METADATA_NAME:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)


@settings(max_examples=40, deadline=None)
@given(VERSIONS, st.sets(st.integers(0, 5)), st.lists(st.sampled_from(range(5)), max_size=2))
def test_unique_is_what_a_removal_frees_and_unused_what_pruning_does(
    versions: list[list[int]], copied: set[int], unused: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch), describe)
        models = [
            add(store, f"o/m{number}:1", {f"f{n}": CONTENTS[content] for n, content in enumerate(contents)})
            for number, contents in enumerate(versions)
        ]
        for content in unused:
            put(store, CONTENTS[content])
        for number in copied & set(range(len(models))):
            unlink_copies(store, models[number].folder)
        found = usage.measure(store)
        assert found.on_disk == on_disk(store.root)
        assert found.unused == sum(piece.size for piece in garbage.find(store))
        for model in models:
            before = on_disk(store.root)
            now = usage.measure(store)
            share = share_of(now, model.reference)
            assert share.unique + share.shared == share.size or copied
            freed = store.remove(model)
            assert freed == before - on_disk(store.root)
            assert share.unique == freed


def test_shared_contents_are_counted_once(store: Store) -> None:
    size = DEMO.stat().st_size
    one, two = add(store, "o/a:1"), add(store, "o/b:1", {"model.gguf": DEMO.read_bytes(), "own": b"own"})
    found = usage.measure(store)
    assert share_of(found, one.reference) == Share(one, size, 0)
    assert share_of(found, two.reference) == Share(two, size + 3, 3)
    assert (found.size, found.saved, found.on_disk) == (2 * size + 3, size, size + 3)
    assert (found.partial, found.unused, found.copied) == (0, 0, 0)
    assert [share.model for share in found.shares] == [two, one]  # the largest first


def test_contents_that_are_stored_twice_are_told(store: Store) -> None:
    model = add(store, "o/a:1")
    unlink_copies(store, model.folder)
    found = usage.measure(store)
    size = DEMO.stat().st_size
    assert (found.copied, found.unused, found.on_disk, found.saved) == (size, 0, 2 * size, 0)
    assert found.shares[0].unique == 2 * size
    linked = add(store, "o/b:1")
    found = usage.measure(store)
    assert (found.copied, found.on_disk, found.saved) == (size, 2 * size, 0)
    assert share_of(found, linked.reference) == Share(linked, size, size)


def test_a_sparse_partial_download_takes_what_has_come(store: Store) -> None:
    with store.partial("a" * 64).open("wb") as file:
        file.truncate(1 << 40)
        file.write(bytes(10_000))
        file.flush()
        os.fsync(file.fileno())
    found = usage.measure(store)
    assert 10_000 <= found.partial <= 1 << 20
    assert found.on_disk == found.partial


def test_a_model_put_there_by_hand_counts_as_what_it_is(store: Store) -> None:
    folder = store.tree / "quay.io" / "me" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(DEMO, folder / "mine.gguf")
    version = add(store, "quay.io/me/mine:v1", {"x": b"beside it"})
    os.link(store.blob(version.files[0].sha256 or ""), folder / "x.txt")
    found = usage.measure(store)
    by_name = {share.model.version: share for share in found.shares}
    assert (by_name["n/a"].size, by_name["n/a"].unique) == (DEMO.stat().st_size + 9, DEMO.stat().st_size)
    assert (by_name["v1"].size, by_name["v1"].unique) == (9, 0)


def test_an_empty_cache_takes_nothing_and_is_not_created(store: Store) -> None:
    found = usage.measure(store)
    assert (found.shares, found.on_disk, found.free > 0) == ((), 0, True)
    assert not store.root.exists()


def test_links_in_a_version_are_not_followed(store: Store) -> None:
    model = add(store, "o/a:1", {"x": b"x"})
    (model.folder / "link").symlink_to(DEMO)
    (model.folder / "folder").symlink_to(DEMO.parent)
    assert usage.measure(store).on_disk == 1


# The command


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place")


def test_the_table_has_a_line_for_each_version_and_the_totals(place: Place) -> None:
    store = place.library.store
    for name in ("o/a:Q8_0", "o/b:Q8_0"):
        add(store, name)
    put(store, bytes(2_000_000))
    ran = place.run("df")
    *table, free = ran.out.splitlines()
    assert table == [
        "NAME                VERSION    SIZE  SHARED  UNIQUE",
        "huggingface.co/o/a  Q8_0     4.0 MB  4.0 MB     0 B",
        "huggingface.co/o/b  Q8_0     4.0 MB  4.0 MB     0 B",
        "",
        "models     7.9 MB  in 2 versions",
        "shared     4.0 MB  saved, because what is the same is stored once",
        "unused     2.0 MB  mdl prune removes it",
        "on disk    6.0 MB  all together",
    ]
    assert free.startswith("free ")
    assert (ran.code, ran.err) == (0, "")


def test_the_numbers_for_a_script_are_bytes(place: Place) -> None:
    model = add(place.library.store, "o/a:Q8_0")
    document = json.loads(place.run("df", "--json").out)
    size = DEMO.stat().st_size
    assert document["models"] == [
        {"reference": str(model.reference), "version": "Q8_0", "size": size, "shared": 0, "unique": size}
    ]
    totals = document["totals"]
    free = totals.pop("free")
    assert totals == {
        "size": size,
        "saved": 0,
        "on_disk": size,
        "partial": 0,
        "converted": 0,
        "unused": 0,
        "copied": 0,
    }
    assert abs(free - shutil.disk_usage(place.root).free) < 1 << 30


def test_ten_thousand_versions_take_seconds(place: Place, tmp_path: Path) -> None:
    store = place.library.store
    model = add(store, "o/a:Q8_0", {"x.txt": b"x"})
    text = (model.folder / METADATA_NAME).read_text()
    for number in range(10_000):
        folder = store.tree / "quay.io" / f"org{number % 100}" / f"model{number // 5}" / f"v{number % 5}"
        folder.mkdir(parents=True)
        os.link(store.blob(model.files[0].sha256 or ""), folder / "x.txt")
        (folder / METADATA_NAME).write_text(text)
    store.models()
    for command in (["df", "--json"], ["prune", "-y"]):
        watched = subprocess.run(
            ["bash", "-c", 'TIMEFORMAT=%U; time "$@" >/dev/null 2>&1', "bash", *MDL, *command],
            env=place.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert float(watched.stderr) < 6, command  # seconds of processor
