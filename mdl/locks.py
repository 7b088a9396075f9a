"""The locks of a cache: between processes, each a file in one folder. Knows no models.

They save bandwidth; correctness never depends on them. Where a file system has none, where a full disk has no
room for the file of one, and where they are not seen by others, everybody gets what is asked for.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

from mdl.disk import disk_errors, own
from mdl.errors import Busy, DiskError

TRIES = 200  # to open the file of a lock before somebody else removes it
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Locks:
    """The locks in one folder below the root of a cache."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self._root = root

    @contextlib.contextmanager
    def lease(self, folder: Path) -> Iterator[None]:
        """Hold a version, by its folder, so that `rm` and `prune` leave it alone. A read-only cache needs no
        lease."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(DiskError):
                stack.enter_context(self._hold(_lease_name(folder), shared=True))
            yield

    @contextlib.contextmanager
    def exclusive(self, folder: Path) -> Iterator[None]:
        """Hold a version that nobody has leased; raises Busy."""
        try:
            with self._hold(_lease_name(folder), shared=False):
                yield
        except BlockingIOError:
            raise Busy(
                f"{folder.name} is in use", hint="end the mdl chat or mdl serve that uses it"
            ) from None

    def contents(self, *, shared: bool, wait: bool) -> contextlib.AbstractContextManager[None]:
        """Shared by those who are about to link to blobs; exclusive for those who remove unused ones.

        Raises BlockingIOError unless it is worth to `wait`.
        """
        return self._hold("contents", shared=shared, wait=wait)

    def dropping(self) -> contextlib.AbstractContextManager[None]:
        """For who moves what was dropped into the tree: one at a time."""
        return self._hold("dropped", shared=False, wait=True)

    @contextlib.contextmanager
    def transfer(self, key: str, waiting: Callable[[], None]) -> Iterator[bool]:
        """The right to fetch a content; whether the lock can be trusted to keep others out.

        Waits while another process fetches it, and calls `waiting` once if so.
        """
        name = f"{key}.transfer"
        try:
            lock = self._hold(name, shared=False)
            lock.__enter__()
        except BlockingIOError:
            waiting()
            lock = self._hold(name, shared=False, wait=True)
            lock.__enter__()
        try:
            yield self._excludes(name)
        finally:
            lock.__exit__(None, None, None)

    def drop(self, name: str) -> bool:
        """Remove the file of a lock, unless somebody holds it; whether nobody did."""
        try:
            with self._hold(name, shared=False), contextlib.suppress(OSError):  # Windows removes no open file
                (self.folder / name).unlink()
        except BlockingIOError:
            return False
        return True

    def _excludes(self, name: str) -> bool:
        """Whether a held lock is seen by others: on some network file systems it is not."""
        try:
            with self._hold(name, shared=False):
                return False
        except BlockingIOError:
            return True

    @contextlib.contextmanager
    def _hold(self, name: str, *, shared: bool, wait: bool = False) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for _ in range(TRIES):
                file = self._open(name)
                if file is None:
                    break
                stack.enter_context(file)  # closing the file lets go
                _take(file, shared=shared, wait=wait)
                if _is_at(file, self.folder / name):  # else somebody has removed it before we had it
                    break
                stack.close()
            yield

    def _open(self, name: str) -> IO[bytes] | None:
        """The open file of a lock; None where a full disk has no room for it, so that nobody holds it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        with disk_errors(self.folder):
            try:
                path = own(self.folder, self._root) / name
                return os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
            except OSError as error:
                if error.errno in _FULL:
                    return None
                raise


def refuse_to_wait() -> NoReturn:
    """For `Locks.transfer`: raises Busy."""
    raise Busy("another mdl fetches it", hint="wait for it")


def _take(file: IO[bytes], *, shared: bool, wait: bool) -> None:
    import portalocker

    flags = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
    try:
        portalocker.lock(file, flags if wait else flags | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        raise BlockingIOError(errno.EWOULDBLOCK, "held", file.name) from None
    except portalocker.LockException:  # no locks on this file system
        pass


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _lease_name(folder: Path) -> str:
    import hashlib

    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32] + ".lease"
