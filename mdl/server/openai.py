"""The dialect of OpenAI's API: JSON to Chat, Delta to JSON. Knows no tokens, paths or sockets.

The fields are those of OpenAI's published OpenAPI document, and of llama.cpp's server where that has more.
What is not supported is refused by name.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from time import time
from typing import Any

from mdl.engine.request import Chat, Delta, Finish, Message, Sampling, ToolCall, Usage
from mdl.errors import MdlError
from mdl.model import Model
from mdl.server import failure
from mdl.server.fields import Fields

MOST_MESSAGES = 10_000
MOST_PARTS = 1_000  # of one message
MOST_TOOLS = 128
MOST_STOPS = 4
MOST_TOKENS = 2**31 - 1

# What may be asked for without an effect here, as what it says holds already or is no business of a model:
# the values that are taken (None: any of the kind), and why they change nothing. Others are refused.
HARMLESS: dict[str, tuple[type, tuple[Any, ...] | None, str]] = {
    "n": (int, (1,), "one answer is what there is"),
    "store": (bool, (False,), "nothing is ever stored"),
    "metadata": (dict, None, "describes what is stored, which is nothing"),
    "user": (str, None, "tells OpenAI whom to blame"),
    "safety_identifier": (str, None, "the same under its newer name"),
    "prompt_cache_key": (str, None, "a hint for routing among machines"),
    "prompt_cache_retention": (str, None, "a hint on what to pay for"),
    "service_tier": (str, ("auto", "default"), "there is one"),
    "modalities": (list, (["text"],), "text is what comes"),
    "response_format": (dict, ({"type": "text"},), "text is what comes"),
    "logprobs": (bool, (False,), "none come"),
    "top_logprobs": (int, (0,), "none come"),
    "logit_bias": (dict, ({},), "biases nothing"),
    "verbosity": (str, ("medium",), "the default"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request for a chat completion asks for. `model` None: it did not say. `given` is what it says of
    the sampling; the rest is as the model's profile has it."""

    model: str | None
    chat: Chat
    given: Mapping[str, Any]
    stream: bool
    include_usage: bool


# JSON to Chat


def asked(body: Any) -> Asked:
    """Raises Refused (400), which names the field, for what is wrong, unknown or not supported."""
    fields = Fields(body)
    model = fields.text("model")
    stream = fields.flag("stream") or False
    include_usage = _include_usage(fields, stream)
    given = _sampling(fields)
    chat = Chat(_messages(fields), Sampling(**given), _tools(fields), _thinking(fields))
    _pass_over_harmless(fields)
    fields.done()
    return Asked(model, chat, given, stream, include_usage)


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        fields.fail("stream_options", "goes only with stream: true")
    include = options.flag("include_usage") or False
    options.flag("include_obfuscation")  # padding against guesses from sizes: OpenAI leaves it out on request
    options.done()
    return include


def _sampling(fields: Fields) -> dict[str, Any]:
    most = fields.integer("max_tokens", 1, MOST_TOKENS)
    values: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", 0, 2**31 - 1),
        "min_p": fields.number("min_p", 0, 1),
        "repeat_penalty": fields.number("repeat_penalty", 0.01, 100),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "seed": fields.integer("seed", -(2**63), 2**64 - 1),
        "max_tokens": fields.integer("max_completion_tokens", 1, MOST_TOKENS) or most,
        "stop": _stops(fields),
    }
    if most is not None and values["max_tokens"] != most:
        fields.fail("max_tokens", "says something else than max_completion_tokens, its newer name")
    return {name: value for name, value in values.items() if value is not None}


def _stops(fields: Fields) -> tuple[str, ...] | None:
    stops = fields.take("stop")
    stops = [stops] if isinstance(stops, str) else stops
    if stops is None:
        return None
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        fields.fail("stop", f"has to be a string, or an array of at most {MOST_STOPS}")
    if not all(isinstance(stop, str) and stop for stop in stops):
        fields.fail("stop", "has to hold strings that are not empty")
    return tuple(stops)


