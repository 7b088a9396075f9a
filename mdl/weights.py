"""What a path is, found from its content, not its name. Knows no cache and no network.

`identify` answers with `Weights`, or with a `Refusal` that says what the path is instead and what to do.
Nothing but regular files is opened.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mdl import gguf, safetensors
from mdl.errors import DiskError, NotFound, UnsupportedModel
from mdl.filename import quantization_of, role, split_of
from mdl.header import Facts, open_file
from mdl.refusal import GET_GGUF, Refusal, refuse, sniff

__all__ = ["Facts", "Refusal", "Weights", "identify", "quantization_of", "role", "split_of"]

MOST_ENTRIES = 1000  # of a folder and those below; a model has tens of files, the largest some hundred
DEEPEST = 2  # folders below: repositories keep each quantization in one of its own
DAMAGED = "a damaged model"  # what a refusal of such a model says that it is
_SNIFFED = 4096  # bytes that tell what a file is


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that mdl knows how to use; `files` are in the order in which they are loaded."""

    kind: str  # model, adapter, projector, vocabulary
    format: str  # gguf, safetensors
    files: tuple[Path, ...]
    facts: Facts
    projector: Path | None = None

    @property
    def first(self) -> Path:
        """The path to load."""
        return self.files[0]


def identify(path: Path) -> Weights | Refusal:
    """What a path is, from its content."""
    try:
        return _identify(path)
    except UnsupportedModel as error:
        return Refusal(DAMAGED, error.message, error.hint, is_model=True, is_damage=True)
    except FileNotFoundError:
        return Refusal("missing", f"{path} is not there", "check the path", False, NotFound)
    except OSError as error:
        cause = error.strerror or str(error)
        return Refusal(
            "unreadable", f"{path}: {cause}", "check the path and its permissions", False, DiskError
        )


def identify_set(paths: Sequence[Path]) -> Weights | Refusal:
    """What several files are together: weights with all their parts, and a projector."""
    if missing := [path for path in paths if not path.exists()]:
        return refuse(missing[0], "missing", "put it there, or download the model again", is_model=True)
    if len(paths) == 1:
        return identify(paths[0])
    ggufs = [path for path in paths if _is_gguf(path)]
    broken = next((path for path in paths if path.suffix == ".gguf" and path not in ggufs), None)
    if broken is None and ggufs:
        try:
            return _gguf_folder(paths[0].parent, ggufs)
        except UnsupportedModel as error:
            return Refusal(DAMAGED, error.message, error.hint, is_model=True, is_damage=True)
    found = [identify(path) for path in ([broken] if broken else paths)]
    return next((one for one in found if isinstance(one, Weights)), found[0])


def _is_gguf(path: Path) -> bool:
    try:
        return path.is_file() and _head(path)[0][:4] == gguf.MAGIC
    except (OSError, UnsupportedModel):
        return False


def _identify(path: Path) -> Weights | Refusal:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _folder(path)
    if stat.S_ISREG(mode):
        return _file(path)
    return refuse(path, "a device, pipe or socket", "name a model file or a folder that holds one")


def _file(path: Path) -> Weights | Refusal:
    head, size = _head(path)
    if head[:4] == gguf.MAGIC or head[:4] in gguf.OLD_MAGICS:
        return _gguf(path)
    if _is_safetensors(head):
        return _beside_config(path)
    refusal = sniff(path, head, size)
    return refusal or refuse(path, "no model file", "name a GGUF file or a folder that holds a model")


def _head(path: Path) -> tuple[bytes, int]:
    with open_file(path) as file:
        return file.read(_SNIFFED) or b"", os.fstat(file.fileno()).st_size  # of /proc, None is nothing yet


