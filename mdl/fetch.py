"""From a manifest to files on disk: what is missing, one transfer for all who want it, commit.

Knows no names (`library` resolves them), no source (`transports` read them) and no HTTP (`download` does).
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mdl import leftovers, metadata
from mdl.disk import copy, disk_errors, link, unique
from mdl.errors import Busy, IntegrityError, MdlError, UnsupportedModel
from mdl.model import METADATA_NAME, File, Manifest, Model, now, refuse_twins
from mdl.partial import publish, require_space
from mdl.reference import show
from mdl.store import Store
from mdl.transports import Transport

if TYPE_CHECKING:
    from mdl.download import Downloader, Received

TRIES = 3  # each after somebody removed what had just been fetched
CHUNK = 1 << 20
WEIGHTS = ("weights", "adapter", "projector")  # roles of which a version has one at least


@dataclass(frozen=True, slots=True)
class Plan:
    """What a download would do. `present` are the names of files whose content is here already."""

    manifest: Manifest
    present: frozenset[str]

    @property
    def missing(self) -> list[File]:
        return [file for file in self.manifest.files if file.name not in self.present]


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Brings what a manifest promises into a store. `waiting` is told when another process is at it."""

    store: Store
    transport: Transport
    downloader: "Downloader"
    waiting: Callable[[str], None]

    def plan(self, manifest: Manifest) -> Plan:
        current = self.store.find(manifest.reference)
        settled = self._settle(manifest)
        here = [file for file in settled if not file.is_archive]
        present = {file.name for file in here if self.store.has_sound_blob(file, current)}
        return Plan(replace(manifest, files=tuple(settled)), frozenset(present))

    def fetch(self, manifest: Manifest, *, force: bool = False) -> Model:
        """The version, in the tree, every byte of it verified. With `force` all of it is fetched anew.

        What is known to be damaged or missing is mended, here and in the other versions that share it.
        """
        if not force and (whole := self._unchanged(manifest)):
            return whole  # without a lock: a cache that cannot be written to serves too
        leftovers.sweep(self.store)
        for _ in range(TRIES):
            with contextlib.ExitStack() as locks:
                trusted = self._lock_all(manifest, locks)
                broken = self._broken(manifest, force=force)
                files = self._complete(manifest, trusted, force=force)
                with (
                    contextlib.suppress(FileNotFoundError),
                    self.store.locks.contents(shared=True, wait=True),
                ):
                    model = self._commit(manifest, files, anew=force)
                    if broken:
                        self.store.relink(broken)
                    return model
        raise Busy(f"{manifest.reference} is being removed while it is fetched", hint="try again")

    def fetch_to(self, manifest: Manifest, folder: Path) -> Model:
        """The version as plain files in a folder of the user's, past the cache. What is right there stays."""
        with disk_errors(folder), self._workplace(folder) as work:
            settled = self._settle(manifest)
            if recorded := _recorded(folder):
                settled = _expanded(
                    manifest, settled, recorded, lambda file: _is_intact(folder / file.name, file)
                )
            plain = [file for file in settled if not file.is_archive]
            wanted = [file for file in plain if not _is_intact(folder / file.name, file)]
            missing = [file for file in wanted if not self._copied(file, folder, work)]
            settled, missing = _repacked(manifest, settled, missing)
            received = self._receive(manifest, missing, lambda key: work / f"{key}.partial")
            unpacked: dict[str, tuple[File, ...]] = {}
            for key, content in received.items():
                same = [file for file in missing if _key(manifest, file) == key]
                settle = partial(_spread, targets=[folder / file.name for file in same])
                if same[0].is_archive:
                    settle = partial(self._unpack_to, folder, same[0], unpacked)
                publish(work / f"{key}.partial", content.inode, settle)
            files = _unpacked(
                manifest,
                [_with_content(file, received.get(_key(manifest, file))) for file in settled],
                unpacked,
            )
            model = _model(manifest, [_digested(file, folder) for file in files], folder)
            (folder / METADATA_NAME).unlink(missing_ok=True)
            metadata.write(folder, model)
        return model

    @contextlib.contextmanager
    def _workplace(self, folder: Path) -> Iterator[Path]:
        """Where things gather in a user's folder. It goes when all are whole; else the next run goes on."""
        key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        with self.store.locks.transfer(f"to-{key}", partial(self.waiting, str(folder))) as trusted:
            work = folder / (".mdl-incoming" if trusted else f".mdl-incoming-{unique()}")
            work.mkdir(parents=True, exist_ok=True)
            yield work
            shutil.rmtree(work, ignore_errors=True)

    def _unpack_to(
        self, folder: Path, archive: File, unpacked: dict[str, tuple[File, ...]], whole: Path
    ) -> None:
        """Put what is in an archive into a user's folder."""
        from mdl.archive import unpack

        into = whole.with_name(f"{unique()}.unpacked")
        into.mkdir()
        found = unpack(whole, archive, into)
        for path, file in found:
            _appear(path, folder / file.name)
        unpacked[archive.sha256 or ""] = tuple(file for _, file in found)
        whole.unlink()

    def _copied(self, file: File, folder: Path, work: Path) -> bool:
        """Whether a content could be copied from the cache to its place; not if it is damaged there."""
        if not self.store.has_blob(file):
            return False
        beside = work / f"{unique()}.copy"
        try:
            copy(self.store.blob(file.sha256 or ""), beside)
        except FileNotFoundError:  # removed meanwhile
            return False
        if not _is_intact(beside, file):
            return False
        _appear(beside, folder / file.name)
        return True

    def _unchanged(self, manifest: Manifest) -> Model | None:
        """The version, when it is here just as the source has it."""
        files = self._settle(manifest)
        current = self.store.find(manifest.reference)
        if not all(self.store.has_sound_blob(file, current) for file in files):
            return None
        return (
            current if current and self._is_same(current, _model(manifest, files, current.folder)) else None
        )

    def _broken(self, manifest: Manifest, *, force: bool) -> set[str]:
        """The contents that the version here was made of and that will have to come again."""
        current = self.store.find(manifest.reference)
        files = current.files if current else ()
        return {f.sha256 for f in files if f.sha256 and (force or not self.store.has_sound_blob(f, current))}

    def _lock_all(self, manifest: Manifest, locks: contextlib.ExitStack) -> dict[str, bool]:
        """Take the lock of each content, in one order for everybody, so that two downloads cannot block each
        other. Tells by key which of them really keep others out."""
        names = {_key(manifest, file): file.name for file in manifest.files}
        return {
            key: locks.enter_context(self.store.locks.transfer(key, partial(self.waiting, names[key])))
            for key in sorted(names)
        }

    def _settle(self, manifest: Manifest, *, force: bool = False) -> list[File]:
        """The files, each with its sha256 where that can be told from the versions that are here. In place of
        an archive stands what was in it, if all of that is here still."""
        known: dict[tuple[str, int | None, str | None], str] = {}
        for version in self.store.versions(manifest.reference):
            unchanged = bool(manifest.revision.commit) and version.revision == manifest.revision
            for file in version.files:
                if file.sha256 and (file.git_id or unchanged):
                    known[file.name, file.size, file.git_id] = file.sha256
        settled = [
            file if file.sha256 else replace(file, sha256=known.get((file.name, file.size, file.git_id)))
            for file in manifest.files
        ]
        if force or not any(file.is_archive for file in settled):
            return settled
        current = self.store.find(manifest.reference)
        for version in self.store.versions(manifest.reference):
            settled = _expanded(manifest, settled, version, partial(self._is_sound, (version, current)))
        return settled

    def _is_sound(self, models: Iterable[Model | None], file: File) -> bool:
        return all(self.store.has_sound_blob(file, model) for model in models)

    def _complete(self, manifest: Manifest, trusted: Mapping[str, bool], *, force: bool) -> list[File]:
        """The files with their digests, once the contents of all of them are blobs."""
        settled = self._settle(manifest, force=force)
        current = self.store.find(manifest.reference)
        plain = [file for file in settled if not file.is_archive]
        missing = [file for file in plain if force or not self._is_here(file, current)]
        settled, missing = _repacked(manifest, settled, missing)
        anew = {_key(manifest, file) for file in missing if force or self.store.has_blob(file)}

        def place(key: str) -> Path:  # of one's own where locks keep nobody else out of it
            return self.store.partial(key if trusted[key] else f"{key}.{unique()}")

        paths = {_key(manifest, file): place(_key(manifest, file)) for file in missing}
        received = self._receive(manifest, missing, paths.__getitem__)
        archives = {_key(manifest, file): file for file in missing if file.is_archive}
        unpacked: dict[str, tuple[File, ...]] = {}
        for key, content in received.items():
            keep: Callable[[Path], object] = partial(self.store.keep, sha256=content.sha256, anew=key in anew)
            if archive := archives.get(key):
                keep = partial(self._unpack, archive, unpacked, None if force else current, force)
            publish(paths[key], content.inode, keep)
        return _unpacked(
            manifest, [_with_content(file, received.get(_key(manifest, file))) for file in settled], unpacked
        )

    def _unpack(
        self,
        archive: File,
        unpacked: dict[str, tuple[File, ...]],
        current: Model | None,
        force: bool,
        whole: Path,
    ) -> None:
        """Make blobs of what is in an archive, which is not kept itself."""
        from mdl.archive import unpack

        into = self.store.incoming / f"{unique()}.unpacked"
        with disk_errors(into):
            into.mkdir()
        try:
            found = unpack(whole, archive, into)
            for path, file in found:
                damaged = self.store.has_blob(file) and not self.store.has_sound_blob(file, current)
                self.store.keep(path, file.sha256 or "", anew=force or damaged)
            unpacked[archive.sha256 or ""] = tuple(file for _, file in found)
        finally:
            shutil.rmtree(into, ignore_errors=True)
        whole.unlink()

    def _is_here(self, file: File, current: Model | None) -> bool:
        """Whether a content needs no transfer: a blob, or made one of the version's own file."""
        if self.store.has_blob(file) or current is None:
            return self.store.has_sound_blob(file, current)
        return self.store.restore(file, current)

    def _receive(
        self, manifest: Manifest, files: Sequence[File], place: Callable[[str], Path]
    ) -> dict[str, "Received"]:
        """Fetch each content once into its partial file, however many files have it; what came, by key."""
        from mdl.download import Expected, Job

        wanted = {_key(manifest, file): file for file in files}
        received, jobs = {}, {}
        for key, file in wanted.items():
            source = self.transport.remote(manifest, file)
            if isinstance(source, Path):
                received[key] = _copy_verified(source, file, place(key))
            else:
                expected = Expected(file.size, file.sha256, file.git_id)
                jobs[key] = Job(file.name, source, expected, place(key))
        results = self.downloader.fetch_all(list(jobs.values())) if jobs else []
        return received | dict(zip(jobs, results, strict=True))

    def _commit(self, manifest: Manifest, files: Sequence[File], *, anew: bool) -> Model:
        model = _model(manifest, files, self.store.folder(manifest.reference))
        current = self.store.find(manifest.reference)
        if current and not anew and self._is_same(current, model):
            return current
        return self.store.commit(model)

    def _is_same(self, current: Model, model: Model) -> bool:
        """Whether a version is here, whole, exactly as it would be put here again."""
        same = (current.files, current.revision, current.partial) == (
            model.files,
            model.revision,
            model.partial,
        )
        return same and self.store.is_whole(current)


