"""Where versions lie: `.metadata`, a model.json, or what is called like weights tells. Reads no models."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mdl.disk import entries_of, is_folder
from mdl.filename import role, split_of
from mdl.model import METADATA_NAME

WEIGHTS_SUFFIXES = (".gguf", ".safetensors")
OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".engine", ".plan", ".onnx", ".h5", ".tflite")
CARD_NAME = "model.json"
DEEPEST = 16  # folders below models/ that are looked at
NAMED_DEEP = 4  # folders of a name: host, organization, model, version
_MARKS = frozenset((*WEIGHTS_SUFFIXES, *OTHER_SUFFIXES, ".json"))
_HEAD = 1 << 16  # bytes of a JSON file that are looked at


class Place(NamedTuple):
    """Where a version lies: `mark` is the file that tells so, and `folder` where its name says that it is.

    Of one of several in a folder, and of a file that lies in the tree itself, there is no such folder.
    """

    folder: Path
    mark: Path

    @property
    def is_piece(self) -> bool:
        """Whether it shares its folder with others."""
        return self.mark.parent != self.folder

    @property
    def is_recorded(self) -> bool:
        return self.mark.name == METADATA_NAME


def versions_in(folder: Path) -> list[Place]:
    """Where versions lie in a folder that is not the tree, itself included, as deep as mdl puts them."""
    return list(walk(folder, NAMED_DEEP))


def walk(folder: Path, depth: int, *, inside: bool = False) -> Iterator[Place]:
    """Where versions lie. `inside` another one only what certainly is one counts."""
    is_tree = depth == DEEPEST  # the tree itself is no model
    entries = entries_of(folder)
    mark = "" if is_tree else mark_of(entries)
    inner = [entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry)]
    if not mark and not inner:  # perhaps what was replaced by a new version while we looked
        entries = entries_of(folder)
        mark = "" if is_tree else mark_of(entries)
    if mark and not (inside and mark.endswith(OTHER_SUFFIXES)):
        yield Place(folder, folder / mark)
    if depth and mark != METADATA_NAME:
        yield from pieces(folder, entries, is_tree=is_tree)
        for name in inner:
            yield from walk(folder / name, depth - 1, inside=bool(mark) or inside)


def mark_of(entries: "Iterable[os.DirEntry[str]]") -> str:
    """The file that makes a folder a version. A folder may be called like one: …/model.gguf/latest."""
    found: dict[str, str] = {}
    named = False
    for entry in entries:
        if entry.name == METADATA_NAME:
            return entry.name
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix not in found and suffix in _MARKS and not is_folder(entry):
            found[suffix] = entry.name
        named = named or (suffix == ".json" and entry.name == CARD_NAME)
    if named:
        return CARD_NAME
    if ".json" in found and ".gguf" in found and _pieces_in(entries):
        return ""  # each of its files is a version
    return next((found[suffix] for suffix in (*WEIGHTS_SUFFIXES, *OTHER_SUFFIXES) if suffix in found), "")


def pieces(folder: Path, entries: "Iterable[os.DirEntry[str]]", *, is_tree: bool) -> list[Place]:
    """The versions in a folder that have a NAME.json each; of the tree itself, all weights that lie there."""
    found = _pieces_in(entries, is_tree=is_tree)
    places = (Place(folder / stem, folder / name) for stem, name in found.items())
    return [place for place in places if not (place.folder / METADATA_NAME).exists()]


def _pieces_in(entries: "Iterable[os.DirEntry[str]]", *, is_tree: bool = False) -> dict[str, str]:
    """The names of such versions, and the files that tell of them."""
    files = {entry.name: entry for entry in entries if entry.name.endswith((".json", *WEIGHTS_SUFFIXES))}
    if any(name.endswith(".safetensors") for name in files):
        return {}
    weights = {_stem(name): name for name in sorted(files, reverse=True) if name.endswith(".gguf")}
    weights = {stem: name for stem, name in weights.items() if is_tree or role(name) != "projector"}
    cards = {
        name[:-5]: name
        for name, entry in files.items()
        if name.endswith(".json") and name != CARD_NAME and role(name) == "other"
        if name[:-5] in weights or _tells_a_source(entry)
    }
    if is_tree or (cards and CARD_NAME not in files):
        cards = {stem: name for stem, name in {**weights, **cards}.items() if not is_folder(files[name])}
    return dict(sorted(cards.items()))


def _stem(name: str) -> str:
    place = split_of(name)
    return place[0] if place else name[:-5]


def _tells_a_source(entry: "os.DirEntry[str]") -> bool:
    """Whether a JSON file, which has no weights of its name beside it, may tell where to get some."""
    try:
        if not entry.is_file():  # a pipe would keep who opens it waiting
            return False
        with Path(entry.path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"source_url" in head or b"binaries" in head


def statuses(folder: Path) -> Iterator[os.stat_result]:
    """Of all files of a model, at any depth, but `.metadata` and the versions below; no link is followed."""
    for entry in entries_of(folder):
        if entry.is_dir(follow_symlinks=False):
            if not (Path(entry.path) / METADATA_NAME).exists():
                yield from statuses(Path(entry.path))
        elif entry.name != METADATA_NAME:
            with contextlib.suppress(OSError):  # removed meanwhile
                yield entry.stat(follow_symlinks=False)
