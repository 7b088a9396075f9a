"""What is known of a model: frozen records that check themselves. Knows no disk and no network."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from mdl.errors import IntegrityError
from mdl.reference import ONE_VERSION, ONLY, UNKNOWN_VERSION, Reference, show

SCHEMA = 1
METADATA_NAME = ".metadata"
API = "api"  # the format of models that others run
AT_FAULT = "who published it is at fault"
_NUMBERS = ("parameters", "context_length")  # the other fields of a header are texts
_TO_READ = ("readme", "license", "other")  # roles of files that nothing is run with
_SHA256 = r"[0-9a-f]{64}"
_GIT_ID = r"[0-9a-f]{40}"
_UNSAFE_NAME = r'[\x00-\x1f\x7f<>:"|?*\\]'
R = TypeVar("R", "Revision", "Summary")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a version: a relative name, size in bytes, and the digests that were promised or found."""

    name: str
    size: int | None
    sha256: str | None = None
    git_id: str | None = None  # SHA-1 of git's blob, which is all a hub tells of small files
    role: str = "other"
    archive: str | None = None  # the sha256 of the archive that it came in

    @property
    def is_archive(self) -> bool:
        """Whether the files of the version are those in it; of a container image those of its model."""
        return self.role in ("archive", "image")

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        bad = (
            re.search(_UNSAFE_NAME, self.name)
            or not self.name.isprintable()
            or len(self.name.encode()) > 1024
        )
        if bad or path.is_absolute() or not path.parts or str(path) != self.name or ".." in path.parts:
            raise IntegrityError(
                f"a file of the model has a name that is not safe: {show(self.name)}", AT_FAULT
            )
        if path.parts[0].casefold() == METADATA_NAME or any(len(p.encode()) > 255 for p in path.parts):
            raise IntegrityError(
                f"a file of the model has a name that is not allowed: {show(self.name)}", AT_FAULT
            )
        if self.size is not None and not _is_number(self.size):
            raise IntegrityError(f"{show(self.name)} has an impossible size: {show(str(self.size))}")
        if not isinstance(self.role, str):
            raise TypeError(f"a role is {show(str(self.role))}")
        if self.sha256 is not None and not re.fullmatch(_SHA256, self.sha256):
            raise IntegrityError(f"{show(self.name)} has a malformed sha256: {show(self.sha256)}")
        if self.archive is not None and not re.fullmatch(_SHA256, self.archive):
            raise IntegrityError(f"{show(self.name)} came in an archive that cannot be: {show(self.archive)}")
        if self.git_id is not None and not re.fullmatch(_GIT_ID, self.git_id):
            raise IntegrityError(f"{show(self.name)} has a malformed git id: {show(self.git_id)}")


def refuse_twins(files: Iterable[File]) -> None:
    """Raise IntegrityError for two files that are one, or a file that is another's folder, on this or on
    another file system."""
    seen: dict[str, str] = {}
    for file in files:
        name = _folded(file.name)
        if name in seen:
            raise _twins(seen[name], file.name, "one file")
        seen[name] = file.name
    for name, spelled in seen.items():
        for folder in PurePosixPath(name).parents:
            if str(folder) in seen:
                raise _twins(seen[str(folder)], spelled, "a file and a folder of one name")


def _folded(name: str) -> str:
    """As file systems compare names that tell neither case nor composed characters apart."""
    return unicodedata.normalize("NFC", name.casefold())


def _twins(one: str, other: str, what: str) -> IntegrityError:
    return IntegrityError(f"{show(one)} and {show(other)} would be {what} on some systems", hint=AT_FAULT)


class Revision(NamedTuple):
    """Which state of its source a version is: `kind` is branch, tag, commit or digest."""

    kind: str = ""
    name: str = ""
    commit: str = ""


