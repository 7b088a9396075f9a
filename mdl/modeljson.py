"""`model.json`: what people and other tools write beside weights, as a record. Knows no cache and no network.

A model's folder may hold a `model.json`, or a `NAME.json` for each of several quantizations. All its fields
are optional, even `{}` is one. It is read as people write it: with comments, numbers as texts, settings mixed
into parameters. What is wrong in it becomes a note, because the weights answer without it too. What mdl
writes is strict JSON.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdl import lenient
from mdl.errors import UnsupportedModel
from mdl.header import line, read_text
from mdl.profiles import Profile, merged

if TYPE_CHECKING:
    from mdl.model import Model

NAME = "model.json"
LONGEST_URL = 2048  # characters
MOST_BINARIES = 1000
MOST_NOTES = 20
LONGEST_LIST = 100

# What others call states, without spaces, hyphens and underscores: what it is called here
STATES = {
    "not-downloaded": ("todownload", "notdownloaded", "undownloaded", "missing", "remote", "absent", "new"),
    "downloading": ("downloading", "queued", "paused", "pulling", "inprogress"),
    "ready": (
        "ready",
        "downloaded",
        "available",
        "idle",
        "installed",
        "stopped",
        "unloaded",
        "local",
        "done",
    ),
    "starting": ("starting", "loading", "initializing", "initialising"),
    "running": ("running", "loaded", "started", "active", "online"),
    "stopping": ("stopping", "unloading"),
    "error": ("error", "failed", "broken", "corrupt", "corrupted"),
}
# Engines that are llama.cpp, or tools around it, without dots, spaces, hyphens and underscores
LLAMA = frozenset(
    "llamacpp llamacpppython llama nitro cortex cortexllamacpp inferencenitroengine ggml gguf mdl ollama "
    "lmstudio koboldcpp llamafile inferencellamacppextension llamacppextension".split()
)
APIS = frozenset("api openai azure azureopenai openaicompatible remote".split())
_LAYERED = ("init", "runtime", "load", "inference")  # in older files settings and parameters are in these


@dataclass(frozen=True, slots=True)
class Card:
    """What a model.json says. "" and None are what it does not say; texts are one line each.

    `settings` and `parameters` are as they were written: `profile` reads them. `source_url` and `binaries`
    name files, local or remote. `created` is in seconds since 1970, `size` in bytes or as it was written.
    `notes` tell what could not be used, `ignored` are fields that mean nothing here.
    """

    source_url: str = ""
    object: str = ""
    id: str = ""
    name: str = ""
    description: str = ""
    version: str = ""
    owned_by: str = ""
    created: int | None = None
    state: str = ""
    format: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""
    quantization: str = ""
    binaries: tuple[str, ...] = ()
    size: int | str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what else stands there
    assets: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_api(self) -> bool:
        """Whether others run the model, and answer for it over HTTP."""
        return _plain(self.engine) in APIS

    @property
    def is_foreign(self) -> bool:
        """Whether it names an engine that is neither llama.cpp nor an API."""
        return bool(self.engine) and not self.is_api and _plain(self.engine) not in LLAMA


def read(path: Path) -> Card:
    """The card in a file. Raises UnsupportedModel, with line and column, for what is no JSON object."""
    return parse(read_text(path), path.name)


def read_or_note(path: Path) -> Card:
    """The same; a file that cannot be used is a card with a note."""
    try:
        return read(path)
    except UnsupportedModel as failure:
        return Card(notes=(failure.message,))


def parse(text: str, where: str = NAME) -> Card:
    """The card that a text is; `where` is what errors and notes begin with."""
    try:
        found = lenient.loads(text)
    except lenient.Malformed as failure:
        raise UnsupportedModel(f"{where}: {failure}", hint="mend it, or take it away") from None
    if not isinstance(found, dict):
        raise UnsupportedModel(f"{where} holds no object", hint="at least {} should be there")
    return _Reader(found, where).card()


def path_of(model: "Model") -> Path | None:
    """The model.json that describes a model, if there is one."""
    if model.card is not None:
        return model.card
    return model.folder / NAME if any(file.name == NAME for file in model.files) else None


def of(model: "Model") -> Card:
    """What is known of a model in the form of a model.json, its defaults filled in. Never fails."""
    path = path_of(model)
    card = read_or_note(path) if path else Card()
    weights = tuple(file.name for file in model.files if file.role in ("weights", "adapter", "projector"))
    return replace(
        card,
        object=card.object or "model",
        id=card.id or default_id(model),
        name=card.name or (model.version if path and path.name != NAME else model.reference.name),
        version=card.version or model.version,
        owned_by=card.owned_by or model.reference.path.rpartition("/")[0],
        created=int(model.modified.timestamp()) if card.created is None else card.created,
        state=model.state,
        format=card.format or model.summary.format or "",
        quantization=card.quantization or model.summary.quantization or "",
        binaries=card.binaries or weights,
        size=model.size if weights else card.size,
    )


def default_id(model: "Model") -> str:
    """`folder`, or `folder/name` of one of several in a folder."""
    versioned = model.reference.version is not None
    return f"{model.reference.model}/{model.version}" if versioned else str(model.reference)


def profile(model: "Model") -> Profile:
    """What the model.json of a model sets. Never fails: what cannot be used is told in notes."""
    path = path_of(model)
    if path is None:
        return Profile()
    card = read_or_note(path)
    from mdl import parameters

    said = parameters.profile({**card.settings, **card.parameters}, path.name, lenient=True)
    return merged(Profile(ignored=card.ignored, notes=card.notes), said)


def document(card: Card) -> dict[str, Any]:
    """The fields of a model.json in their order, without those that say nothing."""
    about = {
        "engine": card.engine,
        "quantization": card.quantization,
        "binaries": list(card.binaries),
        "size": card.size,
    }
    told = {name: value for name, value in about.items() if value not in ("", None, [])}
    fields = {
        "source_url": card.source_url,
        "object": card.object,
        "id": card.id,
        "name": card.name,
        "description": card.description,
        "version": card.version,
        "owned_by": card.owned_by,
        "created": card.created,
        "state": card.state,
        "format": card.format,
        "settings": dict(card.settings),
        "parameters": dict(card.parameters),
        "metadata": {**told, **card.metadata},
        "assets": list(card.assets),
    }
    kept = ("settings", "parameters")  # an empty place shows where to write
    return {name: value for name, value in fields.items() if name in kept or value not in ("", None, {}, [])}


def dumps(card: Card) -> str:
    """A card as strict JSON."""
    return json.dumps(document(card), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class _Reader:
    """Takes the fields of an object one by one; what is left in the end is ignored."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self.left = dict(fields)
        self.where = where
        self.notes: list[str] = []

    def card(self) -> Card:
        about = self._table(self.left, "metadata")
        settings = self._values("settings")
        parameters = self._values("parameters")
        sources = self._urls("source_url", self.left)
        binaries = (
            *sources[1:],
            *self._urls("sources", self.left),
            *self._urls("binaries", about, self.left),
        )
        card = Card(
            source_url="".join(sources[:1]),
            object=self._text(self.left, "object", "type") or "",
            id=self._text(self.left, "id", "model") or "",
            name=self._text(self.left, "name") or "",
            description=self._text(self.left, "description") or "",
            version=self._text(self.left, "version") or "",
            owned_by=self._text(self.left, "owned_by", "author") or "",
            created=self._moment("created"),
            state=self._state(),
            format=(self._text(self.left, "format") or "").casefold(),
            engine=self._text(about, "engine") or self._text(self.left, "engine") or "",
            quantization=self._text(about, "quantization") or self._text(self.left, "quantization") or "",
            binaries=tuple(dict.fromkeys(binaries)),
            size=self._size(about),
            assets=self._urls("assets", self.left),
            metadata=about,
        )
        mixed, ignored = self._rest()
        return replace(
            card,
            settings={**mixed, **settings},
            parameters=parameters,
            ignored=ignored,
            notes=tuple(self.notes[:MOST_NOTES]),
        )

    def _note(self, name: str, what: str) -> None:
        self.notes.append(f"{self.where}: {name} {what}")

    def _table(self, fields: dict[str, Any], name: str) -> dict[str, Any]:
        value = fields.pop(name, None)
        if isinstance(value, dict):
            return dict(value)
        if value is not None:
            self._note(name, "has to be an object")
        return {}

    def _text(self, fields: dict[str, Any], *names: str) -> str | None:
        """The first of the names that is there, as one line; numbers are texts too."""
        values = {name: fields.pop(name, None) for name in names}
        for name, value in values.items():
            if isinstance(value, str):
                return line(value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)[:100]
            if value is not None:
                self._note(name, "has to be a text")
        return None

    def _values(self, name: str) -> dict[str, Any]:
        """Settings or parameters, whichever way they are laid out."""
        value = self.left.pop(name, None)
        pairs = dict(_pairs(value)) if isinstance(value, list) else value
        if not isinstance(pairs, dict):
            if value is not None:
                self._note(name, "has to be an object")
            return {}
        layers = [pairs[layer] for layer in _LAYERED if isinstance(pairs.get(layer), dict)]
        plain = {key: item for key, item in pairs.items() if key not in _LAYERED}
        return {key: item for layer in (plain, *layers) for key, item in layer.items()}

    def _urls(self, name: str, *places: dict[str, Any]) -> tuple[str, ...]:
        """Addresses or names of files, from a text, a list, a list of objects, or a table of them."""
        value = next((found for place in places if (found := place.pop(name, None)) is not None), None)
        if value is None:
            return ()
        items = list(value.values()) if isinstance(value, dict) and "url" not in value else value
        items = items if isinstance(items, list) else [items]
        return tuple(url for item in items[:MOST_BINARIES] if (url := self._url(name, item)))

    def _url(self, name: str, item: Any) -> str:
        if isinstance(item, dict):
            item = item.get("url") or item.get("filename")
        if item is None or item == "":
            return ""
        if not isinstance(item, str) or len(item) > LONGEST_URL or not item.isprintable():
            self._note(name, "has what can be no address")
            return ""
        return item.strip()

    def _moment(self, name: str) -> int | None:
        value = self.left.pop(name, None)
        if value is None or value == "":
            return None
        try:
            if isinstance(value, str) and not re.fullmatch(r"\d{1,15}(\.\d{1,9})?", value):
                moment = datetime.fromisoformat(value)
                return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
            seconds = float(value)
            return int(datetime.fromtimestamp(seconds / (1000 if seconds > 1e11 else 1), UTC).timestamp())
        except (ValueError, TypeError, OverflowError, OSError):
            self._note(name, "is no time")
            return None

    def _state(self) -> str:
        value = self.left.pop("state", None)
        if isinstance(value, bool):
            return "ready" if value else "not-downloaded"
        if value is None or value == "" or value == "null":
            return ""
        known = _plain(value) if isinstance(value, str) else ""
        for state, spellings in STATES.items():
            if known in spellings:
                return state
        self._note("state", f"is none that is known: {str(value)[:40]!r}")
        return ""

    def _size(self, about: dict[str, Any]) -> int | str | None:
        """Bytes; or a text such as 7B."""
        value = about.pop("size", None)
        top = self.left.pop("size", None)
        value = top if value is None else value
        if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value.strip()):
            return int(value)
        if isinstance(value, str):
            return line(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 63:
            return int(value)
        return None

    def _rest(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What stands beside the fields: settings among them, and names that mean nothing here."""
        from mdl import parameters

        mixed = {name: value for name, value in self.left.items() if parameters.find(name)}
        ignored = [line(name) or "a name" for name in self.left if name not in mixed]
        return mixed, tuple(ignored[:LONGEST_LIST])


def _pairs(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """[{"key": "temperature", "value": 0.7}, …]"""
    for item in items:
        if isinstance(item, dict):
            name = item.get("key", item.get("name"))
            if isinstance(name, str) and "value" in item:
                yield name, item["value"]


def _plain(text: str) -> str:
    return re.sub(r"[\s._-]", "", text).casefold()
