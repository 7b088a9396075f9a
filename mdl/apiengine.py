"""A model at an API, where a conversation takes an engine: Chat to OpenAI's request, its events to Deltas.
Knows no terminal and no server of ours.

https://platform.openai.com/docs/api-reference/chat
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from time import monotonic
from typing import Any, Self

from mdl import events, upstream
from mdl.address import Remote
from mdl.config import Settings
from mdl.engine.request import CallPiece, Chat, Delta, Finish, Format, Loaded, Message, Sampling, Usage
from mdl.errors import MdlError, NetworkError, UnsupportedModel, UsageError
from mdl.remote import PASSING, Client
from mdl.response import Answer
from mdl.trouble import Transient
from mdl.upstream import Upstream

PIECE = 64 << 10  # bytes that are read at a time, at most
MOST_CALLS = 128
LARGEST = 32 << 20  # bytes of an answer that comes whole
NEUTRAL: Mapping[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
_NEWER = (upstream.OPENAI_HOST, upstream.AZURE_HOSTS)  # their newer models refuse max_tokens
_FINISHES: Mapping[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")  # 429, and no waiting helps


class ApiEngine:
    """What `mdl.engine.Engine` is to a conversation. `given` are the fields of Sampling that were asked for:
    they are sent as they are; of the others, those that say something else than NEUTRAL."""

    def __init__(self, place: Upstream, settings: Settings, given: Collection[str] = ()) -> None:
        self._place = place
        self._given = frozenset(given)
        self._client = Client(upstream.LIMITS, trust=upstream.trust(settings))

    def ready(self, timeout: float | None = None) -> Loaded:  # noqa: ARG002 - as Engine has it
        """What is known of the model, which is not much: a context of 0 is an unknown one."""
        host = self._place.reference.host
        return Loaded(
            architecture="api", description=f"an API, {self._place.address}", size=0, parameters=0, layers=0,
            gpu_layers=0, devices=(host,), vocabulary=0, trained_context=0, context=0, cells=0, threads=0,
            template="model", seconds=0.0,
        )  # fmt: skip

    def chat(self, chat: Chat) -> Iterator[Delta]:
        """The answer, piece by piece. Closing the iterator ends the request. Raises AuthError, NotFound,
        UsageError and NetworkError; what may pass is tried again before the answer has begun."""
        began = monotonic()
        body = json.dumps(request(chat, self._place, self._given)).encode()
        try:
            answer = self._client.patiently(lambda: self._ask(body))
            with closing(answer):
                yield from _Reading(self._place, began).deltas(answer)
        except Transient as trouble:  # whose hint is about downloads
            raise NetworkError(trouble.message, hint="check the address and the connection") from None

    def count(self, chat: Chat) -> int:  # noqa: ARG002 - as Engine has it
        raise UnsupportedModel(f"{self._place.reference.host} does not count tokens before it answers")

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, body: bytes) -> Answer:
        remote = Remote(self._place.url("chat/completions"), self._place.headers)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        answer = self._client.ask(remote, "POST", headers, body)
        if answer.status == 200:
            answer.refuse_coding()
            return answer
        with closing(answer):
            raise self._refusal(answer)

    def _refusal(self, answer: Answer) -> MdlError:
        said = b"".join(_pieces(answer, upstream.LARGEST_ERROR))
        error = upstream.failure(self._place, answer.status, said)
        if answer.status in PASSING and upstream.said(said)[1] not in _SPENT:
            passing = self._client.slowed(answer)
            return Transient(error.message, error.hint, passing.wait, refusal=passing.refusal)
        return error


def request(chat: Chat, place: Upstream, given: Collection[str] = ()) -> dict[str, Any]:
    """A Chat as OpenAI's API has it. Raises UsageError for what cannot be said there."""
    body: dict[str, Any] = {
        "model": place.model,
        "messages": [_message(message) for message in chat.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields(_sampling(chat.sampling, given), place),
        **_tools(chat),
    }
    if chat.format is not None:
        body |= _format(chat.format)
    effort = chat.effort or {True: "medium", False: "none", None: ""}[chat.thinking]
    return {**body, "reasoning_effort": effort} if effort else body


def _message(message: Message) -> dict[str, Any]:
    """Reasoning is not sent back: OpenAI takes none, and models are not told what they thought before."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        found["name"] = message.name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return found


def fields(sampling: Mapping[str, Any], place: Upstream, *, is_chat: bool = True) -> dict[str, Any]:
    """Values of Sampling as the fields of a request."""
    found = dict(sampling)
    if "logit_bias" in found:
        found["logit_bias"] = {str(token): bias for token, bias in found["logit_bias"]}
    if "max_tokens" in found and is_chat and place.reference.host.endswith(_NEWER):
        found["max_completion_tokens"] = found.pop("max_tokens")
    return found


def _sampling(sampling: Sampling, given: Collection[str]) -> dict[str, Any]:
    """What was asked for, and what differs from what an API does by itself."""
    if sampling.logprobs is not None:
        raise UsageError("logprobs cannot be had from an API here", field="logprobs")
    neutral = asdict(Sampling(**NEUTRAL))
    return {
        name: value
        for name, value in asdict(sampling).items()
        if value is not None and (name in given or value != neutral[name])
    }


def _tools(chat: Chat) -> dict[str, Any]:
    if not chat.tools:
        return {}
    found: dict[str, Any] = {"tools": list(chat.tools)}
    if chat.only:
        found["tool_choice"] = {"type": "function", "function": {"name": chat.only}}
    elif chat.must_call:
        found["tool_choice"] = "required"
    return found if chat.parallel_calls else {**found, "parallel_tool_calls": False}


def _format(form: Format) -> dict[str, Any]:
    if form.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if form.kind == "gbnf":
        return {"grammar": form.text}  # llama.cpp's field: other APIs say that they do not know it
    if form.kind != "schema":
        raise UsageError(f"an API takes no answers in the form of {form.kind}", field="format")
    try:
        schema = json.loads(form.text)
    except (ValueError, RecursionError):
        raise UsageError("the schema is not valid JSON", field="format") from None
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


class _Reading:
    """One answer as it comes."""

    def __init__(self, place: Upstream, began: float) -> None:
        self._place = place
        self._host = place.reference.host
        self._began, self._first = began, 0.0
        self._finish: Finish | None = None
        self._usage: Mapping[str, Any] = {}
        self._calls: set[int] = set()

    def deltas(self, answer: Answer) -> Iterator[Delta]:
        """The last one has `finish` and `usage`, which APIs tell in different orders."""
        is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
        for data in self._events(answer) if is_stream else [b"".join(_pieces(answer, LARGEST))]:
            chunk = self._parsed(data)
            delta = self._delta(chunk, "delta" if is_stream else "message")
            if delta.text or delta.reasoning or delta.calls:
                self._first = self._first or monotonic()
                yield delta
        if self._finish is None:
            raise NetworkError(f"the answer of {self._host} ended early", hint="ask again")
        yield Delta(finish=self._finish, usage=self._spent())

    def _events(self, answer: Answer) -> Iterator[bytes]:
        for data in events.data(_pieces(answer)):
            if data.strip() == b"[DONE]":
                self._finish = self._finish or "stop"
                return
            yield data

    def _parsed(self, data: bytes) -> Mapping[str, Any]:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            raise NetworkError(f"{self._host} says what cannot be understood", hint="is it OpenAI's API?")
        if chunk.get("error"):
            raise self._failed(data)
        return chunk

    def _failed(self, data: bytes) -> MdlError:
        """What an API tells in the middle of an answer."""
        return upstream.failure(self._place, 500, data)

    def _delta(self, chunk: Mapping[str, Any], name: str) -> Delta:
        self._usage = _mapping(chunk.get("usage")) or self._usage
        choices = chunk.get("choices")
        choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
        said = _mapping(choice.get(name))
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            raise MdlError(f"the content filter of {self._host} ended the answer", hint="ask otherwise")
        if isinstance(reason, str):
            self._finish = _FINISHES.get(reason, "stop")
        return Delta(
            text=_text(said.get("content")) or _text(said.get("refusal")),
            reasoning=_text(said.get("reasoning_content")) or _text(said.get("reasoning")),
            calls=tuple(self._pieces_of_calls(said.get("tool_calls"))),
        )

    def _pieces_of_calls(self, calls: Any) -> Iterator[CallPiece]:
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            index = call.get("index", place) if isinstance(call, dict) else None
            if type(index) is not int or not 0 <= index < MOST_CALLS:
                raise NetworkError(f"{self._host} calls a tool in a way that cannot be understood")
            function = _mapping(call.get("function"))
            arguments = _text(function.get("arguments"))
            if index in self._calls:
                yield CallPiece(index, arguments=arguments)
            else:
                self._calls.add(index)
                yield CallPiece(index, _text(call.get("id")), _text(function.get("name")), arguments)

    def _spent(self) -> Usage:
        """Tokens as the API counts them, seconds as they were here."""
        now = monotonic()
        first = self._first or now
        cached = _mapping(self._usage.get("prompt_tokens_details")).get("cached_tokens")
        return Usage(
            _count(self._usage.get("prompt_tokens")),
            _count(cached),
            _count(self._usage.get("completion_tokens")),
            first - self._began,
            now - first,
        )


def _pieces(answer: Answer, most: int | None = None) -> Iterator[bytes]:
    """The body; with `most` bytes raises NetworkError for more."""
    size = 0
    while piece := answer.read(PIECE):
        size += len(piece)
        if most is not None and size > most:
            raise NetworkError("the API sends more than an answer can be", hint="it is at fault")
        yield piece


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """What UTF-8 can hold: JSON has halves of characters, too."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0