def _expanded(
    manifest: Manifest, settled: list[File], known: Model, is_sound: Callable[[File], bool]
) -> list[File]:
    """The files, with what was in an archive in its place where all of that is known and sound."""
    same = bool(manifest.revision.commit) and known.revision.commit == manifest.revision.commit
    has_all = same and not known.partial  # then an archive of which nothing is known held nothing of use
    found: list[File] = []
    for file in settled:
        members = [member for member in known.files if member.archive and member.archive == file.sha256]
        is_known = file.is_archive and (has_all or bool(members))
        found += members if is_known and all(map(is_sound, members)) else [file]
    return found


def _repacked(manifest: Manifest, settled: list[File], missing: list[File]) -> tuple[list[File], list[File]]:
    """The files, and those that have to come: an archive again, if anything that was in it is missing."""
    again = {file.archive for file in missing if file.archive}
    archives = {file.sha256: file for file in manifest.files if file.is_archive}
    files = [archives[file.archive] if file.archive in again else file for file in settled]
    files = list(dict.fromkeys(files))
    return files, [file for file in files if file.is_archive or file in missing]


def _unpacked(manifest: Manifest, files: list[File], unpacked: Mapping[str, tuple[File, ...]]) -> list[File]:
    """The files, with what was in an archive in its place. Raises UnsupportedModel if none is of use."""
    found = [one for file in files for one in unpacked.get(file.sha256 or "", (file,))]
    refuse_twins(found)
    if unpacked and not manifest.partial and not any(file.role in WEIGHTS for file in found):
        names = ", ".join(file.name for file in found[:4]) or "nothing"
        raise UnsupportedModel(
            f"{manifest.reference} holds no weights: {show(names, 120)}", hint="mdl fetches language models"
        )
    return found


