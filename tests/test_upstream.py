"""Models at APIs: where they are asked, by which key, and what mdl chat and mdl serve make of them."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from apistand import EVENTS, Reply, Stand, answer, chunk, endless, failure, said, stream
from hypothesis import given
from hypothesis import strategies as st
from serving import FRANCE, STORY, Server, cache, wait_until

from mdl import apiengine, credentials, events, upstream
from mdl.apiengine import ApiEngine
from mdl.config import Settings
from mdl.credentials import Credentials
from mdl.engine.request import Chat, Delta, Format, Message, Sampling, ToolCall
from mdl.errors import AuthError, MdlError, NetworkError, NotFound, TooLong, UnsupportedModel, UsageError
from mdl.library import Library
from mdl.model import API, Model, Summary
from mdl.reference import Reference

KEY = "sk-hunter2-hunter2"
PARIS = "The capital of France is Paris."
ASKED = Chat((Message("user", "What is the capital of France?"),), Sampling(temperature=0))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have keys, and may be behind a proxy."""
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "MDL_UPSTREAM_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MDL_CONFIG", str(tmp_path / "config" / "config.toml"))


@pytest.fixture
def stand() -> Iterator[Stand]:
    running = Stand()
    yield running
    running.close()


def place(text: str, key: str = KEY, **settings: Any) -> upstream.Upstream:
    found = Reference.parse(text)
    return upstream.at(found, Settings(Path("/nowhere"), **settings), upstream.Key(key, "a test"))


def engine(stand: Stand, model: str = "v1/model", key: str = KEY) -> ApiEngine:
    return ApiEngine(place(f"openai://{stand.host}/{model}", key), Settings(Path("/nowhere")))


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


# Where a model is asked


@pytest.mark.parametrize(
    ("name", "url", "header"),
    [
        ("openai://api.openai.com/v1/gpt-4o", "https://api.openai.com/v1/chat", "Authorization"),
        ("openai://h.org:8443/v1/a/b", "https://h.org:8443/v1/chat", "Authorization"),
        ("openai://h.org/sonar", "https://h.org/chat", "Authorization"),
        ("openai://localhost:3000/v1/demo", "http://localhost:3000/v1/chat", "Authorization"),
        ("openai://127.0.0.1/v1/demo", "http://127.0.0.1/v1/chat", "Authorization"),
        ("openai://plain.org/v1/m", "http://plain.org/v1/chat", "Authorization"),
        ("azure://r.openai.azure.com/gpt", "https://r.openai.azure.com/openai/v1/chat", "api-key"),
        ("azure://r.x/openai/v1/gpt", "https://r.x/openai/v1/chat", "api-key"),
        ("azure://r.x/gpt?api-version=preview", "https://r.x/openai/v1/chat?api-version=preview", "api-key"),
        (
            "azure://r.x/gpt?api-version=2024-10-21",
            "https://r.x/openai/deployments/gpt/chat?api-version=2024-10-21",
            "api-key",
        ),
    ],
)
def test_a_reference_says_where_its_api_is_asked_and_how(name: str, url: str, header: str) -> None:
    found = place(name, insecure=("plain.org",))
    assert found.url("chat") == url
    assert list(found.headers) == [header]
    assert found.headers[header].endswith(KEY)


def test_a_model_of_an_api_is_resolved_without_anything_being_fetched_or_kept(tmp_path: Path) -> None:
    library = Library(Settings(tmp_path / "home", offline=True))
    resolution = library.resolve("openai://nowhere.example/v1/gpt-4o")
    assert [step.step for step in resolution.steps if step.outcome == "found"] == ["api"]
    assert resolution.model is not None and resolution.model.is_api
    assert library.get("openai://nowhere.example/v1/gpt-4o") == resolution.model
    assert list(library.list()) == []
    for refused in (library.removable, library.download, library.meant):
        with pytest.raises(UnsupportedModel, match="runs at an API"):
            refused("openai://nowhere.example/v1/gpt-4o")
    with pytest.raises(NotFound, match="offline"):
        upstream.of(resolution.model, library.settings)


@pytest.mark.parametrize(
    ("card", "name"),
    [
        (
            {"source_url": "openai://api.openai.com/v1/gpt-4o", "metadata": {"engine": "api"}},
            "openai://api.openai.com/v1/gpt-4o",
        ),
        (
            {
                "source_url": "https://api.openai.com/v1/chat/completions",
                "id": "gpt-4",
                "metadata": {"engine": "openai"},
            },
            "openai://api.openai.com/v1/gpt-4",
        ),
        (
            {"source_url": "https://h.org/", "id": "org/name", "metadata": {"engine": "api"}},
            "openai://h.org/#org/name",
        ),
        (
            {
                "source_url": "https://r.openai.azure.com",
                "id": "gpt",
                "metadata": {"engine": "azure"},
            },
            "azure://r.openai.azure.com/gpt",
        ),
        (
            {
                "source_url": "https://r.openai.azure.com/openai/deployments/gpt-4-hieu/chat/completions"
                "?api-version=2023-07-01-preview",
                "id": "azure-gpt-4",
                "metadata": {"engine": "openai"},
            },
            "azure://r.openai.azure.com/gpt-4-hieu?api-version=2023-07-01-preview",
        ),
        (
            {
                "source_url": "https://gateway.org/ai/openai/deployments/d/?api-version=2024-10-21",
                "metadata": {"engine": "azure"},
            },
            "azure://gateway.org/ai/d?api-version=2024-10-21",
        ),
        (
            {"source_url": "https://r.openai.azure.com/openai/v1/", "id": "d", "metadata": {"engine": "api"}},
            "azure://r.openai.azure.com/openai/v1/d",
        ),
    ],
)
def test_a_model_json_with_the_engine_api_says_where_it_is_asked(
    tmp_path: Path, card: dict[str, Any], name: str
) -> None:
    folder = tmp_path / "home" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(card))
    library = Library(Settings(tmp_path / "home"))
    model = library.here("mine")
    assert model.is_api
    assert str(upstream.reference_of(model)) == name
    assert [str(found.reference) for found in library.list()] == ["mine"]


