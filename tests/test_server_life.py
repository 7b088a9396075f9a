"""How servers and their engines begin and end: loading, making room, dying, and who may start where."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import CHAT, DEMO, FRANCE, STORY, Server, cache, children, endless, is_running, text, wait_until

from mdl.config import Settings
from mdl.engine.request import EngineFiles, EngineSettings
from mdl.errors import Busy
from mdl.library import Library
from mdl.profiles import Profile
from mdl.server.names import Held
from mdl.server.options import ServeOptions
from mdl.server.pool import Bounds, Pool
from mdl.server.run import listen
from mdl.weights import Weights, identify

WEIGHTS = identify(DEMO)
assert isinstance(WEIGHTS, Weights)

PARIS = "The capital of France is Paris."


def stream(server: Server, **fields: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """An answer on its way, after its first piece."""
    connection = server.connect()
    body = {"model": "endless", "messages": STORY, "stream": True, **fields}
    connection.request("POST", CHAT, json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200
    response.read(1)
    return connection, response


def last_event(response: http.client.HTTPResponse) -> Any:
    *_, last, rest = response.read().decode().split("\n\n")
    assert rest == ""
    return json.loads(last.removeprefix("data: "))


def refused(home: Path, **options: Any) -> tuple[int, str]:
    """The exit status and the last words of a server that does not start."""
    with Server(home, **options) as server:
        assert server.url == ""
        status = server.process.wait(10)
        log = server.log.read_text()
        assert "Traceback" not in log
        return status, log.splitlines()[-1]


def test_what_is_sent_does_not_wait_for_what_was_sent_before() -> None:
    """Else each piece of a stream is 40 ms late."""
    with listen(ServeOptions(port=0)) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Loading


def test_requests_for_a_model_that_is_loading_share_one_load(tmp_path: Path) -> None:
    with Server(tmp_path / "home", engine={"parallel": 8}) as server:
        seen: set[int] = set()
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                seen.update(server.workers())

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: text(server.chat()[1]), range(16)))
        done.set()
        watcher.join()
    assert answers == [PARIS] * 16
    assert len(seen) == 1


@pytest.mark.alone
def test_a_load_that_fails_says_why_and_is_not_repeated_for_each_request(tmp_path: Path) -> None:
    home = cache(tmp_path / "home", "broken")
    file = home / "models/quay.io/org/broken/broken.gguf"
    file.write_bytes(DEMO.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_q.wreckt"))
    with Server(home) as server:
        status, first = server.chat(model="broken")
        start = time.monotonic()
        again = [server.chat(model="broken") for _ in range(20)]
        assert time.monotonic() - start < 1
        assert again == [(status, first)] * 20
        assert (status, first["error"]["code"]) == (422, "model_not_supported")
        assert "broken.gguf" in first["error"]["message"]
        assert server.workers() == []
        assert text(server.chat()[1]) == PARIS


def test_an_adapter_or_a_damaged_file_is_refused_with_what_it_is(tmp_path: Path) -> None:
    home = cache(tmp_path / "home", "cut")
    file = home / "models/quay.io/org/cut/cut.gguf"
    file.write_bytes(file.read_bytes()[:100_000])
    with Server(home) as server:
        assert server.chat(model="cut")[0] == 422
        assert [model["id"] for model in server.ask("GET", "/v1/models")[1]["data"]] == ["demo"]


# Room


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Room for one engine, which is let go soon."""
    home = cache(tmp_path_factory.mktemp("server") / "home", "first", "second", "endless")
    with Server(home, max_models=1, idle_seconds=0.5) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def test_the_least_recently_used_makes_room(narrow: Server) -> None:
    workers = set()
    for name in ("first", "second", "first", "demo"):
        assert text(narrow.chat(model=name)[1]) == PARIS
        assert len(narrow.workers()) == 1
        workers.update(narrow.workers())
    assert len(workers) == 4


def test_models_take_turns_when_all_are_wanted_at_once(narrow: Server) -> None:
    names = ["first", "second", "demo"] * 4
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda name: text(narrow.chat(model=name)[1]), names))
    assert answers == [PARIS] * 12
    assert len(narrow.workers()) == 1


def test_a_model_that_is_always_busy_does_not_keep_the_others_out(narrow: Server) -> None:
    over = threading.Event()

    def keep_busy(length: int) -> None:
        while not over.is_set():
            narrow.chat(STORY, model="endless", max_tokens=length)

    busy = [threading.Thread(target=keep_busy, args=(100 + 30 * place,)) for place in range(8)]
    for thread in busy:
        thread.start()
    try:
        time.sleep(0.3)
        assert text(narrow.chat(model="first")[1]) == PARIS
    finally:
        over.set()
        for thread in busy:
            thread.join()


def test_an_answer_in_progress_is_not_cut_off_to_make_room(narrow: Server) -> None:
    connection, response = stream(narrow, max_tokens=800)
    assert text(narrow.chat(model="first")[1]) == PARIS
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_an_idle_engine_is_let_go_and_comes_back(narrow: Server) -> None:
    assert text(narrow.chat()[1]) == PARIS
    assert len(narrow.workers()) == 1
    wait_until(lambda: narrow.workers() == [], 5)
    assert text(narrow.chat()[1]) == PARIS


