"""Weights that somebody dropped into the tree of models: each gets a folder of its own, and a model.json.

Dropped is what lies in the tree itself, or in a folder of folders, such as an organization's, where mdl keeps
models. What is not whole yet, what is a link, and what lies where mdl may not write stays where it is. A file
moves by one rename, after its model.json is there, so that whatever kills mdl loses nothing.
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mdl.describing import CARD
from mdl.disk import entries_of, unique
from mdl.errors import IntegrityError, MdlError
from mdl.filename import quantization_of, role, split_of
from mdl.model import METADATA_NAME, File
from mdl.store import Store

if TYPE_CHECKING:
    from mdl.header import Facts
    from mdl.modeljson import Card

SUFFIX = ".gguf"  # in any case
PACKAGE = ".zip"  # of other archives it cannot be told whether they are still being written
DEEPEST = 2  # folders: host/organization
MOST_OF_A_NAME = 99  # models that are called alike


def adopt(store: Store) -> list[Path]:
    """Give what was dropped folders of their own; these folders. Never fails."""
    with contextlib.suppress(MdlError, OSError):
        shared = _shared(store.tree, DEEPEST, is_tree=True)
        if groups := [group for folder in shared for group in _groups(folder)]:
            with store.locks.dropping():
                return [folder for group in groups if (folder := _adopted(store, group))]
    return []


def has_packages(store: Store) -> bool:
    """Whether zips were dropped, which `importing` takes apart."""
    return any(entry.name.endswith(PACKAGE) for entry in entries_of(store.tree))


def filled(name: str, facts: "Facts", files: Mapping[str, Path]) -> "Card":
    """The model.json of weights: what their header and their names tell. `files` are where each lies now."""
    from mdl.modeljson import Card

    first = next(iter(files))
    return Card(
        source_url=f"./{first}" if len(files) == 1 else "./",
        object="model",
        id=name,
        name=facts.name or name,
        created=int(files[first].stat().st_mtime),
        state="ready",
        format=facts.format,
        engine="llama.cpp" if facts.format == "gguf" else "",
        quantization=facts.quantization or quantization_of(first) or "",
        binaries=tuple(files),
        size=sum(path.stat().st_size for path in files.values()),
    )


def plain_name(stem: str) -> str:
    """A name that a model can be called by, from that of a file."""
    name = re.sub(r"[^A-Za-z0-9._+-]+|\.{2,}", "-", stem).strip("-.+")
    return name[:200] or "model"


def _shared(folder: Path, depth: int, *, is_tree: bool = False) -> Iterator[Path]:
    """The folders in which models do not lie, but only folders of them: weights there were dropped."""
    entries = entries_of(folder)
    names = {entry.name for entry in entries}
    inner = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
    if not is_tree and names & {METADATA_NAME, CARD}:
        return
    weights = [name for name in names if name.lower().endswith(SUFFIX)]
    if weights:
        pairs = any(f"{name.removesuffix(SUFFIX)}.json" in names for name in weights)
        if is_tree or (not pairs and any(_holds_model(Path(entry.path), DEEPEST) for entry in inner)):
            yield folder
    if depth:
        for entry in inner:
            yield from _shared(Path(entry.path), depth - 1)


def _holds_model(folder: Path, depth: int) -> bool:
    """Whether mdl, or somebody with a model.json, keeps a model in a folder or below."""
    entries = entries_of(folder)
    if any(entry.name in (METADATA_NAME, CARD) for entry in entries):
        return True
    return depth > 0 and any(
        _holds_model(Path(entry.path), depth - 1) for entry in entries if entry.is_dir(follow_symlinks=False)
    )


def _groups(folder: Path) -> list[list[Path]]:
    """What belongs together of the weights in a folder: the parts of a split, a model and its projector."""
    files = sorted(
        Path(entry.path)
        for entry in entries_of(folder)
        if entry.name.lower().endswith(SUFFIX) and entry.is_file(follow_symlinks=False)
    )
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        place = split_of(path.name)
        groups[place[0] if place else path.stem].append(path)
    projectors = [stem for stem in groups if role(f"{stem}.gguf") == "projector"]
    for stem in projectors:
        models = [other for other in groups if other not in projectors]
        alike = [other for other in models if _bare(other) == _bare(stem)]
        if len(alike) == 1 or (len(models) == 1 and not _bare(stem)):
            groups[(alike or models)[0]] += groups.pop(stem)
    return list(groups.values())


def _bare(stem: str) -> str:
    """A name without quantization and punctuation: what a model and its projector have in common."""
    quantization = quantization_of(f"{stem}.gguf") or ""
    folded = re.sub(r"[^a-z0-9]", "", stem.casefold().replace("mmproj", ""))
    return folded.replace(re.sub(r"[^a-z0-9]", "", quantization.casefold()), "") if quantization else folded


def _adopted(store: Store, files: list[Path]) -> Path | None:
    """The folder that files have got; None where they stay where they are."""
    from mdl.weights import Weights, identify_set

    with contextlib.suppress(MdlError, OSError):
        found = identify_set(files)
        if not isinstance(found, Weights) or not set(found.files) <= set(files):
            return None
        names = [_name_in(path) for path in files]
        if len(set(names)) < len(names):
            return None
        place = split_of(files[0].name)
        stem = place[0] if place else files[0].stem
        folder = _room(files[0].parent, plain_name(stem))
        store.refuse_outside(folder)
        named = dict(zip(names, files, strict=True))
        is_new = _write(folder, files[0].with_name(f"{stem}.json"), found.facts, named)
        try:
            for name, path in reversed(named.items()):  # the first is what is looked for
                path.rename(folder / name)
        except OSError:
            if is_new:  # somebody else was faster
                _give_up(folder)
            raise
        return folder
    return None


def _name_in(path: Path) -> str:
    """What a file is called in a folder of its own: as it is, where files of versions can be called so."""
    name = f"{path.stem}{SUFFIX}"
    try:
        return File(name, None).name
    except IntegrityError:
        return f"{plain_name(path.stem)}{SUFFIX}"


def _give_up(folder: Path) -> None:
    """Take away a folder that nothing came into."""
    if {entry.name for entry in entries_of(folder)} <= {CARD}:
        (folder / CARD).unlink(missing_ok=True)
        folder.rmdir()


def _room(parent: Path, name: str) -> Path:
    """A folder that has no weights yet: a new one, or one that has just a model.json."""
    for number in range(1, MOST_OF_A_NAME):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        folder.mkdir(exist_ok=True)
        if not folder.is_symlink() and {entry.name for entry in entries_of(folder)} <= {CARD}:
            return folder
    raise FileExistsError(str(parent / name))


def _write(folder: Path, beside: Path, facts: "Facts", files: Mapping[str, Path]) -> bool:
    """Put the model.json there: the one that lay beside the weights, else one that is filled in. Whether it
    is one of ours."""
    target = folder / CARD
    if target.exists():
        return False
    if beside.is_file() and not beside.is_symlink():
        beside.rename(target)
        return False
    from mdl import modeljson

    part = folder.parent / f".{unique()}.json"
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(modeljson.dumps(filled(folder.name, facts, files)))
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return True
