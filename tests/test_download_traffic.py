"""How fast, and over how many connections: limits that hold, servers that want few of them, no storms."""

import contextlib
import hashlib
import random
import socket
import struct
import threading
import time
from dataclasses import replace

import pytest
from faultserver import FaultServer, Reply, rated, status

from mdl.download import Downloader, Expected, Job, Limits, Remote, Silent
from mdl.errors import MdlError, NetworkError
from mdl.partial import PIECE, held
from mdl.traffic import Host, Rate, Traffic

pytestmark = pytest.mark.alone
QUICK = Limits(backoff=0.1, longest_wait=2, retries=3, block=PIECE, enough=1e12)
DATA = random.Random(7).randbytes(24 * PIECE + 12345)


class Log(Silent):
    """How much had come when, and what was told."""

    def __init__(self):
        self.lock, self.count, self.marks, self.retries = threading.Lock(), 0, [], []

    def advanced(self, name, count):
        with self.lock:
            self.count += count
            self.marks.append((time.monotonic(), self.count))

    def retrying(self, name, reason, seconds):
        self.retries.append((reason, seconds))

    def by(self, when):
        return max((count for moment, count in self.marks if moment <= when), default=0)


@pytest.fixture
def server():
    with contextlib.closing(FaultServer()) as server:
        yield server


def jobs(server, folder, count, data=DATA, **options):
    for number in range(count):
        server.put(data, path=f"/{number}", **options)
    digest = hashlib.sha256(data).hexdigest()
    return [
        Job(str(number), Remote(server.url(f"/{number}")), Expected(len(data), digest), folder / str(number))
        for number in range(count)
    ]


def fetch_for(seconds, downloader, work):
    """Let it run for so long; the moment it began."""
    timer = threading.Timer(seconds, downloader.cancel)
    began = time.monotonic()
    timer.start()
    with pytest.raises(MdlError, match="stopped"):
        downloader.fetch_all(work)
    timer.join()
    return began


# The rate


@pytest.mark.parametrize(("rate", "files"), [(10_000, 3), (2_000_000, 4), (4_000_000, 1)])
def test_a_rate_is_kept_from_the_first_second_on(tmp_path, server, rate, files):
    log = Log()
    downloader = Downloader(progress=log, proxies={}, traffic=Traffic(rate))
    began = fetch_for(2.5, downloader, jobs(server, tmp_path, files))
    for seconds in (1, 2.4):
        assert abs(log.by(began + seconds) - rate * seconds) < max(0.15 * rate, 0.05 * rate * seconds)
    assert not log.retries and len(server.requests) <= files