def test_a_client_that_leaves_takes_no_load_with_it_however_soon_engines_are_let_go(tmp_path: Path) -> None:
    model = Library(Settings(tmp_path)).resolve("demo").model
    assert model is not None

    @contextmanager
    def slow_disk(*_: object) -> Iterator[Held]:
        time.sleep(0.5)
        yield Held(EngineFiles(DEMO), Profile(), WEIGHTS)

    async def come_and_go() -> list[int]:
        pool = Pool(slow_disk, EngineSettings(), Bounds(idle_seconds=0.05))
        workers = []
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1), pool.borrow(model):
                    pass
            await asyncio.sleep(0.7)
            async with pool.borrow(model) as lent:
                workers.append(len(children(os.getpid())))
                assert lent.engine.pid
            await asyncio.sleep(1)
            workers.append(len(children(os.getpid())))
        finally:
            await pool.close()
        return workers

    before = len(children(os.getpid()))
    assert asyncio.run(come_and_go()) == [before + 1, before]


def test_a_client_that_leaves_while_it_waits_for_room_is_forgotten(narrow: Server) -> None:
    connection, response = stream(narrow, max_tokens=800)
    for _ in range(3):
        waiting = narrow.connect()
        waiting.request("POST", CHAT, json.dumps({"model": "first", "messages": FRANCE}))
        time.sleep(0.02)
        waiting.close()
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    assert text(narrow.chat()[1]) == PARIS


def test_a_model_that_is_loaded_cannot_be_removed_and_one_that_is_not_can(narrow: Server) -> None:
    home = Path(narrow.process.args[3])  # type: ignore[index]
    library = Library(Settings(home))
    model = library.resolve("second").model
    assert model is not None
    narrow.chat(model="second")
    with pytest.raises(Busy), library.store.locks.exclusive(model.folder):
        pass
    wait_until(lambda: narrow.workers() == [], 5)
    time.sleep(0.1)
    with library.store.locks.exclusive(model.folder):
        pass


# Dying


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(cache(tmp_path / "home", "endless"), engine={"parallel": 2}) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def test_a_worker_that_is_killed_ends_its_streams_with_an_error_and_nothing_else(server: Server) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV):
        connection, response = stream(server)
        [worker] = server.workers()
        os.kill(worker, number)
        error = last_event(response)["error"]
        assert (error["type"], error["code"]) == ("server_error", "engine_error")
        assert signal.Signals(number).name in error["message"]
        connection.close()
        assert text(server.chat(model="endless", max_tokens=7)[1]) == PARIS


def test_a_worker_that_is_killed_answers_500_where_nothing_was_sent(server: Server) -> None:
    server.chat(model="endless", max_tokens=1)
    [worker] = server.workers()
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(server.chat, STORY, model="endless") for _ in range(4)]
        time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
        assert [answer.result()[0] for answer in answers] == [500] * 4
    assert text(server.chat(model="endless", max_tokens=7)[1]) == PARIS


def test_a_worker_that_is_killed_again_and_again_costs_only_what_it_was_doing(server: Server) -> None:
    for attempt in range(12):
        assert text(server.chat()[1]) == PARIS, attempt
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        time.sleep(attempt * 0.001)
        status, _ = server.chat()
        assert status in (200, 500)


def test_the_openai_client_is_told_of_an_engine_that_dies(server: Server) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="SIGKILL"),
    ):
        chunks = iter(client.chat.completions.create(model="endless", messages=STORY, stream=True))
        while not next(chunks).choices[0].delta.content:
            pass
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        list(chunks)


# The end


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_workers(server: Server, number: int) -> None:
    server.chat()
    server.chat(model="endless", max_tokens=1)
    workers = server.workers()
    assert len(workers) == 2
    start = time.monotonic()
    assert server.end(number) in (-number, 130)  # as the signal does, or by KeyboardInterrupt
    assert time.monotonic() - start < 3
    assert not [worker for worker in workers if is_running(worker)]


def test_a_signal_lets_answers_finish(server: Server) -> None:
    connection, response = stream(server, max_tokens=1000)
    server.process.send_signal(signal.SIGTERM)
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    server.process.wait(5)


def test_answers_that_take_too_long_end_with_an_error(tmp_path: Path) -> None:
    home = cache(tmp_path / "home", "endless")
    with Server(home, limits={"grace_seconds": 0.1}, engine={"parallel": 1}) as server:
        server.chat(model="endless", max_tokens=1)
        workers = server.workers()
        connection, response = stream(server)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(server.chat, STORY, model="endless")
            time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            assert "ending" in last_event(response)["error"]["message"]
            assert waiting.result()[0] == 503
        connection.close()
        server.process.wait(5)
        assert not [worker for worker in workers if is_running(worker)]
        assert "Traceback" not in server.log.read_text()


