"""What goes over the pipes between an engine and its worker: records to JSON and back. Knows no processes.

A message is one line of JSON.
To the worker: {"load": [files, settings]}, {"cancel": n}, and with an "id" {"chat": …}, {"completion": …},
{"embed": …}, {"rank": …}, {"count": chat}, {"prompt": chat}, {"render": chat}, {"tokenize": [text, begun]},
{"detokenize": tokens}.
From it: {"gpus": […]} first, {"loaded": …}, {"failed": error}, {"rendering": n}, {"deltas": [piece, …]},
{"done": [finish, usage, piece]}, {"error": error, "id": n}, {"result": …, "id": n}; a piece is
[n, text, reasoning] and, where there are any, calls and logprobs.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mdl.engine.request import (
    CallPiece,
    Chat,
    Completion,
    Delta,
    Embed,
    Embedded,
    EngineFiles,
    Format,
    Input,
    Loaded,
    Logprob,
    Message,
    Rank,
    Ranked,
    Sampling,
    ToolCall,
    Usage,
)
from mdl.errors import EngineError, MdlError, TooLong

Wire = dict[str, Any]
R = TypeVar("R")

_ERRORS: dict[str, type[MdlError]] = {kind.__name__: kind for kind in (*MdlError.__subclasses__(), TooLong)}


def line(message: Wire) -> bytes:
    """The message as it is written."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> Wire:
    """Raises EngineError for what is no message: only a broken worker writes such."""
    try:
        message = json.loads(data)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise EngineError(f"the engine wrote {data[:60]!r}, which is no message")
    return message


def pack(value: Any) -> Any:
    """A record, and what is in it, as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if slots := getattr(value, "__slots__", None):
        return {name: pack(getattr(value, name)) for name in slots}
    if isinstance(value, Mapping):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def unpack(kind: type[R], wire: Wire) -> R:
    """The record that `pack` was given."""
    inner = _INNER.get(kind, {})
    return kind(**{name: inner[name](value) if name in inner else value for name, value in wire.items()})


def _one(kind: type[R]) -> Callable[[Any], R | None]:
    return lambda wire: None if wire is None else unpack(kind, wire)


def _many(kind: type[R]) -> Callable[[Any], tuple[R, ...]]:
    return lambda wires: tuple(unpack(kind, wire) for wire in wires)


def _pairs(wire: Any) -> tuple[Any, ...]:
    return tuple(tuple(pair) for pair in wire)


def _input(wire: Any) -> Input:
    return wire if isinstance(wire, str) else tuple(wire)


def _bytes(wire: str) -> bytes:
    return wire.encode("latin-1")


# How what is no plain value is read: the fields of each record.
_INNER: dict[type, dict[str, Callable[[Any], Any]]] = {
    EngineFiles: {
        "model": Path,
        "projector": lambda path: Path(path) if path else None,
        "adapters": lambda pairs: tuple((Path(path), scale) for path, scale in pairs),
    },
    Loaded: {"devices": tuple},
    Sampling: {"stop": tuple, "dry_sequence_breakers": tuple, "logit_bias": _pairs},
    Message: {"tool_calls": _many(ToolCall)},
    Chat: {"messages": _many(Message), "sampling": _one(Sampling), "tools": tuple, "format": _one(Format)},
    Completion: {"prompt": _input, "sampling": _one(Sampling), "format": _one(Format)},
    Embed: {"inputs": lambda inputs: tuple(map(_input, inputs))},
    Rank: {"documents": tuple},
    Embedded: {"vectors": lambda texts: tuple(map(b64decode, texts)), "tokens": tuple},
    Ranked: {"scores": tuple},
    Logprob: {
        "piece": _bytes,
        "top": lambda tops: tuple((token, _bytes(piece), logprob) for token, piece, logprob in tops),
    },
}


# Pieces of answers, which are many: as lists, with what is seldom there at the end


def pack_piece(request: int, delta: Delta) -> list[Any]:
    rest = [pack(delta.calls), pack(delta.logprobs)] if delta.calls or delta.logprobs else []
    return [request, delta.text, delta.reasoning, *rest]


def unpack_piece(wire: list[Any]) -> tuple[int, Delta]:
    request, text, reasoning, *rest = wire
    if not rest:
        return request, Delta(text, reasoning)
    calls, logprobs = rest
    return request, Delta(text, reasoning, calls=_many(CallPiece)(calls), logprobs=_many(Logprob)(logprobs))


def pack_done(request: int, delta: Delta) -> list[Any]:
    return [delta.finish, pack(delta.usage), pack_piece(request, delta)]


def unpack_done(wire: list[Any]) -> tuple[int, Delta]:
    finish, usage, piece = wire
    request, delta = unpack_piece(piece)
    return request, replace(delta, finish=finish, usage=_one(Usage)(usage))


def pack_error(error: MdlError) -> Wire:
    said = {"message": error.message, "hint": error.hint, "field": error.field}
    return {"kind": type(error).__name__, **said}


def unpack_error(wire: Wire) -> MdlError:
    return _ERRORS.get(wire.pop("kind"), MdlError)(**wire)
