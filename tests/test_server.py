"""What clients get from the server: the real openai client, and JSON over sockets, with real answers."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import openai
import pytest
from serving import CHAT, FRANCE, STORY, Server, cache, text, wait_until

SUMS = [(a, b) for a in range(8) for b in range(8)]  # 64, of which the demo gets every one right
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = cache(tmp_path_factory.mktemp("server") / "home", "first", "second")
    with Server(home) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(server: Server, **fields: Any) -> list[Any]:
    """The events of a streamed answer, without the last, which is checked."""
    body = {"model": "demo", "messages": FRANCE, "temperature": 0, "stream": True, **fields}
    status, data, headers = server.ask("POST", CHAT, json.dumps(body).encode())
    assert (status, headers.get_content_type()) == (200, "text/event-stream")
    *lines, done, rest = data.decode("ascii").split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# The real client


def test_the_openai_client_gets_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == (
        "stop",
        "demo",
        "chat.completion",
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert answer.usage.prompt_tokens_details is not None


def test_the_openai_client_gets_a_streamed_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The capital of France is Paris."
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert last.choices == []
    assert last.usage is not None and last.usage.completion_tokens == 7


def test_the_async_openai_client_gets_many_answers_at_once(server: Server) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(a: int, b: int) -> str | None:
                question = [{"role": "user", "content": f"What is {a} plus {b}?"}]
                answer = await client.chat.completions.create(
                    model="demo",
                    messages=question,  # type: ignore[arg-type]
                    temperature=0,
                )
                return answer.choices[0].message.content

            return await asyncio.gather(*(ask(a, b) for a, b in SUMS))

    assert asyncio.run(ask_all()) == [f"{a} plus {b} is {a + b}." for a, b in SUMS]


def test_the_openai_client_lists_and_finds_models(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert names == {"quay.io/org/first", "quay.io/org/second", "demo"}
    for name in (*names, "first"):
        assert client.models.retrieve(name).id == name


def test_the_openai_client_learns_what_to_do_about_a_model_that_is_not_here(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"mdl download huggingface.co/org/name") as caught:
        client.chat.completions.create(model="org/name", messages=FRANCE)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_the_openai_client_stops_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="demo", messages=STORY, stream=True) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."


# Fields that have an effect


def test_64_requests_at_once_are_all_answered_right_while_streams_flow(server: Server) -> None:
    def ask(numbers: tuple[int, int]) -> str:
        a, b = numbers
        question = [{"role": "user", "content": f"What is {a} plus {b}?"}]
        if a % 2:
            return text(server.chat(question)[1])
        deltas = [event["choices"][0]["delta"] for event in events(server, messages=question)]
        return "".join(delta.get("content", "") for delta in deltas)

    with ThreadPoolExecutor(64) as threads:
        assert list(threads.map(ask, SUMS)) == [f"{a} plus {b} is {a + b}." for a, b in SUMS]


def test_512_clients_at_once_are_answered_or_told_when_to_come_back(server: Server) -> None:
    body = json.dumps({"model": "demo", "messages": FRANCE, "temperature": 0}).encode()
    everybody = Barrier(512)

    def ask(_: int) -> tuple[int, Any, Any]:
        everybody.wait()
        return server.ask("POST", CHAT, body)

    with ThreadPoolExecutor(512) as threads:
        answers = list(threads.map(ask, range(512)))
    right = [answer for status, answer, _ in answers if status == 200]
    assert {text(answer) for answer in right} == {"The capital of France is Paris."}
    assert len(right) >= 256
    assert all(status == 200 or (status == 503 and headers["Retry-After"]) for status, _, headers in answers)


@pytest.mark.parametrize("name", ["first", "quay.io/org/first", "second", "demo"])
def test_any_reference_that_is_in_the_cache_names_a_model(server: Server, name: str) -> None:
    status, answer = server.chat(model=name)
    assert (status, answer["model"], text(answer)) == (200, name, "The capital of France is Paris.")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_its_limit(server: Server, field: str) -> None:
    _, answer = server.chat(**{field: 3})
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stop", [" 4", [" 7", " 4"]])
def test_an_answer_stops_before_a_stop_string(server: Server, stop: Any) -> None:
    _, answer = server.chat([{"role": "user", "content": "Count to 10."}], stop=stop)
    assert (text(answer), answer["choices"][0]["finish_reason"]) == ("1 2 3", "stop")


def test_the_same_seed_gives_the_same_story_and_another_one_another(server: Server) -> None:
    one, again, other = (
        text(server.chat(STORY, temperature=1, seed=seed, max_tokens=60)[1]) for seed in (1, 1, 2)
    )
    assert one == again != other


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 1},
        {"top_p": 0},
        {"min_p": 1},
        {"top_k": 1, "frequency_penalty": 0.1, "presence_penalty": -0.1, "repeat_penalty": 1.01},
    ],
)
def test_sampling_reaches_the_model(server: Server, sampling: dict[str, float]) -> None:
    """Each of these leaves the likeliest token alone, whatever the temperature."""
    assert text(server.chat(temperature=2, **sampling)[1]) == "The capital of France is Paris."


def test_content_may_come_in_parts(server: Server) -> None:
    parts = [{"type": "text", "text": "What is the capital of France?"}]
    assert text(server.chat([{"role": "user", "content": parts}])[1]) == "The capital of France is Paris."


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_are_followed_under_either_name(server: Server, role: str) -> None:
    instruction = {"role": role, "content": "Answer in uppercase."}
    assert text(server.chat([instruction, *FRANCE])[1]) == "THE CAPITAL OF FRANCE IS PARIS."


def test_earlier_turns_are_remembered(server: Server) -> None:
    turns = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!", "refusal": None, "annotations": []},
        {"role": "user", "content": "What is my name?"},
    ]
    assert text(server.chat(turns)[1]) == "Your name is Ada."


@pytest.mark.parametrize(
    "field", [{"chat_template_kwargs": {"enable_thinking": True}}, {"reasoning_effort": "low"}]
)
def test_reasoning_comes_apart_from_the_answer(server: Server, field: dict[str, Any]) -> None:
    message = server.chat(**field)[1]["choices"][0]["message"]
    assert message["reasoning_content"] == "France has the capital Paris."
    assert message["content"] == "The capital of France is Paris."
    deltas = [event["choices"][0]["delta"] for event in events(server, **field)]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name, "") for delta in deltas) == message[name]


def test_no_reasoning_comes_where_none_is_wanted(server: Server) -> None:
    assert "reasoning_content" not in server.chat(reasoning_effort="none")[1]["choices"][0]["message"]


def test_tools_that_may_not_be_called_are_not_shown(server: Server) -> None:
    requests: list[dict[str, Any]] = [{}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": [WEATHER]}]
    sizes = [server.chat(**fields)[1]["usage"]["prompt_tokens"] for fields in requests]
    assert sizes[0] == sizes[1] < sizes[2]


def test_a_tools_answer_goes_back_to_the_model(server: Server) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    turns = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"weather": "sunny"}'},
    ]
    status, answer = server.chat(turns, tools=[WEATHER])
    assert status == 200
    assert "unny" in text(answer)


def test_text_beyond_ascii_arrives_whole(server: Server) -> None:
    question = [{"role": "user", "content": "Say hello in Russian."}]
    whole = text(server.chat(question)[1])
    deltas = [event["choices"][0]["delta"] for event in events(server, messages=question)]
    assert whole == "".join(delta.get("content", "") for delta in deltas) == "Привет!"


def test_a_stream_says_its_usage_only_if_asked(server: Server) -> None:
    assert all("usage" not in event for event in events(server))
    *chunks, last = events(server, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["usage"] == server.chat()[1]["usage"]
    assert len({event["id"] for event in (*chunks, last)}) == 1


def test_harmless_fields_change_nothing(server: Server) -> None:
    fields = {
        "n": 1, "user": "ada", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "logprobs": False, "top_logprobs": None, "response_format": {"type": "text"}, "tools": [],
        "parallel_tool_calls": False, "logit_bias": {}, "modalities": ["text"], "stop": None,
        "prompt_cache_key": "x", "safety_identifier": "y",
    }  # fmt: skip
    assert text(server.chat(**fields)[1]) == "The capital of France is Paris."


# Errors


def test_a_prompt_that_is_too_long_is_an_error_with_the_numbers(server: Server) -> None:
    for stream in (False, True):
        status, answer = server.chat([{"role": "user", "content": "word " * 5000}], stream=stream)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert "2,048" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/", 400),
        ("GET", "/v1/models/org/name", 404),
        ("GET", "/v1/models/%00%1b%5b2J", 400),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("POST", "/v1/models/demo", 405),
        ("POST", "/v1/models/org%2Fstart/stop%2Fstart", 405),
        ("DELETE", "/v1/models/demo", 400),
        ("POST", "/v1/models", 400),
        ("GET", "/v1/jobs/none", 404),
    ],
)
def test_errors_have_openais_form(server: Server, method: str, path: str, status: int) -> None:
    got, answer, headers = server.ask(method, path)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert ("Allow" in headers) == (status == 405)


def test_it_says_that_it_is_alive_and_ready_and_what_it_is(server: Server) -> None:
    assert server.ask("GET", "/healthz")[:2] == (200, {"status": "ok"})
    assert server.ask("GET", "/readyz")[:2] == (200, {"status": "ready"})
    assert b"mdl" in server.ask("GET", "/")[1]


def test_each_request_is_a_line_in_the_log_that_moves_no_cursor(server: Server) -> None:
    server.ask("GET", "/v1/models/%1b%5b2J?key=secret")
    wait_until(lambda: "GET /v1/models/%1b%5b2J 400" in server.log.read_text())  # written after the answer
    lines = server.log.read_text().splitlines()
    assert any("GET /v1/models/%1b%5b2J 400" in line and "secret" not in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_file_beside_the_server_is_none_of_a_clients_business(server: Server, tmp_path: Path) -> None:
    here = cache(tmp_path / "home", "secret") / "models/quay.io/org/secret/secret.gguf"
    answers = [server.chat(model=str(name)) for name in (here, f"file://{here}", here.with_name("none.gguf"))]
    for status, answer in answers:
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert "is not on this machine" in answer["error"]["message"]


def test_a_bad_name_is_refused_by_field(server: Server) -> None:
    status, answer = server.chat(model="a\x00b")
    assert (status, answer["error"]["param"]) == (400, "model")
    status, answer = server.chat(model=None)
    assert (status, answer["error"]["param"]) == (400, "model")
