"""What hostile, broken and vanishing clients get, and that the next one is served as ever."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, FRANCE, STORY, Server, cache, text, wait_until

from mdl.errors import MdlError
from mdl.server import chat
from mdl.server.body import parse

HUGE = 10**400
STOP = "/mdl/engines/stop"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One answer at a time, little room, little patience."""
    limits = {"requests": 8, "body": 1 << 20, "bodies": 3 << 20, "connections": 60,
              "header_seconds": 1.0, "body_seconds": 1.0, "stall_seconds": 1.0}  # fmt: skip
    home = cache(tmp_path_factory.mktemp("server") / "home", "endless")
    with Server(home, engine={"parallel": 1}, limits=limits, allow_hosts=["models.example"]) as running:
        assert text(running.chat()[1]) == "The capital of France is Paris."
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(autouse=True)
def still_serving(server: Server) -> Iterator[None]:
    yield
    assert text(server.chat()[1]) == "The capital of France is Paris."


def post(server: Server, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    status, answer, _ = server.ask("POST", CHAT, body, headers)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return status, answer["error"]


@contextmanager
def raw(server: Server, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        yield connection


def head(length: int | None = None, *lines: str, path: str = CHAT) -> bytes:
    size = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *size, *lines, "", ""]).encode()


def endless(**fields: Any) -> bytes:
    """A request that takes as long as the context lasts: half a second."""
    return json.dumps({"model": "endless", "messages": STORY, **fields}).encode()


def listen(connection: socket.socket) -> bytes:
    heard = b""
    while data := connection.recv(1 << 16):
        heard += data
    return heard


# Fields

WRONG = [-1, 0, 10**6, HUGE, 0.5, "1", True, [], {}, [1], {"a": 1}, "", "x" * 100_000]

TAKEN: dict[str, list[Any]] = {
    "messages": [],
    "model": ["x" * 100_000, "1", ""],
    "stream": [True],
    "stream_options": [],
    "temperature": [0, 0.5],
    "top_p": [0, 0.5],
    "top_k": [0, 10**6],
    "min_p": [0, 0.5],
    "repeat_penalty": [0.5],
    "frequency_penalty": [-1, 0, 0.5],
    "presence_penalty": [-1, 0, 0.5],
    "seed": [-1, 0, 10**6],
    "max_tokens": [10**6],
    "max_completion_tokens": [10**6],
    "stop": ["1", [], "x" * 100_000],
    "tools": [[]],
    "tool_choice": [],
    "parallel_tool_calls": [True],
    "reasoning_effort": [],
    "chat_template_kwargs": [{}],
    "n": [],
    "keep_alive": [-1, 0, 10**6, 0.5, "1"],
    "store": [],
    "metadata": [{}, {"a": 1}],
    "user": ["1", "", "x" * 100_000],
    "safety_identifier": ["1", "", "x" * 100_000],
    "prompt_cache_key": ["1", "", "x" * 100_000],
    "prompt_cache_retention": ["1", "", "x" * 100_000],
    "prompt_cache_options": [{}, {"a": 1}],
    "cache_prompt": [True],
    "service_tier": [],
    "modalities": [],
    "response_format": [],
    "json_schema": [{}, {"a": 1}],
    "logprobs": [True],
    "top_logprobs": [0],
    "logit_bias": [{}],
    "ignore_eos": [True],
    "typical_p": [0, 0.5],
    "typical": [0, 0.5],
    "top_n_sigma": [0, 0.5],
    "xtc_probability": [0, 0.5],
    "xtc_threshold": [0, 0.5],
    "mirostat": [0],
    "mirostat_tau": [0, 0.5],
    "mirostat_eta": [0, 0.5],
    "repeat_last_n": [-1, 0, 10**6],
    "dry_multiplier": [0, 0.5],
    "dry_base": [],
    "dry_allowed_length": [10**6],
    "dry_penalty_last_n": [-1, 0, 10**6],
    "dry_sequence_breakers": ["1", []],
    "verbosity": [],
    "grammar": ["1", "", "x" * 100_000],
    "functions": [],
    "made_up": [],
}