def _thinking(fields: Fields) -> bool | None:
    effort = fields.choice("reasoning_effort", "none", "minimal", "low", "medium", "high", "xhigh")
    by_effort = None if effort is None else effort != "none"
    options = fields.object("chat_template_kwargs")
    if options is None:
        return by_effort
    thinking = options.flag("enable_thinking")
    options.done()
    if None not in (thinking, by_effort) and thinking != by_effort:
        fields.fail("reasoning_effort", "says something else than chat_template_kwargs.enable_thinking")
    return by_effort if thinking is None else thinking


def _pass_over_harmless(fields: Fields) -> None:
    for name, (kind, values, _) in HARMLESS.items():
        value = fields.take(name)
        if value is None:
            continue
        if type(value) is not kind or (values is not None and value not in values):
            taken = ", ".join(json.dumps(value) for value in values or ())
            what = "a string" if kind is str else "an object"
            fields.fail(name, f"can only be {taken}" if taken else f"has to be {what}")


# Messages


def _messages(fields: Fields) -> tuple[Message, ...]:
    fields.needs("messages")
    messages = tuple(map(_message, fields.objects("messages", MOST_MESSAGES)))
    if not messages:
        fields.fail("messages", "is empty")
    return messages


def _message(fields: Fields) -> Message:
    fields.needs("role")
    role = fields.choice("role", *_ROLES) or ""
    message = _ROLES[role](fields)
    fields.done()
    return message


def _instruction(fields: Fields) -> Message:
    """`developer` is OpenAI's name for the system's words to its newer models; templates know `system`."""
    return Message("system", _content(fields), name=fields.text("name") or "")


def _user(fields: Fields) -> Message:
    return Message("user", _content(fields), name=fields.text("name") or "")


def _assistant(fields: Fields) -> Message:
    calls = tuple(map(_call, fields.objects("tool_calls", MOST_TOOLS)))
    refusal = fields.text("refusal") or ""  # said in the place of an answer
    fields.items("annotations", MOST_PARTS)  # on links in an answer, sent back with it: not part of the text
    return Message(
        "assistant",
        _content(fields, optional=bool(calls or refusal)) or refusal,
        reasoning=fields.text("reasoning_content") or "",
        tool_calls=calls,
        name=fields.text("name") or "",
    )


def _tool(fields: Fields) -> Message:
    fields.needs("tool_call_id")
    return Message(
        "tool",
        _content(fields),
        tool_call_id=fields.text("tool_call_id") or "",
        name=fields.text("name") or "",
    )


