"""Many processes on one cache: one transfer for all, whoever removes, cleans, holds or dies meanwhile.

Random commands go on for ten seconds, with MDL_FULL_FAULTS=1 for half a minute.
"""

import itertools
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ggufmaker
import pytest
from chaos import chaos
from faults import Place, Point, Ran, ended, lying_locks, mounted, promised, strike
from hub import Hub
from test_faults import FULL

from mdl.model import METADATA_NAME
from mdl.verification import Verification, everything

SEED = 20261121
WEIGHTS = ggufmaker.model({"general.name": "shared"}) + random.Random(SEED).randbytes(1 << 20)
README = b"# Shared by all"
REPOSITORIES = [f"org{number}/model" for number in range(8)]
NAMES = [f"huggingface.co/{name}:Q8_0" for name in REPOSITORIES]
NAME = NAMES[0]


def files(number: int) -> dict[str, bytes]:
    """What the eight models have: the same weights by other names, and something of their own."""
    return {f"name{number}-Q8_0.gguf": WEIGHTS, "README.md": README, "LICENSE": b"%d" % number}


ALL = {name: files(number) for number, name in enumerate(NAMES)}


@pytest.fixture
def place(tmp_path: Path, hub: Hub) -> Place:
    for number, name in enumerate(REPOSITORIES):
        hub.add(name, files(number))
    (tmp_path / "home" / "cache").mkdir(parents=True)
    return Place(tmp_path / "home", hub.url)


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def all_of(started: "list[subprocess.Popen[str]]") -> list[Ran]:
    return [ended(process) for process in started]


def are_told(every: list[Ran], *codes: int) -> bool:
    """Whether each ended with one of these exit codes and, if it failed, with two lines that say why."""
    return all(ran.code in codes and (not ran.code or len(ran.error) == 2) for ran in every)


# One transfer


@pytest.mark.alone
@pytest.mark.parametrize("count", [2, 32])
def test_however_many_want_one_model_it_is_transferred_once(place: Place, hub: Hub, count: int) -> None:
    hub.before("Signature", lambda: time.sleep(1 + count / 8))  # until all of them have come
    every = all_of([place.start("download", NAME) for _ in range(count)])
    assert [ran.code for ran in every] == [0] * count, every
    assert len({ran.out for ran in every}) == 1
    assert hub.sent["cdn"] == len(WEIGHTS)
    assert place.contents() == promised({NAME: ALL[NAME]})


@pytest.mark.alone
def test_eight_models_that_have_the_same_weights_are_one_transfer(place: Place, hub: Hub) -> None:
    hub.before("Signature", lambda: time.sleep(2))
    every = all_of([place.start("download", "-q", name) for name in NAMES])
    assert [ran.code for ran in every] == [0] * len(NAMES), every
    assert hub.sent["cdn"] == len(WEIGHTS)
    assert place.contents() == promised(ALL)
    links = {path.stat().st_ino for path in place.cache.glob("models/**/*.gguf")}
    assert len(links) == 1


# Removing and cleaning meanwhile


def test_downloads_and_removals_of_one_model_leave_it_whole_or_gone(place: Place) -> None:
    place.library.download(NAMES[1])
    for _ in range(3):
        commands = [("download", "-q", NAME), ("rm", "-y", NAME)] * 4
        every = all_of([place.start(*command) for command in commands])
        assert are_told(every, 0, 3, 8), every
        assert place.contents() in [
            promised({NAMES[1]: ALL[NAMES[1]]}),
            promised({n: ALL[n] for n in NAMES[:2]}),
        ]
    assert place.run("download", "-q", NAME).code == 0
    assert place.contents() == promised({name: ALL[name] for name in NAMES[:2]})


def test_cleaning_all_the_time_takes_nothing_from_downloads(place: Place, hub: Hub) -> None:
    hub.rate = 1e6
    downloads = [place.start("download", "-q", name) for name in NAMES[:3]]
    every = []
    while any(process.poll() is None for process in downloads):
        every.append(place.run("prune", "-y", "--partials"))
    assert [ran.code for ran in all_of(downloads)] == [0, 0, 0]
    assert are_told(every, 0, 8), every
    assert len(every) > 2
    assert hub.sent["cdn"] == len(WEIGHTS)
    assert place.contents() == promised({name: ALL[name] for name in NAMES[:3]})


def test_what_vanishes_while_it_is_looked_at_is_not_blamed_on_permissions(place: Place) -> None:
    file = (place.library.download(NAME).folder / "name0-Q8_0.gguf").relative_to(place.cache)
    last = Point("openat", 3, (file.as_posix(),))  # whoever opens it before knows that it may be gone
    ran, struck = strike(place, last, "ENOENT", "inspect", NAME)
    assert struck
    assert ran.code == 7
    assert ran.error[1] == "something may have removed it meanwhile: try again"


# Holding