@pytest.mark.parametrize("source", ["", "ftp://h.org/v1", "file:///v1", "https://", "h.org/v1"])
def test_a_model_json_without_an_address_is_an_error_that_says_what_to_write(
    tmp_path: Path, source: str
) -> None:
    card = {"source_url": source, "id": "m", "metadata": {"engine": "api"}}
    (tmp_path / "model.json").write_text(json.dumps(card))
    model = Model(
        Reference("short", "", "m"), tmp_path, (), Summary(format=API), card=tmp_path / "model.json"
    )
    with pytest.raises(UnsupportedModel, match="does not say where") as caught:
        upstream.of(model, Settings(tmp_path))
    assert "source_url" in caught.value.hint


# Keys


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("openai://api.openai.com/v1/m", "of-openai"),
        ("openai://eu.api.openai.com/v1/m", ""),
        ("openai://api.openai.com.evil.org/v1/m", ""),
        ("openai://api.openai.com:8080/v1/m", ""),
        ("azure://r.openai.azure.com/m", "of-azure"),
        ("openai://r.openai.azure.com/openai/v1/m", "of-azure"),
        ("azure://openai.azure.com.evil.org/m", ""),
        ("azure://evil.org/m", ""),
        ("openai://named.org/v1/m", "of-named"),
        ("openai://also.org:81/v1/m", "of-also="),
        ("openai://also.org/v1/m", ""),
    ],
)
def test_a_key_goes_only_to_the_host_that_it_is_for(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "of-azure")
    monkeypatch.setenv("MDL_UPSTREAM_KEYS", "named.org=of-named, also.org:81=of-also=")
    assert upstream.find_key(Reference.parse(name)).secret == secret


def test_a_key_of_the_environment_does_not_go_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    reference = Reference.parse("openai://api.openai.com/v1/m")
    plain = upstream.at(reference, Settings(Path("/nowhere"), insecure=("api.openai.com",)))
    assert (plain.address, plain.headers) == ("http://api.openai.com/v1", {})


def test_a_key_that_mdl_login_kept_is_found_and_a_registrys_password_is_none() -> None:
    credentials.store("kept.org", Credentials(upstream.USER, "kept"))
    credentials.store("quay.example", Credentials("somebody", "password"))
    found = upstream.find_key(Reference.parse("openai://kept.org/v1/m"))
    assert (found.secret, Path(found.source).name) == ("kept", "auth.json")
    assert upstream.find_key(Reference.parse("openai://quay.example/v1/m")).secret == ""


