"""What was read of all versions last time: 10,000 files of TOML take seconds, one of JSON does not.

It may be lost or out of date at any time, which costs nobody more than another look.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import DirEntry, stat_result
from pathlib import Path
from typing import Any

from mdl.disk import entries_of, unique
from mdl.errors import MdlError
from mdl.model import Model, from_document, to_document
from mdl.places import Place

SCHEMA = 3
Entries = dict[str, list[Any]]  # by folder: what tells that the version has not changed, and its document


class Index:
    """What one file remembers, for one look at everything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _load(path)
        self._seen: Entries = {}

    def model(self, key: str, place: Place, read: Callable[[], Model | None]) -> Model | None:
        """The version in a place: as it is remembered if it has not changed, else what `read` finds."""
        stamp, entry = _stamp(place), self._known.get(key)
        if stamp and entry and (remembered := _remembered(entry, stamp, place)):
            self._seen[key] = entry
            return remembered
        model = read()
        if model and stamp and not model.problem and _is_plain(model):
            self._seen[key] = [*stamp, _document(model)]
        return model

    def save(self) -> None:
        """Remember what was seen, and nothing else."""
        known, seen = self._known, self._seen
        if seen.keys() == known.keys() and all(seen[key] is known[key] for key in seen):
            return
        beside = self._path.with_suffix(f".{unique()}.tmp")
        with contextlib.suppress(OSError):  # a read-only cache is slower, not broken
            beside.write_text(json.dumps({"schema": SCHEMA, "entries": seen}))
            beside.replace(self._path)


def _load(path: Path) -> Entries:
    try:
        content = json.loads(path.read_bytes())
        entries = content["entries"] if content["schema"] == SCHEMA else {}
        return entries if isinstance(entries, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _document(model: Model) -> dict[str, Any]:
    document = to_document(model)
    document["created"] = model.modified.isoformat()
    if model.place or model.card:
        document["places"] = [path.name if path else "" for path in (model.place, model.card)]
    return document


def _remembered(entry: Any, stamp: list[Any], place: Place) -> Model | None:
    """What the index has of a version that has not changed; None for what mdl has not written."""
    folder = place.mark.parent
    try:
        *written, document = entry
        if written != stamp:
            return None
        model = from_document(document, folder)
        own, card = (folder / name if name else None for name in document.get("places", ("", "")))
    except (MdlError, TypeError, ValueError):
        return None
    return replace(model, place=own, card=card)


def _is_plain(model: Model) -> bool:
    """Whether all that tells of a version lies beside its mark, so that it can be remembered."""
    places = [path for path in (model.place, model.card) if path]
    return not model.is_absent and all(path.parent == model.folder for path in places)


def _stamp(place: Place) -> list[Any] | None:
    """What tells that a version has not changed; None if it has vanished.

    The JSON of a model says little of it: there everything that lies beside it counts.
    """
    try:
        status = place.mark.stat()
        beside = _looks(place.mark.parent) if place.mark.suffix == ".json" else ""
    except OSError:
        return None
    return [place.mark.name + beside, status.st_mtime_ns, status.st_size]


def _looks(folder: Path) -> str:
    import zlib

    seen = [(entry.name, status.st_mtime_ns, status.st_size) for entry, status in _with_status(folder)]
    return f" {zlib.crc32(repr(seen).encode()):08x}"


def _with_status(folder: Path) -> "Iterator[tuple[DirEntry[str], stat_result]]":
    for entry in entries_of(folder):
        with contextlib.suppress(OSError):  # removed meanwhile
            yield entry, entry.stat()
