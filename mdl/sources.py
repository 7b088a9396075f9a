"""The places that a model.json names, as one source. Knows no cache.

What is fetched from them becomes a version of its own: the weights, a projector from another place perhaps,
and the model.json itself.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mdl import carded
from mdl.errors import NotFound
from mdl.filename import quantization_of, role
from mdl.model import File, Manifest, refuse_twins
from mdl.modeljson import NAME, Card, read
from mdl.reference import ONLY, Reference, show

if TYPE_CHECKING:
    from mdl.address import Remote
    from mdl.transports import Transport


class Sources:
    """A transport for the model that a model.json is about; `load` gives the one of each place."""

    def __init__(self, path: Path, load: "Callable[[Reference], Transport]") -> None:
        self.path = path
        self._load = load
        self._from: dict[str, tuple[Transport, Manifest]] = {}

    def manifest(self, reference: Reference) -> Manifest:
        """All the files, under the model's own name, with a version if it has none.

        Raises what transports raise, and UnsupportedModel for a JSON that names no place.
        """
        card = read(self.path)
        found = [self._at(place, card) for place in carded.sources(card, self.path)]
        own = self._own()
        files = (*(file for file in self._chosen(card, found) if file.name != NAME), own)
        refuse_twins(files)
        version = reference.version or _version(card, files, found[0].reference)
        return Manifest(
            reference.with_version(version),
            files,
            found[0].revision,
            source=found[0].source,
            note=found[0].note,
        )

    def remote(self, _: Manifest, file: File) -> "Remote | Path":
        """Where a file's bytes are: those of the JSON lie on this machine."""
        if file.name == NAME:
            return self.path
        if file.name not in self._from:
            raise NotFound(f"{show(file.name)} is at no place that {self.path} names", hint="mend it")
        transport, own = self._from[file.name]
        return transport.remote(own, file)

    def _at(self, place: Reference, card: Card) -> Manifest:
        transport = self._load(place)
        manifest = transport.manifest(_chosen_of(place, card))
        for file in manifest.files:
            self._from.setdefault(file.name, (transport, manifest))
        return manifest

    def _chosen(self, card: Card, found: list[Manifest]) -> Iterator[File]:
        """Each file once; of the first place only those that the JSON names, if it does."""
        named = set(carded.included(card))
        every = {file.name: file for manifest in reversed(found) for file in manifest.files}
        is_named = named and named <= every.keys()
        for name, file in every.items():
            if not is_named or name in named or file not in found[0].files or file.role not in _WEIGHTS:
                yield file

    def _own(self) -> File:
        content = self.path.read_bytes()
        return File(NAME, len(content), hashlib.sha256(content).hexdigest(), role=role(NAME))


_WEIGHTS = ("weights", "projector", "adapter")


def _chosen_of(place: Reference, card: Card) -> Reference:
    """Of a repository with several quantizations the one that the JSON is about."""
    names = carded.included(card)
    wanted = names[0] if names else card.quantization
    return place.with_version(wanted) if place.scheme == "hf" and not place.version and wanted else place


def _version(card: Card, files: tuple[File, ...], place: Reference) -> str:
    """What a version is called whose name tells none."""
    weights = next((file.name for file in files if file.role == "weights"), "")
    return card.quantization or quantization_of(weights) or place.version or ONLY
