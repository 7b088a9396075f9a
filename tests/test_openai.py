"""Chat completions by the real openai client: each field that has an effect, in the shapes of OpenAI."""

import asyncio
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field
from serving import CHAT, FRANCE, STORY, Server, cache, text

from mdl.engine.request import CallPiece, Chat, Delta, Format, Logprob, Sampling, ToolCall
from mdl.errors import MdlError
from mdl.profiles import Profile
from mdl.server import chat, completions
from mdl.server import openai as dialect
from mdl.server.chunks import Chunks
from mdl.server.fields import Fields

PARIS = "The capital of France is Paris."
OURS = {"timings", "reasoning_content"}  # what llama.cpp's server has and OpenAI has not


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = cache(tmp_path_factory.mktemp("server") / "home", "endless")
    with Server(home) as running:
        assert text(running.chat()[1]) == PARIS
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events(server: Server, **fields: Any) -> list[Any]:
    """The events of a streamed answer, without the last, which is checked."""
    *lines, done, rest = lines_of(server, **fields)
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def lines_of(server: Server, **fields: Any) -> list[str]:
    body = {"model": "demo", "messages": FRANCE, "temperature": 0, "stream": True, **fields}
    status, data, headers = server.ask("POST", CHAT, json.dumps(body).encode())
    assert (status, headers.get_content_type()) == (200, "text/event-stream")
    return list(data.decode("ascii").split("\n\n"))


def asked(**fields: Any) -> chat.Asked:
    return chat.asked({"messages": FRANCE, **fields})


def refused(**fields: Any) -> str:
    """The field that the refusal names."""
    with pytest.raises(MdlError) as caught:
        asked(**fields)
    return str(getattr(caught.value, "param", None))


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


WEATHER = function(
    "get_weather",
    description="The weather in a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
ADD = function(
    "add",
    description="Add two numbers",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)
IN_PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]


# Shapes


