"""What lies in the cache and nothing uses: found, and removed where nobody is about to use it.

A content is used if it has another name in the tree, or if a version says that it has it: where a file system
takes no hard links, the link count tells nothing. What a running download holds is left alone by its locks,
and by its age where locks cannot be trusted; the worst that can come of that is another transfer.
"""

import contextlib
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mdl import leftovers
from mdl.disk import discard, entries_of, size_on_disk
from mdl.errors import Busy, UnsupportedModel
from mdl.locks import refuse_to_wait
from mdl.partial import note_of
from mdl.peft import CONVERTED_FROM
from mdl.places import statuses
from mdl.store import Store

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"([^.]+)\.partial(\..+)?")
_LOCK = re.compile(r"[^.]+\.(transfer|lease)")


class Piece(NamedTuple):
    """Something that can go: a `content`, a `partial` download, a `leftover` of a killed process, or what was
    `converted` from something that is gone.

    `size` in bytes on the disk, `age` in seconds.
    """

    kind: str
    path: Path
    size: int
    age: float


def find(store: Store, *, older: float = 0, partials: bool = False) -> list[Piece]:
    """What can go, as far as that can be told without locks. `older` is an age in seconds.

    Of partial downloads only those that nobody can go on with, unless all `partials` are wanted.
    """
    found = [*_leftovers(store), *_contents(store), *converted(store)]
    found += _partials(store, resumable=partials)
    return [piece for piece in found if piece.age >= older]


def collect(store: Store, pieces: list[Piece]) -> list[Piece]:
    """Remove pieces, and the locks that nobody holds; those that are gone.

    Raises Busy while a download puts something into place.
    """
    try:
        with store.locks.contents(shared=False, wait=False):
            fetching = _drop_locks(store)
            # While a person was asked, it may be used again.
            unused = {piece.path for piece in (*_contents(store), *converted(store))}
            always = ("partial", "leftover")
            wanted = [piece for piece in pieces if piece.kind in always or piece.path in unused]
            return [piece for piece in wanted if _remove(store, piece, fetching=fetching)]
    except BlockingIOError:
        raise Busy("a download is putting a model into place", hint="try again in a moment") from None


def _leftovers(store: Store) -> Iterator[Piece]:
    for path in leftovers.find(store, removed=True):
        yield from _piece("leftover", path)
    for path in store.root.glob("index.*.tmp"):
        yield from (piece for piece in _piece("leftover", path) if piece.age > leftovers.AGE)


def _contents(store: Store) -> Iterator[Piece]:
    """The blobs without another name, but in what is garbage too, that no version says it has."""
    going = Counter(found.st_ino for path in leftovers.find(store, removed=True) for found in _statuses(path))
    blobs = [entry for entry in entries_of(store.blobs) if _DIGEST.fullmatch(entry.name)]
    lonely = [entry for entry in blobs if _is_lonely(entry, going)]
    named = {file.sha256 for model in store.models() for file in model.files} if lonely else set()
    for entry in lonely:
        if entry.name not in named:
            yield from _piece("content", Path(entry.path))


def converted(store: Store) -> Iterator[Piece]:
    """What was made of adapters that are gone, or have changed since."""
    for entry in entries_of(store.conversions):
        if not _has_source(Path(entry.path)):
            yield from _piece("converted", Path(entry.path))


def _has_source(path: Path) -> bool:
    from mdl import gguf

    try:
        source = Path(str(gguf.read(path).metadata.get(CONVERTED_FROM, "")))
        return source.is_file() and source.stat().st_mtime_ns <= path.stat().st_mtime_ns
    except (OSError, ValueError, UnsupportedModel):
        return False


def _partials(store: Store, *, resumable: bool) -> Iterator[Piece]:
    """Partial downloads. Nobody goes on with one whose content is here, or whose note is lost."""
    left = set(leftovers.find(store, removed=True))
    for entry in entries_of(store.incoming):
        path, match = Path(entry.path), _PARTIAL.fullmatch(entry.name)
        if match and path not in left:
            key = match[1]
            whole = store.incoming / f"{key}.partial"
            useless = os.path.lexists(store.blob(key)) or not os.path.lexists(note_of(whole))
            if resumable or useless:
                yield from _piece("partial", path)


def _remove(store: Store, piece: Piece, *, fetching: bool) -> bool:
    with contextlib.suppress(OSError, Busy):
        if piece.kind in ("leftover", "converted"):
            discard(piece.path)
            return not os.path.lexists(piece.path)
        key = piece.path.name.partition(".")[0]
        with store.locks.transfer(key, refuse_to_wait) as trusted:
            # What is promised by another digest than sha256 is a blob before anybody can know its lock.
            certain = trusted and not (fetching and piece.kind == "content")
            if not certain and piece.age < leftovers.AGE:
                return False
            if piece.kind == "content":
                return store.free(piece.path.name) > 0 or not os.path.lexists(piece.path)
            discard(piece.path)
        store.locks.drop(f"{key}.transfer")
        return True
    return False


def _drop_locks(store: Store) -> bool:
    """Remove the files of locks that nobody holds; whether anything is being fetched."""
    names = [entry.name for entry in entries_of(store.locks.folder) if _LOCK.fullmatch(entry.name)]
    held = [name for name in names if not store.locks.drop(name)]
    return any(name.endswith(".transfer") for name in held)


def _is_lonely(entry: "os.DirEntry[str]", going: Counter[int]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_nlink - going[status.st_ino] == 1


def _statuses(path: Path) -> list[os.stat_result]:
    """Of a file, or of all files in a folder."""
    try:
        status = os.lstat(path)
    except OSError:
        return []
    return list(statuses(path)) if stat.S_ISDIR(status.st_mode) else [status]


def _piece(kind: str, path: Path) -> Iterator[Piece]:
    """Since when something is as it is: an unused content since its last link was taken away."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:  # somebody else has removed it meanwhile
        return
    size = sum(size_on_disk(found) for found in _statuses(path) if found.st_nlink == 1 or kind == "content")
    since = status.st_ctime if kind == "content" else status.st_mtime
    yield Piece(kind, path, size, max(time.time() - since, 0))
