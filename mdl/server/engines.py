"""The engines that are up, told and stopped over HTTP, as `mdl ps` and `mdl stop` ask. Knows no tokens."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mdl.errors import NotFound
from mdl.reference import show
from mdl.server.body import read
from mdl.server.failure import Ascii
from mdl.server.fields import Fields
from mdl.server.pool import Entry
from mdl.server.service import Service
from mdl.server.stream import while_connected


@dataclass(frozen=True, slots=True)
class Engines:
    """GET /mdl/engines."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engines = [document(entry) for entry in self.service.pool.entries]
        await Ascii({"schema": 1, "engines": engines})(scope, receive, send)


@dataclass(frozen=True, slots=True)
class Stop:
    """POST /mdl/engines/stop. Answers when the engine has ended."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.service.room.place() as place:
            fields = Fields(await read(Request(scope, receive), place))
            fields.needs("model")
            name, force = fields.text("model") or "", fields.flag("force") or False
            fields.done()
            model = await self.service.names.find(name)
            async with while_connected(receive):
                if not await self.service.pool.stop(model, force):
                    raise NotFound(f"{show(name)} is not loaded", hint="mdl ps shows what is")
                await Ascii({"schema": 1, "stopped": name})(scope, receive, send)


def document(entry: Entry) -> dict[str, Any]:
    """An engine as JSON has it: sizes in bytes, times as ISO 8601. What is not known yet is null."""
    placed, loaded = entry.placement, entry.loaded
    return {
        "model": str(entry.model.reference),
        "name": entry.model.reference.name,
        "version": entry.model.version,
        "state": entry.state,
        "size": placed.size if placed else None,
        "vram": sum(placed.gpus) if placed else None,
        "processor": placed.processor if placed else None,
        "context": loaded.context if loaded else None,
        "cells": loaded.cells if loaded else None,
        "parallel": placed.settings.parallel if placed else None,
        "requests": entry.busy,
        "pid": entry.engine.pid,
        "since": _moment(entry.since),
        "until": _moment(entry.until),
        "note": placed.note if placed and placed.note else None,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
