"""Which models a server has loaded: by memory, for how long, told by `mdl ps` and ended by `mdl stop`."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import STORY, Server, cache, text, wait_until

from mdl.client import Client
from mdl.errors import AuthError, NetworkError, NotFound, UsageError

PARIS = "The capital of France is Paris."
MEMORY = 80_000_000  # for two of them


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Memory for two models."""
    home = cache(tmp_path_factory.mktemp("server") / "home", "first", "second", "third", "endless")
    with Server(home, memory=MEMORY) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def loaded(server: Server) -> list[str]:
    return sorted(engine["name"] for engine in Client(server.url, server.key).engines())


def test_as_many_models_are_loaded_as_memory_holds(two: Server) -> None:
    for name, expected in (
        ("first", ["first"]),
        ("second", ["first", "second"]),
        ("first", ["first", "second"]),
        ("third", ["first", "third"]),
        ("second", ["second", "third"]),
    ):
        assert text(two.chat(model=name)[1]) == PARIS
        assert loaded(two) == expected
    assert len(two.workers()) == 2


def test_one_that_answers_is_not_sent_away(two: Server) -> None:
    body = json.dumps({"model": "endless", "messages": STORY, "stream": True, "max_tokens": 1500})
    connection = two.connect()
    connection.request("POST", "/v1/chat/completions", body)
    response = connection.getresponse()
    response.read(100)
    assert text(two.chat(model="first")[1]) == PARIS
    assert text(two.chat(model="second")[1]) == PARIS
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_what_never_fits_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with Server(tmp_path / "home", memory=10_000_000) as server:
        status, answer = server.chat()
        assert status == 422
        assert re.search(r"needs [\d.]+ MB of memory, where 10\.0 MB can be used", answer["error"]["message"])
        assert loaded(server) == [] and server.workers() == []


def test_a_request_says_how_long_its_model_stays(two: Server) -> None:
    def until(name: str, keep_alive: Any) -> Any:
        assert two.chat(model=name, keep_alive=keep_alive)[0] == 200
        [engine] = [engine for engine in Client(two.url).engines() if engine["name"] == name]
        return engine["until"]

    assert until("first", -1) is None
    assert until("first", "10m") > until("first", 30) > until("first", "5s")
    assert two.chat(model="first", keep_alive=0)[0] == 200
    wait_until(lambda: "first" not in loaded(two))


def mdl(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mdl", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_ps_and_stop_ask_the_server(two: Server) -> None:
    mdl("stop", "--all", "--url", two.url)
    assert mdl("ps", "--url", two.url).stdout == ""
    two.chat(model="first", keep_alive=-1)
    two.chat(model="second", keep_alive=90)
    lines = mdl("ps", MDL_URL=two.url).stdout.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert re.fullmatch(r"first +n/a +[\d.]+ MB +100% CPU +2048 +forever", lines[1])
    assert re.fullmatch(r"second +n/a +[\d.]+ MB +100% CPU +2048 +1 minute from now", lines[2])
    found = json.loads(mdl("ps", "--json", "--url", two.url).stdout)
    assert found["schema"] == 1 and [engine["state"] for engine in found["engines"]] == ["ready"] * 2
    assert mdl("ps", "-q", "--url", two.url).stdout.split() == ["quay.io/org/first", "quay.io/org/second"]
    assert mdl("stop", "first", "--url", two.url).stdout == "first is stopped\n"
    assert loaded(two) == ["second"]
    again = mdl("stop", "first", "--url", two.url)
    assert (again.returncode, again.stderr.splitlines()[0]) == (
        3,
        "mdl: 'first' is not loaded (mdl ps shows what is)",
    )
    assert mdl("stop", "--all", "--json", "--url", two.url).returncode == 0
    assert loaded(two) == []


def test_a_model_is_stopped_after_its_answers_or_by_force(two: Server) -> None:
    for force in (False, True):
        body = json.dumps({"model": "endless", "messages": STORY, "stream": True, "max_tokens": 1500})
        connection = two.connect()
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        response.read(100)
        Client(two.url).stop("endless", force)
        assert loaded(two) == []
        assert response.read().endswith(b"data: [DONE]\n\n") is not force
        connection.close()


def test_who_asks_needs_the_key_and_it_goes_nowhere_else(tmp_path: Path) -> None:
    with Server(tmp_path / "home", api_key="secret") as server:
        assert Client(server.url, "secret").engines() == []
        with pytest.raises(AuthError, match="key"):
            Client(server.url, "wrong").engines()
        assert mdl("ps", "--url", server.url).returncode == 4
        assert mdl("ps", "--url", server.url, MDL_API_KEY="secret").returncode == 0


@pytest.mark.parametrize("url", ["", "ftp://x", "127.0.0.1:3000", "http://", "http://x:99999999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Client(url)


def test_where_nobody_answers_that_is_said() -> None:
    done = mdl("ps", "--url", "http://127.0.0.1:9")
    assert done.returncode == 5 and "no answer" in done.stderr and "mdl serve" in done.stderr


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"engines": 5}'),
        (404, b"{}"),
        (302, b""),
        (200, b'{"engines": [5]}'),
    ],
)
def test_another_server_is_not_taken_for_mdl(status: int, body: bytes) -> None:
    with stranger(status, body) as url, pytest.raises(NetworkError, match="not mdl"):
        Client(url, "secret").engines()


