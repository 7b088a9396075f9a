"""What a source tells of a model that is not here: its versions, and what is said of them. Knows no network.

Transports fill these records in. All text comes from outside: it is bounded, but not yet inert on a terminal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mdl.filename import quantization_of
from mdl.header import count
from mdl.model import File, Manifest, Revision
from mdl.reference import Reference

MOST_OFFERS = 300  # versions of one repository; collections have tens
_LOADED = ("weights", "adapter", "projector")


@dataclass(frozen=True, slots=True)
class Offer:
    """One version that can be had: its name and its files, the weights first and in the order of their parts.

    `problem` says why it cannot be had, if so.
    """

    version: str
    files: tuple[File, ...]
    problem: str = ""

    @property
    def size(self) -> int | None:
        """Bytes of all files, None where the source does not tell."""
        return _sum(self.files)

    @property
    def weights(self) -> tuple[File, ...]:
        """What is loaded, without a projector: a GGUF file, all parts of a split one, or safetensors."""
        binary = [file for file in self.files if file.name.endswith((".gguf", ".safetensors"))]
        main = [file for file in binary if file.role == binary[0].role]
        return tuple(main)

    @property
    def loaded(self) -> int | None:
        """Bytes of the weights without their projector."""
        return _sum(self.weights)

    @property
    def projector(self) -> File | None:
        found = (file for file in self.files if file.role == "projector" and file not in self.weights)
        return next(found, None)

    @property
    def format(self) -> str | None:
        return self.weights[0].name.rpartition(".")[2] if self.weights else None

    @property
    def quantization(self) -> str | None:
        return quantization_of(self.weights[0].name) if self.format == "gguf" else None


@dataclass(frozen=True, slots=True)
class About:
    """What a model's owner and its host say of it. None, or nothing, is unknown.

    `gate` is how the owner lets people in ("auto", "manual"), and `access` whether this user is in.
    `architecture`, `parameters` and `context_length` are as the host counted them.
    """

    description: str = ""
    license: str | None = None
    license_link: str | None = None
    gate: str | None = None
    access: bool | None = None
    private: bool | None = None
    downloads: int | None = None
    likes: int | None = None
    modified: datetime | None = None
    task: str | None = None
    library: str | None = None
    topics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    architecture: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    quantizer: str | None = None  # the method of weights that llama.cpp does not run: awq, gptq


@dataclass(frozen=True, slots=True)
class Card:
    """A model at its source. `offers` has the best first, by the documented order; `chosen` is the version
    that the reference means, None where it means none, and `problem` says why."""

    reference: Reference
    offers: tuple[Offer, ...]
    chosen: str | None = None
    problem: str = ""
    about: About = About()
    revision: Revision = Revision()
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    source: str = ""

    @property
    def choice(self) -> Offer | None:
        return next((offer for offer in self.offers if offer.version == self.chosen), None)

    def manifest(self, offer: Offer) -> Manifest:
        """One version as its transport knows it: what `Transport.remote` takes."""
        return Manifest(self.reference, offer.files, self.revision, self.source)


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of a source's list: what is said of a model, and its versions, the default first."""

    reference: Reference
    about: About
    versions: tuple[str, ...]


def of_manifest(manifest: Manifest, version: str, about: About = About(), tags: tuple[str, ...] = ()) -> Card:
    """The card of a source that has one version under a reference."""
    return Card(
        manifest.reference,
        (Offer(version, manifest.files),),
        version,
        about=about,
        revision=manifest.revision,
        tags=tags,
        source=manifest.source,
    )


# What a source wrote, where it is of the right kind


def section(value: object) -> Mapping[str, Any]:
    """An object within JSON; an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> int | None:
    return None if isinstance(value, list) else count(value)


def moment(value: object) -> datetime | None:
    """A time in ISO 8601; without a zone it is taken for UTC."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC) if found else None


def _sum(files: tuple[File, ...]) -> int | None:
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)
