"""What the cache takes on the disk: of each version, together, and what sharing saves. Reads no contents.

Goes by what the file system says, so that hard links, copies, holes and models put there by hand all count as
what they are. Bytes are those that a file takes on the disk where it has holes.
"""

import contextlib
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mdl import garbage
from mdl.disk import size_on_disk
from mdl.model import Model
from mdl.places import statuses
from mdl.store import Store

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Content(NamedTuple):
    """A content on the disk, however many names it has."""

    key: tuple[int, int]  # device and inode
    size: int
    links: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a version takes: `unique` bytes would be free without it, the others it shares."""

    model: Model
    size: int
    unique: int

    @property
    def shared(self) -> int:
        return self.size - self.unique


@dataclass(frozen=True, slots=True)
class Usage:
    """What everything takes, in bytes. `copied` is what versions have as files of their own though there is a
    blob that they could share."""

    shares: tuple[Share, ...]
    on_disk: int
    saved: int
    partial: int
    converted: int
    unused: int
    copied: int
    free: int

    @property
    def size(self) -> int:
        """What the versions would take if none shared anything."""
        return sum(share.size for share in self.shares)


def measure(store: Store) -> Usage:
    """What a cache takes."""
    models = store.models()
    blobs = dict(_blobs(store.blobs))
    held = [(model, list(_contents(_statuses(model)))) for model in models]
    users = Counter(sha256 for model in models for sha256 in _digests(model))
    shares = tuple(_share(model, contents, blobs, users) for model, contents in held)
    inside = {content.key: content.size for _, contents in held for content in contents}
    outside = {sha256: blob for sha256, blob in blobs.items() if blob.links == 1}
    partial = sum(content.size for content in _contents(statuses(store.incoming)))
    converted = sum(content.size for content in _contents(statuses(store.conversions)))
    return Usage(
        tuple(sorted(shares, key=lambda share: (-share.size, str(share.model.reference)))),
        on_disk=sum(inside.values()) + sum(blob.size for blob in outside.values()) + partial + converted,
        saved=sum(share.size for share in shares) - sum(inside.values()),
        partial=partial,
        converted=converted,
        unused=sum(blob.size for sha256, blob in outside.items() if sha256 not in users)
        + sum(piece.size for piece in garbage.converted(store)),
        copied=sum(_copied(model, contents, blobs) for model, contents in held),
        free=_free(store.root),
    )


def _share(model: Model, contents: list[Content], blobs: dict[str, Content], users: Counter[str]) -> Share:
    """A content is a version's own if it has no names but those in its folder and its blob, and so is the
    blob that it is a copy of."""
    names = Counter(content.key for content in contents)
    once = {content.key: content for content in contents}
    names.update(blob.key for blob in map(blobs.get, _digests(model)) if blob and blob.key in once)
    unique = sum(content.size for key, content in once.items() if content.links <= names[key])
    own = (blobs[sha256] for sha256 in _digests(model) if sha256 in blobs and users[sha256] == 1)
    unique += sum(blob.size for blob in own if blob.links == 1)
    return Share(model, sum(content.size for content in once.values()), unique)


def _copied(model: Model, contents: list[Content], blobs: dict[str, Content]) -> int:
    keys = {content.key for content in contents}
    shareable = (blobs[sha256] for sha256 in _digests(model) if sha256 in blobs)
    return sum(blob.size for blob in shareable if blob.key not in keys)


def _digests(model: Model) -> set[str]:
    return {file.sha256 for file in model.files if file.sha256}


def _contents(found: Iterable[os.stat_result]) -> Iterator[Content]:
    for status in found:
        if stat.S_ISREG(status.st_mode):
            yield Content((status.st_dev, status.st_ino), size_on_disk(status), status.st_nlink)


def _blobs(folder: Path) -> Iterator[tuple[str, Content]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if _DIGEST.fullmatch(entry.name):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                for content in _contents([entry.stat(follow_symlinks=False)]):
                    yield entry.name, content


def _free(folder: Path) -> int:
    """What the disk has left, whether there is a cache yet or not."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(place).free


def _statuses(model: Model) -> Iterator[os.stat_result]:
    """Of all files of a version: of those in its folder, or of its own where others share that."""
    if model.place is None:
        yield from statuses(model.folder)
        return
    for file in model.files:
        with contextlib.suppress(OSError):  # removed meanwhile
            yield os.lstat(model.folder / file.name)
