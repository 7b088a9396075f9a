"""The main path under fire: calls that fail, kills at every point, full disks, lying hubs, closed streams.

Everything here is the real command in a process of its own, against a hub on loopback. Needs Debian's strace,
util-linux (unshare, nsenter) and gcc, and the right to make a mount namespace.

The loops are thinned by a seed, to some failures and kills at each kind of call;
MDL_FULL_FAULTS=1 goes through all of it (about six minutes on two cores).
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ggufmaker
import pytest
from faults import (
    ERRORS,
    KILLED,
    MDL,
    Files,
    Place,
    Point,
    Ran,
    digest,
    ended,
    lying_locks,
    mounted,
    points,
    promised,
    strike,
    untidy,
)
from hub import Answer, Hub, page

FULL = os.environ.get("MDL_FULL_FAULTS") == "1"
SEED = 20261121
SPLIT = {
    f"model-Q8_0-0000{part + 1}-of-00002.gguf": ggufmaker.model({"split.count": 2, "split.no": part})
    for part in range(2)
}
MODEL = {"README.md": b"# Shared by both", **SPLIT}
LAST = "model-Q8_0-00002-of-00002.gguf"
ROTTEN = {**MODEL, LAST: SPLIT[LAST][:-1] + b"\x55"}
OTHER = {"README.md": b"# Shared by both", "other-F16.gguf": ggufmaker.model({"general.name": "other"})}
BIG = {"big-F16.gguf": ggufmaker.model({"general.name": "big"}) + random.Random(SEED).randbytes(32 << 20)}
NAME, OTHER_NAME, BIG_NAME = (f"huggingface.co/org/{name}" for name in ("model:Q8_0", "other:F16", "big:F16"))
HERE = {OTHER_NAME: OTHER}  # what is in the cache before anything goes wrong
BOTH = {**HERE, NAME: MODEL}


@pytest.fixture(scope="module")
def world() -> Iterator[Hub]:
    """A hub that nobody orders faults from."""
    with Hub() as running:
        running.add("org/model", MODEL)
        running.add("org/other", OTHER)
        yield running


@pytest.fixture(scope="module")
def begun(world: Hub, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A cache with the other model in it, and a file of the user's beside it."""
    place = new_place(tmp_path_factory.mktemp("begun") / "home", world)
    assert place.run("download", OTHER_NAME).code == 0
    return place


