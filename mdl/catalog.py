"""The models that mdl recommends or ships, by short names: mistral, mistral:7b, mistral:7b-q8_0. Knows no
network and no terminal.

A catalog is a TOML file. One ships with mdl; a newer one that was fetched goes before it, but for what ships
with mdl itself. Such a file comes from outside: it becomes records that hold only what was checked, or it is
not used at all.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mdl import config
from mdl.errors import MdlError, NotFound, UsageError
from mdl.reference import Reference, canonical_version, show

if TYPE_CHECKING:
    from mdl.profiles import Profile

FILE = "catalog.toml"
SHIPPED = Path(__file__).with_name(FILE)
VERSION = 1
LARGEST = 1 << 20  # bytes of a catalog
MOST = 1000  # models, and sizes of one of them
LONGEST = 400  # characters of a text
MOST_PARAMETERS = 100
CAPABILITIES = ("tools", "reasoning", "vision", "embedding", "rerank")
SCHEMES = ("hf", "oci", "ollama", "https")  # where a recommended model may be
_FAMILY = r"[a-z0-9][a-z0-9._-]{0,62}"
_SIZE = r"[a-z0-9][a-z0-9._-]{0,30}"
_LARGEST_NUMBER = 1 << 53
_KEYS = (
    *("description", "license", "context", "capabilities", "parameters"),
    *("reference", "parameter_count", "download", "memory", "file"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One size of a model. `download` and `memory`, the least to run it, are in bytes and rough; None where
    nobody knows. `context` is in tokens. `parameters` are the values that its makers recommend.

    `reference` is where it is, None for what ships with mdl, which has a `file`.
    """

    family: str
    size: str
    is_default: bool
    reference: Reference | None
    file: Path | None
    description: str
    license: str
    context: int
    parameter_count: int
    download: int | None
    memory: int | None
    capabilities: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    other: str = ""  # the quantization that was asked for in place of the recommended one

    @property
    def name(self) -> str:
        tag = "-".join(filter(None, (self.size, self.other.lower())))
        return f"{self.family}:{tag}" if tag else self.family

    @property
    def quantization(self) -> str | None:
        from mdl.filename import quantization_of

        version = self.file.name if self.file else f"{self.reference and self.reference.version}.gguf"
        return quantization_of(version)

    def quantized(self, quantization: str) -> "Entry":
        """The same at another quantization of its source."""
        assert self.reference is not None
        from mdl import estimate

        size = estimate.size(self.parameter_count, quantization)
        return replace(
            self,
            reference=self.reference.with_version(quantization, self.reference.pin),
            download=size,
            memory=None if size is None else estimate.memory(size),
            other=quantization,
        )

    def matches(self, terms: Sequence[str]) -> bool:
        """Whether each of the terms, in lower case, is a part of what is said of it."""
        texts = (self.name, self.description, self.license, str(self.reference or ""), *self.capabilities)
        said = "\n".join(texts).casefold()
        return all(term in said for term in terms)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Entries in the order of their file. `updated` is the day that it gives, `path` where it lies, and
    `problem` why the user's own copy is not used, if so."""

    entries: tuple[Entry, ...]
    updated: str
    path: Path
    problem: str = ""

    def find(self, text: str) -> Entry | None:
        """What a short name means: a model in its usual size, in another, or at another quantization."""
        family, _, tag = text.casefold().partition(":")
        sizes = [entry for entry in self.entries if entry.family == family]
        for entry in sizes:
            if tag == entry.size or (not tag and entry.is_default):
                return entry
        for entry in sizes:
            quantization = _quantization(tag, entry.size)
            if quantization and entry.reference and entry.reference.scheme == "hf":
                return entry.quantized(quantization)
        return None

    def of(self, reference: Reference) -> Entry | None:
        """The entry of a model, whatever the version."""
        for entry in self.entries:
            if entry.reference and entry.reference.model == reference.model:
                return entry
            if entry.file and reference == Reference("short", "", entry.name):
                return entry
        return None

    def get(self, text: str) -> Entry:
        """What a short name means. Raises NotFound, with the nearest names."""
        if entry := self.find(text):
            return entry
        near = difflib.get_close_matches(text.casefold(), self.names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "mdl catalog lists what there is"
        raise NotFound(f"the catalog has no {show(text)}", hint)

    def names(self) -> list[str]:
        """Every name but those with a quantization."""
        families = [entry.family for entry in self.entries if entry.is_default]
        return list(dict.fromkeys([*families, *(entry.name for entry in self.entries)]))


def catalog() -> Catalog:
    """What is recommended: by the copy that was fetched, if there is one that can be used; else as shipped.
    What ships with mdl is always there."""
    shipped = _shipped()
    try:
        path = copy_path()
        stamp = path.stat()
    except (OSError, MdlError):  # there is no copy, or no home
        return shipped
    try:
        copy = _read(path, (stamp.st_mtime_ns, stamp.st_size))
    except MdlError as failure:
        return replace(shipped, problem=failure.message)
    own = tuple(entry for entry in shipped.entries if entry.file)
    return replace(copy, entries=own + copy.entries)


def copy_path() -> Path:
    """Where a catalog that was fetched lies. Raises DiskError where there is no home."""
    return config.data_path() / FILE


def profile(model: Reference | str) -> "Profile":
    """What the makers of a model recommend, by its short name or its reference, whatever the version."""
    from mdl import parameters
    from mdl.profiles import Profile

    found = catalog().find(model) if isinstance(model, str) else catalog().of(model)
    return parameters.profile(found.parameters, found.name, lenient=True) if found else Profile()


def parse(data: bytes, path: Path, *, shipped: bool = False) -> Catalog:
    """A catalog that was read as bytes. Only one that is `shipped` may name files beside it.

    Raises UsageError, with the place, for what cannot be one.
    """
    if len(data) > LARGEST:
        raise UsageError(f"a catalog of more than {LARGEST:,} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as failure:  # the former also for numbers of thousands of digits
        raise UsageError(f"no TOML: {' '.join(str(failure).split())[:200]}") from None
    _only(document, ("version", "updated", "models"), "the catalog")
    if document.get("version") != VERSION:
        raise UsageError(f"a catalog of the version {document.get('version')!r:.20}, not {VERSION}")
    models = _table(document, "models", "the catalog")
    if not models or len(models) > MOST:
        raise UsageError(f"a catalog of {len(models):,} models, not of 1 to {MOST:,}")
    entries = tuple(entry for name in models for entry in _model(name, models, shipped))
    return Catalog(entries, _text(document, "updated", "the catalog"), path)


def checked(data: bytes, path: Path) -> Catalog:
    """A catalog that came from elsewhere, and of which even the parameters are such. Raises UsageError."""
    from mdl import parameters

    found = parse(data, path)
    for entry in found.entries:
        parameters.profile(entry.parameters, entry.name)
    return found


# From TOML to records


@lru_cache(1)
def _shipped() -> Catalog:
    return parse(SHIPPED.read_bytes(), SHIPPED, shipped=True)


@lru_cache(2)
def _read(path: Path, _stamp: tuple[int, int]) -> Catalog:
    """A copy, read once as long as it stays the same. Raises UsageError, also where it cannot be read."""
    from mdl.header import open_file

    try:
        with open_file(path) as file:
            return parse(file.read(LARGEST + 1), path)
    except OSError as failure:
        raise UsageError(f"{path} cannot be read: {failure.strerror}") from None
    except UsageError as failure:
        raise UsageError(f"{path}: {failure.message}") from None


def _model(family: str, models: Mapping[str, Any], shipped: bool) -> list[Entry]:
    """The sizes of a model; what is said of the model holds for those that say nothing else."""
    where = f"models.{show(family)[1:-1]}"
    if not re.fullmatch(_FAMILY, family):
        raise UsageError(f"{where}: a name has lower-case letters, digits, '.', '_' and '-'")
    if not shipped and any(entry.family == family for entry in _shipped().entries if entry.file):
        raise UsageError(f"{where}: this name is taken by what ships with mdl")
    model = _table(models, family, "models")
    _only(model, (*_KEYS, "default", "sizes"), where)
    if "sizes" not in model:
        return [_entry(family, "", True, model, where, shipped)]
    sizes = _table(model, "sizes", where)
    default = _text(model, "default", where)
    if default not in sizes or len(sizes) > MOST:
        raise UsageError(f"{where}: default has to be one of its sizes")
    common = {name: value for name, value in model.items() if name in _KEYS}
    found = []
    for size in sizes:
        place = f"{where}.sizes.{show(size)[1:-1]}"
        if not re.fullmatch(_SIZE, size):
            raise UsageError(f"{place}: a size has lower-case letters, digits, '.', '_' and '-'")
        own = _table(sizes, size, place)
        _only(own, _KEYS, place)
        found.append(_entry(family, size, size == default, {**common, **own}, place, shipped))
    return found


def _entry(
    family: str, size: str, is_default: bool, said: Mapping[str, Any], where: str, shipped: bool
) -> Entry:
    file = _file(said, where) if shipped and "file" in said else None
    if not shipped and "file" in said:
        raise UsageError(f"{where}: only what ships with mdl has a file")
    if (file is None) == ("reference" not in said):
        raise UsageError(f"{where}: has to have a reference")
    return Entry(
        family,
        size,
        is_default,
        None if file else _reference(said, where),
        file,
        _text(said, "description", where),
        _text(said, "license", where),
        _number(said, "context", where),
        _number(said, "parameter_count", where),
        _number(said, "download", where),
        _number(said, "memory", where),
        _capabilities(said, where),
        _parameters(said, where),
    )


def _file(said: Mapping[str, Any], where: str) -> Path:
    return SHIPPED.parent / _text(said, "file", where)


def _reference(said: Mapping[str, Any], where: str) -> Reference:
    text = _text(said, "reference", where)
    try:
        reference = Reference.parse(text)
    except UsageError as failure:
        raise UsageError(f"{where}: reference: {failure.message}") from None
    if reference.scheme not in SCHEMES or reference.query:
        raise UsageError(f"{where}: reference: {show(text)} is not the name of a model at a source")
    return reference


def _capabilities(said: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = said.get("capabilities", [])
    if not isinstance(found, list) or not all(name in CAPABILITIES for name in found):
        raise UsageError(f"{where}: capabilities has to be a list of: {', '.join(CAPABILITIES)}")
    return tuple(dict.fromkeys(found))


def _parameters(said: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = _table(said, "parameters", where) if "parameters" in said else {}
    if len(found) > MOST_PARAMETERS:
        raise UsageError(f"{where}: more than {MOST_PARAMETERS} parameters")
    return MappingProxyType(found)


def _table(said: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = said.get(name)
    if not isinstance(found, dict):
        raise UsageError(f"{where}: {show(name)[1:-1]} has to be a table")
    return found


def _text(said: Mapping[str, Any], name: str, where: str) -> str:
    found = said.get(name)
    if not isinstance(found, str) or not 0 < len(found) <= LONGEST or not found.isprintable():
        raise UsageError(f"{where}: {name} has to be a line of at most {LONGEST} characters")
    return found


def _number(said: Mapping[str, Any], name: str, where: str) -> int:
    found = said.get(name)
    if type(found) is not int or not 0 < found < _LARGEST_NUMBER:
        raise UsageError(f"{where}: {name} has to be a whole number above 0")
    return found


def _only(said: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in said:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{where}: {show(name)} is not known" + (f"; did you mean {near[0]}?" if near else "")
            )


def _quantization(tag: str, size: str) -> str | None:
    """The quantization that follows a size in a tag."""
    if size and not tag.startswith(f"{size}-"):
        return None
    rest = tag.removeprefix(f"{size}-") if size else tag
    found = canonical_version(rest) if rest else rest
    return found if found != rest else None
