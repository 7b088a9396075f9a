"""Models managed over HTTP: fetched, watched, started, stopped and removed by clients of a real server, from
a hub and a registry on loopback. Needs the Debian package docker-registry."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openai
import pytest
from ggufmaker import model as made
from hub import Hub, sha256
from registry import Front, Registry, titled
from serving import DEMO, FRANCE, STORY, Server, cache, text, wait_until

from mdl.config import Settings
from mdl.errors import Busy, MdlError, UsageError
from mdl.library import Library, Watch
from mdl.reference import Reference
from mdl.server import abilities, guard
from mdl.server.failure import Refused
from mdl.server.jobs import SAMPLE_SECONDS, Jobs, Stop, Tally, download_hosts
from mdl.server.options import Limits, ServeOptions
from mdl.settings import parse

CONTENT = DEMO.read_bytes()
PARIS = "The capital of France is Paris."
SLOW = 800_000.0  # bytes a second: five seconds for the demo, if nobody stops it
SOME = 600_000  # bytes, of which a part is kept
OVER = ("done", "cancelled", "error")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(autouse=True)
def calm(hub: Hub) -> None:
    """Nothing is left of what an earlier test wanted of the hub."""
    hub.rate = None
    hub.faults.clear()
    hub.forget()
    hub.sent.clear()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With models that were put there by hand, each for a test or two."""
    return cache(tmp_path_factory.mktemp("shared") / "home", "endless", "state", "idle", "torn", "odd")


@pytest.fixture(scope="module")
def server(home: Path, hub: Hub) -> Iterator[Server]:
    """What most tests ask."""
    with serve(home, hub, engine={"context": 1024}) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def name(request: pytest.FixtureRequest, hub: Hub) -> str:
    """A model of the hub's that no other test has."""
    return add(hub, f"org/m{sha256(request.node.nodeid.encode())[:12]}")


def serve(home: Path, hub: Hub, settings: dict[str, Any] | None = None, **options: Any) -> Server:
    return Server(home, settings={"hf_endpoint": hub.url, **(settings or {})}, **options)


def add(hub: Hub, name: str, content: bytes | None = None) -> str:
    hub.add(name, {file_of(name): content or content_of(name), "README.md": b"# Tiny"})
    return name


def content_of(name: str) -> bytes:
    """The demo, with something behind it, so that no other model shares it."""
    return CONTENT + name.encode()


def post(server: Server, path: str, fields: Any = None, **headers: str) -> tuple[int, Any]:
    body = None if fields is None else json.dumps(fields).encode()
    return server.ask("POST", path, body, headers)[:2]


def get(server: Server, path: str) -> Any:
    status, answer, _ = server.ask("GET", path)
    assert status == 200, answer
    return answer


def fetch(server: Server, source: str) -> dict[str, Any]:
    """A download that has begun."""
    status, job = post(server, "/v1/models", {"source_url": source})
    assert status == 202, job
    return dict(job)


