"""The cache on disk: tree, contents, locks, commit, remove. Knows no network and no terminal.

    models/<host>/<path…>/<version>/   plain files and .metadata
    blobs/sha256/<64 hex>              each content once; the files of a version are hard links to these
    incoming/                          partial downloads, and versions being put together or taken apart
    converted/<64 hex>.gguf            adapters that came in another format, as they are loaded
    locks/                             save bandwidth; correctness never depends on them

A version appears by one rename of a finished, synced folder and disappears by one rename out of the tree.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from mdl.errors import Busy, DiskError, MdlError, NotFound, UsageError
from mdl.filename import role, split_of
from mdl.model import METADATA_NAME, File, Model, from_document, to_document
from mdl.reference import UNKNOWN_VERSION, Reference, show

WEIGHTS_SUFFIXES = (".gguf", ".safetensors")
OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".engine", ".plan", ".onnx", ".h5", ".tflite")
CARD_NAME = "model.json"
DEEPEST = 16  # folders below models/ that are looked at
LEFTOVER_AGE = 3600.0  # seconds after which what a killed process was putting together is swept away
NAMED_DEEP = 4  # folders of a name: host, organization, model, version
INDEX_SCHEMA = 3
COMMIT_TRIES = 8
LOCK_TRIES = 200
_REMOVED = ".removed"
_UNFINISHED = ["version"], ["removed"], ["marked"], ["unpacked"], ["converted"]
_FULL = (errno.ENOSPC, errno.EDQUOT)

Describe = Callable[[Path], Model | None]  # what a folder without .metadata holds, or a file for itself


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


class Store:
    """The models below one folder."""

    def __init__(self, root: Path, describe: Describe) -> None:
        self.root = root
        self.tree = root / "models"
        self.blobs = root / "blobs" / "sha256"
        self.incoming = root / "incoming"
        self.conversions = root / "converted"
        self.locks = root / "locks"
        self._describe = describe

    # Reading

    def find(self, reference: Reference) -> Model | None:
        """The version of exactly this name, or None. Reads one folder, however many there are."""
        if reference.version == UNKNOWN_VERSION:
            reference = reference.model
        return self._at(self.folder(reference))

    def versions(self, reference: Reference) -> list[Model]:
        """What is here of a model, the newest first: the order in which versions were made known here."""
        folder = self.folder(reference.model)
        found = []
        for place in (folder, *_subfolders(folder), *(piece.folder for piece in self._pieces(folder))):
            with contextlib.suppress(UsageError):  # a name that is no name hides no other version
                found.append(self._at(place))
        return sorted((model for model in found if model), key=_age)

    def models(self) -> list[Model]:
        """Everything that is here, in the order of the tree. A damaged version has a `problem`."""
        index = self._load_index()
        fresh: dict[str, list[Any]] = {}
        found = [self._read_indexed(place, index, fresh) for place in _walk(self.tree, DEEPEST)]
        if fresh.keys() != index.keys() or any(fresh[key] is not index[key] for key in fresh):
            self._save_index(fresh)
        return [model for model in found if model]

    def names(self) -> Iterator[tuple[Reference, Path]]:
        """The references of everything that is here and their folders, without reading any."""
        for place in _walk(self.tree, DEEPEST):
            with contextlib.suppress(MdlError):
                yield self._reference(place), place.folder

    def folder(self, reference: Reference) -> Path:
        return self.tree.joinpath(*reference.path_parts())

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
            return self._own(self.incoming) / f"{key}.partial"

    def keep(self, partial: Path, sha256: str, *, anew: bool = False, protect: bool = True) -> Path:
        """Turn a complete, verified, synced file into the blob of its content, by one rename.

        A blob that is there already stays, so that everything goes on to share it, unless `anew`. A file that
        has another name of the user's is not protected: that would be theirs to do.
        """
        blob = self.blob(sha256)
        with disk_errors(blob):
            self._own(self.blobs)
            if not anew and self.has_blob(File("content", partial.stat().st_size, sha256)):
                partial.unlink()
                return blob
            if protect:
                with contextlib.suppress(PermissionError):  # somebody else of the group began to fetch it
                    partial.chmod(0o444)  # an edit in the tree would change all that shares the content
            partial.replace(blob)
            _sync(self.blobs)
        return blob

    def commit(self, model: Model) -> Model:
        """Make a version visible, whole or not at all; one of the same name is replaced in one step.

        Every file of it must be a blob already. `model.folder` is ignored. Raises FileNotFoundError when a
        blob has vanished meanwhile: the caller fetches it again.
        """
        folder = self.folder(model.reference)
        with disk_errors(folder):
            staged = self._own(self.incoming) / f"{unique()}.version"
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
        with self.exclusive(model.folder), disk_errors(home):
            self._refuse_outside(home)
            self._refuse_links(self.blobs)
            gone = self._own(self.incoming) / f"{unique()}{_REMOVED}"
            try:
                if model.place is None:
                    _take_out(home, gone)
                else:
                    _take_files(self._own_files(model, home), gone)
            except FileNotFoundError:
                raise NotFound(f"{model.reference} was removed meanwhile", hint="mdl list") from None
            with contextlib.suppress(FileNotFoundError):  # another remover took the empty parent away
                _sync(home.parent)  # or a power failure could bring back a folder without its files
            copies = sum(size_on_disk(status) for status in statuses(gone) if status.st_nlink == 1)
            _remove_tree(gone)
            self._remove_empty(home.parent if model.place is None else home)
        return copies + self._free(model.files, are_copied=copies > 0)

    def settle(self, model: Model, version: Model) -> None:
        """Take away the JSON of a model that has become part of a version, unless it was changed since."""
        card = model.card
        kept = {file.sha256 for file in version.files if file.name == CARD_NAME}
        if card is None or not card.is_relative_to(self.tree):
            return
        with disk_errors(card), contextlib.suppress(FileNotFoundError):
            self._refuse_outside(card.parent)
            if sha256_of(card) in kept:
                card.unlink()

    def mark(self, model: Model, damaged: Iterable[str]) -> None:
        """Record which files of a version are damaged, by one rename; forgotten when it is committed again.

        Goes by the folder itself and not by its name, which may be another version's a moment later.
        """
        names = set(damaged)
        marked = replace(model, damaged=tuple(file.name for file in model.files if file.name in names))
        with disk_errors(model.folder):
            self._refuse_outside(model.folder)
            beside = self._own(self.incoming) / f"{unique()}.marked"
            beside.mkdir()
            try:
                write_metadata(beside, marked)
                _replace_in(model, beside / METADATA_NAME)
            finally:
                shutil.rmtree(beside, ignore_errors=True)

    def forget(self, sha256: str, seen: os.stat_result) -> None:
        """Take the name from a content that was found to be another than its name says, so that nothing new
        links to it. The versions that have it keep what they have."""
        lock = self._lock("contents", shared=False, wait=True)
        with lock, disk_errors(self.blobs), contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self._own(self.blobs) / sha256), seen):
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
            beside = self._own(self.incoming) / f"{unique()}.converted"
            try:
                write(beside)
                _sync(beside)
                beside.replace(self._own(self.conversions) / place.name)
                _sync(self.conversions)
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
                with contextlib.suppress(BlockingIOError, FileNotFoundError), self.lease(model):
                    self.commit(model)

    def sweep(self) -> None:
        """Remove what killed processes left and nobody can go on with. Partial downloads stay."""
        with contextlib.suppress(OSError, Busy, DiskError), self.contents_lock(shared=False):
            for path in self.leftovers():
                discard(path)

    def leftovers(self, *, removed: bool = False) -> list[Path]:
        """What killed processes left in incoming/ and nobody can go on with: it has lain there for a while,
        but for what was being `removed`, if that is asked for."""
        with disk_errors(self.incoming):
            entries = list(os.scandir(self._own(self.incoming)))
        names = [entry.name for entry in entries]
        return [
            Path(entry.path)
            for entry in entries
            if _is_leftover(entry.name, names)
            and (_is_old(entry) or (removed and entry.name.endswith(_REMOVED)))
        ]

    # Locks

    @contextlib.contextmanager
    def lease(self, model: Model) -> Iterator[None]:
        """Hold a version, so that `rm` and `prune` leave it alone. A read-only cache needs no lease."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(DiskError):
                stack.enter_context(self._lock(_lease_name(model.folder), shared=True))
            yield

    @contextlib.contextmanager
    def exclusive(self, folder: Path) -> Iterator[None]:
        try:
            with self._lock(_lease_name(folder), shared=False):
                yield
        except BlockingIOError:
            raise Busy(
                f"{folder.name} is in use", hint="end the mdl chat or mdl serve that uses it"
            ) from None

    def contents_lock(self, *, shared: bool) -> contextlib.AbstractContextManager[None]:
        """Shared by those who are about to link to blobs; exclusive for those who remove unused ones."""
        return self._lock("contents", shared=shared, wait=shared)

    def dropping(self) -> contextlib.AbstractContextManager[None]:
        """For who moves what was dropped into the tree: one at a time."""
        return self._lock("dropped", shared=False, wait=True)

    @contextlib.contextmanager
    def transfer_lock(self, key: str, waiting: Callable[[], None]) -> Iterator[bool]:
        """The right to fetch a content; whether the lock can be trusted to keep others out.

        Waits while another process fetches it, and calls `waiting` once if so.
        """
        name = f"{key}.transfer"
        try:
            lock = self._lock(name, shared=False)
            lock.__enter__()
        except BlockingIOError:
            waiting()
            lock = self._lock(name, shared=False, wait=True)
            lock.__enter__()
        try:
            yield self._excludes(name)
        finally:
            lock.__exit__(None, None, None)

    def drop_lock(self, name: str) -> bool:
        """Remove the file of a lock, unless somebody holds it; whether nobody did."""
        try:
            with self._lock(name, shared=False), contextlib.suppress(OSError):  # Windows removes no open file
                (self.locks / name).unlink()
        except BlockingIOError:
            return False
        return True

    def _excludes(self, name: str) -> bool:
        """Whether a held lock is seen by others: on some network file systems it is not."""
        try:
            with self._lock(name, shared=False):
                return False
        except BlockingIOError:
            return True

    @contextlib.contextmanager
    def _lock(self, name: str, *, shared: bool, wait: bool = False) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for _ in range(LOCK_TRIES):
                file = self._lock_file(name)
                if file is None:
                    break
                stack.enter_context(file)  # closing the file lets go
                _take(file, shared=shared, wait=wait)
                if _is_at(file, self.locks / name):  # else somebody has removed it before we had it
                    break
                stack.close()
            yield

    def _lock_file(self, name: str) -> IO[bytes] | None:
        """The open file of a lock; None where a full disk has no room for it, so that nobody holds it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        with disk_errors(self.locks):
            try:
                return os.fdopen(os.open(self._own(self.locks) / name, flags, 0o666), "r+b", buffering=0)
            except OSError as error:
                if error.errno in _FULL:
                    return None
                raise

    # Inside

    def _own(self, folder: Path) -> Path:
        """One of the cache's own folders, made if need be. DiskError where somebody planted a link."""
        self._refuse_links(folder)
        _make_folder(folder)
        return folder

    def _refuse_links(self, folder: Path) -> None:
        for place in (folder, *folder.parents):
            if place == self.root:
                return
            _refuse_link(place)

    def _is_known_as_damaged(self, file: File, model: Model) -> bool:
        return file.name in model.damaged and _is_same(model.folder / file.name, self.blob(file.sha256 or ""))

    def _is_in_place(self, file: File, model: Model) -> bool:
        """Whether a file of a version is there, of the right size, and its blob's other name."""
        place, blob = model.folder / file.name, self.blob(file.sha256 or "")
        try:
            status = os.lstat(place)
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode) or file.size not in (None, status.st_size):
            return False
        return _is_same(place, blob) or not self.has_blob(file) or not self._takes_links(blob)

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
        write_metadata(staged, replace(model, summary=summary, damaged=()))
        for folder, _, _ in os.walk(staged, topdown=False):
            _sync(Path(folder))

    def _publish(self, staged: Path, folder: Path) -> None:
        for _ in range(COMMIT_TRIES):
            self._refuse_outside(folder)
            try:
                _make_folder(folder.parent)
                exchange(staged, folder)
            except FileNotFoundError:  # a remover took the empty parent away
                continue
            _sync(folder.parent)
            return
        raise DiskError(f"{folder} cannot be created", hint="try again")

    def _own_files(self, model: Model, home: Path) -> list[Path]:
        """Of one of several in a folder: what no other of them needs. Weights elsewhere are the user's."""
        if model.folder != home:
            return [model.card] if model.card else []
        others = [other for other in self.models() if other.folder == home and other.place != model.place]
        shared = {file.name for other in others for file in other.files}
        return [home / file.name for file in model.files if file.name not in shared]

    def refuse_links(self, folder: Path) -> None:
        """Raise DiskError for a folder that is not in the tree, or behind a link there."""
        self._refuse_outside(folder)

    def _refuse_outside(self, folder: Path) -> None:
        """Nothing is created or removed through a link that somebody planted in the tree."""
        for parent in (folder, *folder.parents):
            _refuse_link(parent)
            if parent == self.tree:
                return
        raise DiskError(f"{folder} is not in the cache")

    def _remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):
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
        with contextlib.suppress(BlockingIOError), self.contents_lock(shared=False):
            for sha256 in contents:
                with contextlib.suppress(Busy), self.transfer_lock(sha256, refuse_to_wait):
                    freed += self.free(sha256)
                self.drop_lock(f"{sha256}.transfer")
        return freed

    def free(self, sha256: str) -> int:
        """Remove a blob that nothing links to, under the exclusive lock of the contents; bytes freed."""
        with contextlib.suppress(OSError):
            blob = self._own(self.blobs) / sha256
            status = os.lstat(blob)
            if status.st_nlink == 1:
                blob.unlink()
                return size_on_disk(status)
        return 0

    def _at(self, folder: Path) -> Model | None:
        """The version in a folder; looked at again if another one took its place meanwhile."""
        while True:
            before = _identity(folder)
            place = self._place(folder)
            found = self._read(place) if place else None
            if _identity(folder) == before:
                return found

    def _place(self, folder: Path) -> Place | None:
        """Where the version lies that would be in a folder of this name."""
        mark = "" if folder == self.tree else _mark(_entries(folder))
        if mark:
            return Place(folder, folder / mark)
        return next((place for place in self._pieces(folder.parent) if place.folder == folder), None)

    def _pieces(self, folder: Path) -> "list[Place]":
        """The versions that lie in a folder beside each other."""
        return _pieces(folder, _entries(folder), is_tree=folder == self.tree)

    def _read(self, place: Place) -> Model | None:
        is_recorded = place.is_recorded and place.mark.exists()
        return self._recorded(place) if is_recorded else self._by_hand(place)

    def _recorded(self, place: Place) -> Model:
        import tomllib

        folder = place.folder
        reference = self._reference(place)
        try:
            model = from_document(tomllib.loads(place.mark.read_text()), folder)
        except (MdlError, OSError, ValueError) as error:
            return Model(
                reference, folder, (), problem=f"its .metadata is unreadable: {show(str(error), 200)}"
            )
        return replace(model, reference=self._placed(model.reference, folder, reference))

    def _by_hand(self, place: Place) -> Model | None:
        """What people put there. It is in the folder that its name says unless it is a piece of another."""
        reference = self._reference(place)
        folder = place.mark.parent
        try:
            found = self._describe(place.mark if place.is_piece else folder)
        except (MdlError, OSError) as error:
            return Model(reference, folder, (), problem=_reason(error))
        if found is None or (found.problem and place.mark.suffix in OTHER_SUFFIXES):
            return None  # something else that is called like a model
        is_elsewhere = found.place is not None and not found.place.is_relative_to(self.tree)
        return replace(found, reference=reference, folder=found.folder if is_elsewhere else folder)

    def _reference(self, place: Place) -> Reference:
        parts = place.folder.relative_to(self.tree).parts
        is_version = place.is_recorded or place.is_piece
        return Reference.from_path_parts(parts, versioned=is_version and len(parts) > 1)

    def _placed(self, recorded: Reference, folder: Path, placed: Reference) -> Reference:
        """A folder that was moved is called by its new place; else the record tells more than the place."""
        return recorded if self.folder(recorded) == folder else placed

    def _read_indexed(
        self, place: Place, index: dict[str, list[Any]], fresh: dict[str, list[Any]]
    ) -> Model | None:
        key = str(place.folder.relative_to(self.tree))
        try:
            stamp, entry = _stamp(place), index.get(key)
            if entry and entry[:3] == stamp:
                fresh[key] = entry
                return _remembered(entry[3], place)
            model = self._at(place.folder)
        except (OSError, MdlError) as error:
            return Model(Reference("short", "", "unreadable"), place.mark.parent, (), problem=_reason(error))
        if model and stamp and not model.problem and _is_plain(model):
            document = to_document(model)
            document["created"] = model.modified.isoformat()
            if model.place or model.card:
                document["places"] = [path.name if path else "" for path in (model.place, model.card)]
            fresh[key] = [*stamp, document]
        return model

    def _load_index(self) -> dict[str, list[Any]]:
        """What `models` read last time: 10,000 files of TOML take seconds, one of JSON does not."""
        try:
            content = json.loads((self.root / "index.json").read_bytes())
            entries = content["entries"] if content["schema"] == INDEX_SCHEMA else {}
            return entries if isinstance(entries, dict) else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def _save_index(self, entries: dict[str, list[Any]]) -> None:
        beside = self.root / f"index.{unique()}.tmp"
        with contextlib.suppress(OSError):  # a read-only cache is slower, not broken
            beside.write_text(json.dumps({"schema": INDEX_SCHEMA, "entries": entries}))
            beside.replace(self.root / "index.json")


