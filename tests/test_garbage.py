"""What nothing uses goes, and nothing that anybody uses: amid downloads, after kills, on full disks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest
from faults import Place, ended, lying_locks, mounted
from ggufmaker import model
from hub import Hub, sha256
from test_store import DEMO, add, put

from mdl import garbage, leftovers
from mdl.describing import describe
from mdl.reference import Reference
from mdl.store import Store

NAME = "org/model-GGUF"
BIG = model({"general.name": "big"}) + bytes(3 << 20)
SMALL = model({"general.name": "small"})
FILES = {"big-Q8_0.gguf": BIG, "README.md": b"# A model"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", describe)


@pytest.fixture
def place(hub: Hub, tmp_path: Path) -> Place:
    (tmp_path / "place").mkdir()
    hub.add(NAME, FILES)
    return Place(tmp_path / "place", hub.url)


def kinds(pieces: list[garbage.Piece]) -> list[tuple[str, str]]:
    return [(piece.kind, piece.path.name) for piece in pieces]


def prune(store: Store, *, older: float = 0, partials: bool = False) -> list[tuple[str, str]]:
    return kinds(garbage.collect(store, garbage.find(store, older=older, partials=partials)))


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


# What goes and what stays


def test_a_content_goes_when_nothing_uses_it_and_what_is_used_stays(store: Store) -> None:
    used = add(store, "o/a:1")
    unused = put(store, b"nobody wants me")
    assert prune(store) == [("content", unused)]
    assert not store.blob(unused).exists()
    assert store.find(used.reference) == used
    assert store.blob(used.files[0].sha256 or "").exists()
    assert prune(store) == []


def test_a_content_that_versions_have_as_copies_stays(store: Store) -> None:
    """Without hard links the link count says of everything that nothing uses it."""
    used = add(store, "o/a:1")
    file = used.folder / "model.gguf"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    assert store.blob(used.files[0].sha256 or "").stat().st_nlink == 1
    assert prune(store) == []
    assert store.remove(used) == 2 * len(content)
    assert list(store.blobs.iterdir()) == []


def test_of_two_versions_with_copies_the_second_one_takes_the_content_with_it(store: Store) -> None:
    one, two = add(store, "o/a:1"), add(store, "o/b:1")
    for version in (one, two):
        content = (version.folder / "model.gguf").read_bytes()
        (version.folder / "model.gguf").unlink()
        (version.folder / "model.gguf").write_bytes(content)
    assert store.remove(one) == len(content)
    assert len(list(store.blobs.iterdir())) == 1
    assert store.remove(two) == 2 * len(content)
    assert list(store.blobs.iterdir()) == []


def test_what_became_used_while_a_person_was_asked_stays(store: Store) -> None:
    put(store, DEMO.read_bytes())
    found = garbage.find(store)
    assert len(found) == 1
    used = add(store, "o/a:1")
    assert garbage.collect(store, found) == []
    content = (used.folder / "model.gguf").read_bytes()
    (used.folder / "model.gguf").unlink()  # as where there are no hard links
    (used.folder / "model.gguf").write_bytes(content)
    assert garbage.collect(store, found) == []
    assert store.blob(used.files[0].sha256 or "").exists()


def test_only_what_has_been_unused_for_long_goes_where_an_age_is_given(store: Store) -> None:
    put(store, b"fresh")
    partial = store.partial("a" * 64)
    partial.write_bytes(b"old")
    age(partial, 40 * 86400)
    assert prune(store, older=30 * 86400, partials=True) == [("partial", partial.name)]


def test_a_download_that_can_go_on_stays_unless_that_is_asked_for(store: Store) -> None:
    for name in ("partial", "partial.parts"):
        (store.partial("a" * 64).parent / f"{'a' * 64}.{name}").write_bytes(b"half")
    assert prune(store) == []
    assert [name for _, name in prune(store, partials=True)] == [
        f"{'a' * 64}.partial",
        f"{'a' * 64}.partial.parts",
    ]
    assert list(store.incoming.iterdir()) == []


def test_a_download_that_nobody_can_go_on_with_goes(store: Store) -> None:
    """Its content is here, from elsewhere; or its note is lost, without which no byte of it is believed."""
    here = put(store, b"whole")
    used = add(store, "o/a:1", {"x": b"whole"})
    for name in (f"{here}.partial", f"{here}.partial.parts", f"{'b' * 64}.partial"):
        (store.incoming / name).write_bytes(b"half")
    assert len(prune(store)) == 3
    assert store.find(used.reference) == used
    assert list(store.incoming.iterdir()) == []


def test_what_a_killed_removal_left_goes_with_the_contents_that_only_it_had(store: Store) -> None:
    gone, other = (
        add(store, "o/a:1", {"x": b"x" * 5000, "y": b"shared"}),
        add(store, "o/b:1", {"y": b"shared"}),
    )
    gone.folder.rename(store.incoming / "0123456789abcdef.removed")
    found = garbage.find(store)
    assert kinds(found) == [("leftover", "0123456789abcdef.removed"), ("content", sha256(b"x" * 5000))]
    assert kinds(garbage.collect(store, found)) == kinds(found)
    assert sum(piece.size for piece in found) >= 5000
    assert store.models() == [other]
    assert [path.name for path in store.blobs.iterdir()] == [sha256(b"shared")]


def test_what_is_being_put_together_stays_until_it_is_surely_nobody_s(store: Store) -> None:
    staged = store.partial("x").with_name("0123456789abcdef.version")
    (staged / "folder").mkdir(parents=True)
    index = store.root / "index.0123456789abcdef.tmp"
    index.write_text("{")
    assert prune(store) == []
    for path in (staged, index):
        age(path, leftovers.AGE + 1)
    assert prune(store, older=0) == [("leftover", staged.name), ("leftover", index.name)]
    assert (staged.exists(), index.exists()) == (False, False)


def test_the_list_forgets_versions_that_are_gone(store: Store) -> None:
    model = add(store, "o/a:1")
    store.models()
    model.folder.rename(store.incoming / "0.removed")
    prune(store)
    assert "o/a" not in (store.root / "index.json").read_text()


def test_what_is_no_content_by_its_name_is_nobody_s_business(store: Store) -> None:
    put(store, b"x")
    for name in ("README", "A" * 64, "a" * 63, f"{'a' * 64}.txt"):
        (store.blobs / name).write_text("mine")
    assert [name for _, name in prune(store)] == [sha256(b"x")]
    assert len(list(store.blobs.iterdir())) == 4


def test_what_lies_beside_a_model_of_the_user_survives_its_removal(store: Store) -> None:
    folder = store.tree / "quay.io" / "me" / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "mine.gguf").write_bytes(DEMO.read_bytes())
    (folder / "deep" / "extra.txt").write_text("x")
    version = add(store, "quay.io/me/mine:v1")
    mine = store.find(Reference.parse("quay.io/me/mine"))
    assert mine is not None
    with store.locks.lease(version.folder):
        assert store.remove(mine) == DEMO.stat().st_size + 1
    assert store.models() == [version]
    assert [path.name for path in folder.iterdir()] == ["v1"]


# Locks


def test_locks_that_nobody_holds_go_and_those_that_are_held_stay(store: Store) -> None:
    one, two = add(store, "o/a:1", {"x": b"1"}), add(store, "o/b:1", {"x": b"2"})
    with store.locks.lease(one.folder):
        pass
    with store.locks.lease(two.folder), store.locks.transfer("c" * 64, lambda: None):
        prune(store)
        assert sorted(path.name[64:] for path in store.locks.folder.iterdir() if "c" * 64 in path.name) == [
            ".transfer"
        ]
        assert [path.suffix for path in store.locks.folder.iterdir()].count(".lease") == 1
    prune(store)
    assert [path.name for path in store.locks.folder.iterdir()] == ["contents"]


HOLDER = """
import sys, time
from pathlib import Path
from mdl.store import Store
from mdl.describing import describe
store, inside = Store(Path(sys.argv[1]), describe), Path(sys.argv[1]) / "inside"
for _ in range(150):
    with store.locks.transfer("key", lambda: None):
        inside.mkdir()  # fails where somebody else is in
        inside.rmdir()
