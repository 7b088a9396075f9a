"""Files and folders as a cache needs them: whole, there after a power failure, and behind no link.

Knows no models. What the disk refuses is raised as DiskError by those who call within `disk_errors`.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mdl.errors import DiskError

REMOVED = ".removed"  # what is on its way out is called so


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk refuses, in a person's words. A missing file is the caller's business."""
    try:
        yield
    except (FileNotFoundError, BlockingIOError):
        raise
    except OSError as error:
        raise DiskError(
            f"{error.strerror or error}: {error.filename or path}",
            hint="free some space or check the permissions; MDL_HOME names another folder for the cache",
        ) from None


def own(folder: Path, root: Path) -> Path:
    """One of the cache's own folders, made if need be. DiskError where somebody planted a link."""
    refuse_links(folder, root)
    make_folder(folder)
    return folder


def refuse_links(folder: Path, root: Path) -> None:
    for place in (folder, *folder.parents):
        if place == root:
            return
        refuse_link(place)


def refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise DiskError(f"{path} is a link", hint="mdl changes nothing behind links in its cache")


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, so that they are still there after a power failure."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync(place.parent)


def sync(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open folders; NTFS journals its names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unique() -> str:
    """A name that nobody else has. (`secrets` costs every command what only few need.)"""
    return os.urandom(8).hex()


def entries_of(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []


def subfolders_of(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if is_folder(entry)]
    except OSError:
        return []


def is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def link(source: Path, target: Path) -> None:
    """Give a content a second name; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # FAT, some network file systems, too many links, somebody else's file
        copy(source, target)
        shutil.copymode(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file so that it is on disk afterwards."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def sha256_of(path: Path, advance: Callable[[int], object] = lambda _: None) -> str:
    """The digest of what is on disk; `advance` is told of each chunk that was read."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def size_on_disk(status: os.stat_result) -> int:
    """Bytes that a file takes: fewer than its size where it has holes. (Windows does not tell.)"""
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)


def exchange(staged: Path, folder: Path) -> None:
    """Rename `staged` to `folder` in one step; what was there is at `staged` afterwards."""
    try:
        staged.rename(folder)
    except FileNotFoundError:
        raise
    except OSError:
        if not folder.exists():
            raise
        if not _swap(staged, folder):
            # Without an atomic exchange (Windows, old kernels) there is an instant without the version; a
            # process killed in it leaves the old one in incoming/.
            aside = staged.with_suffix(REMOVED)
            folder.rename(aside)
            staged.rename(folder)
            aside.rename(staged)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names atomically, where the system can: renameat2 of Linux, renamex_np of macOS."""
    import ctypes

    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None)
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        at_cwd, exchange_flag = -100, 2
        return bool(libc.renameat2(at_cwd, first, at_cwd, second, exchange_flag) == 0)
    if hasattr(libc, "renamex_np"):
        swap_flag = 2
        return bool(libc.renamex_np(first, second, swap_flag) == 0)
    return False


def remove_tree(folder: Path) -> None:
    """Remove a folder, which somebody else may be about to remove too."""

    def tolerate(_call: object, _path: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=tolerate)
    else:
        shutil.rmtree(folder, onerror=lambda call, path, found: tolerate(call, path, found[1]))


def discard(path: Path) -> None:
    """Remove what lies in incoming/, whatever it is. Nothing behind a link is touched."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
