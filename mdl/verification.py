"""Whether what is in the cache is what was promised: nothing missing, nothing foreign, every bit right.

What is found to be damaged is recorded, so that it is not used and the next download mends it: its content
loses its name among the blobs, and the versions that have it are marked. What a version has stays.
"""

import contextlib
import errno
import json
import os
import random
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mdl import metadata, modeljson
from mdl.disk import disk_errors, sha256_of, unique
from mdl.errors import DiskError, MdlError, UnsupportedModel
from mdl.model import METADATA_NAME, File, Model
from mdl.store import Store

THREADS = 2  # one reads while the other computes; more help only few disks
HISTORY = "verified.json"
HARMLESS = ("foreign", "edited", "unchecked")  # kinds of findings
_DIGEST = re.compile(r"[0-9a-f]{64}")

Advance = Callable[[int], object]


class Finding(NamedTuple):
    """Something that is not as it should be, or that cannot be told.

    `kind` is missing, size, content, link, unreadable, metadata or header, which are damage; foreign, edited
    or unchecked, which are none. `mend` is the command that mends it.
    """

    kind: str
    path: Path
    what: str
    model: Model | None = None
    mend: str = ""

    @property
    def is_damage(self) -> bool:
        return self.kind not in HARMLESS


class Report(NamedTuple):
    """What came of it: `size` bytes of `contents` were read. `unrecorded`: why damage was not noted."""

    findings: list[Finding]
    versions: int
    contents: int
    size: int
    unrecorded: str = ""

    @property
    def damage(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_damage]


@dataclass(frozen=True, slots=True)
class Name:
    """One name of a content: in a version, or as a blob."""

    path: Path
    status: os.stat_result
    sha256: str
    model: Model | None = None
    file: File | None = None

    @property
    def content(self) -> tuple[int, int, str]:
        return self.status.st_dev, self.status.st_ino, self.sha256


def everything(store: Store) -> list[Model]:
    """All versions, as their own metadata have them and not as a list remembers them."""
    return [store.find(model.reference) or model for model in store.models()]


Contents = dict[tuple[int, int, str], list[Name]]