@pytest.mark.parametrize(("user", "secret"), [("<token>", "kept"), (upstream.USER, "kept"), ("somebody", "")])
def test_a_key_is_found_in_a_keyring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, secret: str
) -> None:
    program = tmp_path / "docker-credential-keyring"
    program.write_text(f"""#!/bin/sh\necho '{{"Username": "{user}", "Secret": "kept"}}'\n""")
    program.chmod(0o700)
    (tmp_path / "config.json").write_text('{"credHelpers": {"kept.org": "keyring"}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert upstream.find_key(Reference.parse("openai://kept.org/v1/m")).secret == secret


@pytest.mark.parametrize("secret", ["a b", "a\nHost: evil", "ключ", "\x00"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(AuthError) as caught:
        place("openai://h.org/v1/m", secret)
    assert secret not in caught.value.message + caught.value.hint


def test_a_key_is_in_no_record_that_is_printed() -> None:
    found = place("openai://h.org/v1/m")
    assert KEY not in f"{found} {found!r} {found.key!r} {found.key}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("openai://h.org/api/v1", "openai://h.org/api/v1/any"),
        ("openai://h.org/api/v1/", "openai://h.org/api/v1/any"),
        ("api.openai.com", "openai://api.openai.com/v1/any"),
        ("https://api.openai.com/v1", "openai://api.openai.com/v1/any"),
        ("r.openai.azure.com", "azure://r.openai.azure.com/any"),
        ("quay.io", None),
        ("https://quay.io", None),
    ],
)
def test_mdl_login_tells_apis_from_registries(text: str, name: str | None) -> None:
    found = upstream.as_api(text)
    assert (str(found) if found else None) == name


def test_mdl_login_keeps_a_key_that_the_api_takes_and_no_other(stand: Stand, tmp_path: Path) -> None:
    api = upstream.as_api(f"openai://{stand.host}/v1")
    assert api is not None
    stand.gives(failure(401, "no"))
    with pytest.raises(AuthError, match="refuses the key"):
        upstream.keep_key(api, KEY, Settings(tmp_path))
    assert upstream.find_key(api).secret == ""
    stand.gives(answer({"object": "list", "data": []}))
    kept = Path(upstream.keep_key(api, KEY, Settings(tmp_path)))
    assert [(asked.method, asked.path) for asked in stand.asked] == [("GET", "/v1/models")]
    assert stand.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert upstream.find_key(api).secret == KEY
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


# Events


@given(st.lists(st.sampled_from(["a", "é", "{}", " x", ""]), min_size=1), st.randoms(use_true_random=False))
def test_events_are_the_same_however_their_bytes_come(texts: list[str], chance: random.Random) -> None:
    end = chance.choice(["\n", "\r\n", "\r"])
    lines = "".join(
        f": a comment{end}data: {text}{end}data:y{end}event: x{end}{end}" for text in texts
    ).encode()
    cuts = sorted(chance.randrange(len(lines) + 1) for _ in range(chance.randrange(9)))
    pieces = [lines[a:b] for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
    assert list(events.data(pieces)) == [f"{text}\ny".encode() for text in texts]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_the_same_wherever_they_are_cut(end: str) -> None:
    lines = f"data: a{end}data:b{end}{end}: comment{end}data: c{end}{end}".encode()
    for cut in range(len(lines)):
        assert list(events.data([lines[:cut], lines[cut:]])) == [b"a\nb", b"c"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_event_is_told_before_what_follows_has_come(end: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield f"data: a{end}{end}".encode()
        raise AssertionError("the next piece was waited for")

    assert next(events.data(pieces())) == b"a"


@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"])
def test_an_event_without_an_end_is_given_up(piece: bytes) -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += len(piece)
            yield piece

    with pytest.raises(NetworkError, match="too long"):
        list(events.data(pieces()))
    assert taken < 2 * events.LONGEST


# What is asked


def body(chat: Chat, name: str = "openai://h.org/v1/m", given: tuple[str, ...] = ()) -> dict[str, Any]:
    found = apiengine.request(chat, place(name), given)
    assert (found.pop("model"), found.pop("stream"), found.pop("stream_options")) == (
        "m",
        True,
        {"include_usage": True},
    )
    return found


NEUTRAL = Sampling(**apiengine.NEUTRAL)


def test_only_what_was_asked_for_is_sent_of_the_sampling() -> None:
    chat = Chat((Message("user", "Hi"),), NEUTRAL)
    said = {"messages": [{"role": "user", "content": "Hi"}]}
    assert body(chat) == said
    assert body(chat, given=("temperature",)) == {**said, "temperature": 1.0}
    asked = replace(NEUTRAL, temperature=0.0, seed=7, stop=("x",), max_tokens=5, logit_bias=((1, -1.0),))
    assert body(replace(chat, sampling=asked)) == {
        **said,
        "temperature": 0.0,
        "seed": 7,
        "stop": ("x",),
        "max_tokens": 5,
        "logit_bias": {"1": -1.0},
    }


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("openai://api.openai.com/v1/m", "max_completion_tokens"),
        ("azure://r.openai.azure.com/m", "max_completion_tokens"),
        ("openai://h.org/v1/m", "max_tokens"),
    ],
)
def test_a_limit_is_called_what_the_api_calls_it(name: str, field: str) -> None:
    assert body(Chat((), replace(NEUTRAL, max_tokens=9)), name)[field] == 9


def test_tools_calls_and_their_results_are_sent() -> None:
    turns = (
        Message("user", "Weather?"),
        Message("assistant", "", "I think", (ToolCall("get_weather", '{"city":"Paris"}', "call_1"),)),
        Message("tool", "sunny", tool_call_id="call_1"),
    )
    found = body(Chat(turns, NEUTRAL, tools=(WEATHER,), must_call=True, parallel_calls=False))
    assert found["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                }
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]
    assert found["tools"] == [WEATHER]
    assert (found["tool_choice"], found["parallel_tool_calls"]) == ("required", False)
    one = body(Chat(turns, NEUTRAL, tools=(WEATHER,), only="get_weather"))
    assert one["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}


def test_forms_and_thinking_are_asked_for_as_openai_has_them() -> None:
    schema = {"type": "object"}
    chat = Chat((), NEUTRAL, format=Format("schema", json.dumps(schema)), thinking=False)
    found = body(chat)
    assert found["response_format"]["json_schema"]["schema"] == schema
    assert found["reasoning_effort"] == "none"
    assert body(Chat((), NEUTRAL, effort="high", format=Format("json"))) == {
        "messages": [],
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
    }


@pytest.mark.parametrize(
    "chat",
    [
        Chat((), replace(NEUTRAL, logprobs=1)),
        Chat((), NEUTRAL, format=Format("regex", "a")),
        Chat((), NEUTRAL, format=Format("schema", "{")),
    ],
)
def test_what_an_api_cannot_be_asked_is_an_error_and_not_left_out(chat: Chat) -> None:
    with pytest.raises(UsageError):
        body(chat)


# What it answers


def test_an_answer_comes_piece_by_piece_with_reasoning_calls_and_usage(stand: Stand) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    more = {"index": 0, "function": {"arguments": '":1}'}}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    stand.gives(
        stream(
            chunk(role="assistant"),
            chunk(reasoning_content="Hm."),
            chunk("Hello"),
            chunk(", you \ud83d"),
            chunk(tool_calls=[call]),
            chunk(tool_calls=[more]),
            chunk(finish="tool_calls"),
            b'data: {"choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n",
            b"data: [DONE]\n\n",
        )
    )
    *pieces, last = engine(stand).chat(ASKED)
    assert "".join(piece.reasoning for piece in pieces) == "Hm."
    assert text(pieces) == "Hello, you ?"
    calls = [piece for delta in pieces for piece in delta.calls]
    assert [(call.index, call.id, call.name, call.arguments) for call in calls] == [
        (0, "c1", "f", '{"a'),
        (0, "", "", '":1}'),
    ]
    assert last.finish == "tool_calls" and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.cached_tokens, last.usage.completion_tokens) == (9, 3, 4)
    [asked] = stand.asked
    assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert asked.json["model"] == "model"


def test_an_answer_that_comes_whole_is_taken_too(stand: Stand) -> None:
    message = {"role": "assistant", "content": "Hello"}
    stand.gives(answer({"choices": [{"message": message, "finish_reason": "length"}]}))
    first, last = engine(stand).chat(ASKED)
    assert (first.text, last.finish) == ("Hello", "length")


ERRORS: list[tuple[Reply, type[MdlError], str]] = [
    (failure(401, "who are you?"), AuthError, "refuses the key: who are you?"),
    (failure(403, "not for you"), AuthError, "refuses the key: not for you"),
    (failure(404, "no such model"), NotFound, "has no 'model': no such model"),
    (failure(400, "too \x1b[31mlong", "context_length_exceeded"), TooLong, r"too \\u001b\[31mlong"),
    (failure(422, "no top_k"), UsageError, "cannot take the request: no top_k"),
    (failure(429, "pay first", "insufficient_quota"), NetworkError, "pay first"),
    (failure(400, f"wrong key {KEY}"), UsageError, r"wrong key \*\*\*"),
    (Reply([b"<html>"], 418), NetworkError, "answered 418"),
    (answer({"error": "plain words"}, 400), UsageError, "plain words"),
    (Reply([b"x"], 302, {"location": "http://evil.example/"}), NetworkError, "which is not followed"),
    (Reply([b"[1]"], 200, {"content-type": EVENTS}), NetworkError, "ended early"),
    (stream(b"data: [1]\n\n"), NetworkError, "cannot be understood"),
    (stream(b"data: {}\n\n" * 3), NetworkError, "ended early"),
    (stream(chunk("Hel"), cut=True), NetworkError, "broke"),
    (stream(chunk("Hel"), b'data: {"error": {"message": "overheated"}}\n\n'), NetworkError, "overheated"),
    (stream(chunk("Hel"), chunk(finish="content_filter")), MdlError, "content filter"),
    (Reply([b"\x1f\x8b"], 200, {"content-encoding": "gzip"}), NetworkError, "compressed"),
    (stream(chunk(tool_calls=[{"index": 1 << 40}])), NetworkError, "calls a tool"),
    (stream(chunk(tool_calls=[["f"]])), NetworkError, "calls a tool"),
    (answer({"choices": [{"message": {"tool_calls": [None]}}]}), NetworkError, "calls a tool"),
]


@pytest.mark.parametrize(("reply", "kind", "words"), ERRORS)
def test_each_failure_is_one_line_with_its_cause(
    stand: Stand, reply: Reply, kind: type[MdlError], words: str
) -> None:
    stand.gives(reply)
    with pytest.raises(kind, match=words) as caught:
        list(engine(stand).chat(ASKED))
    assert type(caught.value) is kind
    assert caught.value.message.isprintable()
    assert KEY not in caught.value.message + caught.value.hint
    assert len(stand.asked) == 1


def test_without_the_right_key_the_error_says_how_to_log_in(stand: Stand) -> None:
    stand.gives(failure(401, "who are you?"))
    with pytest.raises(AuthError, match="wants a key") as caught:
        list(engine(stand, key="").chat(ASKED))
    assert caught.value.hint == f"mdl login openai://{stand.host}/v1"


def test_an_answer_that_has_not_begun_is_asked_for_again_when_the_api_says(stand: Stand) -> None:
    stand.gives(
        failure(429, "slowly", retry_after="0"), failure(503, "overloaded", retry_after="0"), said("Hello")
    )
    assert text(list(engine(stand).chat(ASKED))) == "Hello"
    assert len(stand.asked) == 3
    assert len({asked.body for asked in stand.asked}) == 1


def test_an_answer_that_has_begun_is_not_asked_for_again(stand: Stand) -> None:
    stand.gives(stream(chunk("Hel"), cut=True), said("Hello"))
    heard = []
    with pytest.raises(NetworkError):
        heard.extend(engine(stand).chat(ASKED))
    assert len(stand.asked) == 1


def test_a_key_is_not_shown_to_where_an_api_redirects(stand: Stand) -> None:
    other = Stand().gives(said("Mine"))
    try:
        stand.gives(Reply([], 307, {"location": f"http://{other.host}/v1/chat/completions"}))
        with pytest.raises(NetworkError, match="not followed"):
            list(engine(stand).chat(ASKED))
        assert other.asked == []
    finally:
        other.close()


def test_closing_an_answer_closes_the_connection(stand: Stand) -> None:
    stand.gives(stream(*[chunk("x" * 10_000)] * 100_000))
    deltas = engine(stand).chat(ASKED)
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]
    assert stand.gone.wait(5)


def test_an_address_where_nobody_answers_is_a_network_error() -> None:
    stand = Stand()
    stand.close()
    with pytest.raises(NetworkError, match="refused the connection") as caught:
        list(engine(stand).chat(ASKED))
    assert "download" not in caught.value.hint and "goes on" not in caught.value.hint


# mdl's own server as the API


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = cache(tmp_path_factory.mktemp("api") / "home", "endless")
    with Server(home, api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def front(api: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose user calls a model of the other one gpt-4."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MDL_UPSTREAM_KEYS", f"127.0.0.1:{api.port}={KEY}")
        address = f"openai://127.0.0.1:{api.port}/v1"
        aliases = {"gpt-4": f"{address}/demo", "endless": f"{address}/quay.io/org/endless"}
        home = tmp_path_factory.mktemp("front") / "home"
        with Server(home, settings={"aliases": aliases}) as running:
            yield running
    assert KEY not in running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def mdl(*words: str, key: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "MDL_HOME": str(home),
        "MDL_CONFIG": str(home / "config.toml"),
        "MDL_UPSTREAM_KEYS": key,
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
    }
    return subprocess.run(
        [sys.executable, "-m", "mdl", *words],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_mdl_chat_answers_with_a_model_at_an_api(api: Server, tmp_path: Path) -> None:
    model = f"openai://127.0.0.1:{api.port}/v1/demo"
    asked = mdl(
        "chat",
        model,
        "What is the capital of France?",
        "--stats",
        key=f"127.0.0.1:{api.port}={KEY}",
        home=tmp_path,
    )
    assert (asked.returncode, asked.stdout) == (0, f"{PARIS}\n")
    assert "7 tokens in" in asked.stderr
    refused = mdl("chat", model, "Hello", key="", home=tmp_path)
    assert refused.returncode == 4
    assert f"mdl login openai://127.0.0.1:{api.port}/v1" in refused.stderr
    assert "Traceback" not in refused.stderr
    here = mdl("chat", model, "Hello", "--ctx", "100", key="", home=tmp_path)
    assert here.returncode == 2 and "--ctx is for models that run here" in here.stderr


def test_a_model_at_an_api_is_listed_told_and_asked_by_each_of_its_names(api: Server, tmp_path: Path) -> None:
    address, key = f"127.0.0.1:{api.port}/v1", f"127.0.0.1:{api.port}={KEY}"
    (tmp_path / "config.toml").write_text(f'version = 2\n[aliases]\nfast = "openai://{address}/demo"\n')
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "loud.toml").write_text(
        f'models = ["openai://{address}/demo"]\nnames = ["gpt-5"]\nsystem = "Answer in uppercase."\n'
    )
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    card = {"source_url": f"http://{address}", "id": "demo", "metadata": {"engine": "api"}}
    (folder / "model.json").write_text(json.dumps(card))

    listed = mdl("list", key=key, home=tmp_path)
    assert f"openai://{address}/demo" in listed.stdout and "fast, gpt-5" in listed.stdout
    assert mdl("list", "-q", key=key, home=tmp_path).stdout.split() == ["mine", f"openai://{address}/demo"]
    for name in ("fast", "gpt-5", "mine"):
        told = mdl("inspect", name, "--json", key=key, home=tmp_path)
        assert json.loads(told.stdout)["api"]["address"] == f"http://{address}"
        assert json.loads(told.stdout)["api"]["key"] == "MDL_UPSTREAM_KEYS"
        assert KEY not in told.stdout + told.stderr
        answers = mdl("chat", name, "What is the capital of France?", key=key, home=tmp_path).stdout
        assert answers.strip() == (PARIS.upper() if name == "gpt-5" else PARIS)
    assert mdl("rm", "mine", "--yes", key=key, home=tmp_path).returncode == 0
    assert mdl("rm", "fast", "--yes", key=key, home=tmp_path).returncode == 9


def test_a_conversation_is_the_same_with_an_api_as_with_an_engine(api: Server) -> None:
    there = ApiEngine(
        place(f"openai://127.0.0.1:{api.port}/v1/demo"), Settings(Path("/nowhere")), {"temperature"}
    )
    assert there.ready().context == 0
    deltas = list(there.chat(replace(ASKED, thinking=True)))
    assert "".join(delta.reasoning for delta in deltas) == "France has the capital Paris."
    assert text(deltas) == PARIS
    schema = Format(
        "schema", json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    )
    formed = text(list(there.chat(replace(ASKED, format=schema, thinking=False))))
    assert isinstance(json.loads(formed)["a"], int)
    asked = replace(
        ASKED,
        tools=(WEATHER,),
        only="get_weather",
        messages=(Message("user", "What is the weather in Paris?"),),
    )
    *pieces, last = there.chat(asked)
    assert last.finish == "tool_calls"
    assert json.loads("".join(call.arguments for delta in pieces for call in delta.calls)) == {
        "city": "Paris"
    }
    there.close()


# mdl serve, seen by OpenAI's client


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key or "none", max_retries=0)


def plain(found: Any) -> Any:
    """What an answer says, without what is another one each time."""
    if isinstance(found, dict):
        return {
            name: plain(value) for name, value in found.items() if name not in ("id", "created", "timings")
        }
    return [plain(each) for each in found] if isinstance(found, list) else found


def chat(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    fields = {"messages": FRANCE, "temperature": 0, "seed": 1, **fields}
    return client.chat.completions.create(model=model, **fields).model_dump()


def streamed(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    """What the events say together: how many tokens come in one is a matter of time."""
    fields = {"messages": FRANCE, "temperature": 0, "seed": 1, "stream": True, **fields}
    found = [event.model_dump() for event in client.chat.completions.create(model=model, **fields)]
    choices = [choice for event in found for choice in event["choices"]]
    calls = [call for choice in choices for call in choice["delta"]["tool_calls"] or ()]
    return {
        "events": {(event["object"], event["model"]) for event in found},
        "role": choices[0]["delta"]["role"],
        "content": "".join(choice["delta"]["content"] or "" for choice in choices),
        "called": [call["function"]["name"] for call in calls if call["function"]["name"]],
        "arguments": "".join(call["function"]["arguments"] for call in calls),
        "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        "usage": found[-1]["usage"],
    }


CALLS: list[Any] = [
    chat,
    lambda c, m: chat(c, m, n=2, logprobs=True, top_logprobs=2),
    lambda c, m: chat(c, m, reasoning_effort="low"),
    lambda c, m: chat(
        c,
        m,
        tools=[WEATHER],
        tool_choice="required",
        messages=[{"role": "user", "content": "Weather in Paris?"}],
    ),
    lambda c, m: chat(c, m, extra_body={"top_k": 1, "min_p": 0.5, "cache_prompt": True}),
    lambda c, m: chat(c, m, response_format={"type": "json_object"}, max_tokens=40),
    lambda c, m: streamed(c, m, stream_options={"include_usage": True}),
    lambda c, m: streamed(c, m, tools=[WEATHER], tool_choice="required"),
    lambda c, m: c.completions.create(
        model=m, prompt="Once", max_tokens=5, temperature=0, seed=1
    ).model_dump(),
    lambda c, m: c.embeddings.create(model=m, input=["a", "b"]).model_dump(),
    lambda c, m: c.embeddings.create(model=m, input="a", dimensions=8, encoding_format="float").model_dump(),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_client_is_answered_as_if_it_had_asked_the_api_itself(
    api: Server, front: Server, call: Any
) -> None:
    assert plain(call(client(front), "gpt-4")) == plain(call(client(api), "demo"))


FAULTS: list[Any] = [
    lambda c, m: chat(c, m, temperature=9),
    lambda c, m: chat(c, m, messages=[]),
    lambda c, m: chat(c, m, extra_body={"foo": 1}),
    lambda c, m: chat(c, m, messages=[{"role": "user", "content": "x " * 20_000}]),
    lambda c, m: c.embeddings.create(model=m, input=[]),
    lambda c, m: c.completions.create(model=m, prompt="x", extra_body={"suffix": 1}),
]


@pytest.mark.parametrize("call", FAULTS)
def test_a_client_is_refused_as_if_it_had_asked_the_api_itself(api: Server, front: Server, call: Any) -> None:
    refusals = []
    for server, model in ((api, "demo"), (front, "gpt-4")):
        with pytest.raises(openai.APIStatusError) as caught:
            call(client(server), model)
        refusals.append((type(caught.value), caught.value.status_code, caught.value.body))
    assert refusals[0] == refusals[1]


def test_a_client_that_cannot_choose_is_given_a_model_at_an_api_by_its_key(
    stand: Stand, tmp_path: Path
) -> None:
    stand.gives(answer({"choices": []}))
    aliases = {"mine": f"openai://{stand.host}/v1/m"}
    with Server(tmp_path / "home", settings={"aliases": aliases}, keys=[["theirs", "mine"]]) as server:
        found = post(server, "gpt-4", {"Authorization": "Bearer theirs"})
        assert (found.status_code, found.json()) == (200, {"choices": []})
    assert [(asked.json["model"], "theirs" in str(asked.headers)) for asked in stand.asked] == [("m", False)]


def test_rerank_is_passed_on_over_each_of_its_routes(stand: Stand, tmp_path: Path) -> None:
    results = {"results": [{"index": 0, "relevance_score": 0.5}]}
    stand.gives(answer(results))
    with Server(tmp_path / "home", models=[f"openai://{stand.host}/v1/m"]) as server:
        for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
            asked = json.dumps({"query": "q", "documents": ["d"], "odd": [1]}).encode()
            assert server.ask("POST", path, asked)[:2] == (200, results)
    assert [asked.path for asked in stand.asked] == ["/v1/rerank"] * 3
    assert stand.asked[0].json == {"query": "q", "documents": ["d"], "odd": [1], "model": "m"}


def test_models_of_apis_are_listed_by_the_names_that_the_user_gave_them(front: Server) -> None:
    names = {model.id: model.owned_by for model in client(front).models.list()}
    assert set(names) == {"demo", "gpt-4", "endless"}
    assert names["gpt-4"].startswith("127.0.0.1:")
    assert client(front).models.retrieve("gpt-4").id == "gpt-4"


def test_a_model_at_an_api_is_not_among_the_engines(front: Server) -> None:
    chat(client(front), "gpt-4")
    engines = front.ask("GET", "/mdl/engines")[1]["engines"]
    assert all("openai" not in engine["model"] for engine in engines)


def test_a_model_at_an_api_cannot_be_started_and_is_none_the_worse(front: Server) -> None:
    assert front.ask("POST", "/v1/models/gpt-4/start")[0] == 422
    assert front.ask("GET", "/v1/models/gpt-4/state")[1]["state"] == "ready"


def test_clients_cannot_have_hosts_asked_that_the_user_did_not_name(front: Server, stand: Stand) -> None:
    stand.gives(said("Mine"))
    with pytest.raises(openai.NotFoundError, match="mdl alias set"):
        chat(client(front), f"openai://{stand.host}/v1/m")
    assert stand.asked == []


def test_what_an_api_does_not_do_is_refused_in_words(front: Server) -> None:
    status, refused, _ = front.ask("POST", "/tokenize", b'{"model": "gpt-4", "content": "x"}')
    assert (status, refused["error"]["code"]) == (422, "model_not_supported")
    assert "runs at an API" in refused["error"]["message"]


def test_the_api_is_at_work_no_more_when_the_client_is_gone(api: Server, front: Server) -> None:
    """It would be for the eight thousand tokens of its context."""
    answers = client(front).chat.completions.create(model="endless", messages=STORY, stream=True)
    next(iter(answers))
    busy = [engine["requests"] for engine in api.ask("GET", "/mdl/engines")[1]["engines"]]
    assert sum(busy) == 1
    answers.close()

    def idle() -> bool:
        return all(not engine["requests"] for engine in api.ask("GET", "/mdl/engines")[1]["engines"])

    wait_until(idle, 3)


# mdl serve, and an API that does as it is told


@pytest.fixture(scope="module")
def odd() -> Iterator[Stand]:
    running = Stand()
    yield running
    running.close()


@pytest.fixture(scope="module")
def served(odd: Stand, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of models at that API, by the addresses of OpenAI and of Azure."""
    models = {
        "plain": f"openai://{odd.host}/v1/org/model:free",
        "dated": f"azure://{odd.host}/gpt-4o?api-version=2024-10-21",
        "newer": f"azure://{odd.host}/gpt-4o",
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MDL_UPSTREAM_KEYS", f"{odd.host}={KEY}")
        home = tmp_path_factory.mktemp("served") / "home"
        with Server(home, settings={"aliases": models}) as running:
            yield running
    log = running.log.read_text()
    assert KEY not in log and "Traceback" not in log


def post(server: Server, model: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    asked = {"model": model, "messages": FRANCE, **fields}
    return httpx2.post(f"{server.url}/v1/chat/completions", json=asked, headers=headers or {}, timeout=30)


@pytest.mark.parametrize(
    ("model", "path", "key", "called"),
    [
        ("plain", "/v1/chat/completions", "authorization", "org/model:free"),
        ("dated", "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", "api-key", "gpt-4o"),
        ("newer", "/openai/v1/chat/completions", "api-key", "gpt-4o"),
    ],
)
def test_the_body_goes_as_it_came_but_for_the_models_name(
    odd: Stand, served: Server, model: str, path: str, key: str, called: str
) -> None:
    odd.gives(answer({"choices": []}))
    fields = {"odd": {"é": [1.5, None, 10**30]}, "temperature": 99, "stream": False}
    assert post(served, model, **fields).json() == {"choices": []}
    [asked] = odd.asked
    assert asked.path == path
    assert asked.headers[key].endswith(KEY)
    assert not {"authorization", "api-key"} - {key} & set(asked.headers)
    assert asked.json == {"model": called, "messages": FRANCE, **fields}
    assert list(asked.json) == ["model", "messages", "odd", "temperature", "stream"]


def test_what_a_request_leaves_open_is_as_the_profile_of_the_model_has_it(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDL_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.toml").write_text(
        f'names = ["mine"]\nmodels = ["openai://{stand.host}/v1/m"]\nsystem = "Hi"\nstop = ["x"]\n'
        'messages = [{ role = "user", content = "1" }, { role = "assistant", content = "2" }]\n'
        "parameters = { temperature = 0.5, max_tokens = 7, top_k = 3, logit_bias = { 5 = 1.5 } }\n"
    )
    stand.gives(answer({"choices": []}))
    system, begun = {"role": "system", "content": "Be"}, [{"role": "user", "content": "1"}]
    begun.append({"role": "assistant", "content": "2"})
    usual = {"stop": ["x"], "temperature": 0.5, "max_tokens": 7, "top_k": 3, "logit_bias": {"5": 1.5}}
    with Server(tmp_path / "home") as server:
        assert post(server, "mine").status_code == 200
        limited = {"max_completion_tokens": 1, "stop": [], "temperature": None}
        post(server, "mine", messages=[system, *FRANCE], **limited)
        server.ask("POST", "/v1/completions", b'{"model": "mine", "prompt": "a", "top_k": 1}')
        server.ask("POST", "/v1/embeddings", b'{"model": "mine", "input": "a"}')
    said = [asked.json for asked in stand.asked]
    own = {"role": "system", "content": "Hi"}
    assert said[0] == {"model": "m", "messages": [own, *begun, *FRANCE], **usual}
    assert said[1]["messages"] == [system, *begun, *FRANCE]
    assert {name: said[1][name] for name in limited} == {**limited, "temperature": 0.5}
    assert "max_tokens" not in said[1]
    assert said[2] == {"model": "m", "prompt": "a", **usual, "top_k": 1}
    assert said[3] == {"model": "m", "input": "a"}


def test_nothing_of_the_clients_headers_goes_to_the_api(odd: Stand, served: Server) -> None:
    odd.gives(answer({}))
    secret = {
        "Authorization": "Bearer clients",
        "Cookie": "a=clients",
        "X-Own": "clients",
        "User-Agent": "clients",
    }
    post(served, "plain", secret)
    [asked] = odd.asked
    assert "clients" not in str(asked.headers)
    assert set(asked.headers) == {
        "host",
        "user-agent",
        "accept-encoding",
        "content-type",
        "content-length",
        "authorization",
    }


def test_what_is_for_the_apis_own_site_does_not_come_back(odd: Stand, served: Server) -> None:
    for_it = {
        "set-cookie": "a=b",
        "connection": "x-own",
        "x-own": "1",
        "access-control-allow-origin": "*",
        "strict-transport-security": "max-age=1",
        "x-accel-redirect": "/etc/passwd",
        "alt-svc": "h3=:443",
        "x-request-id": KEY,
    }
    odd.gives(answer({}, openai_processing_ms="5", x_ratelimit_remaining_tokens="7"))
    odd.replies[0].headers.update(for_it)
    first, second = post(served, "plain"), post(served, "plain")
    assert not set(for_it) & set(first.headers)
    assert (first.headers["openai-processing-ms"], first.headers["x-ratelimit-remaining-tokens"]) == (
        "5",
        "7",
    )
    assert second.status_code == 200
    assert all("cookie" not in asked.headers for asked in odd.asked)


def test_events_come_as_the_api_wrote_them_byte_by_byte(odd: Stand, served: Server) -> None:
    pieces = [b": hello\r\n\r\n", "data: é".encode(), b"\xff\n", b"\ndata: [DONE]\n\n", b"rest"]
    odd.gives(stream(*pieces))
    found = post(served, "plain", stream=True)
    assert (found.content, found.headers["content-type"]) == (b"".join(pieces), EVENTS)


def test_events_come_when_the_api_sends_them(odd: Stand, served: Server) -> None:
    heard = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield chunk("first")
        assert heard.wait(20)
        yield chunk("second")

    odd.gives(Reply(pieces(), headers={"content-type": EVENTS}))
    asked = {"model": "plain", "messages": FRANCE, "stream": True}
    with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=asked, timeout=30) as response:
        came = response.iter_raw()
        assert b"first" in next(came)
        heard.set()
        assert b"second" in b"".join(came)


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        (failure(401, f"wrong key: {KEY}"), 401, "wrong key: ***"),
        (failure(429, "slowly", "rate_limit_exceeded", retry_after="7"), 429, "slowly"),
        (failure(500, "oh"), 500, "oh"),
        (answer({"error": {"code": "DeploymentNotFound", "message": "gone"}}, 404), 404, "gone"),
        (Reply([b"<html>Bad gateway"], 502, {"content-type": "text/html"}), 502, "answered 502"),
        (answer({"detail": "odd"}, 422), 422, "odd"),
        (Reply([b"x"], 302, {"location": "http://evil.example/"}), 502, "sends elsewhere (302)"),
        (Reply([b"\x1f\x8b"], 200, {"content-encoding": "gzip"}), 502, "compressed"),
        (Reply([b"x" * 65536] * 100, 500), 502, "at more length"),
        (Reply([b"x"], 500, cut=True), 500, "answered 500"),
        (Reply([b"x"], 600), 502, "answered 600"),
        (Reply([f'{{"error": {{"message": "{KEY}", "message": "no"}}}}'.encode()], 400), 400, "no"),
    ],
)
def test_errors_come_with_their_status_in_openais_form(
    odd: Stand, served: Server, reply: Reply, status: int, message: str
) -> None:
    odd.gives(reply)
    found = post(served, "plain")
    assert found.status_code == status
    assert message in found.json()["error"]["message"]
    assert KEY not in found.text
    assert found.headers.get("retry-after") == reply.headers.get("retry-after")
    assert len(odd.asked) == 1


def test_a_stream_that_breaks_off_ends_with_an_error(odd: Stand, served: Server) -> None:
    odd.gives(stream(chunk("Hel"), b"data: {", cut=True))
    found = post(served, "plain", stream=True)
    *_, last, rest = found.text.split("\n\n")
    assert rest == ""
    assert "broke off" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_a_length_that_an_api_says_and_does_not_keep_to_is_not_told(odd: Stand, served: Server) -> None:
    for reply in (Reply([b"{}"]), Reply([b": hello\n\n"], headers={"content-type": EVENTS}, cut=True)):
        reply.headers["content-length"] = "1"
        odd.gives(reply)
        found = post(served, "plain")
        assert found.content.startswith(b"".join(reply.pieces))
        assert "content-length" not in found.headers


def test_an_answer_that_breaks_off_is_not_made_whole(odd: Stand, served: Server) -> None:
    odd.gives(Reply([b'{"choices": ['], headers={"content-type": "application/json"}, cut=True))
    with pytest.raises(httpx2.RemoteProtocolError):
        post(served, "plain")


def test_an_api_that_is_not_there_is_a_502_and_nothing_else_suffers(tmp_path: Path) -> None:
    gone = Stand()
    gone.close()
    with Server(tmp_path / "home", settings={"aliases": {"gone": f"openai://{gone.host}/v1/m"}}) as server:
        found = post(server, "gone")
        assert (found.status_code, found.json()["error"]["code"]) == (502, "upstream_error")
        assert post(server, "demo", temperature=0).json()["choices"][0]["message"]["content"] == PARIS


@pytest.mark.parametrize("proxy", ["socks5://secret:secret@127.0.0.1:1", "http://secret@[::1"])
def test_a_proxy_that_cannot_be_used_is_a_502_without_its_address(
    odd: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    odd.gives(answer({}))
    with Server(tmp_path / "home", settings={"aliases": {"m": f"openai://{odd.host}/v1/m"}}) as server:
        connection = server.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": FRANCE}))
        response = connection.getresponse()
        assert response.status == 502
        assert b"proxy" in (told := response.read()) and b"secret" not in told
    assert odd.asked == []


def test_a_client_that_goes_away_closes_what_was_asked_of_the_api(odd: Stand, served: Server) -> None:
    for waits in (False, True):
        begun, go_on = threading.Event(), threading.Event()

        def pieces(waits: bool, begun: threading.Event, go_on: threading.Event) -> Iterator[bytes]:
            begun.set()
            if waits:
                go_on.wait(1)  # nothing to read yet, and the client goes
            yield from endless(chunk("x"))

        odd.gives(Reply(pieces(waits, begun, go_on), headers={"content-type": EVENTS}))
        connection = served.connect()
        asked = {"model": "plain", "messages": FRANCE, "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked))
        assert begun.wait(20)
        if not waits:
            assert connection.getresponse().read(10)
        connection.close()
        assert odd.gone.wait(10)


def test_a_server_that_ends_ends_what_it_passes_on(stand: Stand, tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        while True:
            yield chunk("x")
            time.sleep(0.01)

    stand.gives(Reply(pieces(), headers={"content-type": EVENTS}))
    aliases = {"m": f"openai://{stand.host}/v1/m"}
    limits = {"grace_seconds": 0.3}
    with Server(tmp_path / "home", settings={"aliases": aliases}, limits=limits) as server:
        asked = {"model": "m", "messages": FRANCE, "stream": True}
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=asked, timeout=30) as response:
            came = response.iter_raw()
            next(came)
            server.process.terminate()
            *_, last, rest = b"".join(came).split(b"\n\n")
        assert rest == b""
        assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "the server is ending"
        server.process.wait(15)
        assert "Traceback" not in server.log.read_text()
    assert stand.gone.wait(10)


def test_a_client_that_reads_slowly_slows_the_api_down(odd: Stand, served: Server) -> None:
    piece = chunk("x" * 60_000)
    odd.gives(Reply(endless(piece), headers={"content-type": EVENTS}))
    connection = served.connect()
    asked = {"model": "plain", "messages": FRANCE, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked))
    response = connection.getresponse()
    assert response.read(10)

    def stands() -> bool:
        before = odd.sent
        time.sleep(0.5)
        return odd.sent == before

    wait_until(stands, 20)
    before = odd.sent
    assert before < 64 << 20  # what sockets hold: without it, it would go on for ever
    response.read(before + len(piece))
    wait_until(lambda: odd.sent > before)
    connection.close()
    assert odd.gone.wait(10)
