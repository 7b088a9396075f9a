"""What goes over the pipes between an engine and its worker: records to JSON and back. Knows no processes.

A message is one line of JSON.
To the worker: {"load": …}, {"chat": …, "id": n}, {"count": …, "id": n}, {"render": …, "id": n},
{"cancel": n}.
From it: {"loaded": …}, {"failed": error}, {"rendering": n}, {"deltas": [[n, text, reasoning], …]},
{"done": [n, text, reasoning, finish, usage]}, {"error": error, "id": n}, {"result": …, "id": n}.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdl.engine.request import (
    Chat,
    Delta,
    EngineFiles,
    EngineSettings,
    Loaded,
    Message,
    Sampling,
    ToolCall,
    Usage,
)
from mdl.errors import EngineError, MdlError

Wire = dict[str, Any]

_ERRORS = {kind.code: kind for kind in MdlError.__subclasses__()}


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


def _plain(record: Any) -> Wire:
    return {name: getattr(record, name) for name in record.__slots__}


def pack_load(files: EngineFiles, settings: EngineSettings) -> Wire:
    return {
        "model": str(files.model),
        "projector": str(files.projector) if files.projector else None,
        "adapters": [[str(path), scale] for path, scale in files.adapters],
        "template": files.template,
        "settings": _plain(settings),
    }


def unpack_load(wire: Wire) -> tuple[EngineFiles, EngineSettings]:
    files = EngineFiles(
        model=Path(wire["model"]),
        projector=Path(wire["projector"]) if wire["projector"] else None,
        adapters=tuple((Path(path), scale) for path, scale in wire["adapters"]),
        template=wire["template"],
    )
    return files, EngineSettings(**wire["settings"])


def pack_loaded(loaded: Loaded) -> Wire:
    return _plain(loaded)


def unpack_loaded(wire: Wire) -> Loaded:
    return Loaded(**{**wire, "devices": tuple(wire["devices"])})


def pack_chat(chat: Chat) -> Wire:
    return {
        "messages": [_pack_message(message) for message in chat.messages],
        "sampling": _plain(chat.sampling),
        "tools": [_jsonable(tool) for tool in chat.tools],
        "thinking": chat.thinking,
    }


def _pack_message(message: Message) -> Wire:
    return {**_plain(message), "tool_calls": [_plain(call) for call in message.tool_calls]}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def unpack_chat(wire: Wire) -> Chat:
    sampling = wire["sampling"]
    return Chat(
        messages=tuple(_unpack_message(message) for message in wire["messages"]),
        sampling=Sampling(**{**sampling, "stop": tuple(sampling["stop"])}),
        tools=tuple(wire["tools"]),
        thinking=wire["thinking"],
    )


def _unpack_message(wire: Wire) -> Message:
    return Message(**{**wire, "tool_calls": tuple(ToolCall(**call) for call in wire["tool_calls"])})


def pack_done(request: int, delta: Delta) -> list[Any]:
    return [request, delta.text, delta.reasoning, delta.finish, delta.usage and _plain(delta.usage)]


def unpack_done(wire: list[Any]) -> tuple[int, Delta]:
    request, text, reasoning, finish, usage = wire
    return request, Delta(text, reasoning, finish, Usage(**usage) if usage else None)


def pack_error(error: MdlError) -> Wire:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def unpack_error(wire: Wire) -> MdlError:
    return _ERRORS.get(wire["code"], MdlError)(wire["message"], wire["hint"])