class stranger:  # noqa: N801 - used as a function
    """A server that says one thing."""

    def __init__(self, status: int, body: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_what_a_server_says_is_inert_on_a_terminal() -> None:
    engine = {"model": "a\x1b[31m", "name": "b\x1b]0;x\x07", "version": "\x9b", "state": "ready", "size": "x"}
    with stranger(200, json.dumps({"engines": [engine]}).encode()) as url:
        done = mdl("ps", "--url", url)
        assert done.returncode == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout)


def figures(server: Server) -> dict[str, float]:
    status, page, headers = server.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    lines = [line for line in page.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_what_was_done_is_counted(tmp_path: Path) -> None:
    with Server(tmp_path / "home") as server:
        for _ in range(2):
            status, answer = server.chat()
        server.chat(messages=[])
        _, embedded, _ = server.ask("POST", "/v1/embeddings", b'{"model": "demo", "input": ["a", "fox"]}')
        server.ask("GET", "/nothing/here")
        server.ask("GET", "/v1/models/demo")
        found = figures(server)
    assert status == 200
    usage = answer["usage"]
    route = 'route="/v1/chat/completions"'
    assert found[f'mdl_requests_total{{{route},status="200"}}'] == 2
    assert found[f'mdl_requests_total{{{route},status="400"}}'] == 1
    assert found['mdl_requests_total{route="none",status="404"}'] == 1
    assert found['mdl_requests_total{route="/v1/models/{name}",status="200"}'] == 1
    read = 2 * usage["prompt_tokens"] + embedded["usage"]["prompt_tokens"]
    assert found['mdl_tokens_total{kind="prompt",model="demo"}'] == read
    assert found['mdl_tokens_total{kind="completion",model="demo"}'] == 2 * usage["completion_tokens"]
    assert found['mdl_tokens_total{kind="cached",model="demo"}'] == usage["prompt_tokens"] - 1
    assert found['mdl_first_token_seconds_count{model="demo"}'] == 2
    assert found['mdl_next_token_seconds_count{model="demo"}'] == 2
    assert found['mdl_engines{state="ready"}'] == 1
    assert found['mdl_engine_memory_bytes{model="demo"}'] > 10**7


def test_engines_that_died_and_requests_that_wait_for_one_are_counted(tmp_path: Path) -> None:
    with Server(cache(tmp_path / "home", "endless"), engine={"parallel": 1}, max_models=1) as server:
        for deaths in (1, 2):
            assert text(server.chat()[1]) == PARIS
            os.kill(server.workers()[0], signal.SIGKILL)
            wait_until(lambda deaths=deaths: figures(server)["mdl_engine_deaths_total"] == deaths)
        connection = server.connect()
        long = {"model": "endless", "messages": STORY, "stream": True, "n": 16}  # eight seconds
        connection.request("POST", "/v1/chat/completions", json.dumps(long))
        response = connection.getresponse()
        response.read(100)
        assert figures(server)["mdl_requests_waiting"] == 0
        waiting = threading.Thread(target=server.chat)
        waiting.start()
        wait_until(lambda: figures(server)["mdl_requests_waiting"] == 1)
        connection.close()
        response.close()
        waiting.join()
        found = figures(server)
    assert (found["mdl_requests_waiting"], found["mdl_engine_deaths_total"]) == (0, 2)


def test_requests_in_flight_are_counted_and_none_is_left(two: Server) -> None:
    body = json.dumps({"model": "endless", "messages": STORY, "stream": True, "max_tokens": 1500})
    connection = two.connect()
    connection.request("POST", "/v1/chat/completions", body)
    response = connection.getresponse()
    response.read(100)
    assert figures(two)["mdl_requests_running"] == 1
    connection.close()
    response.close()
    time.sleep(0.1)
    wait_until(lambda: figures(two)["mdl_requests_running"] == 0)
    with pytest.raises(NotFound, match="not on this machine"):
        Client(two.url).stop("nothing")