def _is_leftover(name: str, names: Sequence[str]) -> bool:
    key, *kind = name.split(".")
    unprotected = kind[1:2] == ["partial"]  # of a download that had no lock to itself
    if unprotected or kind in _UNFINISHED:
        return True
    content = f"{key}.partial"
    return kind == ["partial", "parts"] and not any(
        other.startswith(content) and other != name for other in names
    )


def _is_old(entry: "os.DirEntry[str]") -> bool:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_AGE
    except OSError:
        return False


def _take_files(files: list[Path], gone: Path) -> None:
    """Rename some files of a folder that others use too."""
    gone.mkdir()
    for number, path in enumerate(files):
        path.rename(gone / str(number))


def _take_out(folder: Path, gone: Path) -> None:
    """Rename the folder of a version to `gone`. Around a model that was put there by hand others may lie, in
    folders of its own: they stay."""
    found = _walk(folder, DEEPEST - 1)
    others = [place.folder for place in found if place.folder != folder and not place.is_piece]
    if not others:
        folder.rename(gone)
        return
    gone.mkdir()
    for entry in _entries(folder):
        if not any(place.is_relative_to(entry.path) for place in others):
            Path(entry.path).rename(gone / entry.name)


def _remove_tree(folder: Path) -> None:
    """Remove a folder, which somebody else may be about to remove too."""

    def tolerate(_call: object, _path: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=tolerate)
    else:
        shutil.rmtree(folder, onerror=lambda call, path, found: tolerate(call, path, found[1]))