def extras(value: Any) -> set[str]:
    """The names of all fields that the published types do not have."""
    if isinstance(value, list):
        return set().union(*map(extras, value))
    if not isinstance(value, BaseModel):
        return set()
    inner = [extras(getattr(value, name)) for name in type(value).model_fields]
    return set(value.model_extra or ()).union(*inner)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {"n": 3},
    "cut": {"max_completion_tokens": 2},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "reasoning": {"reasoning_effort": "high", "logprobs": True},
    "calls": {"messages": IN_PARIS, "tools": [WEATHER], "n": 2},
}


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_whole_answer_has_the_published_shape(server: Server, fields: dict[str, Any]) -> None:
    status, answer = server.chat(**fields)
    assert status == 200
    parsed = ChatCompletion.model_validate_json(json.dumps(answer), strict=True)
    assert extras(parsed) <= OURS
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(answer)
    for index, choice in enumerate(answer["choices"]):
        assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
        assert {"role", "content", "refusal"} <= set(choice["message"])
        assert choice["index"] == index


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_the_chunks_of_a_streamed_answer_have_the_published_shape(
    server: Server, fields: dict[str, Any]
) -> None:
    answers = fields.get("n", 1)
    chunks = events(server, stream_options={"include_usage": True}, **fields)
    for chunk in chunks:
        parsed = ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)
        assert extras(parsed) <= OURS
        assert {"id", "object", "created", "model", "choices", "usage"} <= set(chunk)
        for choice in chunk["choices"]:
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
    *pieces, last = chunks
    assert last["choices"] == [] and last["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in pieces)
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    first = [chunk["choices"][0] for chunk in pieces[:answers]]
    assert [(choice["index"], choice["delta"]["role"]) for choice in first] == [
        (index, "assistant") for index in range(answers)
    ]
    ends = [chunk for chunk in pieces if chunk["choices"][0]["finish_reason"]]
    assert sorted(chunk["choices"][0]["index"] for chunk in ends) == list(range(answers))


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_streamed_answer_says_what_the_whole_one_says(server: Server, fields: dict[str, Any]) -> None:
    _, whole = server.chat(**fields)
    chunks = [chunk["choices"][0] for chunk in events(server, **fields)]
    for choice in whole["choices"]:
        own = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        for name in ("content", "reasoning_content"):
            said = "".join(chunk["delta"].get(name, "") for chunk in own)
            assert said == (choice["message"].get(name) or "")
        calls = [call for chunk in own for call in chunk["delta"].get("tool_calls", ())]
        whole_calls = choice["message"].get("tool_calls", ())
        arguments = "".join(call["function"]["arguments"] for call in calls)
        assert arguments == "".join(call["function"]["arguments"] for call in whole_calls)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        told = [entry["token"] for chunk in own for entry in (chunk["logprobs"] or {}).get("content", [])]
        assert told == [entry["token"] for entry in (choice["logprobs"] or {}).get("content", [])]


# Several answers


def test_several_answers_come_side_by_side_and_their_prompt_counts_once(client: openai.OpenAI) -> None:
    one, four = (
        client.chat.completions.create(model="demo", messages=FRANCE, temperature=0, n=n) for n in (1, 4)
    )
    assert [choice.message.content for choice in four.choices] == [PARIS] * 4
    assert one.usage is not None and four.usage is not None
    assert four.usage.prompt_tokens == one.usage.prompt_tokens
    assert four.usage.completion_tokens == 4 * one.usage.completion_tokens
    *_, last = client.chat.completions.create(
        model="demo",
        messages=FRANCE,
        temperature=0,
        n=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert last.usage is not None
    assert last.usage.prompt_tokens == four.usage.prompt_tokens
    assert last.usage.completion_tokens == four.usage.completion_tokens


def test_the_pieces_of_several_answers_interleave(server: Server) -> None:
    chunks = [chunk["choices"][0] for chunk in events(server, messages=STORY, n=3)]
    places = {
        index: [place for place, chunk in enumerate(chunks) if chunk["index"] == index] for index in range(3)
    }
    assert max(place[0] for place in places.values()) < min(place[-1] for place in places.values())
    stories = {
        "".join(chunk["delta"].get("content", "") for chunk in chunks if chunk["index"] == index)
        for index in range(3)
    }
    assert len(stories) == 1 and len(stories.pop()) > 100


def test_several_answers_with_a_seed_are_not_the_same_one(server: Server) -> None:
    _, answer = server.chat(STORY, n=2, seed=1, temperature=1, max_tokens=60)
    first, second = (choice["message"]["content"] for choice in answer["choices"])
    assert first != second


@given(seed=st.integers(-(2**63), 2**64 - 1).filter(lambda seed: seed != -1), answers=st.integers(2, 16))
def test_each_of_several_answers_has_its_own_seed_from_the_one_that_was_given(
    seed: int, answers: int
) -> None:
    requests = asked(seed=seed, n=answers).requests(Profile())
    seeds = [request.sampling.seed for request in requests]
    assert len(set(seeds)) == answers
    assert seeds[0] is not None and (seeds[0] - seed) % 2**64 == 0


def test_a_seed_of_minus_one_is_any_seed_whatever_the_profile_of_the_model_says() -> None:
    of_a_model = Profile(sampling={"seed": 7})
    [request] = asked(seed=-1).requests(of_a_model)
    [completion] = completions.asked({"prompt": "x", "seed": -1}).requests(of_a_model)
    assert request.sampling.seed is completion.sampling.seed is None
    assert asked(n=3, seed=-1).requests(Profile()) == asked(n=3).requests(Profile())


def test_several_answers_take_as_many_places(tmp_path: Path) -> None:
    with Server(cache(tmp_path / "home"), limits={"requests": 3}) as small:
        assert small.chat(n=3)[0] == 200
        status, answer = small.chat(n=4)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert small.chat(n=3)[0] == 200  # what was refused holds no place


# Probabilities


def test_logprobs_tell_each_token_of_the_answer_and_the_likeliest_in_its_place(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=5
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == PARIS
    assert answer.usage is not None and len(logprobs.content) == answer.usage.completion_tokens
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 5
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] <= 0


def test_tokens_that_are_parts_of_characters_come_as_their_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Say hello in Russian."}],
        temperature=0,
        logprobs=True,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    data = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    assert data.decode() == answer.choices[0].message.content == "Привет!"


def test_no_logprobs_come_where_none_are_wanted(server: Server) -> None:
    assert server.chat(logprobs=False)[1]["choices"][0]["logprobs"] is None


def test_a_bias_forbids_a_token(server: Server) -> None:
    _, answer = server.chat(logprobs=True, top_logprobs=1)
    assert answer["choices"][0]["message"]["content"] == PARIS
    forbidden = {str(token): -100 for token in range(1024)}
    _, other = server.chat(logit_bias=forbidden, max_tokens=20)
    assert other["choices"][0]["message"]["content"] != PARIS


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused(server: Server) -> None:
    status, answer = server.chat(logit_bias={"2048": 1})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["param"] == "logit_bias"
    assert "logit_bias has token 2048" in answer["error"]["message"]


# Sampling


def test_what_a_request_says_of_the_sampling_reaches_the_engine_by_name() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.25, "typical_p": 0.75, "repeat_penalty": 1.5,
        "repeat_last_n": 7, "frequency_penalty": 0.5, "presence_penalty": -0.5, "top_n_sigma": 1.5,
        "xtc_probability": 0.5, "xtc_threshold": 0.25, "dry_multiplier": 0.5, "dry_base": 2,
        "dry_allowed_length": 3, "dry_penalty_last_n": 64, "mirostat": 2, "mirostat_tau": 4,
        "mirostat_eta": 0.2, "seed": 7, "max_tokens": 9,
    }  # fmt: skip
    more = {"stop": ["a", "b"], "dry_sequence_breakers": ["\n"], "logit_bias": {"7": -100, "8": 1.5}}
    sampling = asked(**fields, **more, logprobs=True, top_logprobs=4).chat.sampling
    assert sampling == Sampling(
        **fields,
        stop=("a", "b"),
        dry_sequence_breakers=("\n",),
        logit_bias=((7, -100), (8, 1.5)),
        logprobs=4,
    )
    assert asked(typical=0.5).chat.sampling == Sampling(typical_p=0.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.01, "top_n_sigma": 0.01},
        {"typical_p": 1, "top_k": 1},
        {"temperature": 0.01, "mirostat": 1},
        {"temperature": 0.01, "mirostat": 2, "mirostat_tau": 0.1, "mirostat_eta": 0.5},
        {"top_k": 1, "xtc_probability": 1, "xtc_threshold": 0.4},
        {"temperature": 0, "dry_multiplier": 0.5, "dry_allowed_length": 2, "dry_sequence_breakers": []},
    ],
)
def test_the_samplers_of_llamacpp_are_taken(server: Server, fields: dict[str, Any]) -> None:
    """Each of these leaves the likeliest token, whatever the seed."""
    assert text(server.chat(**{"temperature": 1, **fields})[1]) == PARIS