@pytest.fixture(scope="module")
def whole(begun: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A cache with both models in it."""
    place = begun.copy(tmp_path_factory.mktemp("whole") / "home")
    assert place.run("download", NAME).code == 0
    return place


@pytest.fixture(scope="module")
def spoilt(whole: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A cache with both models in it, of one of which a bit has rotted."""
    place = whole.copy(tmp_path_factory.mktemp("spoilt") / "home")
    [path] = place.cache.glob(f"models/*/org/model/Q8_0/{LAST}")
    path.chmod(0o644)
    path.write_bytes(ROTTEN[LAST])
    return place


@pytest.fixture(scope="module")
def rotten(spoilt: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same once that was found."""
    place = spoilt.copy(tmp_path_factory.mktemp("rotten") / "home")
    assert place.run("verify").code == 6
    return place


@pytest.fixture(scope="module")
def littered(whole: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A cache with one model, and contents, downloads and removals that nobody goes on with."""
    place = whole.copy(tmp_path_factory.mktemp("littered") / "home")
    incoming = place.cache / "incoming"
    (place.cache / "models/huggingface.co/org/model/Q8_0").rename(incoming / "1.removed")
    for name in ("a" * 64 + ".partial", "a" * 64 + ".partial.parts", "b" * 64 + ".partial"):
        (incoming / name).write_bytes(b"x" * 5000)
    return place


@pytest.fixture
def place(begun: Place, hub: Hub, tmp_path: Path) -> Place:
    """A cache with the other model in it, and a hub of its own, which has the big one too."""
    hub.add("org/model", MODEL)
    hub.add("org/other", OTHER)
    hub.add("org/big", BIG)
    return replace(begun.copy(tmp_path / "home"), endpoint=hub.url)


def new_place(root: Path, hub: Hub) -> Place:
    root.mkdir()
    (root / "precious").write_text("mine")
    return Place(root, hub.url)


def is_told(ran: Ran, *codes: int) -> bool:
    """Whether a failure is one line for the cause and one for what to do, with one of these exit codes."""
    return ran.code in codes and len(ran.error) == 2 and "Traceback" not in ran.err


# Every system call of a command that touches the cache: it fails, or the process is killed there

DOWNLOAD = ("download", "-q", NAME)
PRUNE = ("prune", "-y", "--partials")
REMOVE = ("rm", "-y", NAME)


def faults_of(found: list[Point], sample: int) -> list[tuple[Point, str]]:
    """A sample has an error and a kill at each kind of call before it has two of one kind."""
    every = [(point, fault) for point in found for fault in (*ERRORS[point.call], KILLED)]
    if FULL or len(every) <= sample:
        return every
    random.Random(SEED).shuffle(every)
    taken = Counter[tuple[str, bool]]()

    def turn(chosen: tuple[Point, str]) -> int:
        kind = chosen[0].call, chosen[1] == KILLED
        taken[kind] += 1
        return taken[kind]

    return sorted(every, key=turn)[:sample]


def go_through(
    place: Place,
    arguments: tuple[str, ...],
    codes: set[int],
    sample: int,
    then: Callable[[Place, Ran], None],
    right: Sequence[Mapping[str, Files]] = (HERE, BOTH),
) -> None:
    """Try a command with each fault, two at a time, each on a copy of the cache; `then` goes on from there.

    `codes` are the exit codes that an error may lead to, `right` what may be left of models.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place.copy(Path(scratch) / "warm").run(*arguments)  # its modules are compiled now: that takes calls
        found = points(place.copy(Path(scratch) / "home"), *arguments)
    faults = faults_of(found, sample)

    def strikes(point: Point, fault: str) -> bool:
        with tempfile.TemporaryDirectory() as scratch:
            own = place.copy(Path(scratch) / "home")
            around = own.around()
            ran, struck = strike(own, point, fault, *arguments)
            try:
                if struck:
                    assert own.contents() in [promised(models) for models in right], own.contents()
                    check_what_is_left(own, ran, around, {-signal.SIGKILL} if fault == KILLED else codes)
                    then(own, ran)
                    assert untidy(own) == []
            except AssertionError as failure:
                raise AssertionError(f"{point} {fault}: {failure}") from failure
            return struck

    with ThreadPoolExecutor(2) as pool:
        struck = list(pool.map(lambda fault: strikes(*fault), faults))
    hits = Counter(fault == KILLED for (_, fault), hit in zip(faults, struck, strict=True) if hit)
    print(f"\nmdl {arguments[0]}: {len(found)} calls, {hits[False]} errors, {hits[True]} kills survived")
    assert hits.total() >= 0.9 * len(faults), f"{len(faults) - hits.total()} of {len(faults)} faults missed"


def check_what_is_left(place: Place, ran: Ran, around: Mapping[str, str], codes: set[int]) -> None:
    """P5 and P10: nothing outside has changed, and what is said says why."""
    assert place.around() == around
    assert "Traceback" not in ran.err, ran.err
    assert ran.code in {0, *codes}, ran
    assert ran.code <= 0 or len(ran.error) == 2, ran.err


@pytest.mark.timeout(900)
def test_whatever_fails_or_kills_a_download_nothing_is_lost_and_it_gets_there(begun: Place) -> None:
    def again(place: Place, ran: Ran) -> None:
        assert ran.code != 0 or place.contents() == promised(BOTH), ran
        assert place.run(*DOWNLOAD).code == 0
        assert place.contents() == promised(BOTH)

    go_through(begun, DOWNLOAD, {7}, 26, again)


@pytest.mark.parametrize("fault", ["ENOSPC", KILLED])
def test_on_its_way_into_place_nothing_that_has_come_is_lost(place: Place, hub: Hub, fault: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        ways = [
            point for point in points(place.copy(Path(scratch) / "home"), *DOWNLOAD) if point.call == "rename"
        ]
    for point in ways:
        hub.sent.clear()
        with tempfile.TemporaryDirectory() as scratch:
            own = place.copy(Path(scratch) / "home")
            _, struck = strike(own, point, fault, *DOWNLOAD)
            assert struck
            assert own.run(*DOWNLOAD).code == 0
            assert own.contents() == promised(BOTH)
        assert hub.sent["cdn"] == sum(len(content) for content in SPLIT.values()), point


def test_a_version_that_vanishes_while_a_content_is_had_back_from_it_is_fetched(
    place: Place, hub: Hub
) -> None:
    assert place.run(*DOWNLOAD).code == 0
    hub.sent.clear()
    (place.cache / "blobs" / "sha256" / digest(SPLIT[LAST])).unlink()
    file = place.library.here(NAME).folder.relative_to(place.cache) / LAST
    ran, struck = strike(place, Point("linkat", 1, (file.as_posix(),)), "ENOENT", *DOWNLOAD)
    assert (ran.code, struck) == (0, True), ran
    assert hub.sent["cdn"] == len(SPLIT[LAST])
    assert place.contents() == promised(BOTH)


def test_a_content_that_vanishes_while_it_is_copied_out_of_the_cache_is_fetched(
    place: Place, hub: Hub, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert place.run(*DOWNLOAD).code == 0
    hub.sent.clear()
    blob = f"blobs/sha256/{digest(SPLIT[LAST])}"
    ran, struck = strike(place, Point("openat", 1, (blob,)), "ENOENT", *DOWNLOAD, "--destination", str(out))
    assert (ran.code, struck) == (0, True), ran
    assert hub.sent["cdn"] == len(SPLIT[LAST])
    assert (out / LAST).read_bytes() == SPLIT[LAST]


@pytest.mark.timeout(900)
def test_whatever_fails_or_kills_a_removal_nothing_else_is_lost_and_it_gets_there(whole: Place) -> None:
    def again(place: Place, ran: Ran) -> None:
        gone = place.contents() == promised(HERE)
        assert ran.code != 0 or gone, ran
        assert place.run(*REMOVE).code == (3 if gone else 0)
        assert place.contents() == promised(HERE)

    go_through(whole, REMOVE, {3, 7}, 20, again)


@pytest.mark.timeout(900)
def test_whatever_fails_or_kills_a_mending_nothing_is_lost_and_it_gets_there(rotten: Place) -> None:
    def again(place: Place, ran: Ran) -> None:
        assert ran.code != 0 or place.contents() == promised(BOTH), ran
        assert place.run(*DOWNLOAD).code == 0
        assert place.run("verify").code == 0
        assert place.contents() == promised(BOTH)

    go_through(rotten, DOWNLOAD, {7}, 24, again, [{**HERE, NAME: ROTTEN}, BOTH])


@pytest.mark.timeout(900)
def test_whatever_fails_or_kills_pruning_nothing_in_use_is_lost_and_it_gets_there(littered: Place) -> None:
    def again(place: Place, ran: Ran) -> None:
        assert place.run(*PRUNE).code == 0
        assert place.contents() == promised(HERE)
        assert place.run("verify").code == 0

    go_through(littered, PRUNE, {7}, 14, again, [HERE])


@pytest.mark.timeout(900)
def test_whatever_fails_or_kills_a_check_what_is_damaged_is_found_and_the_rest_stays(spoilt: Place) -> None:
    def again(place: Place, ran: Ran) -> None:
        assert ran.code != 0, ran  # no fault makes what is damaged look right
        assert is_told(place.run("verify"), 6)
        assert place.run(*DOWNLOAD).code == 0
        assert place.run("verify").code == 0
        assert place.contents() == promised(BOTH)

    go_through(spoilt, ("verify",), {6, 7}, 12, again, [{**HERE, NAME: ROTTEN}])


def test_a_record_that_cannot_be_read_again_makes_nothing_right_that_was_found_damaged(
    spoilt: Place, tmp_path: Path
) -> None:
    record = "models/huggingface.co/org/model/Q8_0/.metadata"
    struck, number = True, 0
    while struck:
        number += 1
        place = spoilt.copy(tmp_path / str(number))
        ran, struck = strike(place, Point("openat", number, (record,)), "EACCES", "verify")
        assert ran.code == 6, (number, ran)
    assert number > 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arguments", [("list",), ("df",), ("resolve", "model"), ("inspect", NAME)], ids=lambda given: given[0]
)
def test_whatever_fails_while_it_looks_it_says_so_and_changes_nothing(
    whole: Place, arguments: tuple[str, ...]
) -> None:
    def all_there(place: Place, _: Ran) -> None:
        assert place.contents() == promised(BOTH)

    go_through(whole, arguments, {3, 7, 9}, 10, all_there)


# Kills at random

CHUNK = 16 << 10  # what the hub sends at a time when it is slow
CONNECTIONS = 4


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_killed_at_random_it_goes_on_from_where_it_was(place: Place, hub: Hub) -> None:
    kills = 200 if FULL else 40
    dice = random.Random(SEED)
    place = replace(place, extra={"MDL_CONNECTIONS": str(CONNECTIONS)})
    hub.rate = 0.5e6
    finished = landed = 0
    for _ in range(kills):
        before = hub.sent["cdn"]
        process = place.start(
            "download", "-q", BIG_NAME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if dice.random() < 0.6:  # amid the transfer, whenever that begins on a busy machine
            wait_for(lambda: hub.sent["cdn"] > before or process.poll() is not None)  # noqa: B023  called here
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0, 0.5))
        process.kill()
        process.wait()
        landed += hub.sent["cdn"] > before
        left = place.contents()
        assert left in (promised(HERE), promised({**HERE, BIG_NAME: BIG}))
        if len(left) > len(promised(HERE)):
            finished += 1
            assert place.run("rm", "-y", BIG_NAME).code == 0
    hub.rate = None
    assert place.run("download", "-q", BIG_NAME).code == 0
    assert place.contents() == promised({**HERE, BIG_NAME: BIG})
    size, served = len(BIG["big-F16.gguf"]), hub.sent["cdn"]
    wasted = served - (finished + 1) * size
    print(
        f"\n{kills} kills, {landed} amid the transfer, {finished + 1} times finished: "
        f"{wasted / kills:,.0f} bytes lost each"
    )
    assert landed > kills / 3
    assert wasted <= kills * CONNECTIONS * 2 * CHUNK  # one chunk under way, one in the process's hands


# Several at once


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def hold_back(hub: Hub, seconds: float) -> None:
    """Keep the next transfer from ending before others have come to wait for it."""
    hub.before("Signature", lambda: time.sleep(seconds))


@pytest.mark.alone
def test_eight_commands_that_want_one_model_transfer_it_once(place: Place, hub: Hub) -> None:
    hold_back(hub, 3)
    every = [ended(process) for process in [place.start("download", NAME) for _ in range(8)]]
    assert [ran.code for ran in every] == [0] * 8, every
    assert {ran.out for ran in every} == {f"{place.cache}/models/huggingface.co/org/model/Q8_0\n"}
    assert hub.sent["cdn"] == sum(len(content) for content in SPLIT.values())
    assert place.contents() == promised(BOTH)


def test_with_locks_that_lie_eight_commands_still_get_it_right(
    place: Place, hub: Hub, tmp_path: Path
) -> None:
    liar = replace(place, extra={"LD_PRELOAD": str(lying_locks(tmp_path))})
    hub.rate = 2e6
    files = {"README.md": b"# x", "model-Q8_0.gguf": BIG["big-F16.gguf"][: 1 << 20]}
    hub.add("org/model", files)
    every = [ended(process) for process in [liar.start("download", "-q", NAME) for _ in range(8)]]
    assert [ran.code for ran in every] == [0] * 8, every
    assert len({ran.out for ran in every}) == 1
    assert place.contents() == promised({**HERE, NAME: files})
    print(f"\n8 processes without locks: {hub.sent['cdn'] / (1 << 20):.1f} transfers")


def test_when_the_one_that_fetches_is_killed_another_goes_on(place: Place, hub: Hub) -> None:
    hub.rate = 2e6
    first = place.start("download", "-q", BIG_NAME)
    wait_for(lambda: hub.sent["cdn"] > 1 << 20)
    others = [place.start("download", BIG_NAME) for _ in range(7)]
    wait_for(lambda: len(hub.requests("/tree/")) == 8)
    time.sleep(0.5)
    first.kill()
    first.communicate()
    hub.rate = None
    every = [ended(process) for process in others]
    assert [ran.code for ran in every] == [0] * 7, every
    assert len({ran.out for ran in every}) == 1
    assert place.contents() == promised({**HERE, BIG_NAME: BIG})
    assert hub.sent["cdn"] < len(BIG["big-F16.gguf"]) + (4 << 20)


# Disks


def in_cache(inside: list[str], script: str, place: Place) -> None:
    """Do something to the mounted cache."""
    subprocess.run([*inside, "sh", "-c", f"cd {place.cache} && {script}"], check=True, capture_output=True)


def fill(inside: list[str], place: Place) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        in_cache(inside, "cat /dev/zero > filler", place)


@pytest.fixture
def small(place: Place) -> Iterator[list[str]]:
    """The cache on a disk of 24 MB of its own."""
    with mounted(place, "mount -t tmpfs -o size=24m none $CACHE") as inside:
        yield list(inside)


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(
    place: Place, hub: Hub, small: list[str]
) -> None:
    ran = place.run("download", BIG_NAME, before=small)
    assert is_told(ran, 7), ran
    assert re.search(r"33\.6 MB needed, \d+\.\d MB free", ran.error[0]), ran.err
    assert hub.requests(port="cdn") == []
    in_cache(small, "mount -o remount,size=64m $PWD", place)
    assert place.run("download", BIG_NAME, before=small).code == 0


def test_a_disk_that_fills_up_amid_a_download_costs_nothing_that_has_come(
    place: Place, hub: Hub, small: list[str]
) -> None:
    in_cache(small, "mount -o remount,size=40m $PWD", place)
    hub.rate = 1e6
    process = place.start("download", "-q", BIG_NAME, before=small)
    wait_for(lambda: hub.sent["cdn"] > 2 << 20)
    fill(small, place)
    hub.rate = None
    ran = ended(process)
    assert is_told(ran, 7), ran
    assert "no space left" in ran.error[0].lower()
    assert " free" in ran.error[0]
    in_cache(small, "rm filler", place)
    again = place.run("download", "-q", BIG_NAME, before=small)
    assert again.code == 0, again
    assert "big" in place.run("list", before=small).out
    assert hub.sent["cdn"] < len(BIG["big-F16.gguf"]) + (20 << 20)


def test_on_a_full_disk_models_are_listed_and_removed(place: Place, hub: Hub, small: list[str]) -> None:
    assert place.run("download", NAME, before=small).code == 0
    fill(small, place)
    assert place.run("list", "-q", before=small).out == "huggingface.co/org/model\n"
    assert is_told(place.run("download", OTHER_NAME, before=small), 7)
    removed = place.run("rm", "-y", NAME, before=small)
    assert removed.code == 0, removed
    assert place.run("list", "-q", before=small).out == ""
    in_cache(small, "rm filler", place)
    assert place.run("download", OTHER_NAME, before=small).code == 0


def test_a_cache_that_is_read_only_can_be_looked_at(place: Place) -> None:
    with mounted(place, "mount --bind $CACHE $CACHE; mount -o remount,ro,bind $CACHE") as inside:
        for looking in (["list"], ["resolve", "other"], ["inspect", OTHER_NAME], ["list", "--json"]):
            ran = place.run(*looking, before=inside)
            assert (ran.code, "Traceback" in ran.err) == (0, False), ran
            assert "org/other" in ran.out
        whole = place.run("download", OTHER_NAME, before=inside)  # there is nothing to write
        assert (whole.code, "org/other" in whole.out) == (0, True), whole
        for changing in (["download", NAME], ["rm", "-y", OTHER_NAME]):
            ran = place.run(*changing, before=inside)
            assert is_told(ran, 7), ran
            assert "read-only" in ran.error[0].lower()
    assert place.contents() == promised(HERE)


def test_without_a_home_in_the_environment_the_system_knows_one(tmp_path: Path) -> None:
    ran = subprocess.run([*MDL, "resolve", "demo"], env={}, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "demo" in ran.stdout


# Networks


@pytest.mark.alone
def test_a_hub_that_is_down_is_said_within_seconds(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    ran = replace(place, endpoint=f"http://127.0.0.1:{port}").run("download", NAME)
    assert is_told(ran, 5), ran
    assert time.monotonic() - began < 12


@pytest.mark.parametrize(
    "answer",
    [
        page(),
        Answer(200, b"\x00\xff garbage"),
        Answer(200, b"{}", {"Content-Type": "application/json"}),
        Answer(200, b"[[[[", {"Content-Type": "application/json"}),
        Answer(200, b'{"sha": "../../etc/passwd", "id": 5}', {"Content-Type": "application/json"}),
        Answer(418, b"teapot"),
    ],
    ids=["portal", "garbage", "empty", "broken", "hostile", "teapot"],
)
def test_a_hub_that_answers_nonsense_is_one_line(place: Place, hub: Hub, answer: Answer) -> None:
    hub.answer("/api/", *[answer] * 9)
    ran = place.run("download", NAME)
    assert is_told(ran, 5), ran
    assert place.contents() == promised(HERE)


def begin(place: Place, hub: Hub, least: int) -> "subprocess.Popen[str]":
    """A slow download of the big model, so many bytes of which have come at least."""
    hub.rate = 2e6
    process = place.start("download", "-q", BIG_NAME)
    wait_for(lambda: hub.sent["cdn"] > least)
    return process


@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_stopped_it_ends_at_once_and_goes_on_later(
    place: Place, hub: Hub, number: signal.Signals, code: int
) -> None:
    process = begin(place, hub, 8 << 20)
    began = time.monotonic()
    process.send_signal(number)
    ran = ended(process)
    assert (ran.code, ran.err) == (code, "")
    assert time.monotonic() - began < 2
    hub.rate = None
    again = place.run("download", BIG_NAME)
    assert again.code == 0, again
    assert "are here already" in again.err
    assert place.contents() == promised({**HERE, BIG_NAME: BIG})
    assert hub.sent["cdn"] < len(BIG["big-F16.gguf"]) + (4 << 20)


def test_ctrl_c_is_never_a_traceback(place: Place, hub: Hub) -> None:
    """Wherever it strikes, once mdl itself has begun."""
    dice = random.Random(SEED)
    for _ in range(60 if FULL else 15):
        process = place.start("download", "-q", OTHER_NAME)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.08, 0.5))
        process.send_signal(signal.SIGINT)
        ran = ended(process)
        assert ran.code in (0, 130, -signal.SIGINT), ran
        assert "Traceback" not in ran.err, ran.err


def test_a_connection_that_is_cut_is_taken_up(place: Place, hub: Hub) -> None:
    for after in (1, 16 << 20, (32 << 20) - 1):
        hub.cut("Signature", after)
    ran = place.run("download", "-q", BIG_NAME)
    assert ran.code == 0, ran
    assert place.contents() == promised({**HERE, BIG_NAME: BIG})


def test_a_kept_prefix_that_was_damaged_is_noticed_and_fetched_again(place: Place, hub: Hub) -> None:
    process = begin(place, hub, 8 << 20)
    process.kill()
    process.communicate()
    hub.rate = None
    [partial] = place.cache.glob("incoming/*.partial")
    content = bytearray(partial.read_bytes())
    content[1000] ^= 1
    partial.write_bytes(content)
    ran = place.run("download", BIG_NAME)
    assert ran.code == 0, ran
    assert ran.err.count("starting over") == 1
    assert place.contents() == promised({**HERE, BIG_NAME: BIG})


def test_a_model_that_changed_between_two_attempts_is_never_mixed(place: Place, hub: Hub) -> None:
    process = begin(place, hub, 8 << 20)
    process.kill()
    process.communicate()
    hub.rate = None
    other = {"big-F16.gguf": BIG["big-F16.gguf"][:-1] + b"\x55"}
    hub.repositories["org/big"].commit(other)
    assert place.run("download", "-q", BIG_NAME).code == 0
    assert place.contents() == promised({**HERE, BIG_NAME: other})


def test_wrong_bytes_of_the_right_size_are_refused(place: Place, hub: Hub) -> None:
    wrong = bytes(len(SPLIT["model-Q8_0-00001-of-00002.gguf"]))
    hub.answer("00001-of", *[Answer(200, wrong)] * 4)
    ran = place.run("download", NAME)
    assert is_told(ran, 6), ran
    assert place.contents() == promised(HERE)
    hub.faults.clear()
    assert place.run("download", NAME).code == 0
    assert place.contents() == promised(BOTH)


# Streams and terminals


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["inspect", "demo"]], ids=" ".join)
def test_whoever_stops_reading_hears_no_complaint(place: Place, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = place.run(*arguments, stdout=writer)
    os.close(writer)
    assert (ran.code, ran.err) == (141, "")


@pytest.mark.parametrize(
    "arguments", [["list"], ["inspect", "demo", "--json"], ["--help"], ["--version"]], ids=" ".join
)
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_data_that_nobody_gets_are_an_error(place: Place, arguments: list[str], redirection: str) -> None:
    ran = place.run(*arguments, before=["sh", "-c", f'exec "$@" {redirection}', "sh"])
    assert is_told(ran, 7), ran
    assert "output cannot be written" in ran.error[0]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_what_is_said_beside_the_data_may_go_nowhere(place: Place, redirection: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    ran = place.run("download", NAME, before=shell)
    assert (ran.code, "Traceback" in ran.err) == (0, False), ran
    assert place.contents() == promised(BOTH)
    assert place.run("list", "-q", before=shell).out == "huggingface.co/org/model\nhuggingface.co/org/other\n"
    assert place.run("resolve", "nothing", before=shell).code == 3


PLAIN = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"},
    {"TERM": "dumb"},
    {"NO_COLOR": "1"},
]


def put_by_hand(place: Place) -> None:
    """Models in the tree whose every text is hostile to a terminal."""
    texts = {
        "general.name": "\x1b[31mred \u00e9\u6f22\x9b2J",
        "general.license": "\x1b[2Jcleared\r\u202e",
        "general.architecture": "\x1b[H",
    }
    for name, file in (
        ("mine", "mine.gguf"),
        ("bad", "\x1b[5m.gguf"),
        ("\u202egnp\x1b]0;title\x07", "fine.gguf"),
    ):
        folder = place.cache / "models" / "localhost" / name
        folder.mkdir(parents=True)
        (folder / file).write_bytes(ggufmaker.model(texts))


@pytest.mark.parametrize("variables", PLAIN, ids=" ".join)
def test_no_terminal_is_moved_and_no_encoding_is_too_small(place: Place, variables: dict[str, str]) -> None:
    put_by_hand(place)
    place = replace(place, extra=variables)
    evil = next(place.cache.glob("models/localhost/*gnp*"))
    for code, arguments in (
        (0, ["list"]),
        (0, ["list", "-q"]),
        (0, ["list", "--json"]),
        (0, ["list", "--versions"]),
        (0, ["download", NAME]),
        *(
            (0, ["inspect", "localhost/mine", *part])
            for part in ([], ["--json"], ["--metadata"], ["--files"])
        ),
        (0, ["resolve", "localhost/mine"]),
        (9, ["inspect", "localhost/bad"]),
        (2, ["inspect", evil]),
        (0, ["rm", "-y", "localhost/mine", "localhost/bad"]),
    ):
        ran = place.run(*arguments)
        shown = ran.out + ran.err
        assert (ran.code, "Traceback" in ran.err) == (code, False), (arguments, ran)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown), (arguments, shown)
