"""Models that lie on this machine outside the cache, as a source. Knows no network."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mdl.errors import NotFound
from mdl.filename import role
from mdl.model import METADATA_NAME, File, Manifest, Revision
from mdl.reference import Reference, show
from mdl.weights import Refusal, Weights, identify

if TYPE_CHECKING:
    from mdl.config import Settings

_BESIDE = ("config", "tokenizer", "template", "license", "readme")  # what belongs to a folder's weights


class Disk:
    """GGUF files with all their parts, and folders that hold a model or an adapter."""

    def __init__(self, _: "Settings") -> None:
        pass

    def manifest(self, reference: Reference) -> Manifest:
        """The files of a model at a path; their digests are found while they are copied."""
        path = Path(reference.path)
        found = identify(path)
        if isinstance(found, Refusal):
            raise found.error()
        folder = _folder(path)
        paths = _files(path, found)
        files = tuple(_file(file, folder) for file in paths)
        return Manifest(reference.model, files, _revision(paths), source=str(reference))

    def remote(self, manifest: Manifest, file: File) -> Path:
        """Where a file lies."""
        path = _folder(Path(manifest.reference.path)) / file.name
        if not path.is_file():
            raise NotFound(f"{show(str(path), 200)} is not there any more", hint="check the path")
        return path


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _files(path: Path, found: Weights) -> list[Path]:
    """What belongs together: the weights, and of a folder what stands beside them."""
    paths = [*found.files, *([found.projector] if found.projector else [])]
    if found.format == "gguf" and path.is_file():
        return paths
    beside = [file for file in sorted(_folder(path).iterdir()) if role(file.name) in _BESIDE]
    paths += [file for file in beside if file.is_file() and file.name != METADATA_NAME]
    return list(dict.fromkeys(paths))


def _file(path: Path, folder: Path) -> File:
    name = path.relative_to(folder).as_posix()
    return File(name, path.stat().st_size, role=role(name))


def _revision(paths: list[Path]) -> Revision:
    """Tells whether files have changed since they were copied, without reading them."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return Revision("modified", "", hashlib.sha256(repr(facts).encode()).hexdigest())