# Forms


def test_forms_of_an_answer_are_read_from_openais_and_llamacpps_fields() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    as_text = json.dumps(schema, separators=(",", ":"))
    named = {"name": "x", "schema": schema, "strict": True, "description": "about it"}
    taken: list[tuple[dict[str, Any], Format | None]] = [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Format("json")),
        ({"response_format": {"type": "json_schema", "json_schema": named}}, Format("schema", as_text)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, Format("json")),
        ({"response_format": {"type": "json_object", "schema": schema}}, Format("schema", as_text)),
        ({"json_schema": schema}, Format("schema", as_text)),
        ({"grammar": "root ::= [a]"}, Format("gbnf", "root ::= [a]")),
        ({"grammar": ""}, None),
        ({"response_format": {"type": "text"}, "grammar": "root ::= [a]"}, Format("gbnf", "root ::= [a]")),
        ({}, None),
    ]
    for fields, form in taken:
        assert asked(**fields).chat.format == form


class Person(BaseModel):
    name: str
    city: Literal["Paris", "Rome", "Oslo"]
    age: int
    tags: list[bool] = Field(max_length=2)


def test_the_client_gets_an_object_of_the_type_that_it_asks_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=STORY, temperature=0, max_tokens=300, response_format=Person
    )
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)
    assert answer.choices[0].message.content is not None
    assert Person.model_validate_json(answer.choices[0].message.content, strict=True) == person


def test_a_streamed_object_is_of_the_type_that_was_asked_for(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=STORY, temperature=0, max_tokens=300, response_format=Person
    ) as stream:
        (done,) = (event for event in stream if event.type == "content.done")
        final = stream.get_final_completion()
    assert isinstance(done.parsed, Person)
    assert final.choices[0].message.parsed == done.parsed


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object"}, "reasoning_effort": "high"},
        {"json_schema": {"type": "object"}, "temperature": 1},
    ],
)
def test_an_answer_is_json_where_that_is_asked_for(server: Server, fields: dict[str, Any]) -> None:
    _, answer = server.chat(max_tokens=400, **fields)
    assert isinstance(json.loads(text(answer)), dict)