HOLD = """
    import sys
    from mdl.config import load
    from mdl.library import Library
    library = Library(load())
    model = library.here(sys.argv[1])
    with library.store.locks.lease(model.folder):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def hold(place: Place) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Starts a process that holds a model as a running engine does."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLD), name],
            env=place.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_one_of_many_holds_nobody_removes_until_the_last_is_killed(
    place: Place, hold: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    place.library.download(NAME)
    holders = [hold(NAME) for _ in range(3)]
    for holder in holders:
        assert are_told([place.run("rm", "-y", NAME)], 8)
        assert place.run("prune", "-y").code == 0
        assert place.contents() == promised({NAME: ALL[NAME]})
        holder.kill()
        holder.communicate()
    assert place.run("rm", "-y", NAME).code == 0
    assert place.contents() == {}


def test_a_model_that_is_held_may_be_replaced_and_its_holder_keeps_what_it_opened(
    place: Place, hub: Hub, hold: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    model = place.library.download(NAME)
    hold(NAME)
    with (model.folder / "name0-Q8_0.gguf").open("rb") as opened:
        newer = {**files(0), "name0-Q8_0.gguf": WEIGHTS[::-1]}
        newer["name0-Q8_0.gguf"] = ggufmaker.model({"general.name": "newer"})
        hub.repositories[REPOSITORIES[0]].commit(newer)
        assert place.run("download", "-q", NAME).code == 0
        assert place.run("prune", "-y").code == 0
        assert opened.read() == WEIGHTS
    assert place.contents() == promised({NAME: newer})


def test_who_is_killed_while_it_removes_or_cleans_is_in_nobodys_way(place: Place) -> None:
    """A lock goes with its holder."""
    dice = random.Random(SEED)
    for command in (("rm", "-y", NAME), ("prune", "-y")) * 3:
        place.library.download(NAME)
        process = place.start(*command)
        time.sleep(dice.uniform(0.1, 0.25))
        process.kill()
        process.communicate()
        assert place.contents() in ({}, promised({NAME: ALL[NAME]}))
        assert place.run("rm", "-y", NAME).code in (0, 3)
        assert place.run("prune", "-y").code == 0
        assert place.contents() == {}


def test_a_version_that_is_renewed_while_it_is_checked_is_not_called_damaged(place: Place, hub: Hub) -> None:
    library = place.library
    library.download(NAME)
    found = everything(library.store)
    hub.repositories[REPOSITORIES[0]].commit(
        {"renamed-Q8_0.gguf": ggufmaker.model({}), "README.md": b"# New"}
    )
    library.download(NAME)
    assert Verification(library.store, found).run().damage == []
    check = Verification(library.store, everything(library.store))
    hub.repositories[REPOSITORIES[0]].commit(files(0))
    library.download(NAME)
    assert check.run().damage == []


# Locks that lie


def test_with_locks_that_lie_eight_processes_that_do_all_at_once_lose_nothing(
    place: Place, hub: Hub, tmp_path: Path
) -> None:
    """Everybody believes to be alone. What is visible is whole all the same."""
    liar = replace(place, extra={"LD_PRELOAD": str(lying_locks(tmp_path))})
    dice = random.Random(SEED)
    commands = [
        ("download", "-q", NAMES[0]),
        ("download", "-q", NAMES[1]),
        ("rm", "-y", NAMES[0]),
        ("prune", "-y"),
    ]
    for _ in range(3):
        chosen = dice.choices(commands, [3, 3, 1, 1], k=8)
        every = all_of([liar.start(*command) for command in chosen])
        assert are_told(every, 0, 3, 8), every
        left = place.contents()
        assert left in [promised({name: ALL[name] for name in some}) for some in _subsets(NAMES[:2])], left
        assert liar.run("verify").code == 0
    for name in NAMES[:2]:
        assert liar.run("download", "-q", name).code == 0
    assert place.contents() == promised({name: ALL[name] for name in NAMES[:2]})


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from itertools.combinations(names, size)


# Other disks


def test_a_destination_on_another_disk_gets_plain_files_whether_they_are_cached_or_not(
    place: Place, hub: Hub
) -> None:
    with mounted(place, "mount -t tmpfs -o size=24m none $CACHE") as inside:
        assert place.run("download", "-q", NAMES[0], before=inside).code == 0
        for number in (0, 1):
            out = place.root / f"out{number}"
            ran = place.run("download", "-q", NAMES[number], "--destination", out, before=inside)
            assert ran.code == 0, ran
            left = {path.name: path.read_bytes() for path in out.iterdir() if path.name != METADATA_NAME}
            assert left == files(number)
    assert hub.sent["cdn"] == len(WEIGHTS)


# Everything at random


@pytest.mark.timeout(180)
def test_random_commands_and_kills_break_nothing(tmp_path: Path) -> None:
    report = chaos(tmp_path / "home", seconds=30 if FULL else 10, processes=8, seed=SEED)
    print(f"\n{report.operations} operations, {report.kills} kills, seed {SEED}")
    assert report.failures == []
    assert report.operations > (300 if FULL else 40)
    assert report.kills > (20 if FULL else 4)
