"""Which models a profile is for. Knows no profiles, no cache and no network.

A condition is written as

    demo, Qwen/Qwen3-0.6B-GGUF:Q8_0     a reference, in any of its spellings; * and ? are for other letters
    ~/models/mine.gguf, ./mine.gguf     a path; a relative one starts at the profile's own folder
    sha256:HEX, sha256:HEX:BYTES        the content of one of the model's files, whatever it is called
    template:sha256:HEX                 its chat template, by its hash
    template:TEXT                       a text that its chat template has
    architecture:NAME                   what its header calls its kind: llama, qwen3, gemma*

and several at once, which all have to hold, with " & " between them.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal

from mdl.errors import MdlError, UsageError
from mdl.model import File, Model
from mdl.reference import Reference, show

Kind = Literal["reference", "path", "sha256", "template-hash", "template", "architecture"]
MOST_PARTS = 8
_DIGEST = re.compile(r"([0-9a-f]{64})(?::([0-9]{1,16}))?")
_HASH = re.compile(r"[0-9a-f]{64}")
PATHS = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that has to hold. `size` is that of the file with the digest `value`, where it is known."""

    kind: Kind
    value: str
    size: int | None = None

    @classmethod
    def parse(cls, text: str, folder: Path) -> "Part":
        """Raises UsageError for what cannot be a condition."""
        kind, colon, value = text.partition(":")
        if not text.isprintable() and kind != "template":
            raise UsageError(f"{show(text)}: there are characters in it that nobody sees", "leave them out")
        if text.startswith(PATHS):
            return cls("path", str(_absolute(folder, text)))
        if colon and kind in ("sha256", "template", "architecture") and not value.strip():
            raise UsageError(f"{show(text)}: nothing follows {kind}:", hint="see mdl profile new")
        if kind == "sha256" and colon:
            return cls._digest(text, value)
        if kind == "template" and colon:
            return cls._template(text, value)
        if kind == "architecture" and colon:
            return cls("architecture", value.casefold())
        if not _is_pattern(text):
            Reference.parse(text)
        return cls("reference", text)

    @classmethod
    def _digest(cls, text: str, value: str) -> "Part":
        found = _DIGEST.fullmatch(value.lower())
        if found is None:
            raise UsageError(f"{show(text)}: a digest has 64 hex digits", hint="sha256sum FILE tells it")
        return cls("sha256", found[1], int(found[2]) if found[2] else None)

    @classmethod
    def _template(cls, text: str, value: str) -> "Part":
        if not value.startswith("sha256:"):
            return cls("template", value)
        digest = value.removeprefix("sha256:").lower()
        if not _HASH.fullmatch(digest):
            raise UsageError(
                f"{show(text)}: a digest has 64 hex digits",
                hint="mdl profile new NAME --model MODEL tells it",
            )
        return cls("template-hash", digest)

    def holds(self, model: Model) -> bool:
        """Whether it is so of a model on this machine."""
        return _HOLDS[self.kind](self, model)


@dataclass(frozen=True, slots=True)
class Condition:
    """What has to hold of a model; `text` is how it was written."""

    text: str
    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str, folder: Path) -> "Condition":
        """Raises UsageError for what cannot be a condition."""
        pieces = [piece.strip() for piece in text.split(" & ")]
        if len(pieces) > MOST_PARTS or not all(pieces):
            raise UsageError(
                f"{show(text)}: one to {MOST_PARTS} parts with & between", hint="see mdl profile new"
            )
        return cls(text, tuple(Part.parse(piece, folder) for piece in pieces))

    def holds(self, model: Model) -> bool:
        return all(part.holds(model) for part in self.parts)

    @property
    def reference(self) -> str | None:
        """The one model that it names, which can be looked for and fetched by that; None for the others."""
        if len(self.parts) != 1:
            return None
        part = self.parts[0]
        named = part.kind == "path" or (part.kind == "reference" and not _is_pattern(part.value))
        return part.value if named else None