def test_several_answers_keep_to_one_form(server: Server) -> None:
    schema = {"enum": ["yes", "no", "maybe"]}
    _, answer = server.chat(n=4, seed=1, temperature=2, json_schema=schema)
    said = [json.loads(choice["message"]["content"]) for choice in answer["choices"]]
    assert set(said) <= {"yes", "no", "maybe"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_kept_to_is_refused(server: Server, stream: bool) -> None:
    status, answer = server.chat(json_schema={"type": "thing"}, stream=stream)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "schema" in answer["error"]["message"]


# Tools


def named(*names: str, mode: str = "auto") -> dict[str, Any]:
    """A choice of several tools."""
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [function(name) for name in names]},
    }


def shown(chat: Chat) -> list[str]:
    return [tool["function"]["name"] for tool in chat.tools]


@pytest.mark.parametrize(
    ("choice", "names", "must", "only"),
    [
        (None, "abc", False, ""),
        ("auto", "abc", False, ""),
        ("none", "", False, ""),
        ("required", "abc", True, ""),
        (function("b"), "abc", True, "b"),
        (named("c", "a"), "ac", False, ""),
        (named("b", mode="required"), "b", True, ""),
    ],
)
def test_a_choice_of_tools_says_which_are_shown_and_which_have_to_be_called(
    choice: Any, names: str, must: bool, only: str
) -> None:
    chat = asked(tools=[function(name) for name in "abc"], tool_choice=choice).chat
    assert ("".join(shown(chat)), chat.must_call, chat.only) == (names, must, only)


@pytest.mark.parametrize("choice", [function("d"), named("a", "d"), {"type": "custom"}, {}, 1])
def test_a_choice_of_a_tool_that_is_not_there_is_refused(choice: Any) -> None:
    assert refused(tools=[function("a")], tool_choice=choice).startswith("tool_choice")


def test_calls_are_parallel_unless_the_request_says_otherwise() -> None:
    tools = [function("a")]
    assert asked(tools=tools).chat.parallel_calls
    assert not asked(tools=tools, parallel_tool_calls=False).chat.parallel_calls


def test_the_client_calls_a_tool_and_tells_the_model_what_it_said(client: openai.OpenAI) -> None:
    messages: list[Any] = [*IN_PARIS]
    answer = client.chat.completions.create(
        model="demo", messages=messages, tools=[WEATHER], temperature=0
    ).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [answer.message, {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny"}'}]
    told = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], temperature=0)
    assert "unny" in (told.choices[0].message.content or "")


def test_a_streamed_call_has_its_name_first_and_then_its_arguments(server: Server) -> None:
    chunks = [chunk["choices"][0] for chunk in events(server, messages=IN_PARIS, tools=[WEATHER])]
    pieces = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls", ())]
    first, *rest = pieces
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "get_weather")
    assert first["id"]
    assert all(
        set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in rest
    )
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"city": "Paris"}
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == ""
    assert chunks[-1]["finish_reason"] == "tool_calls"


class Weather(BaseModel):
    """What is asked of a tool, as the client has it."""

    city: str


def test_the_clients_helpers_read_the_arguments_of_calls(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather", description="The weather in a city")
    messages: list[Any] = [*IN_PARIS]
    parsed = client.chat.completions.parse(model="demo", messages=messages, tools=[tool], temperature=0)
    with client.chat.completions.stream(
        model="demo", messages=messages, tools=[tool], temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    for completion in (parsed, streamed):
        calls = completion.choices[0].message.tool_calls
        assert calls is not None
        assert [call.function.parsed_arguments for call in calls] == [Weather(city="Paris")]
        assert completion.choices[0].finish_reason == "tool_calls"
    messages += [
        streamed.choices[0].message,
        {"role": "tool", "tool_call_id": calls[0].id, "content": '{"weather": "sunny"}'},
    ]
    told = client.chat.completions.create(model="demo", messages=messages, tools=[tool], temperature=0)
    assert "unny" in (told.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "add"}),
        (function("add"), {"add"}),
        (named("add", mode="required"), {"add"}),
    ],
)
def test_a_call_that_is_required_is_one_whatever_the_question(
    client: openai.OpenAI, choice: Any, names: set[str]
) -> None:
    with client.chat.completions.stream(
        model="demo", messages=STORY, tools=[WEATHER, ADD], tool_choice=choice, temperature=0
    ) as stream:
        answer = stream.get_final_completion().choices[0]
    assert answer.finish_reason == "tool_calls"
    for call in answer.message.tool_calls or ():
        assert call.function.name in names
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == ({"city"} if call.function.name == "get_weather" else {"a", "b"})


