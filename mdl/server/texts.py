"""The answers of OpenAI's completions: Delta to JSON, whole or streamed. Knows no requests."""

import codecs
import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from mdl.engine.request import Delta, Logprob, Usage
from mdl.errors import MdlError
from mdl.server import failure, openai

_decoder = codecs.getincrementaldecoder("utf-8")


def completion(model: str, answers: list[list[Delta]], each: int, logprobs: bool) -> dict[str, Any]:
    """All answers in one object: `each` to the first prompt, then to the next one. `logprobs` says whether
    those were asked for."""
    usage = [_sum([pieces[-1].usage or Usage() for pieces in answers], each)]
    return {
        **openai.head("text_completion", "cmpl", model),
        "choices": [_choice(index, pieces, logprobs) for index, pieces in enumerate(answers)],
        "usage": openai.usage(usage),
        "timings": openai.timings(usage),
    }


def _choice(index: int, pieces: list[Delta], logprobs: bool) -> dict[str, Any]:
    told = [logprob for piece in pieces for logprob in piece.logprobs]
    return {
        "index": index,
        "text": "".join(piece.text for piece in pieces),
        "logprobs": Told().tell(told) if logprobs else None,
        "finish_reason": pieces[-1].finish,
    }


def _sum(answers: Sequence[Usage], each: int) -> Usage:
    """What answers to several prompts took. The `each` to one prompt share it; all come side by side, so the
    time is that of the slowest."""
    prompts = [answers[start : start + each] for start in range(0, len(answers), each)]
    return Usage(
        prompt_tokens=sum(answers[0].prompt_tokens for answers in prompts),
        cached_tokens=sum(min(answer.cached_tokens for answer in answers) for answers in prompts),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        prompt_seconds=max(answer.prompt_seconds for answer in answers),
        completion_seconds=max(answer.completion_seconds for answer in answers),
    )


class Told:
    """The tokens of an answer as they come, in the form of this API, with where in the text each begins.

    A token that is no text by itself, but a part of a character, is written as OpenAI does: bytes:\\xe2\\x82.
    """

    def __init__(self) -> None:
        self._place = 0
        self._decode = _decoder("replace").decode

    def tell(self, logprobs: Sequence[Logprob]) -> dict[str, Any]:
        return {
            "tokens": [_token(logprob.piece) for logprob in logprobs],
            "token_logprobs": [_value(logprob.logprob) for logprob in logprobs],
            "top_logprobs": [_top(logprob) for logprob in logprobs],
            "text_offset": [self._offset(logprob.piece) for logprob in logprobs],
        }

    def _offset(self, piece: bytes) -> int:
        place = self._place
        self._place += len(self._decode(piece))
        return place


def _top(logprob: Logprob) -> dict[str, float | None] | None:
    """The likeliest, and the one that was taken, which may be another; nothing came before the first one."""
    if logprob.logprob is None:
        return None
    top = {_token(piece): _value(value) for _, piece, value in logprob.top}
    return {**top, _token(logprob.piece): _value(logprob.logprob)}


def _token(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _value(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, openai.UNLIKELY)


class Chunks:
    """Streamed answers as `data:` lines, `each` to one prompt. What all have in common is written once.

    Text is in ASCII, as some readers of event streams take U+2028 and U+0085 for ends of lines.
    """

    def __init__(self, model: str, answers: int, each: int, include_usage: bool) -> None:
        head = _json(openai.head("text_completion", "cmpl", model))[:-1]
        self._head = f'data: {head},"choices":['
        self._tail = '}],"usage":null' if include_usage else "}]"
        self._told = [Told() for _ in range(answers)]
        self._usages = [Usage()] * answers
        self._each = each
        self._left = answers
        self._include_usage = include_usage

    def begin(self) -> str:
        return ""

    def piece(self, index: int, delta: Delta) -> str:
        logprobs = _json(self._told[index].tell(delta.logprobs)) if delta.logprobs else "null"
        written = f'{self._head}{{"index":{index},"text":{quoted(delta.text)},"logprobs":{logprobs}'
        if delta.finish is None:
            return f'{written},"finish_reason":null{self._tail}}}\n\n'
        self._usages[index] = delta.usage or Usage()
        self._left -= 1
        return f'{written},"finish_reason":"{delta.finish}"{self._tail}{self._timings()}}}\n\n'

    def end(self) -> str:
        if not self._include_usage:
            return "data: [DONE]\n\n"
        usage = [_sum(self._usages, self._each)]
        told = f'"usage":{_json(openai.usage(usage))},"timings":{_json(openai.timings(usage))}'
        return f"{self._head}],{told}}}\n\ndata: [DONE]\n\n"

    def failure(self, error: MdlError) -> str:
        return f"data: {json.dumps(failure.body(error))}\n\n"

    def _timings(self) -> str:
        """In the last chunk of all, where no usage follows."""
        if self._left or self._include_usage:
            return ""
        return f',"timings":{_json(openai.timings([_sum(self._usages, self._each)]))}'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
