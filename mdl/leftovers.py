"""What killed processes left in the folder where things are put together, and nobody can go on with."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mdl.disk import REMOVED, discard, disk_errors, own
from mdl.errors import Busy, DiskError
from mdl.store import Store

AGE = 3600.0  # seconds after which it is swept away
_UNFINISHED = ["version"], ["removed"], ["marked"], ["unpacked"], ["converted"]


def sweep(store: Store) -> None:
    """Remove it, unless that is not possible now. Partial downloads stay."""
    with contextlib.suppress(OSError, Busy, DiskError), store.locks.contents(shared=False, wait=False):
        for path in find(store):
            discard(path)


def find(store: Store, *, removed: bool = False) -> list[Path]:
    """It has lain there for a while, but for what was being `removed`, if that is asked for."""
    with disk_errors(store.incoming):
        entries = list(os.scandir(own(store.incoming, store.root)))
    names = [entry.name for entry in entries]
    return [
        Path(entry.path)
        for entry in entries
        if _is_leftover(entry.name, names) and (_is_old(entry) or (removed and entry.name.endswith(REMOVED)))
    ]


def _is_leftover(name: str, names: Sequence[str]) -> bool:
    key, *kind = name.split(".")
    unprotected = kind[1:2] == ["partial"]  # of a download that had no lock to itself
    if unprotected or kind in _UNFINISHED:
        return True
    content = f"{key}.partial"
    return kind == ["partial", "parts"] and not any(
        other.startswith(content) and other != name for other in names
    )


def _is_old(entry: "os.DirEntry[str]") -> bool:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > AGE
    except OSError:
        return False