def _is_safetensors(head: bytes) -> bool:
    """Asked before any magic number: the length that a safetensors file begins with can look like one."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27


def _beside_config(path: Path) -> Weights | Refusal:
    """Safetensors say neither architecture nor tokenizer: their folder is the model."""
    folder = path.parent
    if (folder / safetensors.CONFIG).is_file() or (folder / safetensors.ADAPTER_CONFIG).is_file():
        return _folder(folder)
    safetensors.read(path)  # damage is the better answer
    what = "a safetensors file without the config.json that belongs to it"
    return refuse(path, what, "name a folder that holds the whole model", is_model=True)


def _gguf(path: Path) -> Weights | Refusal:
    return _gguf_set(path, gguf.facts(gguf.read(path), path.stem))


def _gguf_set(path: Path, facts: Facts) -> Weights | Refusal:
    if facts.kind in ("imatrix", "control-vector"):
        what = "an importance matrix for quantizing" if facts.kind == "imatrix" else "a control vector"
        return refuse(path, what, "name the model's own file", is_model=True)
    if facts.split is None:
        return Weights(facts.kind, "gguf", (path,), facts)
    return _split(path, facts)


def _split(path: Path, facts: Facts) -> Weights | Refusal:
    """All parts of a split model, whichever of them was given; llama.cpp finds them by their names."""
    assert facts.split
    count, place = facts.split.count, split_of(path.name)
    if place is None or place[1:] != (facts.split.number, count):
        name = f"NAME-{facts.split.number:05}-of-{count:05}.gguf"
        what = f"part {facts.split.number} of a model in {count} parts under another name"
        return refuse(path, what, f"rename it to {name}, beside the other parts", is_model=True)
    names = [f"{place[0]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    parts = [path.with_name(name) for name in names]
    if missing := [part.name for part in parts if not part.is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        what = f"one of {count} parts; missing beside it: {', '.join(missing[:3])}{more}"
        return refuse(path, what, "put all parts into one folder, or download the model again", is_model=True)
    return Weights(facts.kind, "gguf", tuple(parts), _sum(parts))


def _sum(parts: list[Path]) -> Facts:
    """The first part has the metadata; each part must be whole and say that it is the one its name says."""
    found = [gguf.facts(gguf.read(part)) for part in parts]
    for number, (part, facts) in enumerate(zip(parts, found, strict=True), start=1):
        if facts.split is None or (facts.split.number, facts.split.count) != (number, len(parts)):
            raise UnsupportedModel(f"{part} is not part {number} of {len(parts)}", hint="download it again")
    place = split_of(parts[0].name)
    name = found[0].name or (place and place[0])
    return replace(
        found[0], name=name, parameters=sum(facts.parameters or 0 for facts in found) or None, split=None
    )


def _folder(folder: Path) -> Weights | Refusal:
    heads = {path: _head(path) for path in _files(folder)}
    if ggufs := [path for path, (head, _) in heads.items() if head[:4] == gguf.MAGIC]:
        return _gguf_folder(folder, ggufs)
    if (folder / safetensors.ADAPTER_CONFIG).is_file() and (folder / safetensors.ADAPTER).is_file():
        return _peft(folder)
    if safetensors.is_model(folder):
        return _safetensors(folder)
    if (folder / "model_index.json").is_file():
        return refuse(folder, "a diffusers pipeline, which makes images", "mdl runs language models", True)
    if old := [path for path, (head, _) in heads.items() if head[:4] in gguf.OLD_MAGICS]:
        return _gguf(old[0])
    refusals = (sniff(path, *head) for path, head in heads.items() if not _is_safetensors(head[0]))
    return next(
        (refusal for refusal in refusals if refusal and refusal.is_model),
        refuse(folder, "a folder without a model", "name a GGUF file or a folder that holds a model"),
    )


def _files(folder: Path) -> list[Path]:
    """The regular files of a folder and those below, by name; links to folders are not followed."""
    files: list[Path] = []
    folders = [(folder, 0)]
    budget = MOST_ENTRIES
    while folders and budget > 0:
        place, depth = folders.pop(0)
        entries = _entries(place, budget)
        budget -= len(entries)
        files += [Path(entry.path) for entry in entries if entry.is_file()]
        if depth < DEEPEST:
            below = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
            folders += [(path, depth + 1) for path in below]
    return files


def _entries(folder: Path, most: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = [entry for entry, _ in zip(entries, range(most), strict=False)]
    return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _gguf_folder(folder: Path, paths: list[Path]) -> Weights | Refusal:
    """The one model of a folder, with its projector; else the one adapter, projector or vocabulary."""
    kinds: dict[str, list[tuple[Path, Facts]]] = defaultdict(list)
    for path in _first_parts(paths):
        facts = gguf.facts(gguf.read(path), path.stem)
        kinds[facts.kind].append((path, facts))
        if len(kinds["model"]) > 1:
            return _several(folder, "model", kinds["model"])
    projectors = sorted(kinds.pop("projector", []), key=_projector_order)
    for kind in ("model", "adapter", "vocabulary"):
        if len(kinds[kind]) > 1:
            return _several(folder, kind, kinds[kind])
        if kinds[kind]:
            return _with_projector(_gguf_set(*kinds[kind][0]), projectors)
    others = [found for several in kinds.values() for found in several]
    return _gguf_set(*(projectors or others)[0])


def _with_projector(found: Weights | Refusal, projectors: list[tuple[Path, Facts]]) -> Weights | Refusal:
    if isinstance(found, Refusal) or found.kind != "model" or not projectors:
        return found
    return replace(found, projector=projectors[0][0])


def _several(folder: Path, kind: str, found: list[tuple[Path, Facts]]) -> Refusal:
    names = ", ".join(os.path.relpath(path, folder) for path, _ in found[:3])
    return refuse(
        folder, f"a folder with more than one {kind}: {names}", "name one of its files", is_model=True
    )


def _first_parts(paths: list[Path]) -> list[Path]:
    """Without the parts of a split whose first part, or an earlier one, is there."""
    seen: set[tuple[Path, str, int]] = set()
    firsts = []
    for path in paths:
        place = split_of(path.name)
        key = (path.parent, place[0], place[2]) if place else (path.parent, path.name, 0)
        if key not in seen:
            firsts.append(path)
        seen.add(key)
    return firsts


# F16 is what projectors are made and tested in; less precise ones see less, more precise ones are rare.
_PROJECTORS = ("F16", "BF16", "F32", "Q8_0")


def _projector_order(found: tuple[Path, Facts]) -> tuple[int, str]:
    path, facts = found
    known = facts.quantization in _PROJECTORS
    return _PROJECTORS.index(facts.quantization or "") if known else len(_PROJECTORS), path.name


def _peft(folder: Path) -> Weights:
    path = folder / safetensors.ADAPTER
    facts = safetensors.adapter_facts(folder, safetensors.read(path), folder.name)
    return Weights("adapter", "safetensors", (path,), facts)


def _safetensors(folder: Path) -> Weights | Refusal:
    paths = safetensors.shards(folder)
    for path in paths:
        head, size = _head(path)
        if not _is_safetensors(head) and (refusal := sniff(path, head, size)):  # pointers, pages
            return refusal
    if method := safetensors.quantizer(folder):
        what = f"a model quantized with {method.upper()}, which llama.cpp does not run"
        return refuse(folder, what, GET_GGUF, is_model=True)
    headers = [safetensors.read(path) for path in paths]
    return Weights("model", "safetensors", paths, safetensors.facts(folder, headers, folder.name))