def _recorded(folder: Path) -> Model | None:
    """What an earlier download has recorded of a user's folder."""
    try:
        return metadata.read(folder / METADATA_NAME)
    except (OSError, MdlError, ValueError):
        return None


def _key(manifest: Manifest, file: File) -> str:
    """What a content is called before it is here: by its digest, else by where it comes from."""
    if file.sha256 and not _promised_elsewhere(manifest, file):
        return file.sha256
    if file.git_id:
        return f"git-{file.git_id}"
    place = f"{manifest.reference.model} {manifest.revision.commit} {file.name}"
    return f"url-{hashlib.sha256(place.encode()).hexdigest()[:40]}"


def _promised_elsewhere(manifest: Manifest, file: File) -> bool:
    """Whether the digest was learned from what is here: keys must not depend on that."""
    return all(promised.sha256 is None for promised in manifest.files if promised.name == file.name)


def _model(manifest: Manifest, files: Sequence[File], folder: Path) -> Model:
    return Model(
        manifest.reference,
        folder,
        tuple(files),
        revision=manifest.revision,
        source=manifest.source,
        modified=now(),
        partial=manifest.partial,
    )


def _with_content(file: File, received: "Received | None") -> File:
    return file if received is None else replace(file, size=received.size, sha256=received.sha256)