def signs(model: Model) -> Iterator[str]:
    """Conditions that hold of a model whatever it is called: its weights, its template, its architecture."""
    for file in model.files:
        if file.role == "weights" and (digest := file.sha256 or _digest(model.folder / file.name)):
            yield f"sha256:{digest}:{file.size}"
    if template := _template(model):
        yield f"template:sha256:{template_hash(template)}"
    if architecture := model.summary.architecture:
        yield f"architecture:{architecture}"


def template_hash(template: str) -> str:
    """The digest of a chat template, exactly as the header has it, in UTF-8."""
    return hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def _absolute(folder: Path, text: str) -> Path:
    try:
        return (folder / Path(text).expanduser()).absolute()
    except RuntimeError:  # nobody of that name
        raise UsageError(f"{show(text)}: there is no such home", hint="write the whole path") from None


# By what a model is known


def _is_called(part: Part, model: Model) -> bool:
    if _is_pattern(part.value):
        pattern = part.value.casefold()
        return any(fnmatchcase(name.casefold(), pattern) for name in _spellings(model.reference))
    known = _named(model.reference)
    return any(_same(wanted, name) for wanted in _meant(part.value) for name in known)


def _meant(text: str) -> list[Reference]:
    """What a name says, and what it is short for in the catalog."""
    from mdl.catalog import catalog

    entry = catalog().find(text)
    more = [entry.reference] if entry is not None and entry.reference is not None else []
    return [Reference.parse(text), *more]


def _same(wanted: Reference, known: Reference) -> bool:
    """Whether a reference means this one: as far as it says, for versions and pins."""
    if wanted.model != known.model:
        return False
    version = wanted.version is None or wanted.version.casefold() == (known.version or "").casefold()
    return version and wanted.pin in (None, known.pin)


def _named(reference: Reference) -> list[Reference]:
    """A model's name, and what is short for it."""
    found = [reference]
    for spelling in _spellings(reference):
        try:
            found.append(Reference.parse(spelling))
        except MdlError:
            continue
    return found


def _spellings(reference: Reference) -> list[str]:
    """In full, without the host, and the last parts of the name; each with and without the version."""
    model = str(reference.model)
    version = str(reference.with_version(reference.version, None)).removeprefix(model)
    parts = reference.path.split("/")
    names = dict.fromkeys((model, *("/".join(parts[start:]) for start in range(len(parts)))))
    return [*names, *(name + version for name in names)] if version else list(names)


def _lies_at(part: Part, model: Model) -> bool:
    wanted = Path(part.value)
    places = [model.folder, *(model.folder / file.name for file in model.files)]
    if model.place is not None:
        places.append(model.place.absolute())
    return any(place == wanted or _resolved(place) == _resolved(wanted) for place in places)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _holds_content(part: Part, model: Model) -> bool:
    return any(_is_content(part, model, file) for file in model.files)


def _is_content(part: Part, model: Model, file: File) -> bool:
    if part.size is not None and file.size is not None and file.size != part.size:
        return False
    if file.sha256 is not None:
        return file.sha256 == part.value
    return file.role == "weights" and _digest(model.folder / file.name) == part.value


def _has_template_hash(part: Part, model: Model) -> bool:
    template = _template(model)
    return bool(template) and template_hash(template) == part.value


def _has_template(part: Part, model: Model) -> bool:
    return part.value in _template(model)


def _is_architecture(part: Part, model: Model) -> bool:
    return fnmatchcase((model.summary.architecture or "").casefold(), part.value)


_HOLDS = {
    "reference": _is_called,
    "path": _lies_at,
    "sha256": _holds_content,
    "template-hash": _has_template_hash,
    "template": _has_template,
    "architecture": _is_architecture,
}


# What is read of files, once for as long as they are the same


def _digest(path: Path) -> str:
    """The sha256 of a file; "" where it cannot be read."""
    try:
        status = path.stat()
        return _digest_at(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=256)
def _digest_at(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _template(model: Model) -> str:
    """The chat template in a model's header; "" where there is none."""
    try:
        place = model.place or model.folder
        return _template_at(place, place.stat().st_mtime_ns, model.modified.timestamp())
    except OSError:
        return ""


@lru_cache(maxsize=256)
def _template_at(place: Path, *_: float) -> str:
    from mdl.weights import Weights, identify

    found = identify(place)
    return (found.facts.chat_template or "") if isinstance(found, Weights) else ""