def refusals(name: str) -> list[Any]:
    return [value for value in WRONG if not any(_same(value, taken) for taken in TAKEN[name])]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_that_makes_no_sense_is_refused_by_the_name_of_its_field(name: str) -> None:
    for value in refusals(name):
        with pytest.raises(MdlError) as caught:
            chat.asked({"model": "demo", "messages": FRANCE, name: value})
        assert str(getattr(caught.value, "param", "")).startswith(name), (value, caught.value)


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_that_makes_sense_is_taken(name: str) -> None:
    for value in [*TAKEN[name], None] if name not in ("messages",) else []:
        chat.asked({"model": "demo", "messages": FRANCE, name: value})


@pytest.mark.parametrize("name", ["temperature", "n", "messages", "made_up"])
def test_a_refusal_arrives_over_http(server: Server, name: str) -> None:
    for value in refusals(name):
        if value != HUGE:  # which json cannot write
            status, error = post(
                server, json.dumps({"model": "demo", "messages": FRANCE, name: value}).encode()
            )
            assert (status, error["type"]) == (400, "invalid_request_error")
            assert error["param"].startswith(name)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([1], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "king", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "user", "content": [1]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "x", "made_up": 1}], "messages[0].made_up"),
        ([{"role": "user", "content": "x", "name": 1}], "messages[0].name"),
        ([*FRANCE, {"role": "assistant"}], "messages[1].content"),
        ([*FRANCE, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0].id"),
        ([*FRANCE, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        (FRANCE * 10_001, "messages"),
    ],
)
def test_a_message_that_makes_no_sense_is_refused_by_its_place(messages: Any, param: str) -> None:
    with pytest.raises(MdlError) as caught:
        chat.asked({"messages": messages})
    assert getattr(caught.value, "param", None) == param


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{}], "tools[0].type"),
        ([{"type": "web_search", "function": {}}], "tools[0].type"),
        ([{"type": "function", "function": 1}], "tools[0].function"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "f", "strict": 1}}], "tools[0].function.strict"),
        ([{"type": "function", "function": {"name": "f"}}] * 2, "tools"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], "tools[0].function.parameters"),
        ([{"type": "function", "function": {"name": "f", "made_up": 1}}], "tools[0].function.made_up"),
    ],
)
def test_a_tool_that_makes_no_sense_is_refused_by_its_place(tools: Any, param: str) -> None:
    with pytest.raises(MdlError) as caught:
        chat.asked({"messages": FRANCE, "tools": tools})
    assert getattr(caught.value, "param", None) == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"made_up": 1}}, "stream_options.made_up"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice.allowed_tools.tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "grammar"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"one": 1}}, "logit_bias.one"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"typical": 0.5, "typical_p": 0.6}, "typical"),
        ({"n": 17}, "n"),
        ({"keep_alive": "5 parsecs"}, "keep_alive"),
    ],
)  # fmt: skip
def test_fields_that_contradict_or_are_not_supported_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(MdlError) as caught:
        chat.asked({"messages": FRANCE, **fields})
    assert getattr(caught.value, "param", None) == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*TAKEN]) | st.text(max_size=8), JSON, max_size=4), st.booleans())
def test_any_json_object_is_understood_or_refused(body: dict[str, Any], sound: bool) -> None:
    try:
        chat.asked({**body, "messages": FRANCE} if sound else body)
    except MdlError as error:
        assert len(error.message) < 500


# Bodies