@dataclass
class Verification:
    """A look at versions, and at all blobs if `everything` is to be looked at, before any content is read.

    `quick` reads only what was changed after its version was put together. `share` (0 to 1) reads so much of
    all bytes: whole contents, those first that were right the longest time ago.
    """

    store: Store
    models: Sequence[Model]
    everything: bool = False
    quick: bool = False
    share: float = 1.0
    findings: list[Finding] = field(default_factory=list)
    chosen: Contents = field(default_factory=dict)
    wrong: list[tuple[str, os.stat_result]] = field(default_factory=list)
    looked: dict[Path, tuple[int, int] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [name for model in self.models for name in self._look_at(model)]
        names += self._blobs(names)
        contents: Contents = defaultdict(list)
        for name in names:
            contents[name.content].append(name)
        self.chosen = self._choose(contents)

    @property
    def size(self) -> int:
        """How many bytes there are to read."""
        return sum(names[0].status.st_size for names in self.chosen.values())

    def run(self, advance: Advance = lambda _: None) -> Report:
        """Read what is to be read, and record what is found. Raises DiskError for what cannot be read."""
        from concurrent.futures import ThreadPoolExecutor

        groups = list(self.chosen.values())
        pool = ThreadPoolExecutor(THREADS)
        try:
            verdicts = list(pool.map(lambda names: _read(names[0], advance), groups))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nothing more is begun
        for names, what in zip(groups, verdicts, strict=True):
            if what:
                self._find_damage(names, what)
        right = [names[0].sha256 for names, what in zip(groups, verdicts, strict=True) if what == ""]
        self.findings = [found for found in self.findings if self._stands(found)]
        return Report(self.findings, len(self.models), len(groups), self.size, self._record(right))

    # Looking

    def _look_at(self, model: Model) -> Iterator[Name]:
        record = model.folder / METADATA_NAME
        if record.is_symlink():
            self._find("link", record, "it is a link", model)
        if not record.is_file() or model.place is not None:
            damage = model.problem or _header_damage(model.place or model.folder)
            what = damage or "no digests are known: only its header was read"
            self._find("header" if damage else "unchecked", model.place or model.folder, what, model)
            return
        if model.problem and not model.files:
            self._find("metadata", record, model.problem, model)
            return
        for file in model.files:
            yield from self._look_at_file(model, file)
        for path in _foreign(model):
            self._find(
                "foreign", path, "mdl did not put it there: it goes when the version is renewed", model
            )

    def _look_at_file(self, model: Model, file: File) -> Iterator[Name]:
        path = model.folder / file.name
        status = _status(path)
        self.looked[path] = _identity(status)
        if status is None:
            return self._find("missing", path, "it is missing", model)
        if not stat.S_ISREG(status.st_mode):
            return self._find("link", path, "it is a link or no file at all", model)
        if _is_edited(file, path):
            self.wrong.append((file.sha256 or "", status))  # as a content, where both are one file
            return self._find("edited", path, "it was edited, and is used as it is", model)
        if file.size not in (None, status.st_size):
            what = f"it has {status.st_size:,} bytes and should have {file.size:,}"
            self.wrong.append((file.sha256 or "", status))
            return self._find("size", path, what, model)
        if file.sha256 is None:
            return self._find("unchecked", path, "its digest is not known", model)
        yield Name(path, status, file.sha256, model, file)
        return None

    def _blobs(self, names: Iterable[Name]) -> Iterator[Name]:
        """The blobs of files that are no other name of theirs, and all others if everything is looked at."""
        known = {name.sha256 for name in names}
        wanted: Iterable[str] = known
        if self.everything:
            with disk_errors(self.store.blobs), contextlib.suppress(FileNotFoundError):
                wanted = sorted(entry.name for entry in os.scandir(self.store.blobs))
        for sha256 in wanted:
            path = self.store.blob(sha256)
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                told = any(
                    os.path.samestat(status, other) for digest, other in self.wrong if digest == sha256
                )
                if _DIGEST.fullmatch(sha256) and stat.S_ISREG(status.st_mode) and not told:
                    yield Name(path, status, sha256)
                elif _DIGEST.fullmatch(sha256) and not told:
                    self._find("link", path, "it is a link or no file at all", None)
                elif not told:
                    self._find("foreign", path, "mdl did not put it there", None)

    def _stands(self, finding: Finding) -> bool:
        """Whether it is of what is there now: others remove and renew versions meanwhile."""
        model = finding.model
        if model is None or not model.folder.exists():
            return model is None
        if finding.path not in self.looked:
            return True
        return not _is_renewed(model) and self.looked[finding.path] == _identity(_status(finding.path))

    def _find(self, kind: str, path: Path, what: str, model: Model | None) -> None:
        self.findings.append(Finding(kind, path, what, model, _mend(kind, model)))

    # Choosing

    def _choose(self, contents: Contents) -> Contents:
        suspect = {key: names for key, names in contents.items() if any(map(_is_suspect, names))}
        if self.quick:
            return suspect
        if self.share >= 1:
            return contents
        seen = _history(self.store)
        order = sorted(contents.keys() - suspect, key=lambda key: (seen.get(key[2], 0.0), random.random()))
        wanted = self.share * sum(names[0].status.st_size for names in contents.values())
        chosen, size = dict(suspect), 0
        for key in order:
            if size >= wanted:
                break
            chosen[key] = contents[key]
            size += contents[key][0].status.st_size
        return chosen

    # Recording

    def _find_damage(self, names: Sequence[Name], what: str) -> None:
        """A content that is wrong is so under all its names. That of a blob is told if it has no other."""
        self.wrong.append((names[0].sha256, names[0].status))
        inside = [name for name in names if name.model]
        for name in inside or names[:1]:
            self._find("content", name.path, what, name.model)

    def _record(self, right: Sequence[str]) -> str:
        """First the names of damaged contents go, then the versions are marked: killed in between, the next
        download of a version finds that its file is no name of any blob. Why not, where that cannot be."""
        try:
            for sha256, status in self.wrong:
                self.store.forget(sha256, status)
            self._mark_all()
            _remember(self.store, right)
        except DiskError as failure:
            return failure.message
        return ""

    def _mark_all(self) -> None:
        """Mark what is damaged, unless somebody has mended it meanwhile, and nothing that is right again."""
        found = {finding.path for finding in self.findings if finding.is_damage}
        damaged = {
            path for path in found if path in self.looked and self.looked[path] == _identity(_status(path))
        }
        read = {name.path for names in self.chosen.values() for name in names}
        for model in self.models:
            places = {file.name: model.folder / file.name for file in model.files}
            unread = {name for name in model.damaged if places[name] not in read}
            marks = unread | {name for name, place in places.items() if place in damaged}
            if marks != set(model.damaged):
                with contextlib.suppress(FileNotFoundError):
                    self.store.mark(model, marks)


def _is_renewed(model: Model) -> bool:
    """Whether another version has taken the place of one. What was found stands where that cannot be told."""
    try:
        return metadata.read(model.folder / METADATA_NAME).files != model.files
    except FileNotFoundError:
        return True
    except (MdlError, OSError, ValueError):
        return False


def _is_edited(file: File, path: Path) -> bool:
    """Whether this is a model.json, which is there for people to write to, and was written to."""
    if file.name != modeljson.NAME or file.sha256 is None:
        return False
    try:
        modeljson.read(path)
        return sha256_of(path) != file.sha256
    except (UnsupportedModel, OSError):
        return False


def _read(name: Name, advance: Advance) -> str | None:
    """What is wrong with a content: "" if nothing is, None if it is not there any more."""
    try:
        with disk_errors(name.path):
            found = _digest(name.path, advance)
    except FileNotFoundError:
        return None
    if isinstance(found, OSError):
        return f"it cannot be read: {found.strerror}"
    if found == name.sha256:
        return ""
    return f"its content is damaged: sha256 {found[:12]}…, and {name.sha256[:12]}… was promised"


def _digest(path: Path, advance: Advance) -> str | OSError:
    """The sha256 of a file, or why the disk does not give it: that is damage, other refusals are not."""
    try:
        return sha256_of(path, advance)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return error


def _header_damage(path: Path) -> str:
    """Why a model without digests cannot be whole, as far as headers tell."""
    from mdl.weights import DAMAGED, Refusal, identify

    found = identify(path)
    return found.message if isinstance(found, Refusal) and found.what == DAMAGED else ""


def _mend(kind: str, model: Model | None) -> str:
    """The command that mends something, if there is one."""
    if model is None or model.place is not None or kind in HARMLESS:
        return ""
    if model.reference.scheme == "short" or kind == "header" or not (model.source or kind == "metadata"):
        return f"mdl rm {model.reference}"
    chosen = [f"--include {file.name}" for file in model.files] if model.partial else []
    return " ".join(["mdl download", str(model.reference), *chosen])


def _foreign(model: Model) -> Iterator[Path]:
    """What lies in the folder of a version beside what its metadata name."""
    own = {model.folder / file.name for file in model.files} | {model.folder / METADATA_NAME}
    for folder, inner, files in os.walk(model.folder):
        links = [name for name in inner if (Path(folder) / name).is_symlink()]
        yield from (path for name in sorted(files + links) if (path := Path(folder) / name) not in own)


def _is_suspect(name: Name) -> bool:
    """Whether a file was damaged before, or written to after its version was put together."""
    if name.model is None or name.file is None:
        return False
    try:
        return (
            name.file.name in name.model.damaged
            or name.status.st_mtime_ns > os.lstat(name.model.folder / METADATA_NAME).st_mtime_ns
        )
    except OSError:
        return True


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _identity(status: os.stat_result | None) -> tuple[int, int] | None:
    """Which file it is. The number of one that is gone may be another's a moment later, with another time."""
    return status and (status.st_ino, status.st_mtime_ns)


def _history(store: Store) -> dict[str, float]:
    """When each content was last found to be right, in seconds since 1970."""
    try:
        found = json.loads((store.root / HISTORY).read_bytes())
        return {sha256: float(moment) for sha256, moment in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _remember(store: Store, right: Sequence[str]) -> None:
    """Note what was right. Of what is not here any more nothing is kept."""
    if not right:
        return
    known = {sha256: moment for sha256, moment in _history(store).items() if store.blob(sha256).exists()}
    beside = store.root / f"index.{unique()}.tmp"
    with contextlib.suppress(OSError):  # without it, another choice is as good
        beside.write_text(json.dumps(known | dict.fromkeys(right, round(time.time()))))
        beside.replace(store.root / HISTORY)
