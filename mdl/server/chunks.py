"""The answers of OpenAI's chat completions: Delta to JSON, whole or streamed. Knows no requests."""

import json
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from mdl.engine.request import CallPiece, Delta, Finish, Logprob, Usage
from mdl.errors import MdlError
from mdl.server import failure, openai


def completion(model: str, answers: list[list[Delta]], logprobs: bool) -> dict[str, Any]:
    """All answers in one object; `logprobs` says whether those were asked for."""
    usages = [pieces[-1].usage or Usage() for pieces in answers]
    return {
        **openai.head("chat.completion", "chatcmpl", model),
        "choices": [_choice(index, pieces, logprobs) for index, pieces in enumerate(answers)],
        "usage": openai.usage(usages),
        "timings": openai.timings(usages),
    }


def _choice(index: int, pieces: list[Delta], logprobs: bool) -> dict[str, Any]:
    told = _logprobs(logprob for piece in pieces for logprob in piece.logprobs) if logprobs else None
    return {
        "index": index,
        "message": _message(pieces),
        "logprobs": told,
        "finish_reason": pieces[-1].finish,
    }


def _message(pieces: list[Delta]) -> dict[str, Any]:
    content = "".join(piece.text for piece in pieces)
    calls = _calls(call for piece in pieces for call in piece.calls)
    message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
    if reasoning := "".join(piece.reasoning for piece in pieces):
        message["reasoning_content"] = reasoning
    message["refusal"] = None
    if calls:
        message["tool_calls"] = calls
    return message


def _calls(pieces: Iterable[CallPiece]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if piece.index in calls:
            calls[piece.index]["function"]["arguments"] += piece.arguments
        else:
            calls[piece.index] = _call(piece)
    return [calls[index] for index in sorted(calls)]


def _call(piece: CallPiece) -> dict[str, Any]:
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"id": piece.id, "type": "function", "function": function}


def _logprobs(logprobs: Iterable[Logprob]) -> dict[str, Any]:
    return {"content": [_logprob(logprob) for logprob in logprobs], "refusal": None}


def _logprob(logprob: Logprob) -> dict[str, Any]:
    top = [_token(piece, value) for _, piece, value in logprob.top]
    return {**_token(logprob.piece, logprob.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float | None) -> dict[str, Any]:
    """Tokens may be parts of characters: `bytes` tells which."""
    value = openai.UNLIKELY if logprob is None else max(logprob, openai.UNLIKELY)
    return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": value}


class Chunks:
    """Streamed answers as `data:` lines. What all have in common is written once; a piece costs its text.

    Text is in ASCII, as some readers of event streams take U+2028 and U+0085 for ends of lines.
    """

    def __init__(self, model: str, answers: int, include_usage: bool) -> None:
        head = _json(openai.head("chat.completion.chunk", "chatcmpl", model))[:-1]
        self._head = f'data: {head},"choices":['
        self._heads = [f'{self._head}{{"index":{index},"delta":{{' for index in range(answers)]
        self._usage = ',"usage":null' if include_usage else ""
        self._plain = f'}},"logprobs":null,"finish_reason":null}}]{self._usage}}}\n\n'
        self._usages = [Usage()] * answers
        self._left = answers
        self._include_usage = include_usage

    def begin(self) -> str:
        return "".join([f'{head}"role":"assistant","content":""{self._plain}' for head in self._heads])

    def piece(self, index: int, delta: Delta) -> str:
        if delta.finish is None and delta.text and not (delta.reasoning or delta.calls or delta.logprobs):
            return f'{self._heads[index]}"content":{quoted(delta.text)}{self._plain}'
        return self._rarer(index, delta)

    def end(self) -> str:
        if not self._include_usage:
            return "data: [DONE]\n\n"
        usage, timings = _json(openai.usage(self._usages)), _json(openai.timings(self._usages))
        return f'{self._head}],"usage":{usage},"timings":{timings}}}\n\ndata: [DONE]\n\n'

    def failure(self, error: MdlError) -> str:
        return f"data: {json.dumps(failure.body(error))}\n\n"

    def _rarer(self, index: int, delta: Delta) -> str:
        """Reasoning, answer and calls in this order, one chunk for each; the first one tells the logprobs."""
        parts = [f'"reasoning_content":{quoted(delta.reasoning)}'] if delta.reasoning else []
        if delta.text:
            parts.append(f'"content":{quoted(delta.text)}')
        parts += [f'"tool_calls":[{_json(_call_piece(piece))}]' for piece in delta.calls]
        told = _json(_logprobs(delta.logprobs)) if delta.logprobs else "null"
        if delta.logprobs and not parts:
            parts = [""]
        written = [self._chunk(index, part, "null" if place else told) for place, part in enumerate(parts)]
        if delta.finish:
            written.append(self._last(index, delta.finish, delta.usage or Usage()))
        return "".join(written)

    def _chunk(self, index: int, delta: str, logprobs: str) -> str:
        tail = f'"logprobs":{logprobs},"finish_reason":null}}]{self._usage}}}\n\n'
        return f"{self._heads[index]}{delta}}},{tail}"

    def _last(self, index: int, finish: Finish, usage: Usage) -> str:
        """Of one answer. When it is the last of all, and no usage follows, it tells the timings."""
        self._usages[index] = usage
        self._left -= 1
        told = not (self._left or self._include_usage)
        timings = f',"timings":{_json(openai.timings(self._usages))}' if told else ""
        tail = f'"finish_reason":"{finish}"}}]{self._usage}{timings}}}\n\n'
        return f'{self._heads[index]}}},"logprobs":null,{tail}'


def _call_piece(piece: CallPiece) -> dict[str, Any]:
    if piece.name:
        return {"index": piece.index, **_call(piece)}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
