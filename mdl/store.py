"""The cache on disk: contents, and versions made of them. Knows no network and no terminal.

    models/<host>/<path…>/<version>/   plain files and .metadata
    blobs/sha256/<64 hex>              each content once; the files of a version are hard links to these
    incoming/                          partial downloads, and versions being put together or taken apart
    converted/<64 hex>.gguf            adapters that came in another format, as they are loaded
    locks/                             save bandwidth; correctness never depends on them
    index.json                         what was read of all versions last time

A version appears by one rename of a finished, synced folder and disappears by one rename out of the tree.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mdl import metadata
from mdl.disk import (
    REMOVED,
    disk_errors,
    entries_of,
    exchange,
    is_same,
    link,
    make_folder,
    own,
    refuse_link,
    refuse_links,
    remove_tree,
    sha256_of,
    size_on_disk,
    sync,
    unique,
)
from mdl.errors import Busy, DiskError, NotFound
from mdl.locks import Locks, refuse_to_wait
from mdl.model import METADATA_NAME, File, Model
from mdl.places import CARD_NAME, DEEPEST, Place, statuses, walk
from mdl.reader import Describe, Reader

COMMIT_TRIES = 8


class Store(Reader):
    """What is below one folder, read and changed."""

    def __init__(self, root: Path, describe: Describe) -> None:
        super().__init__(root, describe)
        self.blobs = root / "blobs" / "sha256"
        self.incoming = root / "incoming"
        self.conversions = root / "converted"
        self.locks = Locks(root / "locks", root)

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def has_blob(self, file: File) -> bool:
        """Whether the content of a file is here: by digest, and by size, which costs nothing to check."""
        if file.sha256 is None:
            return False
        try:
            status = os.lstat(self.blob(file.sha256))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and file.size in (None, status.st_size)

    def has_sound_blob(self, file: File, model: Model | None) -> bool:
        """The same, and it is not what was found to be damaged in a version."""
        return self.has_blob(file) and not (model and self._is_known_as_damaged(file, model))

    def is_whole(self, model: Model) -> bool:
        """Whether all files of a version are as recorded, as far as that can be told without reading."""
        return not model.damaged and all(self._is_in_place(file, model) for file in model.files)

    # Changing

    def partial(self, key: str) -> Path:
        """Where the bytes of a content gather until they are whole."""
        with disk_errors(self.incoming):
            return own(self.incoming, self.root) / f"{key}.partial"

    def keep(self, partial: Path, sha256: str, *, anew: bool = False, protect: bool = True) -> Path:
        """Turn a complete, verified, synced file into the blob of its content, by one rename.

        A blob that is there already stays, so that everything goes on to share it, unless `anew`. A file that
        has another name of the user's is not protected: that would be theirs to do.
        """
        blob = self.blob(sha256)
        with disk_errors(blob):
            own(self.blobs, self.root)
            if not anew and self.has_blob(File("content", partial.stat().st_size, sha256)):
                partial.unlink()
                return blob
            if protect:
                with contextlib.suppress(PermissionError):  # somebody else of the group began to fetch it
                    partial.chmod(0o444)  # an edit in the tree would change all that shares the content
            partial.replace(blob)
            sync(self.blobs)
        return blob

    def commit(self, model: Model) -> Model:
        """Make a version visible, whole or not at all; one of the same name is replaced in one step.

        Every file of it must be a blob already. `model.folder` is ignored. Raises FileNotFoundError when a
        blob has vanished meanwhile: the caller fetches it again.
        """
        folder = self.folder(model.reference)
        with disk_errors(folder):
            staged = own(self.incoming, self.root) / f"{unique()}.version"
            staged.mkdir()
            try:
                self._fill(staged, model)
                self._publish(staged, folder)
            finally:
                shutil.rmtree(staged, ignore_errors=True)  # what is left there: the version that was replaced
        return self._recorded(Place(folder, folder / METADATA_NAME))

    def remove(self, model: Model) -> int:
        """Take a version out of the tree and free what only it used; bytes freed.

        Raises Busy when it is in use.
        """
        home = model.card.parent if model.card and model.place else model.folder
        with self.locks.exclusive(model.folder), disk_errors(home):
            self.refuse_outside(home)
            refuse_links(self.blobs, self.root)
            gone = own(self.incoming, self.root) / f"{unique()}{REMOVED}"
            try:
                if model.place is None:
                    _take_out(home, gone)
                else:
                    _take_files(self._own_files(model, home), gone)
            except FileNotFoundError:
                raise NotFound(f"{model.reference} was removed meanwhile", hint="mdl list") from None
            with contextlib.suppress(FileNotFoundError):  # another remover took the empty parent away
                sync(home.parent)  # or a power failure could bring back a folder without its files
            copies = sum(size_on_disk(status) for status in statuses(gone) if status.st_nlink == 1)
            remove_tree(gone)
            self._remove_empty(home.parent if model.place is None else home)
        return copies + self._free(model.files, are_copied=copies > 0)

    def settle(self, model: Model, version: Model) -> None:
        """Take away the JSON of a model that has become part of a version, unless it was changed since."""
        card = model.card
        kept = {file.sha256 for file in version.files if file.name == CARD_NAME}
        if card is None or not card.is_relative_to(self.tree):
            return
        with disk_errors(card), contextlib.suppress(FileNotFoundError):
            self.refuse_outside(card.parent)
            if sha256_of(card) in kept:
                card.unlink()

    def mark(self, model: Model, damaged: Iterable[str]) -> None:
        """Record which files of a version are damaged, by one rename; forgotten when it is committed again.

        Goes by the folder itself and not by its name, which may be another version's a moment later.
        """
        names = set(damaged)
        marked = replace(model, damaged=tuple(file.name for file in model.files if file.name in names))
        with disk_errors(model.folder):
            self.refuse_outside(model.folder)
            beside = own(self.incoming, self.root) / f"{unique()}.marked"
            beside.mkdir()
            try:
                metadata.write(beside, marked)
                metadata.put(beside / METADATA_NAME, model)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def forget(self, sha256: str, seen: os.stat_result) -> None:
        """Take the name from a content that was found to be another than its name says, so that nothing new
        links to it. The versions that have it keep what they have."""
        lock = self.locks.contents(shared=False, wait=True)
        with lock, disk_errors(self.blobs), contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(own(self.blobs, self.root) / sha256), seen):
                self.blob(sha256).unlink()

    def converted(self, key: str) -> Path | None:
        """What was made before, under a key that tells all that it was made of."""
        place = self.conversions / f"{key}.gguf"
        try:
            return place if stat.S_ISREG(os.lstat(place).st_mode) else None
        except OSError:
            return None

    def convert(self, key: str, write: Callable[[Path], None]) -> Path:
        """The same, made now: beside its place, which it takes whole. Two who do so at once do no harm."""
        place = self.conversions / f"{key}.gguf"
        with disk_errors(place):
            beside = own(self.incoming, self.root) / f"{unique()}.converted"
            try:
                write(beside)
                sync(beside)
                beside.replace(own(self.conversions, self.root) / place.name)
                sync(self.conversions)
            finally:
                beside.unlink(missing_ok=True)
        return place

    def restore(self, file: File, model: Model) -> bool:
        """Whether the blob of a file, which was lost, could be had back from the version's own file."""
        place = model.folder / file.name
        if file.sha256 is None or file.name in model.damaged or not self._is_in_place(file, model):
            return False
        beside = self.partial(f"{unique()}.0")
        with disk_errors(place), contextlib.suppress(FileNotFoundError):  # the version was removed meanwhile
            link(place, beside)
            if sha256_of(beside) == file.sha256:
                self.keep(beside, file.sha256)
            beside.unlink(missing_ok=True)
        return self.has_blob(file)

    def relink(self, contents: Iterable[str]) -> None:
        """Give every version its files anew that has one of these contents and not their blob: it was damaged
        there too, or another copy."""
        wanted = set(contents)
        for model in self.models():
            if wanted.isdisjoint(file.sha256 for file in model.files) or self.is_whole(model):
                continue
            if all(self.has_sound_blob(file, model) for file in model.files):
                with contextlib.suppress(BlockingIOError, FileNotFoundError), self.locks.lease(model.folder):
                    self.commit(model)

    # Inside

    def _is_known_as_damaged(self, file: File, model: Model) -> bool:
        return file.name in model.damaged and is_same(model.folder / file.name, self.blob(file.sha256 or ""))

    def _is_in_place(self, file: File, model: Model) -> bool:
        """Whether a file of a version is there, of the right size, and its blob's other name."""
        place, blob = model.folder / file.name, self.blob(file.sha256 or "")
        try:
            status = os.lstat(place)
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode) or file.size not in (None, status.st_size):
            return False
        return is_same(place, blob) or not self.has_blob(file) or not self._takes_links(blob)

    def _takes_links(self, blob: Path) -> bool:
        """Whether a content can have a second name: not on every file system, not of another's file."""
        beside = self.incoming / f"{unique()}.0.partial"
        try:
            os.link(blob, beside, follow_symlinks=False)
            beside.unlink()
        except OSError:
            return False
        return True

    def _fill(self, staged: Path, model: Model) -> None:
        for file in model.files:
            if file.sha256 is None:
                raise ValueError(f"{file.name} has no digest yet")
            link(self.blob(file.sha256), staged / file.name)
        described = self._describe(staged)
        summary = described.summary if described else model.summary
        metadata.write(staged, replace(model, summary=summary, damaged=()))
        for folder, _, _ in os.walk(staged, topdown=False):
            sync(Path(folder))

    def _publish(self, staged: Path, folder: Path) -> None:
        for _ in range(COMMIT_TRIES):
            self.refuse_outside(folder)
            try:
                make_folder(folder.parent)
                exchange(staged, folder)
            except FileNotFoundError:  # a remover took the empty parent away
                continue
            sync(folder.parent)
            return
        raise DiskError(f"{folder} cannot be created", hint="try again")

    def _own_files(self, model: Model, home: Path) -> list[Path]:
        """Of one of several in a folder: what no other of them needs. Weights elsewhere are the user's."""
        if model.folder != home:
            return [model.card] if model.card else []
        others = [other for other in self.models() if other.folder == home and other.place != model.place]
        shared = {file.name for other in others for file in other.files}
        return [home / file.name for file in model.files if file.name not in shared]

    def refuse_outside(self, folder: Path) -> None:
        """Nothing is created or removed through a link that somebody planted in the tree."""
        for parent in (folder, *folder.parents):
            refuse_link(parent)
            if parent == self.tree:
                return
        raise DiskError(f"{folder} is not in the cache")

    def _remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # until one is not
            while folder != self.tree:
                folder.rmdir()
                folder = folder.parent

    def _free(self, files: tuple[File, ...], *, are_copied: bool) -> int:
        """Remove the blobs that nothing links to any more, unless somebody is about to; bytes freed.

        Of copies the link count tells nothing: no other version may have such a file.
        """
        contents = {file.sha256 for file in files if file.sha256}
        if contents and are_copied:
            contents -= {file.sha256 for model in self.models() for file in model.files}
        freed = 0
        with contextlib.suppress(BlockingIOError), self.locks.contents(shared=False, wait=False):
            for sha256 in contents:
                with contextlib.suppress(Busy), self.locks.transfer(sha256, refuse_to_wait):
                    freed += self.free(sha256)
                self.locks.drop(f"{sha256}.transfer")
        return freed

    def free(self, sha256: str) -> int:
        """Remove a blob that nothing links to, under the exclusive lock of the contents; bytes freed."""
        with contextlib.suppress(OSError):  # what cannot be removed now is for `prune`
            blob = own(self.blobs, self.root) / sha256
            status = os.lstat(blob)
            if status.st_nlink == 1:
                blob.unlink()
                return size_on_disk(status)
        return 0


def _take_files(files: list[Path], gone: Path) -> None:
    """Rename some files of a folder that others use too."""
    gone.mkdir()
    for number, path in enumerate(files):
        path.rename(gone / str(number))


def _take_out(folder: Path, gone: Path) -> None:
    """Rename the folder of a version to `gone`. Around a model that was put there by hand others may lie, in
    folders of its own: they stay."""
    found = walk(folder, DEEPEST - 1)
    others = [place.folder for place in found if place.folder != folder and not place.is_piece]
    if not others:
        folder.rename(gone)
        return
    gone.mkdir()
    for entry in entries_of(folder):
        if not any(place.is_relative_to(entry.path) for place in others):
            Path(entry.path).rename(gone / entry.name)
