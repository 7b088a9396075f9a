"""Models of this machine that become models of mdl: files, folders, and archives of folders.

A folder that mdl wrote has `.metadata`: it comes back under its own name, every byte held against the digest
that was recorded. Anything else is looked at as `describing` does, and gets a name from its files. Contents
become blobs like any other, without a copy where the file system allows it. Knows no terminal.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mdl import archive, metadata, modeljson, ziparchive
from mdl.describing import describe, identified
from mdl.disk import copy, disk_errors, sha256_of, unique
from mdl.dropped import PACKAGE, filled, plain_name
from mdl.errors import Busy, DiskError, IntegrityError, MdlError, NotFound, UnsupportedModel, UsageError
from mdl.filename import quantization_of, role, split_of
from mdl.model import METADATA_NAME, File, Model, now
from mdl.partial import require_space
from mdl.places import Place, versions_in
from mdl.reference import ONLY, Reference, show
from mdl.store import Store
from mdl.weights import Refusal, identify

How = Literal["", "link", "copy", "move"]
LEAST_SHARED = 1 << 20  # bytes
TRIES = 3  # each after somebody removed what had just been brought
INSIDE = "model/"  # before the names in an archive, so that one of them may be .metadata
PLAIN = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_BESIDE = ("__MACOSX", ".DS_Store")  # what a Mac adds to archives
NAMED = ("short", "hf", "oci", "ollama")  # schemes of names that have versions


@dataclass(frozen=True, slots=True)
class Item:
    """A version to be: its name, its files and where each lies; a digest that is given is a promise.

    `sources` are in the order of `files`. `written` is the model.json that it gets, if it has none.
    """

    model: Model
    sources: tuple[Path, ...]
    written: str = ""


@dataclass(frozen=True, slots=True)
class Importer:
    """Brings models into a store: as links, copies, or by taking them away; by default, without a copy where
    the file system allows it."""

    store: Store
    how: How = ""
    name: Reference | None = None
    digests: Mapping[Path, str] = field(default_factory=dict)  # that were found while files were written

    def items(self, path: Path) -> list[Item]:
        """What is at a path: a file, a folder, or a folder of several versions.

        Raises NotFound, UnsupportedModel for what is no model, UsageError where one name would be several's.
        """
        if not path.exists():
            raise NotFound(f"there is no file or folder {show(str(path), 200)}", hint="check the path")
        path = path.parent if path.name == modeljson.NAME else path
        self._refuse_own(path.resolve())
        with disk_errors(path):
            places = _places(path) if path.is_dir() else []
            found = [self._item(place, path) for place in places] or [self._file(path)]
        if self.how == "move":
            _refuse_outside(found, path)
        names = [item.model.reference for item in found]
        if len(set(names)) < len(names):
            raise UsageError(
                f"{path} holds several models that would be called {names[0]}", hint="import each by itself"
            )
        return found

    def run(self, path: Path) -> list[Model]:
        """The versions that what is at a path has become. Raises what `items` does, IntegrityError for what
        is not as its `.metadata` say, UsageError where another model has its name, DiskError."""
        items = self.items(path)
        done = [self._bring(item) for item in items]
        if self.how == "move":
            for item in items:
                self._take_away(item, path)
        return done

    # What there is

    def _refuse_own(self, path: Path) -> None:
        """What is in the cache needs no import, and must not be moved to where it is."""
        tree = self.store.tree.resolve()
        if path.is_relative_to(tree) or tree.is_relative_to(path):
            raise UsageError(f"{path} is among the models of mdl", hint="mdl list shows them")

    def _item(self, place: Place, folder: Path) -> Item:
        if place.is_recorded:
            return self._recorded(place.mark)
        base = plain_name(folder.name)
        if place.is_piece:
            return self._described(place.mark, base, version=place.folder.name)
        below = place.mark.parent.relative_to(folder).parts
        return self._described(place.mark.parent, plain_name("-".join((base, *below))))

    def _recorded(self, mark: Path) -> Item:
        """A version as mdl wrote it."""
        try:
            model = metadata.read(mark)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{mark} is unreadable: {show(str(error), 200)}") from None
        anew = f"take {METADATA_NAME} away to import what is there"
        if any(file.sha256 is None for file in model.files):
            raise IntegrityError(f"{mark} has no digests", hint=anew)
        if missing := [file.name for file in model.files if not (mark.parent / file.name).is_file()]:
            raise IntegrityError(f"{show(missing[0])} is missing, which {mark} names", hint=anew)
        model = replace(model, files=tuple(map(_as_it_is, model.files)))
        if self.name or model.reference.is_api:
            model = replace(model, reference=self._named(model.reference, model.reference.version))
        model = replace(model, damaged=(), problem="")
        return Item(model, tuple(mark.parent / file.name for file in model.files))

    def _file(self, path: Path) -> Item:
        """A file, with the JSON that lies beside it under the same name."""
        place = split_of(path.name)
        stem = place[0] if place else path.stem
        beside = path.with_name(f"{stem}.json")
        return self._described(beside if path.suffix == ".gguf" and beside.is_file() else path, stem)

    def _described(self, path: Path, base: str, version: str | None = None) -> Item:
        found = describe(path)
        weights = identified(found) if found else identify(path)
        if found is None or found.is_absent or found.is_api:
            raise UnsupportedModel(f"{path} holds no weights", "name a GGUF file, or a folder with a model")
        if isinstance(weights, Refusal):
            raise weights.error()
        files, sources = _files(found)
        quantization = quantization_of(weights.first.name) or weights.facts.quantization
        quantization = quantization if weights.format == "gguf" else None
        plain = version if version and re.fullmatch(PLAIN, version) else None
        name = plain_name(_without(quantization, base))
        reference = self._named(Reference("short", "", name), plain or quantization or ONLY)
        written = ""
        if modeljson.NAME not in (file.name for file in files):
            paths = {file.name: found.folder / file.name for file in files}
            card = filled(reference.name, weights.facts, paths)
            loaded = (*weights.files, *([weights.projector] if weights.projector else []))
            binaries = tuple(path.name for path in loaded)
            written = modeljson.dumps(replace(card, binaries=binaries, source_url="./"))
        model = replace(found, reference=reference, files=files, place=None, card=None)
        return Item(model, sources, written)

    def _named(self, reference: Reference, version: str | None) -> Reference:
        """What a version is called: as the user wants it, else as it was."""
        chosen = self.name or reference
        if chosen.scheme not in NAMED:
            raise UsageError(f"{chosen} cannot be its name here", hint="--name org/name:version")
        if chosen.version is not None:
            return chosen
        return chosen.with_version(version or ONLY, reference.pin if self.name is None else None)

    # Bringing it

    def _bring(self, item: Item) -> Model:
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError), self.store.locks.contents(shared=True, wait=True):
                files = [
                    self._keep(file, path) for file, path in zip(item.model.files, item.sources, strict=True)
                ]
                if item.written:
                    files.append(self._write(item.written))
                model = replace(item.model, files=tuple(files), modified=now())
                current = self.store.find(model.reference)
                if current and _same(current, model):
                    return current
                if self.store.folder(model.reference).exists():
                    raise _taken(model.reference)
                return self.store.commit(model)
        raise Busy(f"{item.model.reference} is being removed while it is imported", hint="try again")

    def _keep(self, file: File, path: Path) -> File:
        """A content as a blob, held against its digest if that is known."""
        beside = self.store.partial(f"{unique()}.0")
        try:
            is_ours = self._place(path, beside)
            with disk_errors(path):
                size, sha256 = beside.stat().st_size, self.digests.get(path) or sha256_of(beside)
            if file.sha256 not in (None, sha256) or file.size not in (None, size):
                raise IntegrityError(
                    f"{show(file.name)} is not what its {METADATA_NAME} says: it is damaged, or was changed",
                    hint=f"take {METADATA_NAME} away to import it as it is",
                )
            self.store.keep(beside, sha256, protect=is_ours)
        finally:
            beside.unlink(missing_ok=True)
        return replace(file, size=size, sha256=sha256)

    def _place(self, path: Path, beside: Path) -> bool:
        """Put a content where it can become a blob; whether the file there is mdl's alone.

        By default a clone, which shares the bytes and stays as it is when the first file is written to; of
        small files, which people write to, a copy.
        """
        real = path.resolve()
        is_small = not self.how and real.stat().st_size < LEAST_SHARED
        with disk_errors(path):
            if self.how in ("", "copy") and _cloned(real, beside):
                return True
            if self.how != "copy" and not is_small and _linked(real, beside):
                return self.how == "move"
            if self.how == "link":
                raise DiskError(f"{path} cannot be linked from {beside.parent}", hint="leave out --link")
            require_space(beside, real.stat().st_size)
            copy(real, beside)
        return True

    def _write(self, text: str) -> File:
        beside = self.store.partial(f"{unique()}.0")
        with disk_errors(beside), beside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        size, sha256 = beside.stat().st_size, sha256_of(beside)
        self.store.keep(beside, sha256)
        return File(modeljson.NAME, size, sha256, role=role(modeljson.NAME))

    def _take_away(self, item: Item, path: Path) -> None:
        """Remove what has become a version, and the folders that nothing else is in."""
        mark = item.model.folder / METADATA_NAME
        with disk_errors(path):
            for source in (*item.sources, *([mark] if path.is_dir() and mark.is_file() else [])):
                source.unlink(missing_ok=True)
            for source in item.sources:
                for folder in source.parents:
                    if not folder.is_relative_to(path) or not _removed(folder):
                        break


@contextlib.contextmanager
def unpacked(path: Path, store: Store) -> Iterator[tuple[Path, dict[Path, str]]]:
    """The folder that an archive holds, taken apart in the store for as long as this lasts, and the digests
    of its files. Raises IntegrityError, DiskError, UnsupportedModel."""
    into = store.partial(unique()).with_suffix(".unpacked")
    with disk_errors(into):
        into.mkdir()
    try:
        digests = {}
        with disk_errors(into):
            for place, file in _unpack(path, into):
                target = into / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                place.rename(target)
                digests[target] = file.sha256 or ""
            yield _named_so(into / INSIDE, path.name), digests
    except MdlError as failure:  # where it was taken apart is nobody's business, and gone
        apart = rf"{re.escape(str(into))}[/\\](model|named[/\\][\w.+-]+)"
        failure.message = re.sub(apart, lambda _: path.name, failure.message)
        raise
    finally:
        shutil.rmtree(into, ignore_errors=True)


def adopt(store: Store) -> list[Model]:
    """Import the zips that somebody dropped into the tree of models, once they are whole. Never fails.

    One that holds no model, or is broken, is called so, and not looked at again.
    """
    done: list[Model] = []
    with contextlib.ExitStack() as locks, contextlib.suppress(MdlError, OSError):
        found = [path for path in _dropped(store.tree) if ziparchive.is_whole(path)]
        if found:
            locks.enter_context(store.locks.dropping())
        for path in filter(Path.exists, found):
            try:
                with unpacked(path, store) as (folder, digests):
                    done += Importer(store, "move", digests=digests).run(folder)
                path.unlink()
            except (IntegrityError, UnsupportedModel, UsageError):
                path.rename(path.with_name(f"{path.name}.unusable"))
    return done


def _dropped(tree: Path) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(tree) if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(Path(entry.path) for entry in entries if entry.name.endswith(PACKAGE))


def is_archive(path: Path) -> bool:
    """Whether a file is an archive that can be taken apart. A PyTorch checkpoint is a zip, but of pickles."""
    return path.is_file() and _suffix(path) is not None


def _suffix(path: Path) -> str | None:
    """What an archive is called by what it begins with."""
    with disk_errors(path), path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(ziparchive.MAGIC) and b"data.pkl" not in head:
        return ".zip"
    if head[257:262] == b"ustar":
        return archive.SUFFIXES["tar"]
    packed = {b"\x1f\x8b": "tar+gzip", b"\x28\xb5\x2f\xfd": "tar+zstd"}
    return next((archive.SUFFIXES[kind] for magic, kind in packed.items() if head.startswith(magic)), None)


def _unpack(path: Path, into: Path) -> tuple[tuple[Path, File], ...]:
    suffix = _suffix(path)
    if suffix == ".zip":
        return ziparchive.unpack(path, into, INSIDE)
    described = File(f"{plain_name(path.name)}{suffix}", path.stat().st_size, role="archive")
    return archive.unpack(path, described, into, INSIDE)


def _named_so(folder: Path, archive_name: str) -> Path:
    """The folder that an archive is about: the only one in it, else all of it, called like the archive."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    inside = [path for path in inside if path.name not in _BESIDE]
    if len(inside) == 1 and inside[0].is_dir():
        return inside[0]
    stem = re.sub(r"(?i)(\.tar)?\.(zip|tar|tgz|gz|zst)$", "", archive_name)
    if not inside:
        raise UnsupportedModel(
            f"the archive {show(archive_name)} is empty", hint="name one that holds a model"
        )
    named = folder.with_name("named") / plain_name(stem)
    named.parent.mkdir()
    return folder.rename(named)


