"""The file `.metadata` of a version: it appears whole, and is data whoever wrote it."""

import os
from pathlib import Path

from mdl.errors import MdlError
from mdl.model import METADATA_NAME, File, Model, from_document, to_document


def read(path: Path) -> Model:
    """The version that lies beside it. Raises MdlError, OSError or ValueError for what is none."""
    return _parsed(path.read_text(encoding="utf-8"), path.parent)


def _parsed(text: str, folder: Path) -> Model:
    import tomllib

    try:
        return from_document(tomllib.loads(text), folder)
    except RecursionError:
        raise ValueError("lists in lists in lists") from None


def write(folder: Path, model: Model) -> None:
    """Into a folder that has none yet; on disk when it returns."""
    import tomli_w

    text = tomli_w.dumps(to_document(model))
    with (folder / METADATA_NAME).open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def put(written: Path, model: Model) -> None:
    """Rename it into the folder of a version, and into no other that takes the place of that meanwhile."""
    if os.rename not in os.supports_dir_fd:  # Windows: a folder with an open file in it cannot be replaced
        written.replace(model.folder / METADATA_NAME)
        return
    folder = os.open(model.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if _files_in(folder) == model.files:
            os.rename(written, METADATA_NAME, dst_dir_fd=folder)
            os.fsync(folder)
    finally:
        os.close(folder)


def _files_in(folder: int) -> tuple[File, ...]:
    """What the metadata of an open folder say of its files."""
    descriptor = os.open(METADATA_NAME, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    with os.fdopen(descriptor, encoding="utf-8") as file:
        try:
            return _parsed(file.read(), Path(METADATA_NAME)).files
        except (MdlError, ValueError):
            return ()