def test_workers_end_with_a_server_that_is_killed(server: Server) -> None:
    server.chat()
    workers = server.workers()
    assert workers
    server.process.kill()
    wait_until(lambda: not [worker for worker in workers if is_running(worker)], 5)


def test_a_second_signal_does_not_wait_for_answers(server: Server) -> None:
    connection, _ = stream(server)
    workers = server.workers()
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert server.end(signal.SIGINT, 3) == 130
    connection.close()
    assert not [worker for worker in workers if is_running(worker)]


def test_a_signal_ends_it_while_a_model_loads(tmp_path: Path) -> None:
    with Server(tmp_path / "home") as server:
        connection = server.connect()
        connection.request("POST", CHAT, json.dumps({"model": "demo", "messages": FRANCE}))
        wait_until(server.workers)
        workers = server.workers()
        server.end()
        connection.close()
        assert not [worker for worker in workers if is_running(worker)]


# Where it may start


def test_a_port_that_is_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = refused(tmp_path / "home", port=port)
    assert (status, f"port {port} of 127.0.0.1 is in use" in said, "--port" in said) == (8, True, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_are_let_in_only_with_a_key_or_by_choice(tmp_path: Path, host: str) -> None:
    status, said = refused(tmp_path / "home", host=host)
    assert (status, "API key" in said, "--insecure" in said) == (2, True, True)
    for options in ({"api_key": "secret"}, {"insecure": True}):
        with Server(tmp_path / "home", host=host, **options) as server:
            assert server.ask("GET", "/v1/models")[0] == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_needs_no_key(tmp_path: Path, host: str) -> None:
    with Server(tmp_path / "home", host=host) as server:
        assert re.fullmatch(r"http://(127\.\d\.\d\.\d|\[::1\]):\d+", server.url)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"host": "no.such.host.invalid"}, 2),
        ({"host": "192.0.2.1", "insecure": True}, 2),
        ({"host": ""}, 2),
        ({"host": "a" * 300}, 2),
        ({"port": 70000}, 2),
        ({"port": -1}, 2),
        ({"max_models": -1}, 2),
        ({"engine": {"parallel": 0}}, 2),
        ({"models": ["nothing"]}, 3),
        ({"models": ["org/name"]}, 3),
        ({"models": ["./none.gguf"]}, 3),
    ],
)
def test_what_cannot_be_served_is_an_error_with_its_exit_code(
    tmp_path: Path, options: dict[str, Any], code: int
) -> None:
    assert refused(tmp_path / "home", **options)[0] == code


def test_a_model_that_was_asked_for_and_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(DEMO.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_q.wreckt"))
    status, said = refused(tmp_path / "home", models=[str(file)])
    assert (status, "broken.gguf" in said) == (9, True)


# What is served


def test_only_what_was_given_is_served_and_one_needs_no_name(tmp_path: Path) -> None:
    home = cache(tmp_path / "home", "first", "second")
    with Server(home, models=["first"]) as server:
        assert server.ask("GET", "/readyz")[0] == 200
        assert len(server.workers()) == 1
        assert [model["id"] for model in server.ask("GET", "/v1/models")[1]["data"]] == ["first"]
        for name in (None, "first", "quay.io/org/first"):
            status, answer = server.chat(model=name)
            assert (status, text(answer), answer["model"]) == (200, PARIS, name or "first")
        for name in ("second", "demo", "nothing"):
            assert server.chat(model=name)[0] == 404


def test_a_path_is_served_under_the_name_that_it_was_given(tmp_path: Path) -> None:
    path = str(endless(tmp_path / "models"))
    with Server(tmp_path / "home", models=[path]) as server:
        assert [model["id"] for model in server.ask("GET", "/v1/models")[1]["data"]] == [path]
        assert text(server.chat(model=path, max_tokens=7)[1]) == PARIS


# The key


def test_every_route_but_one_asks_for_the_key(tmp_path: Path) -> None:
    key = "sésame".encode().decode("latin-1")
    with Server(tmp_path / "home", api_key="sésame") as server:
        bad = [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "sésame"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic " + key},
        ]
        server.key = ""
        for path in ("/", "/readyz", "/v1/models", "/v1/models/demo", CHAT, "/nothing"):
            method = "POST" if path == CHAT else "GET"
            for headers in bad:
                status, answer, got = server.ask(method, path, headers=headers)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert got["WWW-Authenticate"] == "Bearer"
        assert server.ask("GET", "/healthz")[0] == 200
        for scheme in ("Bearer", "bearer"):  # case does not matter: RFC 9110, 11.1
            assert server.ask("GET", "/v1/models", headers={"Authorization": f"{scheme} {key}"})[0] == 200
        assert "sésame" not in server.log.read_text()


def test_the_openai_client_gives_the_key(tmp_path: Path) -> None:
    with Server(tmp_path / "home", api_key="secret") as server:
        for key, right in (("secret", True), ("wrong", False)):
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
                if right:
                    assert [model.id for model in client.models.list()] == ["demo"]
                else:
                    with pytest.raises(openai.AuthenticationError):
                        client.models.list()