"""


def test_removing_locks_never_lets_two_in(store: Store) -> None:
    store.partial("x")
    command = [sys.executable, "-c", HOLDER, str(store.root)]
    holders = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    dropped = 0
    while any(holder.poll() is None for holder in holders):
        dropped += store.locks.drop("key.transfer")
    errors = [holder.communicate()[1] for holder in holders]
    assert [holder.returncode for holder in holders] == [0, 0, 0], errors
    assert dropped > 10


# Under way


@pytest.fixture
def slow(place: Place, hub: Hub) -> Iterator["subprocess.Popen[str]"]:
    """A download under way that takes seconds."""
    hub.rate = 1.5e6
    process = place.start("download", "-q", NAME)
    wait_for(lambda: hub.sent["cdn"] > 1 << 20)
    yield process
    process.kill()
    process.communicate()


def test_a_running_download_loses_nothing(place: Place, hub: Hub, slow: "subprocess.Popen[str]") -> None:
    ran = place.run("prune", "-y", "--partials")
    assert ran.code == 0, ran
    hub.rate = None
    assert ended(slow).code == 0
    assert hub.sent["cdn"] == len(BIG)
    assert place.run("verify").code == 0


def test_a_content_that_a_running_download_is_about_to_link_stays(place: Place, hub: Hub) -> None:
    """It was fetched before, by a command that was killed; nothing links to it yet."""
    hub.add("org/two", {"a-Q8_0.gguf": SMALL, "README.md": b"# Two", "LICENSE": b"MIT"})
    for content in (SMALL, b"# A model"):
        put(place.library.store, content)
    hub.add(NAME, {**FILES, "mmproj-F16.gguf": SMALL})
    hub.rate = 1.5e6
    process = place.start("download", "-q", NAME)
    wait_for(lambda: hub.sent["cdn"] > 1 << 20)
    assert place.run("prune", "-y").code == 0
    assert place.library.store.blob(sha256(SMALL)).exists()
    assert place.library.store.blob(sha256(b"# A model")).exists()  # which is promised by another digest
    hub.rate = None
    assert ended(process).code == 0
    assert hub.sent["cdn"] == len(BIG)


def test_a_killed_download_is_kept_and_removed_when_asked_for(
    place: Place, hub: Hub, slow: "subprocess.Popen[str]"
) -> None:
    slow.kill()
    slow.wait()
    assert place.run("prune", "-y").err == "there is nothing to remove\n"
    ran = place.run("prune", "-y", "--partials")
    assert (ran.code, "partial downloads: 2" in ran.err) == (0, True), ran
    assert list(place.library.store.incoming.iterdir()) == []


def test_with_locks_that_lie_the_worst_is_another_transfer(place: Place, hub: Hub, tmp_path: Path) -> None:
    place = replace(place, extra={"LD_PRELOAD": str(lying_locks(tmp_path))})
    hub.rate = 6e6
    for _ in range(3):
        process = place.start("download", "-q", NAME)
        while process.poll() is None:
            assert place.run("prune", "-y", "--partials").code == 0
        assert ended(process).code == 0
        hub.rate = None
        assert place.run("verify").code == 0
        assert place.library.store.models()[0].size == len(BIG) + len(FILES["README.md"])
        assert place.run("rm", "-y", NAME).code == 0


@pytest.mark.alone
def test_models_that_answer_and_models_that_come_and_go_survive_all_pruning(place: Place, hub: Hub) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": DEMO.read_bytes()})
    assert place.run("download", "org/demo-GGUF").code == 0
    child = pexpect.spawn(
        sys.executable, ["-m", "mdl", "chat", "demo-GGUF"], env=place.environment, timeout=30
    )
    child.expect(">>>")
    stop = threading.Event()
    failures = []

    def keep_pruning() -> None:
        while not stop.is_set():
            ran = place.run("prune", "-y", "--partials")
            if ran.code not in (0, 8):
                failures.append(ran)

    pruner = threading.Thread(target=keep_pruning)
    pruner.start()
    for _ in range(4):
        assert place.run("download", "-q", NAME).code == 0
        assert place.run("rm", "-y", NAME).code == 0
    stop.set()
    pruner.join()
    assert failures == []
    assert place.run("rm", "-y", "org/demo-GGUF").code == 8
    child.sendline("Hello")
    child.expect("help you")
    child.close(force=True)
    assert place.run("verify").code == 0


def test_killed_at_random_pruning_gets_there_the_next_time(place: Place) -> None:
    store = place.library.store
    used = add(store, "o/a:1")
    for turn in range(12):
        for n in range(40):
            put(store, b"%d %d" % (turn, n))
        add(store, "o/b:1", {"x": b"x%d" % turn}).folder.rename(store.incoming / f"{turn:016x}.removed")
        process = place.start("prune", "-y")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1 + 0.02 * turn)
        process.kill()
        process.communicate()
        assert store.models() == [used]
    assert place.run("prune", "-y").code == 0
    assert [path.name for path in store.blobs.iterdir()] == [used.files[0].sha256]
    assert list(store.incoming.iterdir()) == []


# Disks


def test_on_a_full_disk_models_are_removed_and_what_nothing_uses_goes(place: Place) -> None:
    """Full of bytes, and full of files: there is no room for one more."""
    with mounted(place, "mount -t tmpfs -o size=12m,nr_inodes=60 none $CACHE") as inside:
        assert place.run("download", NAME, before=inside).code == 0
        unused = sha256(b"unused")
        script = f"""
            cd {place.cache}
            printf unused > blobs/sha256/{unused}
            cp -a models/huggingface.co/org incoming/0123456789abcdef.removed
            rm -f locks/*
            while : > filler.$((n = n + 1)); do :; done
            cat /dev/zero > filler.1
        """
        subprocess.run([*inside, "sh", "-c", script], capture_output=True)
        df = place.run("df", before=inside)
        assert (df.code, "6 B  mdl prune" in df.out) == (0, True), df
        pruned = place.run("prune", "-y", before=inside)
        assert pruned.code == 0, pruned
        removed = place.run("rm", "-y", NAME, before=inside)
        assert removed.code == 0, removed
        assert place.run("list", "-q", before=inside).out == ""
        left = subprocess.run(
            [*inside, "find", str(place.cache), "-type", "f", "-size", "+0", "-not", "-name", "filler.*"],
            capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        assert [Path(path).name for path in left if Path(path).name != "index.json"] == []


@pytest.mark.parametrize("name", ["models", "blobs", "blobs/sha256", "incoming", "locks"])
@pytest.mark.parametrize(
    "command", [["prune", "-y", "--partials"], ["rm", "-y", "org/model-GGUF"], ["verify"], ["df"]]
)
def test_a_link_in_the_place_of_a_folder_leads_nowhere(
    place: Place, tmp_path: Path, name: str, command: list[str]
) -> None:
    assert place.run("download", NAME).code == 0
    put(place.library.store, b"unused")
    (place.library.store.incoming / f"{'a' * 64}.partial").write_text("half")
    outside = tmp_path / "outside"
    (place.cache / name).rename(outside)
    (place.cache / name).symlink_to(outside)
    before = {path: (s.st_ino, s.st_mode, s.st_size) for path in outside.rglob("*") for s in [path.lstat()]}
    ran = place.run(*command)
    after = {path: path.lstat() for path in outside.rglob("*")}
    assert {path: (s.st_ino, s.st_mode, s.st_size) for path, s in after.items()} == before
    assert ran.code in (0, 3, 7), ran
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("link", ["blob", "partial", "leftover", "lock"])
def test_a_link_among_the_files_is_removed_and_not_followed(store: Store, tmp_path: Path, link: str) -> None:
    put(store, b"x")
    prune(store)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    places = {
        "blob": store.blob("a" * 64),
        "partial": store.incoming / f"{'a' * 64}.partial",
        "leftover": store.incoming / "0123456789abcdef.removed",
        "lock": store.locks.folder / f"{'a' * 64}.transfer",
    }
    target = tmp_path / "outside" if link == "leftover" else tmp_path / "outside" / "precious"
    places[link].symlink_to(target)
    with contextlib.suppress(Exception):
        prune(store, partials=True)
    assert (tmp_path / "outside" / "precious").read_text() == "precious"
    assert link == "lock" or not places[link].is_symlink()


# The command


def test_it_asks_and_a_script_has_to_say_yes(place: Place) -> None:
    put(place.library.store, b"unused")
    refused = place.run("prune")
    assert (refused.code, refused.error[-1]) == (2, "say so with --yes")
    looked = place.run("prune", "--dry-run")
    assert (looked.code, looked.err) == (0, "unused contents: 1, 6 B\nnothing was removed\n")
    for answer, left in (("n", 1), ("y", 0)):
        child = pexpect.spawn(sys.executable, ["-m", "mdl", "prune"], env=place.environment, timeout=20)
        child.expect("Remove")
        child.sendline(answer)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert len(list(place.library.store.blobs.iterdir())) == left
    assert place.run("prune").err == "there is nothing to remove\n"


def test_a_script_gets_what_went_as_one_document(place: Place) -> None:
    put(place.library.store, b"unused")
    assert place.run("prune", "--json").code == 2
    ran = place.run("prune", "--json", "-y")
    document = json.loads(ran.out)
    [piece] = document["removed"]
    assert (document["schema"], document["freed"], document["found"]) == (1, 6, [piece])
    assert (piece["kind"], piece["size"], Path(piece["path"]).name) == ("content", 6, sha256(b"unused"))


@pytest.mark.parametrize(
    ("text", "code"), [("30d", 0), ("0", 0), ("12h", 0), ("-1d", 2), ("soon", 2), ("1y", 2)]
)
def test_an_age_is_a_number_with_a_unit(place: Place, text: str, code: int) -> None:
    assert place.run("prune", "--older-than", text).code == code


def test_a_group_can_share_a_cache(place: Place, hub: Hub) -> None:
    """What mdl makes is as open as the umask lets it be, contents can only be read, and folders keep their
    group."""
    place.cache.mkdir()
    place.cache.chmod(0o2775)
    before = ["sh", "-c", 'umask 0002; exec "$@"', "sh"]
    hub.rate = 1.5e6
    process = place.start("download", "-q", NAME, before=before)
    wait_for(lambda: hub.sent["cdn"] > 1 << 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert {path.stat().st_mode & 0o777 for path in place.library.store.incoming.iterdir()} == {0o664}
    hub.rate = None
    for command in (["download", "-q", NAME], ["list"], ["verify"], ["prune", "-y"]):
        assert place.run(*command, before=before).code == 0
    (place.cache / "models/huggingface.co" / NAME / "Q8_0/README.md").unlink()
    assert place.run("verify", before=before).code == 6
    for path in place.cache.rglob("*"):
        mode = path.stat().st_mode
        if path.is_dir():
            assert mode & 0o7777 == 0o2775, path
        else:
            contents = path.suffix == ".gguf" or "blobs" in path.parts
            assert mode & 0o777 == (0o444 if contents else 0o664), path