def test_there_is_one_call_at_most_where_no_more_are_wanted(server: Server) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    _, answer = server.chat(question, **fields)
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


# The beginning of an answer


@pytest.mark.parametrize("begun", ["The capital", "The capital of France is", "In France, the capital is"])
def test_an_answer_goes_on_from_its_beginning(server: Server, begun: str) -> None:
    messages = [*FRANCE, {"role": "assistant", "content": begun}]
    said = text(server.chat(messages)[1])
    assert said.startswith(" ") and said.endswith("Paris.")
    chunks = [chunk["choices"][0]["delta"] for chunk in events(server, messages=messages)]
    assert "".join(delta.get("content", "") for delta in chunks) == said


def test_a_last_message_of_the_assistant_is_gone_on_with() -> None:
    begun = [*FRANCE, {"role": "assistant", "content": "The capital"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = [*FRANCE, {"role": "assistant", "tool_calls": [call]}]
    assert [asked(messages=messages).chat.continues for messages in (FRANCE, begun, called)] == [
        False,
        True,
        False,
    ]


# How long a model stays


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), (0, 0.0), (5, 5.0), (0.5, 0.5), (-1, -1.0), (-7.5, -1.0), ("5m", 300.0), ("1h30m", 5400.0),
     ("300", 300.0), ("1.5s", 1.5), ("250ms", 0.25), ("-1", -1.0), ("-5m", -1.0), ("0", 0.0), ("-0", 0.0)],
)  # fmt: skip
def test_how_long_a_model_stays_is_read_as_a_number_or_a_duration(value: Any, seconds: float | None) -> None:
    assert asked(keep_alive=value).keep_alive == seconds


@pytest.mark.parametrize("value", ["", "x", "5 m", "m5", "1e3", "5mm", "٣", "1" * 5000, True, [], 2e9])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    assert refused(keep_alive=value) == "keep_alive"


