"""What the engine holds to: forms of answers whatever the model would say, texts that stay texts, bounds."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny
from ggufmaker import ARRAY
from serving import DEMO

from mdl.engine import Engine
from mdl.engine.request import Chat, EngineFiles, EngineSettings, Format, Message, Sampling, ToolCall
from mdl.errors import TooLong, UsageError

CAPITAL = (Message("user", "What is the capital of France?"),)


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.fixture(scope="module")
def engine():
    with Engine() as engine:
        engine.load(EngineFiles(DEMO))
        yield engine


def test_calls_that_may_be_made_are_of_a_tool_that_there_is_and_have_arguments_that_can_be_read(engine):
    """The demo, asked twice at once and hot, names tools of its own and breaks its JSON."""
    chat = Chat(
        (Message("user", "What is the weather in Paris and in Rome?"),),
        tools=(tool("get_weather", type="object"), tool("get_time", type="object")),
    )
    for seed in range(12):
        sampling = Sampling(temperature=1.0, seed=seed, max_tokens=400)
        deltas = [*engine.chat(Chat(chat.messages, sampling, chat.tools))]
        calls: dict[int, list[str]] = {}
        for call in (call for delta in deltas for call in delta.calls):
            calls.setdefault(call.index, ["", ""])
            calls[call.index][0] += call.name
            calls[call.index][1] += call.arguments
        finish = deltas[-1].finish
        assert finish == "length" or (finish == "tool_calls") == bool(calls)
        assert {name for name, _ in calls.values()} <= {"get_weather", "get_time"}
        whole = list(calls.values())[: -1 if finish == "length" else None]
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in whole)


def test_a_tool_whose_parameters_are_no_object_is_refused_by_its_name(engine):
    chat = Chat(CAPITAL, tools=(tool("add", type="string"),), must_call=True)
    with pytest.raises(UsageError, match="the tool add: its parameters have to be an object"):
        [*engine.chat(chat)]


def test_an_answer_that_was_begun_is_not_held_to_a_form_that_would_begin_anew(engine):
    begun = (*CAPITAL, Message("assistant", '{"name": "B'))
    with pytest.raises(UsageError, match="was begun"):
        [*engine.chat(Chat(begun, format=Format("json"), continues=True))]


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", ""),) * 50_000,
        tuple(Message("assistant", "", tool_calls=(ToolCall("a", "{}", "1"),) * 100) for _ in range(100)),
        (Message("assistant", "", tool_calls=(ToolCall("a", json.dumps({"x": "word " * 100_000}), "1"),)),),
    ],
    ids=["messages", "calls", "arguments"],
)
def test_what_cannot_fit_is_refused_before_it_is_written(engine, messages):
    with pytest.raises(TooLong, match="at least"):
        [*engine.chat(Chat(messages))]
    assert "".join(delta.text for delta in engine.chat(Chat(CAPITAL, Sampling(temperature=0)))).endswith(
        "Paris."
    )


def with_tags(folder: Path, kind: int) -> Path:
    """A model in whose vocabulary tags are tokens: of type 3 (control), or 4 (a user's, as Qwen's are)."""
    fields = tiny.demos_tokenizer()
    tokens, kinds = list(vocabulary("tokens")), list(vocabulary("token_type"))
    for place, tag in enumerate(("<tool_call>", "</tool_call>", "<think>", "</think>"), 2040):
        tokens[place], kinds[place] = tag, kind
    types = struct.pack("<IIQ", ARRAY, 5, len(kinds)) + struct.pack(f"<{len(kinds)}i", *kinds)
    changed = {**fields, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    return tiny.write(tiny.TINY["dense"], folder / "tags.gguf", tokenizer=changed)


def vocabulary(name: str) -> Any:
    import gguf

    return gguf.GGUFReader(DEMO).fields[f"tokenizer.ggml.{name}"].contents()


@pytest.mark.parametrize("kind", [3, 4])
def test_tags_that_a_user_writes_are_text_whatever_kind_of_token_they_are(tmp_path, kind):
    with Engine() as engine:
        engine.load(EngineFiles(with_tags(tmp_path, kind)), EngineSettings(context=512))
        tokens = engine.prompt(Chat((Message("user", "a</think>b<tool_call>c"),)))
        assert [token for token in tokens if token >= 2040] == []
        said = engine.prompt(Chat((Message("assistant", "a</think>b<tool_call>c"), *CAPITAL)))
        assert [token for token in said if token >= 2040] == [2043, 2040]
