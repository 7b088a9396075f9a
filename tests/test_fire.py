"""Servers under fire: workers that are killed at any moment, crowds, slow and vanishing clients, and every
route that there is asked for what guards it."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPMessage
from pathlib import Path
from random import Random
from typing import Any

import pytest
from benchmarks.soak import growth
from fire import CHAT, Reply, Soak, Sum, ask, gathered, head, heard, parsed, vanish
from serving import STORY, Server, cache, text

from mdl.config import Settings
from mdl.engine.request import EngineSettings
from mdl.library import Library
from mdl.server import app
from mdl.server.body import Room
from mdl.server.guard import OPEN_PATHS
from mdl.server.jobs import Jobs
from mdl.server.names import Names, files
from mdl.server.options import Limits, ServeOptions
from mdl.server.passing import Passing
from mdl.server.pool import Pool
from mdl.server.service import Service

PARIS = "The capital of France is Paris."
KILLS, SEED = 200, 7
FATAL = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGBUS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(cache(tmp_path / "home", "endless"), engine={"parallel": 4}) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


# Workers that are killed


@pytest.mark.parametrize("part", range(4))
def test_a_worker_that_is_killed_at_any_moment_costs_only_the_requests_it_had(
    server: Server, part: int
) -> None:
    """Nobody hangs, nobody gets a wrong answer, and the next one is served."""
    assert text(server.chat()[1]) == PARIS
    random = Random(SEED + part)
    costs = [asyncio.run(_kill_once(server, random)) for _ in range(KILLS // 4)]
    assert sum(costs) > 0, "none of them hit a request"


async def _kill_once(server: Server, random: Random) -> int:
    """How many requests it cost."""
    questions = [Sum.any(random) for _ in range(4)]
    asked = [
        asyncio.create_task(ask(server.port, question.body(stream=random.random() < 0.5), seconds=30))
        for question in questions
    ]
    long = Sum(1, 1).body(max_tokens=400, ignore_eos=True, stream=True)
    talker = asyncio.create_task(ask(server.port, long, seconds=30))
    await asyncio.sleep(random.random() ** 2 * 0.25)  # early moments have more in them
    for worker in server.workers():
        os.kill(worker, random.choice(FATAL))
    replies = await asyncio.gather(*asked)
    for question, reply in zip(questions, replies, strict=True):
        assert is_right_or_told(reply, question.answer), reply
    assert is_right_or_told(await talker, None)
    replies += [await _next(server, Sum.any(random))]
    return sum(reply.error is not None for reply in replies)


async def _next(server: Server, question: Sum) -> Reply:
    """What the next one gets: it may still meet the worker that is dying, but not twice."""
    first = await ask(server.port, question.body(), seconds=30)
    reply = first if first.error is None else await ask(server.port, question.body(), seconds=30)
    assert (reply.status, reply.error) == (200, None), (first.body, reply.body)
    assert reply.said == question.answer
    return first


def is_right_or_told(reply: Reply, answer: str | None) -> bool:
    """Whether a whole answer is the right one (None: any), and one that is not whole ends with its error."""
    if error := reply.error:
        return reply.whole and (reply.status, error["type"]) in ((500, "server_error"), (200, "server_error"))
    return reply.whole and reply.status == 200 and (answer is None or reply.said == answer)


def endlessly(**fields: Any) -> bytes:
    return json.dumps({"model": "endless", "messages": STORY, "temperature": 0, **fields}).encode()


# Crowds


def test_512_clients_at_once_are_all_answered_where_there_is_room(tmp_path: Path) -> None:
    limits = {"requests": 512}
    with Server(tmp_path / "home", engine={"parallel": 8}, limits=limits) as server:
        replies, questions = asyncio.run(crowd(server.port, 512))
        answers = [(reply.status, reply.said) for reply in replies]
        assert answers == [(200, question.answer) for question in questions]
        assert "Traceback" not in server.log.read_text()


def test_512_clients_at_once_get_an_answer_or_a_time_to_come_back_where_there_is_not(tmp_path: Path) -> None:
    limits = {"requests": 16}
    with Server(tmp_path / "home", engine={"parallel": 2}, limits=limits) as server:
        assert text(server.chat()[1]) == PARIS
        replies, questions = asyncio.run(crowd(server.port, 512))
        for reply, question in zip(replies, questions, strict=True):
            if reply.status == 503:
                assert int(reply.headers["retry-after"]) > 0
                assert reply.error is not None
                assert reply.error["code"] == "overloaded"
            else:
                assert (reply.status, reply.said) == (200, question.answer)
        assert sum(reply.status == 200 for reply in replies) >= 16
        assert text(server.chat()[1]) == PARIS


async def crowd(port: int, count: int) -> tuple[list[Reply], list[Sum]]:
    """All connect before any of them asks; every other one wants a stream."""
    random = Random(SEED)
    questions = [Sum.any(random) for _ in range(count)]
    connections = await gathered(asyncio.open_connection("127.0.0.1", port) for _ in range(count))
    for place, (question, (_, writer)) in enumerate(zip(questions, connections, strict=True)):
        body = question.body(stream=place % 2 == 0)
        writer.write(head(CHAT, len(body)) + body)
    async with asyncio.timeout(60):
        replies = [parsed(data) for data in await gathered(heard(reader) for reader, _ in connections)]
    for _, writer in connections:
        writer.close()
    return replies, questions


# Slow clients


@pytest.mark.alone
def test_slow_readers_and_senders_get_their_answers_and_hold_up_nobody(server: Server) -> None:
    async def all_of_them() -> tuple[list[Reply], list[Reply]]:
        slow = asyncio.create_task(gathered(_slowly(server.port, place) for place in range(24)))
        await asyncio.sleep(0.1)
        quick = [await ask(server.port, Sum(2, 3).body(), seconds=20) for _ in range(20)]
        assert not slow.done(), "they were not slow"
        return await slow, quick

    slow, quick = asyncio.run(all_of_them())
    assert {(reply.status, reply.said) for reply in slow + quick} == {(200, "2 plus 3 is 5.")}


async def _slowly(port: int, place: int) -> Reply:
    """Says or hears it a few bytes at a time."""
    body = Sum(2, 3).body(stream=place % 2 == 0)
    data = head(CHAT, len(body)) + body
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64)
        for start in range(0, len(data), 8):
            writer.write(data[start : start + 8])
            await asyncio.sleep(0.03 if place % 3 else 0)
        said = b""
        while piece := await reader.read(32):
            said += piece
            await asyncio.sleep(0 if place % 3 else 0.03)
        writer.close()
        return parsed(said)


# Clients that vanish


@pytest.mark.alone
def test_clients_that_vanish_at_any_moment_leave_their_slots(server: Server) -> None:
    """Their answers would take minutes, one slot each."""
    server.chat(model="endless", max_tokens=1)
    random = Random(SEED)

    async def storm() -> float:
        for _ in range(8):
            await gathered(vanish(server.port, random, endlessly(stream=True)) for _ in range(25))
        start = time.monotonic()
        reply = await ask(server.port, endlessly(max_tokens=7))
        assert (reply.status, reply.whole) == (200, True)
        return time.monotonic() - start

    assert asyncio.run(storm()) < 5
    assert asyncio.run(storm()) < 5


# Every route


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path of all that the server answers, as it is put together."""
    library = Library(Settings(tmp_path_factory.mktemp("home")))
    options = ServeOptions(api_key="secret")
    pool = Pool(partial(files, library), EngineSettings())
    jobs = Jobs(library, Limits())
    passing = Passing(library.settings)
    found = app(Service(Names(library, ()), pool, Room(Limits()), library, jobs, passing), options).routes
    named: list[str] = [route.path for route in found]  # type: ignore[attr-defined]
    paths = [path.replace("{name:path}", "demo").replace("{job}", "none") for path in named]
    assert CHAT in paths
    assert not [path for path in paths if "{" in path]
    return [
        (method, path) for path in paths for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS")
    ]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "home", api_key="secret") as running:
        yield running
        assert "secret" not in running.log.read_text()