# Long silences


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It begins each stream at once, and breaks every silence that lasts a millisecond."""
    home = cache(tmp_path_factory.mktemp("impatient") / "home")
    with Server(home, limits={"begin_seconds": 0, "silence_seconds": 0.001}) as running:
        yield running


def test_silences_are_broken_by_comments_that_readers_skip(impatient: Server) -> None:
    lines = lines_of(impatient)
    assert sum(line.startswith(": ") for line in lines) >= 1
    assert {line.partition(" ")[0] for line in lines} == {"data:", ":", ""}
    with openai.OpenAI(base_url=f"{impatient.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == PARIS


def test_a_stream_begins_and_goes_on_while_nothing_comes_from_the_model(impatient: Server) -> None:
    assert text(impatient.chat()[1]) == PARIS
    (worker,) = impatient.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        connection = impatient.connect()
        connection.request("POST", CHAT, json.dumps({"messages": FRANCE, "model": "demo", "stream": True}))
        response = connection.getresponse()
        assert (response.status, response.headers.get_content_type()) == (200, "text/event-stream")
        assert [response.readline()[:2] for _ in range(10)] == [b": ", b"\n"] * 5
    finally:
        os.kill(worker, signal.SIGCONT)
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_what_fails_after_a_stream_began_is_an_event(impatient: Server) -> None:
    with openai.OpenAI(base_url=f"{impatient.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "word " * 5000}], stream=True
        )
        with pytest.raises(openai.APIError, match=r"2,048") as caught:
            list(stream)
    assert caught.value.code == "context_length_exceeded"


def test_what_fails_before_a_stream_began_has_a_status_of_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "word " * 5000}], stream=True
        )
    assert caught.value.code == "context_length_exceeded"


# What it took


def test_timings_tell_tokens_and_milliseconds(server: Server) -> None:
    _, answer = server.chat(STORY)
    timings, usage = answer["timings"], answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert timings["prompt_n"] == usage["prompt_tokens"] - cached
    assert timings["predicted_n"] == usage["completion_tokens"]
    assert timings["predicted_ms"] > 0
    for usage_wanted in (True, False):
        *chunks, last = events(server, messages=STORY, stream_options={"include_usage": usage_wanted})
        assert last["timings"]["predicted_n"] == usage["completion_tokens"]
        assert not any("timings" in chunk for chunk in chunks)


def test_a_prompt_that_was_computed_before_is_told_as_cached(server: Server) -> None:
    question = [{"role": "user", "content": "What is 3 plus 4? " * 3}]
    details = [server.chat(question)[1]["usage"]["prompt_tokens_details"] for _ in range(2)]
    assert details[1]["cached_tokens"] > 0


# The helpers of the client


def test_the_clients_stream_helper_puts_an_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=FRANCE, temperature=0, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == PARIS
    logprobs = final.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == PARIS
    assert final.usage is not None and final.usage.completion_tokens == len(logprobs.content)


def test_the_async_client_reads_several_streams_at_once(server: Server) -> None:
    async def read(client: openai.AsyncOpenAI) -> list[str]:
        texts = ["", ""]
        stream = await client.chat.completions.create(
            model="demo", messages=FRANCE, temperature=0, stream=True, n=2
        )
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts

    async def read_all() -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(read(client) for _ in range(8)))

    assert asyncio.run(read_all()) == [[PARIS, PARIS]] * 8


def test_the_shared_fields_leave_out_what_is_not_said() -> None:
    assert dialect.sampling(Fields({"temperature": 0, "top_p": None})) == {"temperature": 0}


def test_messages_of_the_client_are_taken_back_as_it_sends_them() -> None:
    """What its helpers put into a message, and leave there when the message goes into the next request."""
    call = {
        "id": "1",
        "type": "function",
        "index": 0,
        "function": {"name": "f", "arguments": '{"a": 1}', "parsed_arguments": {"a": 1}},
    }
    message = {"role": "assistant", "content": None, "parsed": None, "refusal": None, "tool_calls": [call]}
    read = {"role": "assistant", "content": '{"a": 1}', "parsed": {"a": 1}}
    chat = asked(
        messages=[*FRANCE, message, {"role": "tool", "tool_call_id": "1", "content": "2"}, read]
    ).chat
    assert chat.messages[1].tool_calls == (ToolCall("f", '{"a": 1}', "1"),)
    assert chat.messages[3].content == '{"a": 1}'


def test_an_answer_goes_on_past_its_end_where_that_is_wanted(server: Server) -> None:
    _, answer = server.chat(ignore_eos=True, max_tokens=20)
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["choices"][0]["finish_reason"] == "length"


# What goes together


CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


@pytest.mark.parametrize("strict", [False, True])
def test_an_answer_may_call_a_tool_or_keep_to_its_form(server: Server, strict: bool) -> None:
    tool = function(**WEATHER["function"], strict=strict)
    fields: dict[str, Any] = {"tools": [tool], "json_schema": CITY, "max_tokens": 200}
    called = server.chat(IN_PARIS, **fields)[1]["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert json.loads(called["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    said = server.chat(FRANCE, **fields)[1]["choices"][0]["message"]
    if not said.get("tool_calls"):
        assert json.loads(said["content"])["city"] in ("Paris", "Rome")


def test_the_arguments_of_a_strict_tool_keep_to_its_schema_where_the_model_calls_it(server: Server) -> None:
    strict = function("get_weather", description="The weather in a city", strict=True, parameters=CITY)
    rome = [{"role": "user", "content": "What is the weather in Rome?"}]
    oslo = [{"role": "user", "content": "What is the weather in Oslo?"}]
    for question in (IN_PARIS, rome, oslo):
        call = server.chat(question, tools=[strict])[1]["choices"][0]["message"]["tool_calls"][0]
        assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert text(server.chat(FRANCE, tools=[strict])[1]) == text(server.chat(FRANCE, tools=[WEATHER])[1])


def test_the_model_is_not_told_how_strict_a_tool_is(server: Server) -> None:
    loose, strict = WEATHER, function(**WEATHER["function"], strict=True)
    sizes = [server.chat(tools=[tool])[1]["usage"]["prompt_tokens"] for tool in (loose, strict)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "fields", [{"json_schema": CITY}, {"tools": [WEATHER], "tool_choice": "required"}, {"tools": [WEATHER]}]
)
def test_reasoning_that_is_wanted_comes_before_what_the_answer_is_held_to(
    server: Server, fields: dict[str, Any]
) -> None:
    choice = server.chat(reasoning_effort="high", max_tokens=200, **fields)[1]["choices"][0]
    assert choice["message"]["reasoning_content"] == "France has the capital Paris."
    if "json_schema" in fields:
        assert json.loads(choice["message"]["content"])["city"] in ("Paris", "Rome")
    if "tool_choice" in fields:
        assert choice["finish_reason"] == "tool_calls"


def test_a_grammar_cannot_go_with_calls_that_may_come(server: Server) -> None:
    status, answer = server.chat(tools=[WEATHER], grammar='root ::= "yes"')
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "thinking", "effort"),
    [
        ({}, None, ""),
        ({"reasoning_effort": "none"}, False, "none"),
        ({"reasoning_effort": "low"}, True, "low"),
        ({"reasoning_effort": "max"}, True, "max"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, ""),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}}, True, "high"),
    ],
)
def test_an_effort_says_whether_to_think_and_how_long(
    fields: dict[str, Any], thinking: bool | None, effort: str
) -> None:
    chat = asked(**fields).chat
    assert (chat.thinking, chat.effort) == (thinking, effort)


# What only the model's engine can refuse


BROKEN = {"type": "thing"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
        ({"json_schema": BROKEN}, "json_schema"),
        ({"response_format": {"type": "json_object", "schema": BROKEN}}, "response_format"),
        ({"grammar": "root"}, "grammar"),
        ({"grammar": 'root ::= "yes"', "tools": [WEATHER]}, "grammar"),
        ({"tools": [function("f", parameters=BROKEN)], "tool_choice": "required"}, "tools"),
        ({"tools": [function("f", parameters=BROKEN, strict=True)]}, "tools"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        (
            {"logit_bias": {str(token): -100 for token in range(800)}, "grammar": 'root ::= "yes"'},
            "logit_bias",
        ),
    ],
)
def test_what_the_engine_refuses_is_refused_by_the_name_of_its_field(
    server: Server, fields: dict[str, Any], param: str, stream: bool
) -> None:
    status, answer = server.chat(stream=stream, **fields)
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (
        400,
        "invalid_request_error",
        param,
    )


# Pieces as they come, one by one


def chunk_of(delta: Delta) -> list[dict[str, Any]]:
    lines = Chunks("demo", 1, include_usage=True).piece(0, delta).split("\n\n")
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line]


def test_a_call_in_pieces_has_its_id_and_name_only_in_the_first_one() -> None:
    pieces = (CallPiece(0, "call_1", "f"), CallPiece(0, arguments='{"a":'), CallPiece(0, arguments="1}"))
    first, *rest = [
        chunk["delta"]["tool_calls"] for piece in pieces for chunk in chunk_of(Delta(calls=(piece,)))
    ]
    assert first == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    ]
    assert rest == [
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
    ]


def test_reasoning_text_and_calls_of_one_piece_are_chunks_of_their_own_and_tell_the_tokens_once() -> None:
    told = (Logprob(7, b"\xd0", -math.inf, ((7, b"\xd0", -math.inf),)),)
    chunks = chunk_of(Delta("text", "thought", calls=(CallPiece(0, "1", "f"),), logprobs=told))
    assert [list(chunk["delta"]) for chunk in chunks] == [["reasoning_content"], ["content"], ["tool_calls"]]
    token = {"token": "\ufffd", "bytes": [0xD0], "logprob": -9999.0}
    assert chunks[0]["logprobs"] == {"content": [{**token, "top_logprobs": [token]}], "refusal": None}
    assert [chunk["logprobs"] for chunk in chunks[1:]] == [None, None]


def test_tokens_that_say_nothing_yet_are_told_all_the_same() -> None:
    (chunk,) = chunk_of(Delta(logprobs=(Logprob(7, b"\xd0", -1.0),)))
    assert (chunk["delta"], chunk["logprobs"]["content"][0]["logprob"]) == ({}, -1.0)
