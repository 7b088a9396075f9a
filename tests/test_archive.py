"""Archives: honest ones come out whole, hostile ones lead nowhere and take nothing."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl import archive
from mdl.archive import unpack
from mdl.errors import IntegrityError, MdlError
from mdl.model import File

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as opened:
        for info, content in members:
            opened.addfile(info, io.BytesIO(content))
    return made.getvalue()


def described(content: bytes, name: str = "layer.tar", role: str = "archive") -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest(), role=role)


class Unpacked:
    """What came out of an archive: contents by name, and the files as they are recorded."""

    def __init__(self, folder: Path, content: bytes, name: str = "layer.tar", role: str = "archive") -> None:
        self.contents: dict[str, bytes] = {}
        place = folder / "whole"
        place.write_bytes(content)
        into = folder / "into"
        into.mkdir(exist_ok=True)
        found = unpack(place, described(content, name, role), into)
        self.files = tuple(file for _, file in found)
        self.contents = {file.name: path.read_bytes() for path, file in found}


def refused(folder: Path, content: bytes, name: str = "layer.tar") -> MdlError:
    with pytest.raises(IntegrityError) as caught:
        Unpacked(folder, content, name)
    assert "\n" not in caught.value.message
    return caught.value


FILES = {"model.gguf": b"m" * 100_000, "conf/config.json": b"{}", "empty": b"", "exact": b"e" * 1024}


@pytest.mark.parametrize(
    ("name", "pack"), [("l.tar", bytes), ("l.tar.gz", gzip.compress), ("l.tar.zst", zstd.compress)]
)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_archive_comes_out_whole(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], format: int
) -> None:
    members = [
        member("conf", type=tarfile.DIRTYPE),
        *(member(name, content) for name, content in FILES.items()),
    ]
    content = pack(tar(*members, format=format))
    found = Unpacked(tmp_path, content, name)
    assert found.contents == FILES
    for file in found.files:
        assert file.sha256 == hashlib.sha256(FILES[file.name]).hexdigest()
        assert file.archive == hashlib.sha256(content).hexdigest()
    assert [file.role for file in found.files] == ["weights", "config", "other", "other"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_in_all_languages_come_out(tmp_path: Path, format: int) -> None:
    name = "/".join(["ordner" * 20] * 4) + "/größe.gguf"
    assert Unpacked(tmp_path, tar(member(name, b"x"), format=format)).contents == {name: b"x"}


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/../../evil", "a\\evil", ".metadata", ".metadata/x", "a\nb", "\x1b[2J", "..",
     "a//b",
     "C:evil", "x" * 300],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_is_written_there(
    tmp_path: Path, name: str
) -> None:
    refused(tmp_path, tar(member(name, b"evil")))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["into", "whole"]


@pytest.mark.parametrize(
    "info",
    [
        member("x", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("x", type=tarfile.LNKTYPE, linkname="../evil"),
        member("x", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("x", type=tarfile.BLKTYPE),
        member("x", type=tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, info: Member) -> None:
    failure = refused(tmp_path, tar(info))
    assert "link" in failure.message or "special file" in failure.message
    refused(tmp_path, tar(info, member("x/evil", b"evil")))


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sparse").write_bytes(b"")
    os.truncate(tmp_path / "sparse", 1 << 20)
    made = subprocess.run(
        ["tar", "--sparse", "-cf", "-", "-C", str(tmp_path), "sparse"], capture_output=True, check=True
    )
    refused(tmp_path, made.stdout)


def test_a_bomb_is_noticed_before_it_goes_off(tmp_path: Path) -> None:
    huge = member("zeros", b"")[0]
    huge.size = 3 << 40
    made = io.BytesIO()
    made.write(huge.tobuf(tarfile.GNU_FORMAT))
    made.write(bytes(1 << 20))
    content = gzip.compress(made.getvalue())
    refused(tmp_path, content, "l.tar.gz")
    assert not list((tmp_path / "into").iterdir())


def test_many_files_are_a_bomb_too(tmp_path: Path) -> None:
    content = gzip.compress(
        tar(*(member(f"{number}", type=tarfile.DIRTYPE) for number in range(archive.MOST_MEMBERS + 1)))
    )
    assert "too many files" in refused(tmp_path, content, "l.tar.gz").message


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_huge_header_does_not_get_into_memory(tmp_path: Path, kind: bytes) -> None:
    info = member("x", type=kind)[0]
    info.size = 1 << 33
    content = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    assert "too large" in refused(tmp_path, content, "l.tar.gz").message


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_without_end_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("name")
    info.type = kind
    refused(tmp_path, info.tobuf(tarfile.GNU_FORMAT) * 5000)


@pytest.mark.parametrize("keep", [0, 1, 511, 513, 1000, 100_000])
def test_an_archive_that_ends_too_early_is_refused(tmp_path: Path, keep: int) -> None:
    whole = tar(*(member(name, content) for name, content in FILES.items()))
    if keep in (0, 1, 511):
        refused(tmp_path, b"\1" * keep + b"junk")
    else:
        refused(tmp_path, whole[:keep])
    shutil.rmtree(tmp_path / "into")
    refused(tmp_path, gzip.compress(whole)[: min(keep // 100 + 5, 200)], "l.tar.gz")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for name in ("l.tar", "l.tar.gz", "l.tar.zst"):
        refused(tmp_path, b"this is no archive" * 100, name)


def test_of_an_image_only_the_model_comes_out(tmp_path: Path) -> None:
    content = tar(
        member("models", type=tarfile.DIRTYPE),
        member("models/model.gguf", b"m"),
        member("models/model.file", type=tarfile.SYMTYPE, linkname="model.gguf"),
        member("/models/LICENSE", b"l"),
        member("etc/passwd", b"p"),
        member("bin/sh", type=tarfile.SYMTYPE, linkname="/bin/bash"),
    )
    assert Unpacked(tmp_path, content, role="image").contents == {"model.gguf": b"m", "LICENSE": b"l"}


def _mutated(content: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    content = _mutated(tar(member("a" * 120, b"a" * 700), member("b", b"b")), changes)
    try:
        Unpacked(folder, content)
    except MdlError as failure:
        assert isinstance(failure, IntegrityError)
