"""A file that is not whole yet: which of its bytes are on disk, kept across processes. Knows no network.

The bytes lie in one sparse file, each at its place. Beside it lies a note: one line of JSON (total size,
validator of the object, boot of the machine), then four bytes for each MiB of the file that say how much of
it has been written. A write updates its own four bytes, so whatever kills the process costs only what was not
yet written.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mdl.errors import Busy, DiskError

PIECE = 1 << 20
_SCHEMA = 1
_HEADER_LIMIT = 4096
_PUBLISHING = ".publishing"
_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def note_of(path: Path) -> Path:
    """Where the note about `path` lies."""
    return path.with_name(path.name + ".parts")


def discard(path: Path) -> None:
    """Remove a partial file and its note, as far as they are there."""
    with disk_errors(path):
        note_of(path).unlink(missing_ok=True)  # first: a file without its note is never believed
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Header:
    """What the note says about the object: `total` bytes, `validator` as If-Range wants it."""

    total: int
    validator: str | None
    boot: str

    def encode(self) -> bytes:
        fields = {"schema": _SCHEMA, "total": self.total, "validator": self.validator, "boot": self.boot}
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Header | None":
        """The header, or None for anything that this version did not write."""
        try:
            fields = json.loads(line)
            total, validator, boot = fields["total"], fields["validator"], fields["boot"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        sound = (
            fields.get("schema") == _SCHEMA and type(total) is int and total >= 0 and isinstance(boot, str)
        )
        return cls(total, validator, boot) if sound and isinstance(validator, str | None) else None


class Partial:
    """The bytes of one file that have arrived. Safe to use from several threads.

    `total` is None while the size is unknown; such a file is written from its start and cannot be resumed.
    `resumed` is how many bytes an earlier process left.
    """

    def __init__(self, path: Path, total: int | None, validator: str | None) -> None:
        self.path, self.total, self.validator = path, total, validator
        self.resumed = self.received = 0
        self._filled = array("I", bytes(4 * _pieces(total or 0)))
        self._frontier = 0
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._users = 0
        self._seek = threading.Lock()
        self._fd = self._note = -1
        self._slots = 0

    @classmethod
    def create(cls, path: Path, total: int | None, validator: str | None) -> "Partial":
        """An empty one, in place of whatever lies there. Raises DiskError."""
        discard(path)
        require_space(path, total or 0)
        partial = cls(path, total, validator)
        with disk_errors(path):
            # A new inode, never a truncation: another process may still hold, or have published, the old one.
            partial._fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o666)
            if total is not None:
                os.ftruncate(partial._fd, total)
                partial._write_note(Header(total, validator, _boot()))
        return partial

    @classmethod
    def resume(cls, path: Path, verifiable: bool) -> "Partial | None":
        """What an earlier process left, or None where there is nothing that can be gone on with.

        Without a digest to verify (`verifiable` is False) it must have a validator and be from this boot of
        the machine: a power failure may have lost what the note counts.
        """
        found = _read_note(note_of(path))
        if found is None:
            return None
        header, filled, slots = found
        if not verifiable and (header.validator is None or header.boot != _boot()):
            return None
        _recover(path)
        partial = cls(path, header.total, header.validator)
        partial._filled, partial._slots = filled, slots
        return partial if partial._reopen() else None

    def _reopen(self) -> bool:
        self.resumed = self.received = sum(self._filled)
        with contextlib.suppress(OSError):  # then it is begun anew
            self._fd = os.open(self.path, _OPEN)
            self._note = os.open(note_of(self.path), _OPEN)
            status = os.fstat(self._fd)
            # A second link would let writes reach a file that somebody else believes in.
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == self.total:
                return True
        self.close()
        return False

    def _write_note(self, header: Header) -> None:
        line = header.encode()
        self._note = os.open(note_of(self.path), _OPEN | os.O_CREAT | os.O_EXCL, 0o666)
        _write_all(self._note, memoryview(line), 0, self._seek)
        os.ftruncate(self._note, len(line) + 4 * len(self._filled))
        self._slots = len(line)

    def gaps(self) -> list[tuple[int, int]]:
        """The missing ranges as (start, end), in order. Of a file of unknown size: none."""
        gaps: list[tuple[int, int]] = []
        for piece, filled in enumerate(self._filled):
            end = min((piece + 1) * PIECE, self.total or 0)
            start = piece * PIECE + filled
            if start == end:
                continue
            if gaps and gaps[-1][1] == start:
                start = gaps.pop()[0]
            gaps.append((start, end))
        return gaps

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Put `data` at `offset`, which must be where its piece ends so far. Raises DiskError."""
        with self._in_use():
            _write_all(self._fd, memoryview(data), offset, self._seek)
            self._count(offset, len(data))

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keeps `close` waiting: the number of a closed file may be another file's a moment later."""
        with self._changed:
            if self._closed:
                raise DiskError(f"{self.path} was closed while it was in use")
            self._users += 1
        try:
            with disk_errors(self.path):
                yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _count(self, offset: int, size: int) -> None:
        first, end = offset // PIECE, offset + size
        last = (end - 1) // PIECE if size else first
        with self._changed:
            if self.total is None:
                self._filled.extend([0] * (last + 1 - len(self._filled)))
            for piece in range(first, last + 1):
                self._filled[piece] = min(end - piece * PIECE, PIECE)
            self.received += size
        if self._note >= 0 and size:
            slots = memoryview(self._filled[first : last + 1].tobytes())
            _write_all(self._note, slots, self._slots + 4 * first, self._seek)

    @property
    def inode(self) -> int:
        return os.fstat(self._fd).st_ino

    def prefix(self) -> int:
        """How many bytes from the start are there without a gap."""
        with self._changed:
            return self._prefix()

    def _prefix(self) -> int:
        while self._frontier < len(self._filled) and self._filled[self._frontier] == PIECE:
            self._frontier += 1
        if self._frontier == len(self._filled):
            return self._frontier * PIECE
        return self._frontier * PIECE + self._filled[self._frontier]

    def wait_beyond(self, position: int) -> int:
        """Block until a piece more than `position` is there, or all there will be; how long the prefix is."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._prefix() >= position + PIECE)
            return self._prefix()

    def wait_received(self, count: int) -> bool:
        """Block until `count` bytes are there; False if the end came first."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.received >= count)
            return not self._ended

    def end(self) -> None:
        """Nothing more will be written: wakes who waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        return self._ended

    def read(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` of the file; how many bytes there were. Raises DiskError."""
        with self._in_use():
            if hasattr(os, "preadv"):
                return os.preadv(self._fd, [buffer], offset)
            with self._seek:  # macOS before 11 and Windows have no preadv
                os.lseek(self._fd, offset, os.SEEK_SET)
                data = os.read(self._fd, len(buffer))
            buffer[: len(data)] = data
            return len(data)

    def sync(self) -> None:
        """Bring what was written to the disk itself. Raises DiskError."""
        with self._in_use():
            getattr(os, "fdatasync", os.fsync)(self._fd)

    def finish(self) -> None:
        """Sync the file with its size. Raises DiskError."""
        with self._in_use():
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the files once nobody reads or writes any more."""
        with self._changed:
            self._closed = self._ended = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._users == 0)
            handles, self._fd, self._note = (self._fd, self._note), -1, -1
        with disk_errors(self.path):
            for handle in handles:
                if handle >= 0:
                    os.close(handle)


def publish(path: Path, inode: int, settle: Callable[[Path], object]) -> None:
    """Let `settle` rename a finished partial to its place, then remove its note. Raises Busy, DiskError.

    Correct without locks: it is given under a name of its own, where nobody can put another file. What does
    not get to its place stays: by its old name after a failure, found by `Partial.resume` after a kill.
    """
    private = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PUBLISHING}")
    with disk_errors(path):
        path.rename(private)
        try:
            if private.stat().st_ino != inode:
                raise Busy(f"another process is getting {path.name}", hint="wait for it, or stop it")
            settle(private)
        except BaseException:
            _take_back(private, path)
            raise
        note_of(path).unlink(missing_ok=True)


def _recover(path: Path) -> None:
    """Find what somebody was publishing when he was killed."""
    for private in path.parent.glob(f"{glob.escape(path.name)}.*{_PUBLISHING}"):
        if not path.exists():
            _take_back(private, path)


def _take_back(private: Path, path: Path) -> None:
    with contextlib.suppress(OSError):  # who was about to publish it may have made it read-only
        private.chmod(0o666 & path.parent.stat().st_mode)  # the folder has what the umask leaves
    with contextlib.suppress(OSError):  # or it is begun anew
        private.rename(path)


def held(path: Path) -> int:
    """How many bytes of it an earlier process left."""
    found = _read_note(note_of(path))
    return sum(found[1]) if found else 0


def require_space(path: Path, needed: int) -> None:
    """Raise DiskError if the disk of `path` (whose folder exists) has less than `needed` bytes free."""
    with disk_errors(path):
        free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DiskError(
            f"not enough space in {path.parent}: {size_text(needed)} needed, {size_text(free)} free",
            hint="free some space (`mdl df`, `mdl prune`) or choose another place",
        )


def sha256_of(partial: Partial) -> str:
    """The sha256 of what is on disk, following the writers from the start until `end`. Raises DiskError."""
    digest, position = hashlib.sha256(), 0
    view = memoryview(bytearray(PIECE))
    while True:
        reached = partial.wait_beyond(position)
        while position < reached:
            count = partial.read(view[: min(PIECE, reached - position)], position)
            if not count:
                raise DiskError(f"{partial.path} became shorter while it was read")
            digest.update(view[:count])
            position += count
        if partial.ended and position == partial.prefix():
            return digest.hexdigest()


def sync_along(partial: Partial, step: int = 64 << 20) -> None:
    """Bring each `step` bytes to the disk while more arrive, so that the sync at the end is short."""
    done = partial.received
    while partial.wait_received(done + step):
        done = partial.received
        partial.sync()


def git_id_of(partial: Partial) -> str:
    """The id that git gives the content: sha1 over `blob <size>`, NUL and the bytes. Raises DiskError."""
    size = partial.prefix()
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    view = memoryview(bytearray(PIECE))
    for position in range(0, size, PIECE):
        count = partial.read(view, position)
        digest.update(view[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a DiskError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> DiskError:
    cause = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):  # a figure is nice to have
            cause += f", {size_text(shutil.disk_usage(path.parent).free)} free"
        return DiskError(
            f"cannot write {path}: {cause}", hint="free some space; the next run goes on from here"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return DiskError(
            f"cannot write {path}: {cause}", hint="check the permissions or choose another place"
        )
    return DiskError(f"{path}: {cause}", hint="check the disk, then run it again")


def size_text(size: int) -> str:
    """Bytes as people read them: 4.1 GB."""
    if size < 1000:
        return f"{size} B"
    amount = float(size)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 1000:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"


def _pieces(total: int) -> int:
    return -(-total // PIECE)


def _read_note(path: Path) -> "tuple[Header, array[int], int] | None":
    """Header, bytes filled of each piece, and where those counts start; None if any of it is not sound."""
    try:
        with os.fdopen(os.open(path, _OPEN), "rb") as file:
            line = file.readline(_HEADER_LIMIT)
            header = Header.decode(line)
            if header is None or os.fstat(file.fileno()).st_size != len(line) + 4 * _pieces(header.total):
                return None
            filled = array("I", file.read())
    except (OSError, ValueError, OverflowError):
        return None
    return (header, filled, len(line)) if _sound(filled, header.total) else None


def _sound(filled: "array[int]", total: int) -> bool:
    return all(count <= min(PIECE, total - piece * PIECE) for piece, count in enumerate(filled))


def _write_all(handle: int, data: memoryview, offset: int, seek: threading.Lock) -> None:
    while data:
        count = _write_some(handle, data, offset, seek)
        if not count:
            raise OSError(errno.EIO, "nothing was written")
        data, offset = data[count:], offset + count


def _write_some(handle: int, data: memoryview, offset: int, seek: threading.Lock) -> int:
    if sys.platform != "win32":
        return os.pwrite(handle, data, offset)
    with seek:  # Windows has no pwrite
        os.lseek(handle, offset, os.SEEK_SET)
        return os.write(handle, data)


def _boot() -> str:
    """Which boot of the machine this is. Only Linux says; elsewhere a power failure goes unnoticed here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
