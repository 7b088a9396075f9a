"""Archives of files, taken apart safely. Knows no registries and no cache.

Nothing that an archive says becomes a path: its files are written under numbers into a folder of ours, and
their names go through `model.File`, which refuses all that leads elsewhere.
"""

import hashlib
import io
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from mdl.errors import IntegrityError
from mdl.filename import role
from mdl.model import AT_FAULT, File, refuse_twins
from mdl.partial import disk_errors, require_space
from mdl.reference import show

SUFFIXES = {"tar": ".tar", "tar+gzip": ".tar.gz", "tar+zstd": ".tar.zst"}
MODELS = "models/"  # where a container image has its model
MOST_MEMBERS = 20_000
MOST_GROWTH = 200  # times its size that an archive may become; weights hardly become larger
FREE_GROWTH = 1 << 30  # bytes that it may become in any case
LARGEST_READ = 1 << 20  # bytes at a time; headers are smaller, and a large one would be read into memory
LARGEST_WINDOW = 27  # as a power of two, of what zstd has to remember: 128 MB, the most that it promises

Failures = tuple[type[Exception], ...]


def unpack(archive: Path, described: File, into: Path, prefix: str = "") -> tuple[tuple[Path, File], ...]:
    """Take an archive apart: each file is written into the folder `into`, and synced.

    Where they are and what they are, in their order, with what they came in; `prefix` comes before their
    names. Raises IntegrityError for an archive that is broken, grows beyond measure, or holds a name twice or
    anything but files and folders; DiskError.
    """
    found: list[tuple[Path, File]] = []
    image = described.role == "image"
    try:
        with _opened(archive, described) as tar:
            for number, member in enumerate(_members(tar, described)):
                name = _name(member, image)
                if name is None:
                    continue
                require_space(into, member.size)
                path = into / str(number)
                file = File(prefix + name, member.size, role=role(name), archive=described.sha256)
                found.append((path, _extract(tar, member, path, file, described)))
    except RecursionError:  # tarfile reads a header that another one announces by calling itself
        raise _broken(described, "its headers have no end") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _broken(described, str(error) or "it ends too early") from None
    refuse_twins(file for _, file in found)
    return tuple(found)


def _members(tar: tarfile.TarFile, described: File) -> Iterator[tarfile.TarInfo]:
    """What is in an archive, within bounds."""
    most = (described.size or 0) * MOST_GROWTH + FREE_GROWTH
    total = 0
    for number, member in enumerate(tar):
        total += member.size
        if number >= MOST_MEMBERS or total > most or member.size < 0:
            raise _broken(described, f"it becomes more than {MOST_GROWTH} times as large, or too many files")
        tar.members = []  # type: ignore[attr-defined]  # or it remembers all of them
        yield member


def _name(member: tarfile.TarInfo, image: bool) -> str | None:
    """The name of a file; None for a folder, and for what of an image is no model's."""
    if member.isdir():
        return None
    name = member.name.removeprefix("./")
    if image:
        inside = name.lstrip("/")
        is_model = member.isreg() and inside.startswith(MODELS)
        return inside.removeprefix(MODELS) if is_model else None
    if not member.isreg() or member.sparse is not None:
        kind = "link" if member.issym() or member.islnk() else "special file"
        raise IntegrityError(f"an archive holds a {kind}: {show(member.name)}", AT_FAULT)
    return name


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, file: File, described: File) -> File:
    digest, left = hashlib.sha256(), member.size
    source = tar.extractfile(member)
    assert source is not None
    with disk_errors(path), source, path.open("xb") as target:
        while left and (chunk := source.read(min(left, LARGEST_READ))):
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
        target.flush()
        os.fsync(target.fileno())
    if left:
        raise _broken(described, "it ends too early")
    return replace(file, sha256=digest.hexdigest())


@contextmanager
def _opened(archive: Path, described: File) -> Iterator[tarfile.TarFile]:
    stream, failures = _decompressed(archive, described)
    with stream:
        bounded = cast(IO[bytes], _Bounded(stream, failures))
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            yield tar


def _decompressed(archive: Path, described: File) -> tuple[IO[bytes], Failures]:
    """The tar itself, and what reading it raises where it is not packed as it should be."""
    if described.name.endswith(SUFFIXES["tar+gzip"]):
        import gzip

        return cast(IO[bytes], gzip.open(archive, "rb")), (gzip.BadGzipFile, zlib.error, EOFError)
    if described.name.endswith(SUFFIXES["tar+zstd"]):
        return _zstd(archive)
    return archive.open("rb"), ()


def _zstd(archive: Path) -> tuple[IO[bytes], Failures]:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    options = {int(zstd.DecompressionParameter.window_log_max): LARGEST_WINDOW}
    stream = cast(IO[bytes], zstd.ZstdFile(archive, "rb", options=options))
    return stream, (zstd.ZstdError, EOFError)


class _Bounded(io.RawIOBase):
    """A stream that goes forward only, and gives no more at a time than any honest header needs."""

    def __init__(self, stream: IO[bytes], failures: Failures) -> None:
        self._stream, self._failures = stream, failures
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise tarfile.ReadError("a header of it is too large")
        try:
            data = self._stream.read(size)
        except self._failures as error:
            raise tarfile.ReadError(str(error)) from None
        self._at += len(data)
        return data

    def seek(self, target: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or target < self._at:
            raise tarfile.ReadError("it is in no order")
        while self._at < target and self.read(min(target - self._at, LARGEST_READ)):
            pass
        return self._at


def _broken(described: File, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the archive {show(described.name)} cannot be taken apart: {show(reason, 100)[1:-1]}",
        hint=AT_FAULT,
    )