def test_all_downloaders_of_a_process_share_the_rate(tmp_path, server):
    traffic, logs, threads = Traffic(3_000_000), [Log(), Log()], []
    for number, log in enumerate(logs):
        (tmp_path / str(number)).mkdir()
        downloader = Downloader(progress=log, proxies={}, traffic=traffic)
        work = jobs(server, tmp_path / str(number), 2)
        threads.append(threading.Thread(target=fetch_for, args=(2, downloader, work)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (log.count for log in logs)
    assert first + second == pytest.approx(2 * 3_000_000, rel=0.08)
    assert first == pytest.approx(second, rel=0.2)


def test_files_get_equal_shares_of_the_rate(tmp_path, server):
    downloader = Downloader(proxies={}, traffic=Traffic(4_000_000))
    fetch_for(2, downloader, work := jobs(server, tmp_path, 4))
    shares = [held(job.partial) for job in work]
    assert min(shares) > 0.8 * max(shares)


def test_a_rate_far_below_the_least_speed_gets_there(tmp_path, server):
    """Nobody is dropped for a slowness that is ours, however many share the rate."""
    log, traffic, threads = Log(), Traffic(10_000), []
    limits = replace(QUICK, window=0.3, min_speed=20_000, read_timeout=0.5)
    for work in jobs(server, tmp_path, 8, DATA[:3000]):
        downloader = Downloader(limits, log, {}, traffic=traffic)
        threads.append(threading.Thread(target=downloader.fetch_all, args=([work],)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.count == 8 * 3000 and not log.retries and len(server.requests) == 8


def test_a_server_that_drips_is_dropped_under_a_rate_too(tmp_path, server):
    limits = replace(QUICK, window=0.3, retries=1)
    work = jobs(server, tmp_path, 1, always=lambda _, honest: replace(honest, drip=(1, 0.1)))
    with pytest.raises(NetworkError, match="bytes a second"):
        Downloader(limits, proxies={}, traffic=Traffic(100_000)).fetch_all(work)


def test_under_a_rate_one_connection_that_fills_it_is_enough(tmp_path, server):
    fetch_for(1.5, Downloader(proxies={}, traffic=Traffic(4_000_000)), jobs(server, tmp_path, 1))
    assert len(server.requests) == 1


def test_under_a_rate_slow_connections_are_joined_until_they_fill_it(tmp_path, server):
    log = Log()
    downloader = Downloader(replace(QUICK, block=PIECE // 4), log, {}, traffic=Traffic(6_000_000))
    began = fetch_for(3, downloader, jobs(server, tmp_path, 1, always=rated(1e6)))
    assert log.by(began + 2.9) - log.by(began + 1.4) == pytest.approx(1.5 * 6_000_000, rel=0.1)


def test_the_rate_holds_on_the_wire_too(tmp_path, server):
    """What a server could send ahead is little: it waits in our sockets."""
    crossed = []
    timer = threading.Timer(2, lambda: crossed.append(sum(map(acknowledged, server.connections))))
    timer.start()
    fetch_for(2.2, Downloader(proxies={}, traffic=Traffic(50_000)), jobs(server, tmp_path, 1))
    assert 0.9 * 100_000 < crossed[0] < 1.4 * 100_000


def acknowledged(connection):
    """Bytes that the other side's system has taken (tcpi_bytes_acked in linux/tcp.h)."""
    return struct.unpack_from("Q", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128), 120)[0]


def test_readers_together_never_take_much_at_once():
    rate = Rate(1_000_000)
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(rate.reader())
        time.sleep(0.6)  # nothing is saved up meanwhile
        taken = 0
        for _ in range(16):
            count = rate.portion(1 << 20)
            taken += count
            rate.pay(count)
        while not rate.pay(1000):
            taken += 1000
        assert taken <= 250_000


def test_nothing_is_saved_up_before_the_first_byte():
    rate = Rate(1_000_000)
    with rate.reader():
        assert rate.pay(100_000) > 0.09


def test_no_limit_costs_no_wait():
    rate = Rate()
    assert (rate.portion(1 << 20), rate.pay(10**12), rate.reached) == (1 << 20, 0, False)


# Servers that want few connections

BUSY = Reply(503, {"Content-Length": "0"})
AWAYS = {
    "429": Reply(429, {"Content-Length": "0"}),
    "503": BUSY,
    "reset": "reset",
    "queue": "queue",
    "stall": "stall",
}


@pytest.mark.parametrize("admits", [1, 2])
@pytest.mark.parametrize("away", AWAYS)
def test_a_server_that_wants_few_connections_works_at_its_full_speed(tmp_path, server, away, admits):
    server.admits, server.away, log = admits, AWAYS[away], Log()
    data = DATA[: 12 * PIECE]
    work = jobs(server, tmp_path, 1, data, always=rated(8e6))
    began = time.monotonic()
    Downloader(QUICK, log, {}).fetch_all(work)
    assert work[0].partial.read_bytes() == data
    best = len(data) / 8e6 / admits
    assert time.monotonic() - began < 1.5 * best + (2.5 if away == "stall" else 1)
    assert away == "stall" or not log.retries
    assert away == "queue" or len(server.refused) <= 8


@pytest.mark.parametrize("away", ["503", "reset"])
def test_several_files_of_such_a_server_take_turns(tmp_path, server, away):
    server.admits, server.away, data = 1, AWAYS[away], DATA[: 3 * PIECE]
    work = jobs(server, tmp_path, 6, data, always=rated(8e6))
    began = time.monotonic()
    Downloader(replace(QUICK, retries=1), proxies={}).fetch_all(work)
    assert time.monotonic() - began < 1.4 * 6 * len(data) / 8e6 + 0.5
    assert all(job.partial.read_bytes() == data for job in work)
    assert len(server.refused) <= 12


def test_a_connection_that_stalls_at_the_end_does_not_hold_up_the_file(tmp_path, server):
    stalled = []

    def once(request, honest):
        if request.range and not stalled:
            stalled.append(request)
            return replace(honest, keep=1000, stall=30)
        return replace(honest, rate=8e6)

    began = time.monotonic()
    Downloader(QUICK, proxies={}).fetch_all(jobs(server, tmp_path, 1, always=once))
    assert stalled and time.monotonic() - began < 6


def test_after_too_many_requests_there_are_fewer_connections(tmp_path, server):
    def once(request, honest):
        if len(server.requests) == 12:
            return Reply(429, {"Retry-After": "1", "Content-Length": "0"})
        return replace(honest, rate=2e6)

    log = Log()
    Downloader(QUICK, log, {}).fetch_all(jobs(server, tmp_path, 2, always=once))
    when = server.requests[11].when
    after = [request for request in server.requests if request.when > when + 0.2]  # when all have heard of it
    assert after[0].when - when > 0.98 and len([r for r in after if r.when < when + 1.3]) <= 16
    assert [(reason, seconds) for reason, seconds in log.retries if seconds == 1]


def test_a_storm_of_refusals_is_not_answered_by_one_of_requests(tmp_path, server):
    work = jobs(server, tmp_path, 8, always=status(429))
    with pytest.raises(NetworkError, match="429"):
        Downloader(replace(QUICK, backoff=0.25, retries=4, longest_wait=9), proxies={}).fetch_all(work)
    assert len(server.requests) <= 4 * 5
    moments = [request.when for request in server.requests]
    assert max(len([m for m in moments if start <= m < start + 1]) for start in moments[4:]) <= 12


def test_how_long_a_server_wants_us_to_wait_is_told_and_bounded(tmp_path, server):
    work, log = jobs(server, tmp_path, 1), Log()
    server.files["/0"].faults.append(status(429, Retry_After="120"))
    began = time.monotonic()
    Downloader(replace(QUICK, longest_wait=1), log, {}).fetch_all(work)
    assert 1 <= time.monotonic() - began < 3
    assert "asks to wait 120 s" in log.retries[0][0] and log.retries[0][1] == 1


def test_a_pause_holds_for_all_files_and_downloaders(tmp_path, server):
    traffic = Traffic()
    traffic.hold("127.0.0.1", 1)
    asked = time.monotonic()
    Downloader(QUICK, proxies={}, traffic=traffic).fetch_all(jobs(server, tmp_path, 2, DATA[:1000]))
    assert min(request.when for request in server.requests) - asked > 0.98


# The number of connections, by a server that is only arithmetic


class Simulation:
    """A host that gives each connection `each` and all together `total` bytes a second, and takes `bears`."""

    def __init__(self, each, total, bears=99, most=32, files=1):
        self.host, self.each, self.total, self.bears = Host(most), each, total, bears
        self.now, self.refusals, self.got = time.monotonic(), 0, 0
        self.served, self.running = [], 0
        for _ in range(files):
            assert self.host.enter()
            self.begin()

    def begin(self):
        if self.running >= self.bears:
            self.refusals += 1
            self.host.refused(self.now, self.now, 0)
            self.host.leave()
            return
        self.running += 1
        self.served.append(self.host.serves())
        self.served[-1].__enter__()

    def run(self, seconds, enough=1e12, step=0.05):
        until = self.now + seconds
        while self.now < until:
            self.now += step
            speed = min(self.each * self.running, self.total)
            self.host.count(int(speed * step))
            self.got += speed * step
            self.host.look(self.now, enough)
            while self.running > 1 and self.host.spares():
                self.running -= 1
                self.served.pop().__exit__(None, None, None)
                self.host.leave()
            before = self.refusals
            while self.refusals == before and self.host.enter(extra=True):
                self.begin()
        return self.running


def test_slow_connections_become_many_within_a_second():
    assert Simulation(each=1e6, total=1e9).run(1) == 32


def test_fast_connections_stay_few():
    assert Simulation(each=2e8, total=1e9).run(5, enough=1e8) == 1


@pytest.mark.parametrize(("total", "wanted"), [(10e6, (1, 4)), (40e6, (4, 8))])
def test_connections_that_do_not_help_are_dropped(total, wanted):
    simulation = Simulation(each=10e6, total=total)
    simulation.run(120)
    assert wanted[0] <= simulation.host._target <= wanted[1]
    assert simulation.got > 0.9 * 120 * total


def test_connections_that_help_are_kept():
    simulation = Simulation(each=1e6, total=1e9)
    simulation.run(300)
    assert simulation.got > 0.9 * 300 * 32e6


@pytest.mark.parametrize("bears", [1, 2, 5, 16])
def test_a_server_that_refuses_gets_what_it_bears_and_seldom_more(bears):
    simulation = Simulation(each=1e6, total=1e9, bears=bears)
    assert simulation.run(2) == bears
    early = simulation.refusals
    simulation.run(600)
    assert simulation.refusals - early <= 20
    assert simulation.got > 0.85 * 602 * bears * 1e6


def test_a_pause_halves_the_connections_and_calm_brings_them_back():
    simulation = Simulation(each=1e6, total=1e9)
    simulation.run(2)
    simulation.host.refused(simulation.now, simulation.now, 1)
    assert simulation.run(0.9) == 1
    assert simulation.run(1) == 16
    assert 17 <= simulation.run(60) <= 24