class Summary(NamedTuple):
    """The facts of a header that a list shows. None is unknown."""

    kind: str = "model"  # model, adapter, projector or checkpoint
    format: str | None = None  # gguf or safetensors
    architecture: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    quantization: str | None = None
    license: str | None = None
    unsupported: str | None = None  # what it is that cannot run here, in a few words


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a source has under a reference, before the first byte: `reference` has its version."""

    reference: Reference
    files: tuple[File, ...]
    revision: Revision = Revision()
    source: str = ""
    note: str = ""  # which choice was made, in a person's words
    partial: bool = False  # files were left out on purpose


@dataclass(frozen=True, slots=True)
class Model:
    """A version on this machine: its folder, its files, and what its metadata say."""

    reference: Reference
    folder: Path
    files: tuple[File, ...]
    summary: Summary = Summary()
    revision: Revision = Revision()
    source: str = ""
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    partial: bool = False
    problem: str = ""  # why it cannot be used, if so
    damaged: tuple[str, ...] = ()  # files that are not what is recorded of them: downloading mends them
    place: Path | None = None  # what was named, where that is not the folder
    card: Path | None = None  # the model.json that describes it, or NAME.json of one of several in a folder

    @property
    def version(self) -> str:
        if self.reference.version is None:
            return ONLY if self.source and self.reference.scheme in ONE_VERSION else UNKNOWN_VERSION
        pin = f"@{self.reference.pin}" if self.reference.pin else ""
        return self.reference.version + pin

    @property
    def size(self) -> int:
        return sum(file.size or 0 for file in self.files)

    @property
    def is_absent(self) -> bool:
        """Whether only its model.json is here, which tells where to get it."""
        known = self.problem or self.summary.format or self.summary.unsupported
        return self.card is not None and not known

    @property
    def state(self) -> str:
        """ready, not-downloaded, unsupported (it cannot run here), or error."""
        if self.problem:
            return "error"
        if self.is_absent:
            return "not-downloaded"
        return "unsupported" if self.summary.unsupported else "ready"

    @property
    def is_api(self) -> bool:
        """Whether others run it, and answer for it over HTTP: there is nothing of it to load."""
        return self.reference.is_api or self.summary.format == API

    def paths(self, role: str) -> list[Path]:
        """The files of a role, in the order of their names: a split's first part comes first."""
        return sorted(self.folder / file.name for file in self.files if file.role == role)


def now() -> datetime:
    """As precise as it is recorded."""
    return datetime.now(UTC).replace(microsecond=0)


def to_document(model: Model) -> dict[str, Any]:
    """The content of `.metadata`; `from_document` reads it back."""
    found = {"damaged": list(model.damaged)} if model.damaged else {}
    return {
        "schema": SCHEMA,
        "reference": str(model.reference),
        "source": model.source,
        "created": model.modified,
        "partial": model.partial,
        **found,
        "revision": model.revision._asdict(),
        "header": {name: value for name, value in model.summary._asdict().items() if value is not None},
        "files": [_file_document(file) for file in model.files],
    }


def from_document(document: Mapping[str, Any], folder: Path) -> Model:
    """The model that `.metadata` describes; raises IntegrityError when it describes none."""
    try:
        if int(document["schema"]) > SCHEMA:
            raise IntegrityError(f"{folder / METADATA_NAME} was written by a newer mdl", hint="update mdl")
        files = tuple(File(**entry) for entry in document["files"])
        damaged = tuple(file.name for file in files if file.name in document.get("damaged", ()))
        return Model(
            reference=Reference.parse(document["reference"]),
            folder=folder,
            files=files,
            summary=_record(Summary, document.get("header", {})),
            revision=_record(Revision, document.get("revision", {})),
            source=str(document.get("source", "")),
            modified=_time(document["created"]),
            partial=bool(document.get("partial", False)),
            problem=_damage(files, damaged),
            damaged=damaged,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"{folder / METADATA_NAME} is damaged ({error})") from None


def _record(kind: type[R], said: Mapping[str, Any]) -> R:
    """Texts, but for the numbers. Raises TypeError for anything else."""
    for name, value in said.items():
        if not (_is_number(value) if name in _NUMBERS else isinstance(value, str)):
            raise TypeError(f"{show(name)} is {show(str(value))}")
    return kind(**said)


def _is_number(value: object) -> bool:
    """Whether it is a size or a count, and no larger than any file can be."""
    return type(value) is int and 0 <= value < 1 << 63


def _damage(files: tuple[File, ...], damaged: tuple[str, ...]) -> str:
    """Why a version with damaged files cannot be used: it can where only what people read is damaged."""
    needed = [file.name for file in files if file.name in damaged and file.role not in _TO_READ]
    return f"damaged or missing: {', '.join(needed)}" if needed else ""


def _time(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _file_document(file: File) -> dict[str, Any]:
    return {name: value for name in File.__slots__ if (value := getattr(file, name)) is not None}
