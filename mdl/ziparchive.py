"""Zip archives of files, taken apart safely. Knows no names of models and no cache.

As with other archives (`archive`): files are written under numbers, their names go through `model.File`, and
nothing but plain files that are packed in the plain ways is taken.
"""

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mdl.archive import FREE_GROWTH, LARGEST_READ, MOST_GROWTH, MOST_MEMBERS
from mdl.errors import IntegrityError
from mdl.filename import role
from mdl.model import AT_FAULT, File, refuse_twins
from mdl.partial import disk_errors, require_space
from mdl.reference import show

MAGIC = b"PK\x03\x04"
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take as much memory as the archive wants
LARGEST_DIRECTORY = 16 << 20  # bytes of the list of what is in it, which is read into memory
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_TAIL = 1 << 17  # bytes at the end in which the end of that list lies


def is_whole(path: Path) -> bool:
    """Whether an archive has its end, and so is not still being written."""
    return _END in _tail(path)


def unpack(path: Path, into: Path, prefix: str = "") -> tuple[tuple[Path, File], ...]:
    """Take an archive apart: each file is written into the folder `into`, and synced.

    Where they are and what they are, in their order; `prefix` comes before their names. Raises IntegrityError
    for an archive that is broken, grows beyond measure, or holds anything but plain files; DiskError.
    """
    found = []
    try:
        with disk_errors(path):
            _refuse_long_lists(path)
        with zipfile.ZipFile(path) as archive:
            for number, member in enumerate(_members(archive, path)):
                require_space(into, member.file_size)
                file = File(prefix + member.filename, member.file_size, role=role(member.filename))
                place = into / str(number)
                found.append((place, _extract(archive, member, place, file)))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise _broken(path, str(error) or "it ends too early") from None
    refuse_twins(file for _, file in found)
    return tuple(found)


def _members(archive: zipfile.ZipFile, path: Path) -> Iterator[zipfile.ZipInfo]:
    """The files in it, within bounds. Folders come with their files."""
    members = archive.infolist()
    most = path.stat().st_size * MOST_GROWTH + FREE_GROWTH
    if len(members) > MOST_MEMBERS or sum(member.file_size for member in members) > most:
        raise _broken(path, f"it becomes more than {MOST_GROWTH} times as large, or too many files")
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir() and kind in (0, stat.S_IFDIR):
            continue
        if kind not in (0, stat.S_IFREG):
            what = "link" if kind == stat.S_IFLNK else "special file"
            raise IntegrityError(f"an archive holds a {what}: {show(member.filename)}", AT_FAULT)
        if member.flag_bits & 1:
            raise _broken(path, f"{member.filename} is encrypted")
        if member.compress_type not in PLAIN:
            raise _broken(
                path, f"{member.filename} is packed in a way that is not taken: store or deflate it"
            )
        yield member


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, file: File) -> File:
    digest, left = hashlib.sha256(), member.file_size
    with disk_errors(path), archive.open(member) as source, path.open("xb") as target:
        while chunk := source.read(LARGEST_READ):
            left -= len(chunk)
            if left < 0:
                raise zipfile.BadZipFile("a file in it is longer than it says")
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    if left:
        raise zipfile.BadZipFile("it ends too early")
    return File(file.name, file.size, digest.hexdigest(), role=file.role)


def _refuse_long_lists(path: Path) -> None:
    tail = _tail(path)
    at, at_64 = tail.rfind(_END), tail.rfind(_END_64)
    size = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    if size == 0xFFFFFFFF and at_64 >= 0:
        size = int.from_bytes(tail[at_64 + 40 : at_64 + 48], "little")
    if size > LARGEST_DIRECTORY:
        raise _broken(path, "it holds too many files")


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read(_TAIL)


def _broken(path: Path, reason: str) -> IntegrityError:
    cause = f"the archive {show(path.name)} cannot be taken apart: {show(reason, 100)[1:-1]}"
    return IntegrityError(cause, hint=AT_FAULT)