def knock(
    server: Server, method: str, path: str, body: bytes, **headers: str
) -> tuple[int, HTTPMessage, bytes]:
    connection = server.connect()
    try:
        connection.request(method, path, body, {"Authorization": "Bearer secret", **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


WRONG_KEYS = ("", "Bearer", "Bearer wrong", "Bearer secre", "Bearer secrets", "Basic secret", "secret")


def test_no_route_but_one_says_anything_without_the_key(
    locked: Server, routes: list[tuple[str, str]]
) -> None:
    for method, path in routes:
        for key in WRONG_KEYS if path not in OPEN_PATHS else ():
            status, headers, _ = knock(locked, method, path, b"{}", Authorization=key)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), (method, path, key)
    assert list(OPEN_PATHS) == ["/healthz"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_no_route_answers_under_a_strange_name_or_to_a_strange_page(
    locked: Server, routes: list[tuple[str, str]], headers: dict[str, str]
) -> None:
    for method, path in routes:
        status, got, _ = knock(locked, method, path, b"{}", **headers)
        assert status == 403, (method, path)
        assert not [name for name in got if name.lower().startswith("access-control")]


def test_every_route_answers_whoever_has_the_key_and_none_of_them_breaks(
    locked: Server, routes: list[tuple[str, str]]
) -> None:
    for method, path in routes:
        for body in (b"{}", b"", b"null", b'{"model": "demo"}'):
            status, _, answer = knock(locked, method, path, body)
            assert status < 500, (method, path, body, answer)
            assert status not in (401, 403)


# A long time


def test_twenty_seconds_of_everything_leave_no_trace(server: Server) -> None:
    """Two minutes and more of it are in benchmarks/soak.py."""
    server.chat()
    soak = Soak(server.port, SEED)
    asyncio.run(soak.run(8))  # caches fill, allocators settle
    before = growth(server.process.pid)
    asyncio.run(soak.run(12))
    assert soak.wrong == []
    assert len(soak.kinds) == 7
    after = growth(server.process.pid)
    assert after.files <= before.files + 8
    assert after.memory - before.memory < 40 << 20