_ROLES: dict[str, Callable[[Fields], Message]] = {
    "system": _instruction,
    "developer": _instruction,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _content(fields: Fields, optional: bool = False) -> str:
    """A string, or parts that are text, which are put one below the other."""
    content = fields.take("content")
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        fields.fail("content", "is missing" if content is None else "has to be a string or an array of parts")
    if len(content) > MOST_PARTS:
        fields.fail("content", f"has {len(content):,} parts, and may have {MOST_PARTS:,}")
    where = fields.path("content")
    return "\n".join(_part(Fields(part, f"{where}[{index}]")) for index, part in enumerate(content))


def _part(fields: Fields) -> str:
    fields.needs("type")
    kind = fields.text("type")
    if kind not in ("text", "refusal"):
        fields.fail("type", "can only be text: this server reads no images, sound or files")
    fields.needs(kind)
    text = fields.text(kind) or ""
    fields.done()
    return text


def _call(fields: Fields) -> ToolCall:
    for name in ("id", "function"):
        fields.needs(name)
    fields.choice("type", "function")
    function = fields.object("function")
    assert function is not None
    for name in ("name", "arguments"):
        function.needs(name)
    call = ToolCall(function.text("name") or "", function.text("arguments") or "", fields.text("id") or "")
    function.done()
    fields.done()
    return call


# Tools. The model sees them, and its calls come as the text that it writes, with the finish reason "stop":
# the forms that models write calls in, and the grammars that make them valid, are to become a table here.


def _tools(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    tools = tuple(map(_declared, fields.objects("tools", MOST_TOOLS)))
    choice = fields.take("tool_choice")
    if choice not in (None, "auto", "none"):
        fields.fail("tool_choice", "can only be auto or none: this server cannot force a call")
    if fields.flag("parallel_tool_calls") is False and tools:
        fields.fail("parallel_tool_calls", "can only be true: this server cannot hold the model to one call")
    return () if choice == "none" else tools


def _declared(fields: Fields) -> Mapping[str, Any]:
    for name in ("type", "function"):
        fields.needs(name)
    fields.choice("type", "function")
    function = fields.object("function")
    assert function is not None
    function.needs("name")
    declared: dict[str, Any] = {"name": function.text("name")}
    if (description := function.text("description")) is not None:
        declared["description"] = description
    parameters = function.take("parameters")
    if not isinstance(parameters, dict | None):
        function.fail("parameters", "has to be an object")
    declared["parameters"] = parameters or {"type": "object", "properties": {}}
    if function.flag("strict"):
        function.fail("strict", "can only be false: this server does not hold calls to their schema")
    function.done()
    fields.done()
    return {"type": "function", "function": declared}


# Delta to JSON


def completion(model: str, deltas: Iterable[Delta]) -> dict[str, Any]:
    """The whole answer in one object."""
    pieces = list(deltas)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
    if reasoning := "".join(piece.reasoning for piece in pieces):
        message["reasoning_content"] = reasoning
    message["refusal"] = None
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": pieces[-1].finish}
    head = _head("chat.completion", model)
    return {**head, "choices": [choice], "usage": _usage(pieces[-1].usage or Usage())}


class Chunks:
    """A streamed answer as `data:` lines. What all have in common is written once; a piece costs its text.

    Text is in ASCII, as some readers of event streams take U+2028 and U+0085 for ends of lines.
    """

    def __init__(self, model: str, include_usage: bool) -> None:
        head = json.dumps(_head("chat.completion.chunk", model), separators=(",", ":"))[:-1]
        self._head = "data: " + head + ',"choices":['
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._include_usage = include_usage

    def begin(self) -> bytes:
        return self._chunk('"role":"assistant","content":""')

    def piece(self, delta: Delta) -> bytes:
        written = b""
        if delta.reasoning:
            written += self._chunk('"reasoning_content":' + quoted(delta.reasoning))
        if delta.text:
            written += self._chunk('"content":' + quoted(delta.text))
        if delta.finish:
            written += self._chunk("", delta.finish) + self._end(delta.usage or Usage())
        return written

    def failure(self, error: MdlError) -> bytes:
        return f"data: {json.dumps(failure.body(error))}\n\n".encode()

    def _chunk(self, delta: str, finish: Finish | None = None) -> bytes:
        reason = f'"{finish}"' if finish else "null"
        choice = '{"index":0,"delta":{' + delta + '},"logprobs":null,"finish_reason":' + reason + "}"
        return (self._head + choice + self._tail).encode()

    def _end(self, usage: Usage) -> bytes:
        last = f'{self._head}],"usage":{json.dumps(_usage(usage))}}}\n\n' if self._include_usage else ""
        return f"{last}data: [DONE]\n\n".encode()


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time()), "model": model}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def listed(name: str, model: Model) -> dict[str, Any]:
    """A model as /v1/models has it."""
    reference = model.reference
    owner = reference.path.partition("/")[0] if "/" in reference.path else reference.host or "mdl"
    if reference.scheme == "file":
        owner = "mdl"
    return {"id": name, "object": "model", "created": int(model.modified.timestamp()), "owned_by": owner}