def _places(folder: Path) -> list[Place]:
    """Where the versions of a folder lie: in itself, beside each other in it, or in folders below."""
    found = versions_in(folder)
    own = [place for place in found if place.folder == folder]
    recorded = [place for place in found if place.is_recorded]
    if own and (own == recorded[:1] or not recorded):
        return own[:1]
    if not found:
        refusal = identify(folder)
        raise (
            refusal.error() if isinstance(refusal, Refusal) else UnsupportedModel(f"{folder} holds no model")
        )
    return [place for place in found if not any(_is_part(place, other) for other in found)]


def _is_part(place: Place, other: Place) -> bool:
    """Whether a place only looks like a version: it lies in the folder of another."""
    outer = other.mark.parent
    return not place.is_recorded and place.mark.parent != outer and place.mark.is_relative_to(outer)


def _refuse_outside(items: list[Item], path: Path) -> None:
    """Nothing is taken away, or made mdl's own, that is not in what is imported: neither what a model.json
    names elsewhere, which may have come in an archive, nor what a link leads to."""
    home = (path if path.is_dir() else path.parent).resolve()
    for source in (source for item in items for source in item.sources):
        if not source.resolve().is_relative_to(home):
            raise UnsupportedModel(
                f"{show(str(source), 200)} is not in what is imported, and is not taken away",
                hint="leave out --move; an archive has to hold all that is in it",
            )


