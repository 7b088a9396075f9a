"""What an earlier process left is believed only as far as it is sound; nothing else on disk is touched."""

import contextlib
import hashlib
import json
import random
from itertools import pairwise

import pytest
from faultserver import FaultServer, cut
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl.download import Downloader, Expected, Limits, Remote
from mdl.errors import Busy, DiskError, NetworkError
from mdl.gather import Plan
from mdl.partial import PIECE, Partial, discard, held, note_of, publish, require_space, sha256_of, size_text

DATA = random.Random(7).randbytes(3 * PIECE + 12345)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with contextlib.closing(FaultServer()) as server:
        server.put(DATA)
        yield server


@pytest.fixture
def partial(tmp_path, server):
    """Two pieces and a bit of the file, left by an earlier run."""
    path = tmp_path / "partial"
    server.put(DATA, cut(2 * PIECE + 100))
    with pytest.raises(NetworkError):
        fetch(server, path, Limits(retries=0, connections=1))
    assert held(path) == 2 * PIECE + 100
    server.requests.clear()
    return path


def fetch(server, path, limits=None, expected=None):
    limits = limits or Limits(backoff=0.01, connections=1)
    return Downloader(limits, proxies={}).fetch("x", Remote(server.url()), expected or Expected(), path)


def garbage():
    header = {"schema": 1, "total": len(DATA), "validator": '"x"', "boot": ""}
    slots = bytes(16)
    yield b""
    yield b"\n"
    yield b"\0" * 500
    yield b"[]\n" + slots
    yield b"null\n"
    yield b"{}\n" + slots
    yield b'{"schema": 1' + slots
    yield b"[" * 5000
    yield random.Random(1).randbytes(3000)
    for change in (
        {"schema": 2}, {"total": -1}, {"total": 2.5}, {"total": "9"}, {"total": None}, {"total": True},
        {"total": 10**30}, {"validator": 5}, {"boot": None}, {"total": len(DATA) + 1}, {"total": 5},
    ):  # fmt: skip
        yield json.dumps(header | change).encode() + b"\n" + slots
    yield json.dumps(header).encode() + b"\n" + b"\xff" * 16
    yield json.dumps(header).encode() + b"\n" + slots + b"\0"
    yield json.dumps(header).encode() + b"\n" + slots[:-1]


@pytest.mark.parametrize("expected", [Expected(), Expected(sha256=SHA256)])
def test_a_note_that_is_garbage_means_a_fresh_start(server, partial, expected):
    for content in garbage():
        note_of(partial).write_bytes(content)
        fetch(server, partial, expected=expected)
        assert partial.read_bytes() == DATA, content[:99]
        assert server.requests.pop().range is None


def test_a_note_cut_at_any_byte_means_a_fresh_start(tmp_path):
    path = tmp_path / "partial"
    with contextlib.closing(Partial.create(path, len(DATA), '"x"')) as partial:
        partial.write(DATA[:PIECE], 0)
    note = note_of(path).read_bytes()
    for size in range(len(note)):
        note_of(path).write_bytes(note[:size])
        assert Partial.resume(path, verifiable=True) is None and held(path) == 0
    note_of(path).write_bytes(note)
    with contextlib.closing(Partial.resume(path, verifiable=True)) as partial:
        assert partial.received == partial.prefix() == PIECE


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing"])
def test_a_file_that_is_not_as_the_note_says_means_a_fresh_start(server, partial, damage):
    content = partial.read_bytes()
    partial.unlink()
    if damage != "missing":
        partial.write_bytes(content[:-1] if damage == "truncated" else content + b"x")
    fetch(server, partial)
    assert partial.read_bytes() == DATA
    assert server.requests[0].range is None


def test_without_a_digest_what_was_left_before_a_restart_of_the_machine_is_not_believed(server, partial):
    header, _, slots = note_of(partial).read_bytes().partition(b"\n")
    earlier = json.loads(header) | {"boot": "another"}
    note_of(partial).write_bytes(json.dumps(earlier).encode() + b"\n" + slots)
    fetch(server, partial, expected=Expected(sha256=SHA256))
    assert server.requests[0].range[0] == 2 * PIECE + 100
    note_of(partial).write_bytes(json.dumps(earlier).encode() + b"\n" + slots)
    fetch(server, partial)
    assert server.requests[1].range is None


@pytest.mark.parametrize("which", [lambda path: path, note_of])
def test_a_planted_link_leads_nowhere(server, partial, tmp_path, which):
    treasure = tmp_path / "treasure"
    for plant in ("symlink_to", "hardlink_to"):
        treasure.write_bytes(
            partial.read_bytes() if which(partial) == partial else note_of(partial).read_bytes()
        )
        before = treasure.read_bytes()
        which(partial).unlink()
        getattr(which(partial), plant)(treasure)
        fetch(server, partial)
        assert treasure.read_bytes() == before
        assert partial.read_bytes() == DATA and not partial.is_symlink() and not note_of(partial).is_symlink()
        treasure.unlink()