@pytest.mark.alone
@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"x"', "object"),
        (b'{"a": 1} x', "JSON"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', "twice"),
        (b"{" + b",".join(b'"%d":0' % number for number in (*range(40_000), 39_999)) + b"}", "twice"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": Infinity}', "Infinity"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too large"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": "x"}'.encode("utf-16"), "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"[" * 400_000, "deep"),
        (b'{"a":' * 150_000, "deep"),
        (b"[" + b"[]," * 300_000 + b"1]", "more values"),
        (b"\x1f\x8b\x08\x00gzip", "UTF-8"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes, word: str) -> None:
    start = time.monotonic()
    status, error = post(server, body)
    assert status == 400
    assert word in error["message"]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("depth", [90, 100, 200, 450, 900])
def test_a_deep_value_is_taken_or_refused_and_breaks_nothing_behind_the_parser(
    server: Server, depth: int
) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(depth):
        parameters = {"a": parameters}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    status, answer = server.chat(tools=[tool], max_tokens=1)
    assert status == (200 if depth <= 90 else 400), answer


def test_half_a_character_is_an_answer_not_a_crash(server: Server) -> None:
    bodies = [b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
              b'{"model":"demo","messages":[{"role":"user","content":"\\ud800"}]}',
              b'{"model":"demo","messages":[{"role":"user","content":"x"}],"\\ud800":1}']  # fmt: skip
    assert [post(server, body)[0] for body in bodies] == [400, 400, 400]


def test_a_name_is_inert_in_an_error() -> None:
    with pytest.raises(MdlError) as caught:
        chat.asked({"\x1b[2J\u202e": 1, "messages": FRANCE})
    assert caught.value.message.isprintable()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    with suppress(MdlError):
        assert isinstance(parse(data), dict)


@pytest.mark.alone
def test_a_gigabyte_that_is_announced_is_refused_at_once(server: Server) -> None:
    start = time.monotonic()
    with raw(server, head(1 << 30)) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    with raw(server, head(1 << 30, "Expect: 100-continue")) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - start < 1


def test_a_body_in_chunks_is_bounded_too(server: Server) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with raw(server, head(None, "Transfer-Encoding: chunked")) as connection:
        connection.sendall(chunk * 20)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_the_bodies_of_all_requests_are_bounded_together(server: Server) -> None:
    """Three of nearly a megabyte are held open; there is no room for a fourth."""
    body = b" " * (1 << 20)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(head(1 << 20) + body[:-1])
        time.sleep(0.2)
        status, error = post(server, endless() + b" " * 100_000)
        assert (status, error["code"]) == (503, "overloaded")
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"\r\n" * 10 + b"nonsense\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_the_end(server: Server, data: bytes) -> None:
    with raw(server, data) as connection:
        try:
            heard = listen(connection)
        except ConnectionResetError:
            heard = b"HTTP/1.1 400 "  # closed before all of it was read
    assert heard.startswith(b"HTTP/1.1 400 ")


# Time


@pytest.mark.alone
@pytest.mark.parametrize("start", [b"", b"POST ", head(10)[:-2], head(10)[:-2] + b"X: "])
def test_a_header_without_end_is_given_up(server: Server, start: bytes) -> None:
    began = time.monotonic()
    with raw(server, start) as connection:
        connection.settimeout(0.1)
        while time.monotonic() - began < 5:
            try:
                if start:
                    connection.sendall(b"x")
                if not connection.recv(1000):
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
    assert 0.8 < time.monotonic() - began < 3


@pytest.mark.alone
def test_the_second_header_of_a_connection_is_given_up_too(server: Server) -> None:
    began = time.monotonic()
    with raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        heard = b""
        while not heard.endswith(b"}"):
            heard += connection.recv(1000)
        connection.sendall(b"GET ")
        with suppress(ConnectionResetError):
            assert listen(connection) == b""
    assert time.monotonic() - began < 3


@pytest.mark.alone
def test_a_body_that_comes_slowly_is_given_up(server: Server) -> None:
    began = time.monotonic()
    with raw(server, head(100)) as connection:
        connection.settimeout(0.1)
        heard = b""
        while not heard and time.monotonic() - began < 5:
            connection.sendall(b" ")
            try:
                heard = connection.recv(1000)
            except TimeoutError:
                continue
    assert heard.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 3


@pytest.mark.alone
def test_those_who_send_slowly_shut_nobody_out(server: Server) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        for connection in held:
            connection.sendall(head(100) + b"{")
        assert text(server.chat()[1]) == "The capital of France is Paris."
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_is_cut(server: Server, stream: bool) -> None:
    body = endless(stream=True) if stream else b"{"
    asked = head(len(body)) + body
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(asked * (4 if stream else 1500))  # answers that are more than the buffers hold
        assert text(server.chat()[1]) == "The capital of France is Paris."
        wait_until(lambda: not _is_open(server, connection), 15)


def _is_open(server: Server, connection: socket.socket) -> bool:
    port = connection.getsockname()[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(
        int(r[1][-4:], 16) == server.port and int(r[2][-4:], 16) == port and r[3] == "01" for r in rows
    )


# Clients that vanish, with one slot for all


@pytest.mark.alone
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("answers", [1, 8])
def test_a_client_that_vanishes_frees_its_slots_within_a_second(
    server: Server, stream: bool, how: str, answers: int
) -> None:
    body = endless(stream=stream, n=answers)
    for delay in (0.0, 0.01, 0.05):
        for _ in range(4):  # one after the other they would take six seconds
            with raw(server, head(len(body)) + body) as connection:
                time.sleep(delay)
                if how == "reset":
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    start = time.monotonic()
    assert text(server.chat(model="endless", max_tokens=7)[1]) == "The capital of France is Paris."
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("path", [CHAT, "/tokenize", STOP, "/v1/models", "/v1/models/demo/start"])
def test_a_client_that_vanishes_before_its_body_is_whole_is_no_error(server: Server, path: str) -> None:
    gone = f"POST {path} gone "
    before = server.log.read_text().count(gone)
    with raw(server, head(1000, path=path) + b'{"mod'):
        time.sleep(0.05)
    wait_until(lambda: server.log.read_text().count(gone) > before)
    assert "Traceback" not in server.log.read_text()


def test_a_client_that_vanishes_while_it_waits_for_an_engine_to_stop_is_not_waited_for(
    server: Server,
) -> None:
    body, stop = endless(n=8), b'{"model": "endless"}'  # four seconds
    gone = f"POST {STOP} gone "
    before = server.log.read_text().count(gone)
    with raw(server, head(len(body)) + body):
        wait_until(lambda: server.ask("GET", "/mdl/engines")[1]["engines"][-1]["requests"])
        with raw(server, head(len(stop), path=STOP) + stop):
            time.sleep(0.05)
        wait_until(lambda: server.log.read_text().count(gone) > before)


def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    body = endless()
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    try:
        for connection in held:
            connection.sendall(head(len(body)) + body)
        time.sleep(0.1)
        status, answer, headers = server.ask("POST", CHAT, endless(max_tokens=1))
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert int(headers["Retry-After"]) > 0
        assert server.ask("GET", "/healthz")[0] == 200
        assert server.ask("POST", STOP, b'{"model": "demo"}')[0] in (200, 404)  # loaded or not
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.3)


def test_connections_that_are_too_many_are_cut_and_the_others_served(server: Server) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=0.5) for _ in range(70)]
    try:
        asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for connection in (held[0], held[50]):
            connection.sendall(asked)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert all(_is_cut(connection) for connection in held[60:])
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)


def _is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


# Who asks


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:3000", "127.0.0.1", "127.0.0.1:80", "[::1]:3000", "models.example", "10.0.0.7"],
)
def test_the_servers_own_names_are_known(server: Server, host: str) -> None:
    assert server.ask("GET", "/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "::"]
)
def test_a_name_that_was_bound_to_this_machine_by_others_is_refused(server: Server, host: str) -> None:
    for path in ("/v1/models", "/healthz"):
        status, answer, _ = server.ask("GET", path, headers={"Host": host})
        assert status == 403
        assert "--allow-host" in answer["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_pages_of_other_sites_are_refused(server: Server, headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        status, _, got = server.ask(
            method, "/v1/models", headers={"Host": f"localhost:{server.port}", **headers}
        )
        assert status == 403
        assert not [name for name in got if name.lower().startswith("access-control")]


def test_its_own_pages_and_links_to_it_are_fine(server: Server) -> None:
    place = f"localhost:{server.port}"
    own = {"Origin": f"http://{place}", "Sec-Fetch-Site": "same-origin"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for headers in (own, link):
        status, _, got = server.ask("GET", "/v1/models", headers={"Host": place, **headers})
        assert status == 200
        assert not [name for name in got if name.lower().startswith("access-control")]