def _digests(path: Path) -> tuple[int, str, str]:
    """Size, sha256 and git blob id of what is on disk."""
    size = path.stat().st_size
    sha256, git_id = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            git_id.update(chunk)
    return size, sha256.hexdigest(), git_id.hexdigest()


def _is_intact(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    _, sha256, git_id = _digests(path)
    return sha256 == file.sha256 if file.sha256 else git_id == file.git_id


def _digested(file: File, folder: Path) -> File:
    if file.sha256:
        return file
    size, sha256, _ = _digests(folder / file.name)
    return replace(file, size=size, sha256=sha256)


def _spread(whole: Path, targets: Sequence[Path]) -> None:
    """Give a whole file all its places in a user's folder."""
    for target in targets:
        beside = whole.with_name(f"{unique()}.whole")
        link(whole, beside)
        _appear(beside, target)
    whole.unlink()


def _appear(beside: Path, target: Path) -> None:
    """Give a whole file its place in a user's folder, by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside.replace(target)


def _copy_verified(source: Path, file: File, partial: Path) -> "Received":
    """Copy a file of this machine into a partial file; what is hashed is what arrived."""
    from mdl.download import Received

    require_space(partial, file.size or 0)
    with disk_errors(partial):
        partial.unlink(missing_ok=True)
        copy(source, partial)
        size, sha256, _ = _digests(partial)
    if (file.size is not None and size != file.size) or (file.sha256 is not None and sha256 != file.sha256):
        raise IntegrityError(f"{show(file.name)} changed while it was copied", hint="try again")
    return Received(size, sha256, transferred=0, inode=partial.stat().st_ino)
