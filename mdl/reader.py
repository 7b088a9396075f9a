"""What is in a cache: read by name, or all of it. Knows no locks and changes nothing but the index.

A version lies in models/<host>/<path…>/<version>/, with its .metadata, or where somebody put it by hand.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mdl import metadata
from mdl.disk import entries_of, subfolders_of
from mdl.errors import MdlError, UsageError
from mdl.index import Index
from mdl.model import Model
from mdl.places import DEEPEST, OTHER_SUFFIXES, Place, mark_of, pieces, walk
from mdl.reference import UNKNOWN_VERSION, Reference, show

Describe = Callable[[Path], Model | None]  # what a folder without .metadata holds, or a file for itself


class Reader:
    """The models below one folder."""

    def __init__(self, root: Path, describe: Describe) -> None:
        self.root = root
        self.tree = root / "models"
        self._describe = describe

    def find(self, reference: Reference) -> Model | None:
        """The version of exactly this name, or None. Reads one folder, however many there are."""
        if reference.version == UNKNOWN_VERSION:
            reference = reference.model
        return self._at(self.folder(reference))

    def versions(self, reference: Reference) -> list[Model]:
        """What is here of a model, the newest first: the order in which versions were made known here."""
        folder = self.folder(reference.model)
        found = []
        for place in (folder, *subfolders_of(folder), *(piece.folder for piece in self._pieces(folder))):
            with contextlib.suppress(UsageError):  # a name that is no name hides no other version
                found.append(self._at(place))
        return sorted((model for model in found if model), key=_age)

    def models(self) -> list[Model]:
        """Everything that is here, in the order of the tree. A damaged version has a `problem`."""
        index = Index(self.root / "index.json")
        found = [self._indexed(place, index) for place in walk(self.tree, DEEPEST)]
        index.save()
        return [model for model in found if model]

    def names(self) -> Iterator[tuple[Reference, Path]]:
        """The references of everything that is here and their folders, without reading any."""
        for place in walk(self.tree, DEEPEST):
            with contextlib.suppress(MdlError):
                yield self._reference(place), place.folder

    def folder(self, reference: Reference) -> Path:
        return self.tree.joinpath(*reference.path_parts())

    def _indexed(self, place: Place, index: Index) -> Model | None:
        try:
            key = str(place.folder.relative_to(self.tree))
            return index.model(key, place, lambda: self._at(place.folder))
        except (OSError, MdlError) as error:
            return Model(Reference("short", "", "unreadable"), place.mark.parent, (), problem=_reason(error))

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
        mark = "" if folder == self.tree else mark_of(entries_of(folder))
        if mark:
            return Place(folder, folder / mark)
        return next((place for place in self._pieces(folder.parent) if place.folder == folder), None)

    def _pieces(self, folder: Path) -> "list[Place]":
        """The versions that lie in a folder beside each other."""
        return pieces(folder, entries_of(folder), is_tree=folder == self.tree)

    def _read(self, place: Place) -> Model | None:
        is_recorded = place.is_recorded and place.mark.exists()
        return self._recorded(place) if is_recorded else self._by_hand(place)

    def _recorded(self, place: Place) -> Model:
        folder = place.folder
        reference = self._reference(place)
        try:
            model = metadata.read(place.mark)
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


def _identity(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, MdlError) else show(str(error), 200)


def _age(model: Model) -> tuple[float, str]:
    return -model.modified.timestamp(), model.version
