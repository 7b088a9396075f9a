"""Whatever ends a download, the next one goes on from there: with real processes, signals and full disks."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from faultserver import FaultServer, Reply, rated

from mdl.partial import PIECE, Partial, held

CHILD = """
import json, signal, sys
from pathlib import Path
from mdl.download import Downloader, Expected, Limits, Remote
from mdl.errors import MdlError
from mdl.traffic import Traffic
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
limits = Limits(block=1 << 20, enough=1e12, connections=4, chunk=256 << 10, backoff=0.01, retries=1)
expected = Expected(sha256=sys.argv[3] or None)
try:
    downloader = Downloader(limits, proxies={}, traffic=Traffic(int(sys.argv[4])))
    received = downloader.fetch("x", Remote(sys.argv[1]), expected, Path(sys.argv[2]))
    print(json.dumps({"transferred": received.transferred}))
except MdlError as error:
    print(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))
"""
DATA = random.Random(7).randbytes(16 * PIECE + 12345)
SMALL = DATA[: 3 * PIECE]


@pytest.fixture
def server():
    with contextlib.closing(FaultServer()) as server:
        yield server


def command(server, path, content, prefix=(), rate=0):
    digest = hashlib.sha256(content).hexdigest() if content else ""
    return [*prefix, sys.executable, "-c", CHILD, server.url(), str(path), digest, str(rate)]


def outcome(server, path, content, prefix=()):
    done = subprocess.run(command(server, path, content, prefix), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def assert_only_the_rest_comes(server, path, content, kept):
    """Up to what was on its way to a connection when another took over the end of its range."""
    transferred = outcome(server, path, content)["transferred"]
    assert 0 <= transferred - (len(content) - kept) <= 4 * (256 << 10)


def gaps(path):
    partial = Partial.resume(path, verifiable=True)
    if partial is None:
        return [(0, len(DATA))]
    with contextlib.closing(partial):
        return partial.gaps()


def wait_until(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.timeout(120)
def test_killed_twenty_times_it_gets_there_and_asks_for_nothing_twice(tmp_path, server):
    dice, path = random.Random(11), tmp_path / "partial"
    server.put(DATA, always=rated(1.2e6))
    kept = [0]
    for _ in range(20):
        missing = gaps(path)
        server.requests.clear()
        child = subprocess.Popen(command(server, path, DATA))
        wait_until(lambda: server.requests)
        time.sleep(dice.uniform(0, 0.25))
        child.kill()
        child.wait()
        kept.append(held(path))
        starts = [request.range[0] if request.range else 0 for request in server.requests]
        assert all(any(start <= at < end for start, end in missing) for at in starts)
    assert kept == sorted(kept) and 0 < kept[-1] < len(DATA)
    server.put(DATA)
    assert_only_the_rest_comes(server, path, DATA, kept[-1])
    assert path.read_bytes() == DATA


def stall(request, honest):
    return replace(honest, keep=70_000, stall=30)


def drip(request, honest):
    return replace(honest, slow_headers=0.5)


@pytest.mark.alone
@pytest.mark.parametrize(("behaviour", "rate"), [(rated(1e5), 0), (stall, 0), (drip, 0), (None, 10_000)])
def test_an_interrupt_ends_it_at_once_and_keeps_what_has_come(tmp_path, server, behaviour, rate):
    path = tmp_path / "partial"
    server.put(DATA, always=behaviour)
    child = subprocess.Popen(command(server, path, DATA, rate=rate), stderr=subprocess.DEVNULL)
    wait_until(lambda: server.requests and (held(path) or server.files["/file"].always is drip))
    time.sleep(0.2)
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == -signal.SIGINT
    assert time.monotonic() - started < 1
    assert (held(path) > 0) is (behaviour is not drip)


def on_a_small_disk(tmp_path, size, options=""):
    """The start of a command that runs with a tmpfs of `size` at tmp_path/disk, in mounts of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={size}{options} tmpfs {disk} && exec "$@"'
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    return disk / "partial", [*unshare, "sh", "-c", mount, "sh"]


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(tmp_path, server):
    path, prefix = on_a_small_disk(tmp_path, "1m")
    server.put(SMALL)
    error = outcome(server, path, SMALL, prefix)
    assert error["code"] == 7 and "3.1 MB needed, 1.0 MB free" in error["message"] and error["hint"]


def test_a_disk_that_fills_up_is_said(tmp_path, server):
    path, prefix = on_a_small_disk(tmp_path, "1m")
    server.put(SMALL, always=lambda _, honest: Reply(200, {}, honest.body))  # does not say its size
    error = outcome(server, path, SMALL, prefix)
    assert error["code"] == 7 and "no space left" in error["message"] and "free some space" in error["hint"]


def test_a_disk_that_is_read_only_is_said(tmp_path, server):
    path, prefix = on_a_small_disk(tmp_path, "9m", ",ro")
    server.put(SMALL)
    error = outcome(server, path, SMALL, prefix)
    assert error["code"] == 7 and "read-only" in error["message"]


def test_a_file_size_limit_is_said(tmp_path, server):
    server.put(SMALL, always=lambda _, honest: Reply(200, {}, honest.body))
    error = outcome(server, tmp_path / "partial", SMALL, ["prlimit", f"--fsize={PIECE + 7}"])
    assert error["code"] == 7 and "file too large" in error["message"]


@pytest.mark.parametrize("call", ["pwrite64:error=ENOSPC:when=7", "pwrite64:error=EIO:when=8",
                                  "pwrite64:retval=0:when=5", "fsync:error=EIO"])  # fmt: skip
def test_a_call_that_fails_is_an_error_and_the_next_run_gets_there(tmp_path, server, call):
    path = tmp_path / "partial"
    server.put(SMALL)
    strace = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", f"inject={call}"]
    assert outcome(server, path, SMALL, [*strace])["code"] == 7
    assert outcome(server, path, SMALL)["transferred"] < len(SMALL)
    assert path.read_bytes() == SMALL


@pytest.mark.parametrize("when", [1, 2, 3, 4, 9, 14])
def test_killed_at_a_write_the_next_run_gets_there(tmp_path, server, when):
    path = tmp_path / "partial"
    server.put(SMALL)
    strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(tmp_path / "trace"),
        "-e",
        f"inject=pwrite64:signal=KILL:when={when}",
    ]
    killed = subprocess.run(command(server, path, SMALL, strace), capture_output=True, timeout=60)
    assert killed.returncode != 0
    kept = held(path)
    assert_only_the_rest_comes(server, path, SMALL, kept)
    assert path.read_bytes() == SMALL