def test_starting_over_leaves_a_published_file_alone(server, partial, tmp_path):
    """Another process, for which no lock worked, may have put the same file into place."""
    published = tmp_path / "published"
    published.hardlink_to(partial)
    before = published.read_bytes()
    fetch(server, partial)
    assert published.read_bytes() == before and partial.read_bytes() == DATA


def test_a_finished_file_is_published_under_its_name(server, tmp_path):
    path, target = tmp_path / "partial", tmp_path / "blob"
    received = fetch(server, path)
    publish(path, received.inode, lambda whole: whole.rename(target))
    assert target.read_bytes() == DATA and [one.name for one in tmp_path.iterdir()] == ["blob"]


def test_what_another_process_put_in_its_place_is_not_published(server, tmp_path):
    path, target = tmp_path / "partial", tmp_path / "blob"
    received = fetch(server, path)
    path.rename(tmp_path / "aside")
    path.write_bytes(b"unfinished")
    with pytest.raises(Busy, match="another process"):
        publish(path, received.inode, lambda whole: whole.rename(target))
    assert path.read_bytes() == b"unfinished" and not target.exists()


def test_a_folder_in_the_way_is_said(server, tmp_path):
    (tmp_path / "partial").mkdir()
    with pytest.raises(DiskError, match="partial"):
        fetch(server, tmp_path / "partial")


def test_a_missing_folder_is_said(server, tmp_path):
    with pytest.raises(DiskError, match="nowhere"):
        fetch(server, tmp_path / "nowhere" / "partial")


def test_discard_removes_both_files_and_minds_nothing(partial):
    discard(partial)
    discard(partial)
    assert list(partial.parent.iterdir()) == []


def test_a_closed_file_takes_and_gives_nothing(tmp_path):
    partial = Partial.create(tmp_path / "partial", 5, None)
    partial.close()
    for use in (
        lambda: partial.write(b"x", 0),
        lambda: partial.read(memoryview(bytearray(1)), 0),
        partial.sync,
    ):
        with pytest.raises(DiskError, match="closed"):
            use()


def test_space_is_asked_of_the_disk_that_the_file_is_on(tmp_path):
    require_space(tmp_path / "x", 0)
    with pytest.raises(DiskError, match=r"not enough space in .*: 100000\.0 TB needed, .* free"):
        require_space(tmp_path / "x", 10**17)


def test_sizes_are_written_as_people_read_them():
    sizes = [0, 999, 1000, 4_100_000, 4_100_000_000, 10**13]
    assert [size_text(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "4.1 MB", "4.1 GB", "10.0 TB"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_order_the_pieces_come_in_the_hash_is_of_what_is_on_disk(tmp_path_factory, data):
    size = data.draw(st.integers(0, 3 * PIECE), label="size")
    path = tmp_path_factory.mktemp("order") / "partial"
    content = DATA[:size]
    with contextlib.closing(Partial.create(path, size, '"x"')) as partial:
        order = data.draw(st.permutations(range(len(partial._filled))))
        for piece in order[:-1]:
            start = piece * PIECE
            half = start + (min(size, start + PIECE) - start) // 2
            partial.write(content[start:half], start)
            partial.write(content[half : start + PIECE], half)
    with contextlib.closing(
        Partial.resume(path, verifiable=False) or Partial.create(path, size, None)
    ) as partial:
        for start, end in partial.gaps():
            partial.write(content[start:end], start)
        partial.end()
        assert partial.received == partial.prefix() == size and partial.gaps() == []
        assert sha256_of(partial) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.read_bytes() == content


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_byte_is_given_to_one_connection_at_a_time_and_all_are_given(data):
    """Connections take, get, fail, steal and share in any order; each byte of the gaps is got just once."""
    edges = sorted(data.draw(st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True)))
    gaps = [(a * PIECE, b * PIECE) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    plan, working, got = Plan(gaps), [], []
    for _ in range(40):
        action = data.draw(st.sampled_from(["take", "steal", "get", "get", "get", "fail", "share"]))
        if action in ("take", "steal") and len(working) < 5:
            extent = plan.take(action == "steal")
            working += [extent] if extent else []
        elif action == "share":
            plan.share(data.draw(st.integers(1, 6)) * PIECE)
        elif working:
            extent = data.draw(st.sampled_from(working))
            count = 0 if action == "fail" else plan.reserve(extent, data.draw(st.integers(1, 3 * PIECE)))
            got.append((extent.position - count, extent.position))
            if action == "fail" or extent.position == extent.end:
                working.remove(extent)
                plan.give_back(extent)
    while extent := (working.pop() if working else plan.take(False)):
        got.append((extent.position, extent.position + plan.reserve(extent, 1 << 40)))
        plan.give_back(extent)
    ranges = sorted(one for one in got if one[0] < one[1])
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert sum(end - start for start, end in ranges) == sum(end - start for start, end in gaps)