def look(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    return dict(get(server, f"/v1/jobs/{job['id']}"))


def ended(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    wait_until(lambda: look(server, job)["state"] in OVER, 20)
    return look(server, job)


def arriving(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    """When some of it has come."""
    wait_until(lambda: look(server, job)["bytes"] > SOME, 20)
    return look(server, job)


def state(server: Server, name: str) -> str:
    return str(get(server, f"/v1/models/{name}/state")["state"])


def full(name: str) -> str:
    """What a model of the hub's is called in full."""
    return f"huggingface.co/{name}:Q8_0"


def file_of(name: str) -> str:
    return f"{name.partition('/')[2]}-Q8_0.gguf"


def loaded(server: Server) -> list[str]:
    return [engine["model"] for engine in get(server, "/mdl/engines")["engines"]]


def requests(server: Server, name: str) -> int:
    """How many it answers."""
    engines = get(server, "/mdl/engines")["engines"]
    return sum(engine["requests"] for engine in engines if name in engine["model"])


def talk(server: Server) -> tuple[HTTPConnection, HTTPResponse]:
    """An answer that does not end."""
    connection = server.connect()
    fields = {"model": "endless", "messages": STORY, "stream": True, "max_tokens": 100_000}
    connection.request("POST", "/v1/chat/completions", json.dumps(fields))
    response = connection.getresponse()
    response.read(100)
    return connection, response


def hang_up(connection: HTTPConnection, response: HTTPResponse) -> None:
    response.close()
    connection.close()


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key or "none", max_retries=0)


def events(response: HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each, as they come."""
    fields: dict[str, str] = {}
    for line in response:
        if line.strip():
            name, _, value = line.decode().strip().partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], json.loads(fields["data"])
            fields = {}


def watch(server: Server, job: dict[str, Any], last: str = "") -> HTTPResponse:
    connection = server.connect()
    connection.request("GET", f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": last})
    return connection.getresponse()


# Beside OpenAI's list


def test_the_real_client_lists_gets_and_deletes(server: Server, name: str) -> None:
    job = ended(server, fetch(server, name))
    with client(server) as api:
        listed = {model.id: model for model in api.models.list()}
        assert {"demo", full(name)} <= set(listed) and job["model"] == full(name)
        found = api.models.retrieve(full(name))
        assert found == listed[full(name)] and found.owned_by == "org"
        gone = api.models.delete(full(name))
        assert (gone.id, gone.object, gone.deleted) == (full(name), "model", True)
        assert full(name) not in {model.id for model in api.models.list()}
        with pytest.raises(openai.NotFoundError):
            api.models.delete(full(name))


def test_a_list_tells_state_size_and_what_a_model_can_do(server: Server) -> None:
    post(server, "/v1/models/demo/stop")
    found = get(server, "/v1/models/demo")
    assert found in get(server, "/v1/models")["data"] and found in get(server, "/models")["data"]
    del found["created"]
    assert found == {
        "id": "demo", "object": "model", "owned_by": "mdl", "reference": "demo", "version": "n/a",
        "state": "ready", "loaded": False, "size": len(CONTENT), "format": "gguf", "quantization": "Q8_0",
        "architecture": "llama", "parameters": 3672320, "context_length": 2048,
        "capabilities": ["completion", "chat", "tools", "thinking"],
    }  # fmt: skip
    server.chat()
    found = get(server, "/v1/models/demo")
    assert (found["state"], found["loaded"]) == ("running", True)


def test_ids_come_with_slashes_and_colons_or_encoded(server: Server, name: str) -> None:
    ended(server, fetch(server, name))
    short = name.partition("/")[2]
    for called in (full(name), f"{name}:Q8_0", f"hf.co/{name}", f"hf://{name}:q8_0", short, f"{short}:Q8_0"):
        for spelled in (quote(called, safe="/:"), quote(called, safe="")):
            found = get(server, f"/v1/models/{spelled}")
            assert (found["id"], found["reference"]) == (called, full(name))
            assert get(server, f"/v1/models/{spelled}/state")["id"] == called
            assert get(server, f"/v1/models/{spelled}/metadata")["reference"] == full(name)
    assert server.ask("DELETE", f"/v1/models/{quote(full(name), safe='')}")[0] == 200
    assert server.ask("GET", f"/v1/models/{full(name)}")[0] == 404


def test_an_id_that_ends_like_a_route_has_its_slash_encoded(server: Server) -> None:
    called = "quay.io/org/state"
    assert get(server, f"/v1/models/{quote(called, safe='')}")["id"] == called
    assert get(server, f"/v1/models/{quote(called, safe='')}/state")["id"] == called
    assert get(server, f"/v1/models/{called}")["id"] == "quay.io/org"  # the state of another
    assert server.ask("POST", f"/v1/models/{quote('quay.io/org/start', safe='')}")[0] == 405
    assert server.ask("DELETE", f"/v1/models/{quote(called, safe='')}")[0] == 200


def describe(home: Path, name: str, source: str) -> None:
    """A model that is only a model.json."""
    absent = home / "models" / "quay.io" / "org" / name
    absent.mkdir()
    (absent / "model.json").write_text(json.dumps({"source_url": source}))


def test_all_models_are_those_too_that_cannot_be_asked(server: Server, home: Path) -> None:
    describe(home, "absent", "org/absent")
    (home / "models/quay.io/org/torn/torn.gguf").write_bytes(CONTENT[:100_000])
    usual = {model["id"] for model in get(server, "/v1/models")["data"]}
    states = {model["id"]: model["state"] for model in get(server, "/v1/models?all=true")["data"]}
    assert usual < set(states)
    assert (states["quay.io/org/absent"], states["quay.io/org/torn"]) == ("not-downloaded", "error")
    assert state(server, "quay.io/org/absent") == "not-downloaded"
    assert server.ask("GET", "/v1/models?all=maybe")[1]["error"]["param"] == "all"


@pytest.mark.parametrize(
    ("header", "able"),
    [
        ({}, ["completion", "chat"]),
        ({"tokenizer.chat_template": "{% if tools %}…"}, ["completion", "chat", "tools"]),
        ({"tokenizer.chat_template": "{{ enable_thinking }}"}, ["completion", "chat", "thinking"]),
        ({"tokenizer.chat_template": "{{ toolset }} {{ rethinking }}"}, ["completion", "chat"]),
        ({"tokenizer.ggml.fim_pre_token_id": 7}, ["completion", "chat", "infill"]),
        ({"bert.pooling_type": 1}, ["embedding"]),
        ({"bert.attention.causal": False}, ["embedding"]),
        ({"bert.pooling_type": 4}, ["rerank"]),
        ({"bert.pooling_type": [4], "tokenizer.chat_template": 5}, ["completion", "chat"]),
    ],
)
def test_what_a_model_can_do_is_read_off_its_header(header: dict[str, Any], able: list[str]) -> None:
    assert list(abilities.read({"general.architecture": "bert", **header})) == able


def test_metadata_are_what_is_recorded_and_what_the_header_says_but_no_paths(
    server: Server, hub: Hub, name: str, home: Path
) -> None:
    odd = made({"llama.rope.freq_base": float("nan")})
    add(hub, name, odd)
    ended(server, fetch(server, name))
    found = get(server, f"/v1/models/{name}/metadata")
    assert {file["name"]: file["sha256"] for file in found["files"]} == {
        file_of(name): sha256(odd),
        "README.md": sha256(b"# Tiny"),
    }
    assert found["revision"]["name"] == "main" and not found["partial"]
    assert found["header"]["general.architecture"] == "llama"
    assert found["header"]["llama.rope.freq_base"] is None  # JSON has no word for what it is
    assert str(home) not in json.dumps(found)


# Fetching


def test_a_model_is_fetched_from_the_hub_and_answers(server: Server, name: str) -> None:
    status, job, headers = server.ask("POST", "/v1/models", json.dumps({"source_url": name}).encode())
    assert (status, headers["Location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["object"], job["model"], job["error"]) == ("job", f"huggingface.co/{name}", None)
    done = ended(server, job)
    size = len(content_of(name)) + len("# Tiny")
    assert (done["state"], done["bytes"], done["total"]) == ("done", size, size)
    assert (done["model"], done["eta"], done["speed"]) == (full(name), None, None)
    assert done["created"] <= done["ended"] <= time.time()
    assert get(server, "/v1/jobs")["data"][0] == done == get(server, f"/v1/models/{name}/download")
    assert text(server.chat(model=name)[1]) == PARIS


def test_the_source_is_any_reference_of_the_command_line(server: Server, name: str) -> None:
    page = f"https://huggingface.co/{name}/blob/main/{file_of(name)}"
    for path, field, source in (
        ("/v1/models", "source_url", name),
        ("/v1/models", "model", f"hf.co/{name}:q8_0"),
        ("/models", "source_url", page),
        ("/models", "model", f"hf://{name}"),
    ):
        status, job = post(server, path, {field: source})
        assert (status, ended(server, job)["model"]) == (202, full(name)), source
    status, job = post(server, f"/v1/models/{quote(full(name), safe='')}/download")
    assert (status, ended(server, job)["model"]) == (202, full(name))


def test_a_model_is_fetched_from_a_registry(
    tmp_path: Path, hub: Hub, front: Front, registry: Registry
) -> None:
    path = "management/tiny"
    registry.push(path, "v1", [titled("demo.gguf", CONTENT), titled("LICENSE", b"MIT")])
    front.now.cut = [1 << 20]  # once
    settings = {"download_hosts": [front.host], "insecure": [front.host]}
    with serve(tmp_path / "home", hub, settings) as server:
        name = f"{front.host}/{path}:v1"
        done = ended(server, fetch(server, f"oci://{name}"))
        assert (done["state"], done["model"]) == ("done", name), done
        assert text(server.chat(model=name)[1]) == PARIS
        status, gone, _ = server.ask("DELETE", f"/v1/models/{name}")
        assert (status, gone["freed"]) == (200, len(CONTENT) + 3)


def test_what_is_here_is_looked_for_at_its_source_again(server: Server, hub: Hub, name: str) -> None:
    ended(server, fetch(server, name))
    hub.repositories[name].commit({file_of(name): made({"general.name": "new"})})
    assert ended(server, fetch(server, name))["state"] == "done"
    assert get(server, f"/v1/models/{name}/metadata")["header"]["general.name"] == "new"
    assert ended(server, fetch(server, "demo"))["bytes"] == len(CONTENT)  # has no source, and needs none


def test_a_model_that_is_only_a_json_is_fetched_from_where_that_says_if_that_may_be(
    server: Server, name: str, home: Path
) -> None:
    described = name.partition("/")[2]
    describe(home, described, name)
    status, job = post(server, f"/v1/models/quay.io/org/{described}/download")
    assert (status, ended(server, job)["state"]) == (202, "done")
    assert text(server.chat(model=f"quay.io/org/{described}")[1]) == PARIS
    for index, evil in enumerate(("https://evil.example/x.gguf", "file:///etc/passwd", "/etc/passwd")):
        describe(home, f"evil{index}", evil)
        status, job = post(server, f"/v1/models/evil{index}/download")
        error = ended(server, job)["error"] if status == 202 else job["error"]
        assert status in (202, 403) and "clients" in error["message"], evil


def test_a_connection_that_is_cut_is_taken_up_again(server: Server, hub: Hub, name: str) -> None:
    hub.cut(f"{file_of(name)}?Signature", 300_000)
    assert ended(server, fetch(server, name))["state"] == "done"
    assert len(hub.requests(file_of(name), "cdn")) > 1
    assert text(server.chat(model=name)[1]) == PARIS


def test_a_failure_has_the_message_and_the_hint_of_the_command(
    server: Server, hub: Hub, name: str, tmp_path: Path
) -> None:
    hub.add("org/locked", {"a.gguf": CONTENT}, gated="manual")
    for wrong in ("org/none", "org/locked", f"{name}:Q2_K"):
        job = ended(server, fetch(server, wrong))
        with pytest.raises(MdlError) as caught:
            Library(Settings(tmp_path / "other", hf_endpoint=hub.url)).download(wrong)
        told = {"code": caught.value.code, "message": caught.value.message, "hint": caught.value.hint}
        assert (job["state"], job["error"]) == ("error", told)
        found = get(server, f"/v1/models/{wrong}/state")
        assert (found["state"], found["error"], found["job"]) == ("error", told, job)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "source_url"),
        ({"source_url": ""}, 400, "source_url"),
        ({"source_url": 5}, 400, "source_url"),
        ({"source_url": "demo", "model": "other"}, 400, "source_url"),
        ({"source_url": "demo", "path": "/tmp"}, 400, "path"),
        ({"source_url": "a\nb"}, 400, None),
        ({"source_url": "x" * 5000}, 400, None),
        ({"source_url": "nothing"}, 404, None),
        ([], 400, None),
    ],
)
def test_what_names_nothing_to_fetch_is_refused(
    server: Server, fields: Any, status: int, param: str | None
) -> None:
    before = get(server, "/v1/jobs")
    got, answer = post(server, "/v1/models", fields)
    assert (got, answer["error"]["param"]) == (status, param)
    assert get(server, "/v1/jobs") == before


# Watching


def test_progress_comes_as_events_until_the_end(server: Server, hub: Hub, name: str) -> None:
    hub.rate = 4e6
    heard = list(events(watch(server, fetch(server, name))))
    *running, (kind, last) = heard
    assert (kind, last["state"]) == ("done", "done")
    assert {kind for kind, _ in running} == {"progress"} and len(running) >= 3
    counts = [data["bytes"] for _, data in heard]
    assert counts == sorted(counts) and any(0 < count < counts[-1] for count in counts)
    assert any(data["speed"] and data["eta"] is not None for _, data in running)
    assert last == look(server, last)


def test_who_comes_back_hears_the_rest_and_after_the_end_nothing(server: Server, hub: Hub, name: str) -> None:
    hub.rate = 4e6
    job = fetch(server, name)
    first = watch(server, job)
    next(events(first))
    first.close()
    *_, (kind, _) = events(watch(server, job, "progress"))
    assert kind == "done"
    assert [kind for kind, _ in events(watch(server, job))] == ["done"]  # who has not heard it yet
    assert watch(server, job, "done").status == 204  # an EventSource stays away then


def test_a_failure_is_an_event(server: Server) -> None:
    *_, (kind, last) = events(watch(server, fetch(server, "org/none")))
    assert (kind, last["state"], last["error"]["code"]) == ("error", "error", 3)


# Several at once


def test_two_clients_that_want_the_same_model_share_its_download(server: Server, hub: Hub, name: str) -> None:
    hub.rate = 4e6
    names = [name, f"hf.co/{name}", f"https://huggingface.co/{name}", name]
    with ThreadPoolExecutor(len(names)) as threads:
        jobs = list(threads.map(lambda name: fetch(server, name), names))
        assert len({job["id"] for job in jobs}) == 1
        ends = list(threads.map(lambda job: list(events(watch(server, job)))[-1][0], jobs))
    assert ends == ["done"] * len(names)
    assert len(hub.requests(file_of(name), "cdn")) == 1
    assert fetch(server, name)["id"] != jobs[0]["id"]  # what is over is nobody's to join


def test_so_many_at_once_and_so_many_wait_and_so_many_are_kept(tmp_path: Path, hub: Hub) -> None:
    """And where nothing comes for a while, comments break the silence."""
    limits = {"downloads": 1, "jobs": 2, "silence_seconds": 0.5}
    with serve(tmp_path / "home", hub, limits=limits) as server:
        release = threading.Event()
        hub.before("/api/models/org/one", lambda: release.wait(20))
        first = fetch(server, add(hub, "org/one"))
        wait_until(lambda: look(server, first)["state"] == "downloading")
        second = fetch(server, add(hub, "org/two", made({"general.name": "two"})))
        assert look(server, second)["state"] == "queued"
        response = watch(server, second)
        assert [response.readline() for _ in range(4)][::3] == [b"event: progress\n", b": still at it\n"]
        response.close()
        status, answer, headers = server.ask("POST", "/models", b'{"model": "org/three"}')
        assert (status, answer["error"]["code"], "Retry-After" in headers) == (503, "overloaded", True)
        assert post(server, f"/v1/jobs/{second['id']}/cancel")[0] == 200
        assert ended(server, second)["state"] == "cancelled"
        third = fetch(server, "org/two")
        release.set()
        assert ended(server, third)["state"] == "done"  # its turn has come
        fetched = [ended(server, fetch(server, "org/two"))["id"] for _ in range(3)]
        assert [job["id"] for job in get(server, "/v1/jobs")["data"]] == fetched[:0:-1]
        assert server.ask("GET", f"/v1/jobs/{first['id']}")[0] == 404


# Cancelled, killed, restarted


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_download_is_cancelled_and_the_next_one_goes_on(
    server: Server, hub: Hub, name: str, method: str
) -> None:
    hub.rate = SLOW
    job = fetch(server, name)
    arriving(server, job)
    path = f"/v1/jobs/{job['id']}{'/cancel' if method == 'POST' else ''}"
    status, answer, _ = server.ask(method, path)
    assert (status, answer["state"]) == (200, "cancelling")
    over = ended(server, job)
    assert (over["state"], over["error"]) == ("cancelled", None)
    assert server.ask(method, path)[1] == over  # again
    assert state(server, name) == "not-downloaded"
    resume(server, hub, name)


def resume(server: Server, hub: Hub, name: str) -> None:
    """Only what is missing comes."""
    hub.rate = None
    hub.sent.clear()
    assert ended(server, fetch(server, name))["state"] == "done"
    assert text(server.chat(model=name)[1]) == PARIS
    assert 0 < hub.sent["cdn"] < len(CONTENT)


def test_a_download_that_stands_still_is_cancelled_at_once(server: Server, hub: Hub, name: str) -> None:
    release = threading.Event()
    hub.before(file_of(name), lambda: release.wait(20))
    job = fetch(server, name)
    wait_until(lambda: hub.requests(file_of(name)))
    server.ask("DELETE", f"/v1/jobs/{job['id']}")
    assert ended(server, job)["state"] == "cancelled"
    assert not release.is_set()
    release.set()


def test_a_source_that_does_not_answer_keeps_nobody_from_cancelling(
    server: Server, hub: Hub, name: str
) -> None:
    release = threading.Event()
    hub.before(f"/api/models/{name}", lambda: release.wait(30))
    job = fetch(server, name)
    wait_until(lambda: hub.requests(f"/api/models/{name}"))
    server.ask("DELETE", f"/v1/jobs/{job['id']}")
    assert look(server, job)["state"] == "cancelling"
    again = fetch(server, name)  # nobody joins what is ending
    assert again["id"] != job["id"] and ended(server, again)["state"] == "done"
    assert ended(server, job)["state"] == "cancelled"
    release.set()
    time.sleep(0.2)
    assert len(hub.requests(file_of(name), "cdn")) == 1  # what was left behind fetches nothing any more


def test_what_is_cancelled_at_once_is_over_too(tmp_path: Path) -> None:
    async def cancelled() -> str:
        jobs = Jobs(Library(Settings(tmp_path / "home")), Limits())
        job = await jobs.start("demo")
        jobs.cancel(job)
        await job.over.wait()
        await jobs.close()
        with pytest.raises(Busy):
            await jobs.start("demo")
        return job.state

    assert asyncio.run(cancelled()) == "cancelled"


def test_a_server_that_ends_or_is_killed_keeps_what_has_come(tmp_path: Path, hub: Hub, name: str) -> None:
    hub.rate = SLOW
    with serve(tmp_path / "home", hub) as server:
        job = fetch(server, name)
        watching = events(watch(server, job))
        arriving(server, job)
        assert server.end(signal.SIGTERM, patience=8) == -signal.SIGTERM
        *_, (kind, last) = watching
        assert (kind, last["state"]) == ("cancelled", "cancelled")
    with serve(tmp_path / "home", hub) as server:
        assert get(server, "/v1/jobs")["data"] == []
        assert state(server, name) == "not-downloaded"
        arrived = last["bytes"]
        job = fetch(server, name)
        wait_until(lambda: look(server, job)["bytes"] > arrived + SOME)
        server.process.kill()
        server.process.wait()
    with serve(tmp_path / "home", hub) as server:
        resume(server, hub, name)


def test_what_is_cancelled_before_it_begins_asks_nobody_for_bytes(
    library: Library, hub: Hub, name: str
) -> None:
    with pytest.raises(MdlError, match="stopped"):
        library.download(name, Watch(stoppable=lambda cancel: cancel()))
    assert hub.requests(port="cdn") == [] and library.list() == []


def test_what_is_stopped_before_it_says_how_is_stopped_then() -> None:
    stop, heard = Stop(), []
    stop.ends(lambda: heard.append("first"))
    stop.pull()
    stop.ends(lambda: heard.append("second"))
    assert heard == ["first", "second"] and stop.pulled


# States, start and stop


def test_a_model_goes_through_its_states(server: Server, hub: Hub, name: str) -> None:
    hub.rate = 4e6
    assert state(server, name) == "not-downloaded"
    job = fetch(server, name)
    assert state(server, name) == "downloading"
    ended(server, job)
    assert state(server, name) == "ready"
    with ThreadPoolExecutor() as threads:
        starting = threads.submit(post, server, f"/v1/models/{name}/start")
        wait_until(lambda: state(server, name) == "starting")
        status, answer = starting.result()
    assert (status, answer["state"]) == (200, "running")
    assert answer["engine"]["model"] == full(name) and answer["engine"]["pid"]
    assert post(server, f"/v1/models/{name}/start")[1]["state"] == "running"
    assert post(server, f"/v1/models/{name}/stop")[1]["state"] == "ready"
    assert post(server, f"/v1/models/{name}/stop")[1]["state"] == "ready"  # so it is already
    assert full(name) not in loaded(server)


def test_a_model_that_is_stopped_gives_its_answers_first(server: Server) -> None:
    connection, response = talk(server)
    with ThreadPoolExecutor() as threads:
        stopping = threads.submit(post, server, "/v1/models/endless/stop", {})
        wait_until(lambda: state(server, "endless") == "stopping")
        assert not stopping.done()
        hang_up(connection, response)
        assert stopping.result(10)[1]["state"] == "ready"
    connection, response = talk(server)
    whole = {"model": "endless", "messages": STORY, "max_tokens": 100_000}
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(post, server, "/v1/chat/completions", whole)
        wait_until(lambda: requests(server, "endless") == 2)
        assert post(server, "/v1/models/endless/stop", {"force": True})[1]["state"] == "ready"
        status, answer = waiting.result()
    assert (status, answer["error"]["message"]) == (503, "the model was stopped (ask for it again)")
    assert b"the model was stopped" in response.read()
    hang_up(connection, response)


def test_a_model_that_cannot_be_loaded_says_why(server: Server, home: Path) -> None:
    for name, content in (("torn", CONTENT[:100_000]), ("odd", made({"general.architecture": "odd"}))):
        (home / f"models/quay.io/org/{name}/{name}.gguf").write_bytes(content)
    found = get(server, "/v1/models/torn/state")
    assert found["state"] == "error" and found["error"]["message"]
    assert post(server, "/v1/models/torn/start")[0] == 422
    assert state(server, "odd") == "ready"
    status, answer = post(server, "/v1/models/odd/start")
    assert status >= 400
    found = get(server, "/v1/models/odd/state")
    assert found["state"] == "error" and found["error"]["message"] in answer["error"]["message"]


def test_start_takes_how_long_the_model_stays(server: Server) -> None:
    assert post(server, "/v1/models/demo/start", {"keep_alive": 0.5})[1]["state"] == "running"
    wait_until(lambda: state(server, "demo") == "ready")
    status, answer = post(server, "/v1/models/demo/start", {"keep_alive": "soon"})
    assert (status, answer["error"]["param"]) == (400, "keep_alive")
    status, answer = post(server, "/v1/models/demo/stop", {"hard": True})
    assert (status, answer["error"]["param"]) == (400, "hard")


def test_what_is_nowhere_has_no_state(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.gguf").write_bytes(CONTENT)
    for name in ("nothing", str(tmp_path / "secret.gguf"), "./x", "sha256:" + "0" * 64):
        path = f"/v1/models/{quote(name, safe='')}"
        for method, verb in (("GET", "/state"), ("GET", "/metadata"), ("POST", "/start"), ("POST", "/stop")):
            status, answer, _ = server.ask(method, path + verb)
            assert (status, answer["error"]["code"]) == (404, "model_not_found"), (name, verb)
        assert server.ask("GET", path)[0] == 404


# Removing


def test_what_is_idle_is_let_go_of_and_removed(server: Server, home: Path) -> None:
    server.chat(model="idle")
    assert "quay.io/org/idle" in loaded(server)
    assert server.ask("DELETE", "/v1/models/idle")[0] == 200
    assert "quay.io/org/idle" not in loaded(server)
    assert not (home / "models/quay.io/org/idle").exists()
    assert server.chat(model="idle")[0] == 404


def test_what_is_in_use_stays(server: Server, hub: Hub, name: str, home: Path) -> None:
    connection, response = talk(server)
    assert "quay.io/org/endless is answering requests" in conflict(server, "endless")
    response.read(100)
    hang_up(connection, response)
    ended(server, fetch(server, name))
    library = Library(Settings(home))
    with library.store.locks.lease(library.here(name).folder):
        assert "in use" in conflict(server, name)
    hub.rate = SLOW
    hub.repositories[name].commit({file_of(name): CONTENT + b"newer"})
    job = fetch(server, name)
    assert "is being downloaded" in conflict(server, name)
    server.ask("DELETE", f"/v1/jobs/{job['id']}")
    ended(server, job)
    assert server.ask("DELETE", f"/v1/models/{name}")[0] == 200


def conflict(server: Server, name: str) -> str:
    status, answer, _ = server.ask("DELETE", f"/v1/models/{name}")
    assert (status, answer["error"]["code"]) == (409, "model_in_use"), answer
    return str(answer["error"]["message"])


def test_what_a_server_was_started_for_stays(tmp_path: Path) -> None:
    home = cache(tmp_path / "home", "first", "other")
    describe(home, "planned", "org/planned")
    with Server(home, models=["first"]) as server:
        assert "serves" in conflict(server, "first")
        for name in ("other", "planned"):  # not served: none of a client's business
            assert server.ask("DELETE", f"/v1/models/{name}")[0] == 404
        assert state(server, "first") == "running"


def test_a_version_is_removed_and_the_others_stay(server: Server, hub: Hub) -> None:
    hub.add("org/two", {"two-Q8_0.gguf": CONTENT, "two-Q4_K_M.gguf": made({"general.name": "small"})})
    for version in ("Q8_0", "Q4_K_M"):
        ended(server, fetch(server, f"org/two:{version}"))
    status, answer, _ = server.ask("DELETE", "/v1/models/org/two")
    assert status == 400 and "2 versions" in answer["error"]["message"]
    assert server.ask("DELETE", "/v1/models/org/two:Q4_K_M")[0] == 200
    assert text(server.chat(model="org/two")[1]) == PARIS


def test_what_is_only_a_json_is_removed(server: Server, home: Path) -> None:
    describe(home, "planned", "org/planned")
    assert server.ask("DELETE", "/v1/models/quay.io/org/planned")[0] == 200
    assert not (home / "models/quay.io/org/planned").exists()
    assert server.ask("DELETE", "/v1/models/quay.io/org/planned")[0] == 404


def test_what_ships_with_mdl_is_not_removed(server: Server) -> None:
    status, answer, _ = server.ask("DELETE", "/v1/models/demo")
    assert (status, DEMO.exists()) == (400, True)
    assert str(DEMO) not in answer["error"]["message"]


# Who may, and from where


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd", "./models", "~/x.gguf", "../x", "file:///etc/passwd", "FILE:///etc/passwd",
        "https://169.254.169.254/latest/x.gguf", "http://127.0.0.1:8000/x.gguf", "http://localhost/x.gguf",
        "https://huggingface.co.evil.example/org/x.gguf", "quay.io/org/name:tag", "oci://quay.io/org/name",
        "docker.io/org/name", "evil",
    ],
)  # fmt: skip
def test_paths_and_other_hosts_are_refused(tmp_path: Path, hub: Hub, source: str) -> None:
    aliases = {"evil": "https://evil.example/x.gguf"}
    jobs = Jobs(Library(Settings(tmp_path / "home", hf_endpoint=hub.url, aliases=aliases)), Limits())
    with pytest.raises(Refused) as caught:
        asyncio.run(jobs.start(source))
    assert (caught.value.status, jobs.all()) == (403, [])


def test_no_client_learns_what_lies_beside_the_server(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    (full / "org" / "two").mkdir(parents=True)
    for path in ("one.gguf", "org/two/a.gguf", "org/two/b.gguf", "org/broken.gguf"):
        (full / path).write_bytes(CONTENT if "broken" not in path else b"GGUF")
    empty.mkdir()
    names = ("..", ".", "one.gguf", "org", "org/two", "org/two/a.gguf", "org/broken.gguf")

    def told(folder: Path) -> list[tuple[int, Any]]:
        monkeypatch.chdir(folder)
        with serve(tmp_path / "home", hub) as server:
            paths = [f"/v1/models/{quote(name, safe='').replace('.', '%2E')}" for name in names]
            routes = ("DELETE", ""), ("GET", "/state"), ("GET", ""), ("POST", "/start")
            heard = [server.ask(method, f"{path}{end}")[:2] for path in paths for method, end in routes]
            fetched = [post(server, "/v1/models", {"source_url": name}) for name in names]
        return [*heard, *((status, answer.get("error")) for status, answer in fetched)]

    assert told(full) == told(empty)


def test_files_are_refused_whatever_hosts_are_allowed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(CONTENT)
    aliases = {"alias": str(secret)}
    settings = Settings(tmp_path / "home", download_hosts=("*",), aliases=aliases)
    for source in ("FILE:///etc/passwd", f"File://{secret}", "alias"):
        with pytest.raises(Refused, match="paths are not fetched"):
            asyncio.run(Jobs(Library(settings), Limits()).start(source))


def test_refusals_reach_the_client(server: Server, hub: Hub) -> None:
    address = hub.put("/x.gguf", CONTENT)
    for source in (address, "/etc/passwd", "file:///etc/passwd"):
        status, answer = post(server, "/v1/models", {"source_url": source})
        assert (status, answer["error"]["type"]) == (403, "invalid_request_error")
    assert hub.requests() == []


def test_hosts_are_allowed_by_a_setting_and_no_signature_is_told_to_anybody(tmp_path: Path, hub: Hub) -> None:
    address = hub.put("/x.gguf", CONTENT)
    settings = {"download_hosts": [hub.url.removeprefix("http://")]}
    with serve(tmp_path / "home", hub, settings) as server:
        assert post(server, "/v1/models", {"source_url": "org/tiny"})[0] == 403  # no longer among them
        told = []
        for path, became in (("/x.gguf", "done"), ("/none.gguf", "error")):
            job = fetch(server, f"{hub.url}{path}?signature=s3cr3t")
            told += [job, list(events(watch(server, job))), get(server, "/v1/jobs")]
            assert look(server, job)["state"] == became
        assert "s3cr3t" not in json.dumps(told) and "s3cr3t" not in server.log.read_text()
        assert get(server, f"/v1/models/{quote(address, safe='')}")["state"] == "ready"


def test_by_default_the_hub_ollama_and_the_hosts_of_short_names_are_allowed(tmp_path: Path) -> None:
    settings = Settings(tmp_path, hosts=("quay.io/ai-lab", "localhost:5000"))
    assert download_hosts(settings) == {"huggingface.co", "registry.ollama.ai", "quay.io", "localhost:5000"}
    for given, said in (("*", ("*",)), ("hf.co, quay.io", ("huggingface.co", "quay.io"))):
        assert parse("download_hosts", given, "MDL_DOWNLOAD_HOSTS") == said
    with pytest.raises(UsageError, match="MDL_DOWNLOAD_HOSTS"):
        parse("download_hosts", "quay.io/*", "MDL_DOWNLOAD_HOSTS")


def test_the_place_that_is_really_asked_is_looked_at(tmp_path: Path) -> None:
    asked: list[Reference] = []

    def refuse(place: Reference) -> None:
        asked.append(place)
        raise MdlError("not there")

    library = Library(Settings(tmp_path / "home", aliases={"evil": "https://evil.example/x.gguf"}))
    with pytest.raises(MdlError, match="not there"):
        library.download("evil", Watch(place=refuse))
    assert [place.host for place in asked] == ["evil.example"]


def test_only_this_machine_or_who_has_the_key_fetches_and_removes() -> None:
    def scope(address: str | None, *headers: bytes) -> dict[str, Any]:
        return {"client": address and (address, 5), "headers": [(name, b"x") for name in headers]}

    here, key = ServeOptions(insecure=True), ServeOptions(api_key="secret")
    assert guard.is_trusted(scope("127.0.0.1"), here) and guard.is_trusted(scope("::1"), here)
    for stranger in (scope("192.0.2.1"), scope("fe80::1%eth0"), scope(None), scope("localhost")):
        assert not guard.is_trusted(stranger, here)
        assert guard.is_trusted(stranger, key)  # the guard has seen it
    for header in (b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"):
        assert not guard.is_trusted(scope("127.0.0.1", header), here)


def test_a_proxy_without_a_key_may_ask_models_but_change_nothing(server: Server, name: str) -> None:
    proxy = {"X-Forwarded-For": "192.0.2.1"}
    job = ended(server, fetch(server, name))
    for method, path, body in (
        ("POST", "/v1/models", b'{"source_url": "org/tiny"}'),
        ("POST", "/models", b'{"source_url": "org/tiny"}'),
        ("POST", f"/v1/models/{name}/download", b""),
        ("DELETE", f"/v1/models/{name}", None),
        ("DELETE", f"/v1/jobs/{job['id']}", None),
        ("POST", f"/v1/jobs/{job['id']}/cancel", b""),
    ):
        assert server.ask(method, path, body, proxy)[0] == 403, path
    assert server.ask("GET", f"/v1/models/{name}/state", None, proxy)[0] == 200
    body = json.dumps({"model": name, "messages": FRANCE}).encode()
    assert server.ask("POST", "/v1/chat/completions", body, proxy)[0] == 200


def test_with_a_key_a_proxy_may_and_offline_nothing_is_fetched(tmp_path: Path, hub: Hub) -> None:
    proxy = {"X-Forwarded-For": "192.0.2.1"}
    home = cache(tmp_path / "home", "first")
    with serve(home, hub, {"offline": True}, api_key="secret") as server:
        status, job = post(server, "/v1/models", {"source_url": "org/tiny"}, **proxy)
        error = ended(server, job)["error"]
        assert (status, error["code"]) == (202, 3) and "offline" in error["message"]
        assert hub.requests() == []
        wrong = {"Authorization": "Bearer wrong"}
        assert server.ask("DELETE", "/v1/models/first", None, wrong)[0] == 401
        assert server.ask("DELETE", "/v1/models/first", None, proxy)[0] == 200


# Figures


def test_each_route_has_its_own_name_in_the_figures(server: Server) -> None:
    routes = {
        "models/demo": "models/{name}",
        "models/demo/state": "models/{name}/state",
        "models/a/b:c/metadata": "models/{name}/metadata",
        "jobs/x": "jobs/{job}",
        "jobs/x/events": "jobs/{job}/events",
    }
    for path in routes:
        server.ask("GET", f"/v1/{path}")
    figures = server.ask("GET", "/metrics")[1].decode()
    for route in routes.values():
        assert f'mdl_requests_total{{route="/v1/{route}"' in figures
    assert "a/b:c" not in figures


def test_speed_is_that_of_the_last_while_and_bytes_are_of_the_whole_model() -> None:
    tally = Tally()
    assert (tally.bytes, tally.total, tally.speed) == (0, None, None)
    tally.started("a", 1000, 400)
    tally.advanced("a", 100)
    assert tally.bytes == 500
    time.sleep(SAMPLE_SECONDS)
    tally.advanced("a", 100)
    assert 0 < (tally.speed or 0) <= 200 / SAMPLE_SECONDS
    tally.started("a", 1000, 0)  # it starts over
    assert tally.bytes == 0
    tally.retrying("a", "the server is busy", 2)
    assert tally.note == "a: the server is busy; again in 2 s"
    tally.finished("a")
    tally.finish(1000)
    assert (tally.bytes, tally.total, tally.note) == (1000, 1000, None)


def test_what_is_over_is_forgotten_after_a_while(tmp_path: Path) -> None:
    async def fetched() -> int:
        jobs = Jobs(Library(Settings(tmp_path / "home")), Limits(job_seconds=0.05))
        job = await jobs.start("demo")
        await job.over.wait()
        await asyncio.sleep(0.1)
        return len(jobs.all())

    assert asyncio.run(fetched()) == 0