def discard(path: Path) -> None:
    """Remove what lies in incoming/, whatever it is. Nothing behind a link is touched."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def statuses_of(model: Model) -> Iterator[os.stat_result]:
    """Of all files of a version: of those in its folder, or of its own where others share that."""
    if model.place is None:
        yield from statuses(model.folder)
        return
    for file in model.files:
        with contextlib.suppress(OSError):
            yield os.lstat(model.folder / file.name)


def statuses(folder: Path) -> Iterator[os.stat_result]:
    """Of all files of a model, at any depth, but `.metadata` and the versions below; no link is followed."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            if not (Path(entry.path) / METADATA_NAME).exists():
                yield from statuses(Path(entry.path))
        elif entry.name != METADATA_NAME:
            with contextlib.suppress(OSError):
                yield entry.stat(follow_symlinks=False)


def size_on_disk(status: os.stat_result) -> int:
    """Bytes that a file takes: fewer than its size where it has holes. (Windows does not tell.)"""
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)


def sha256_of(path: Path, advance: Callable[[int], object] = lambda _: None) -> str:
    """The digest of what is on disk; `advance` is told of each chunk that was read."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def link(source: Path, target: Path) -> None:
    """Give a content a second name; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # FAT, some network file systems, too many links, somebody else's file
        copy(source, target)
        shutil.copymode(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file so that it is on disk afterwards."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def write_metadata(folder: Path, model: Model) -> None:
    import tomli_w

    text = tomli_w.dumps(to_document(model))
    with (folder / METADATA_NAME).open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def exchange(staged: Path, folder: Path) -> None:
    """Rename `staged` to `folder` in one step; what was there is at `staged` afterwards."""
    try:
        staged.rename(folder)
    except FileNotFoundError:
        raise
    except OSError:
        if not folder.exists():
            raise
        if not _swap(staged, folder):
            # Without an atomic exchange (Windows, old kernels) there is an instant without the version; a
            # process killed in it leaves the old one in incoming/.
            aside = staged.with_suffix(_REMOVED)
            folder.rename(aside)
            staged.rename(folder)
            aside.rename(staged)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names atomically, where the system can: renameat2 of Linux, renamex_np of macOS."""
    import ctypes

    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None)
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        at_cwd, exchange_flag = -100, 2
        return bool(libc.renameat2(at_cwd, first, at_cwd, second, exchange_flag) == 0)
    if hasattr(libc, "renamex_np"):
        swap_flag = 2
        return bool(libc.renamex_np(first, second, swap_flag) == 0)
    return False


def versions_in(folder: Path) -> list[Place]:
    """Where versions lie in a folder that is not the tree, itself included, as deep as mdl puts them."""
    return list(_walk(folder, NAMED_DEEP))


def _walk(folder: Path, depth: int, *, inside: bool = False) -> Iterator[Place]:
    """Where versions lie. `inside` another one only what certainly is one counts."""
    is_tree = depth == DEEPEST  # the tree itself is no model
    entries = _entries(folder)
    mark = "" if is_tree else _mark(entries)
    inner = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    if not mark and not inner:  # perhaps what was replaced by a new version while we looked
        entries = _entries(folder)
        mark = "" if is_tree else _mark(entries)
    if mark and not (inside and mark.endswith(OTHER_SUFFIXES)):
        yield Place(folder, folder / mark)
    if depth and mark != METADATA_NAME:
        yield from _pieces(folder, entries, is_tree=is_tree)
        for name in inner:
            yield from _walk(folder / name, depth - 1, inside=bool(mark) or inside)


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []


def _mark(entries: "Iterable[os.DirEntry[str]]") -> str:
    """The file that makes a folder a version. A folder may be called like one: …/model.gguf/latest."""
    found: dict[str, str] = {}
    named = False
    for entry in entries:
        if entry.name == METADATA_NAME:
            return entry.name
        suffix = "." + entry.name.rpartition(".")[2]
        if suffix not in found and suffix in _MARKS and not entry.is_dir():
            found[suffix] = entry.name
        named = named or (suffix == ".json" and entry.name == CARD_NAME)
    if named:
        return CARD_NAME
    if ".json" in found and ".gguf" in found and _pieces_in(entries):
        return ""  # each of its files is a version
    return next((found[suffix] for suffix in (*WEIGHTS_SUFFIXES, *OTHER_SUFFIXES) if suffix in found), "")


_MARKS = frozenset((*WEIGHTS_SUFFIXES, *OTHER_SUFFIXES, ".json"))


def _pieces(folder: Path, entries: "Iterable[os.DirEntry[str]]", *, is_tree: bool) -> list[Place]:
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
        cards = {stem: name for stem, name in {**weights, **cards}.items() if not files[name].is_dir()}
    return dict(sorted(cards.items()))


def _stem(name: str) -> str:
    place = split_of(name)
    return place[0] if place else name[:-5]


def _tells_a_source(entry: "os.DirEntry[str]") -> bool:
    """Whether a JSON file, which has no weights of its name beside it, may tell where to get some."""
    if not entry.is_file():  # a pipe would keep who opens it waiting
        return False
    try:
        with Path(entry.path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"source_url" in head or b"binaries" in head


_HEAD = 1 << 16


def _remembered(document: dict[str, Any], place: Place) -> Model:
    """What the index has of a version."""
    folder = place.mark.parent
    model = from_document(document, folder)
    if "places" not in document:
        return model
    own, card = (folder / name if name else None for name in document["places"])
    return replace(model, place=own, card=card)


def _is_plain(model: Model) -> bool:
    """Whether all that tells of a version lies beside its mark, so that it can be remembered."""
    places = [path for path in (model.place, model.card) if path]
    return not model.is_absent and all(path.parent == model.folder for path in places)


def refuse_to_wait() -> NoReturn:
    """For `Store.transfer_lock`: raises Busy."""
    raise Busy("another mdl fetches it", hint="wait for it")


def _take(file: IO[bytes], *, shared: bool, wait: bool) -> None:
    import portalocker

    flags = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
    try:
        portalocker.lock(file, flags if wait else flags | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        raise BlockingIOError(errno.EWOULDBLOCK, "held", file.name) from None
    except portalocker.LockException:  # no locks on this file system
        pass


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise DiskError(f"{path} is a link", hint="mdl changes nothing behind links in its cache")


def _replace_in(model: Model, metadata: Path) -> None:
    """Put metadata into the folder of a version, and into no other that takes its place meanwhile."""
    if os.rename not in os.supports_dir_fd:  # Windows: a folder with an open file in it cannot be replaced
        metadata.replace(model.folder / METADATA_NAME)
        return
    folder = os.open(model.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if _files_in(folder) == model.files:
            os.rename(metadata, METADATA_NAME, dst_dir_fd=folder)
            os.fsync(folder)
    finally:
        os.close(folder)


def _files_in(folder: int) -> tuple[File, ...]:
    """What the metadata of an open folder say of its files."""
    import tomllib

    with os.fdopen(os.open(METADATA_NAME, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
        try:
            return from_document(tomllib.load(file), Path(METADATA_NAME)).files
        except (MdlError, ValueError):
            return ()


def _identity(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _stamp(place: Place) -> list[Any] | None:
    """What tells that a version has not changed; None if it has vanished.

    The JSON of a model says little of it: there everything that lies beside it counts.
    """
    try:
        status = place.mark.stat()
        beside = _looks(place.mark.parent) if place.mark.suffix == ".json" else ""
    except OSError:
        return None
    return [place.mark.name + beside, status.st_mtime_ns, status.st_size]


def _looks(folder: Path) -> str:
    import zlib

    seen = [(entry.name, status.st_mtime_ns, status.st_size) for entry, status in _with_status(folder)]
    return f" {zlib.crc32(repr(seen).encode()):08x}"


def _with_status(folder: Path) -> "Iterator[tuple[os.DirEntry[str], os.stat_result]]":
    for entry in _entries(folder):
        with contextlib.suppress(OSError):
            yield entry, entry.stat()


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, MdlError) else show(str(error), 200)


def _age(model: Model) -> tuple[float, str]:
    return -model.modified.timestamp(), model.version


def _lease_name(folder: Path) -> str:
    import hashlib

    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32] + ".lease"


def _make_folder(folder: Path) -> None:
    """Create a folder with its parents, so that they are still there after a power failure."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        _sync(place.parent)


def _sync(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open folders; NTFS journals its names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk refuses, in a person's words. A missing file is the caller's business."""
    try:
        yield
    except (FileNotFoundError, BlockingIOError):
        raise
    except OSError as error:
        raise DiskError(
            f"{error.strerror or error}: {error.filename or path}",
            hint="free some space or check the permissions; MDL_HOME names another folder for the cache",
        ) from None


def unique() -> str:
    """A name that nobody else has. (`secrets` costs every command what only few need.)"""
    return os.urandom(8).hex()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