def _files(model: Model) -> tuple[tuple[File, ...], tuple[Path, ...]]:
    """The files of a version, and where each lies. Its JSON is called model.json there."""
    paths = {file.name: model.folder / file.name for file in model.files if file.name != METADATA_NAME}
    if model.card is not None:
        paths = {name: path for name, path in paths.items() if path != model.card}
        paths[modeljson.NAME] = model.card
    files = tuple(File(name, path.stat().st_size, role=role(name)) for name, path in paths.items())
    return files, tuple(paths.values())


def _as_it_is(file: File) -> File:
    """A model.json is there for people to write to: what it should hold is not known."""
    return File(file.name, None, role=file.role) if file.name == modeljson.NAME else file


def _without(quantization: str | None, base: str) -> str:
    """A name without the quantization at its end, which is the version's."""
    if not quantization:
        return base
    loose = re.escape(quantization).replace("_", "[-_.]")
    return re.sub(rf"(?i)[-_.]{loose}$", "", base) or base


def _same(one: Model, other: Model) -> bool:
    """Whether two versions have the same contents; a model.json that mdl wrote may be another."""
    contents = [
        {(file.name, file.sha256) for file in model.files if file.name != modeljson.NAME}
        for model in (one, other)
    ]
    return contents[0] == contents[1]


def _removed(folder: Path) -> bool:
    """Whether a folder is gone: it was empty."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _taken(reference: Reference) -> UsageError:
    return UsageError(
        f"{reference} is here already, and is another", hint=f"--name NAME:VERSION; or mdl rm {reference}"
    )


def _cloned(source: Path, target: Path) -> bool:
    """Whether the file system could give a file that shares the bytes until one of the two is written to."""
    if sys.platform != "linux":
        return False
    import fcntl

    clone = 0x40049409  # FICLONE of linux/fs.h
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), clone, reader.fileno())
        except OSError:
            cloned = False
        else:
            os.fsync(writer.fileno())
            cloned = True
    if not cloned:
        target.unlink()
    return cloned


def _linked(source: Path, target: Path) -> bool:
    """Whether a file could have a second name: not on another device, not where another's may have none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
