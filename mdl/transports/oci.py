"""Registries (quay.io, Docker Hub, one of your own): models as artifacts. Knows no cache.

`registry` speaks the API, `artifact` reads what the tools of the field push.
"""

import json
import platform
from typing import TYPE_CHECKING

from mdl.card import About, Card, of_manifest, section
from mdl.errors import IntegrityError, MdlError, UnsupportedModel, UsageError
from mdl.model import AT_FAULT, File, Manifest, Revision
from mdl.reference import ONLY, Reference, show
from mdl.transports import artifact, artifactcard
from mdl.transports.artifact import Artifact, Layer
from mdl.transports.registry import Document, Registry
from mdl.variants import choose, variants

if TYPE_CHECKING:
    from mdl.address import Remote
    from mdl.config import Settings

LARGEST_CONFIG = 1 << 20  # bytes that are read for what a publisher says
MOST_SHOWN = 12  # names in a note
DEEPEST = 2  # indexes in indexes
PIN_DIGITS = 12  # of a digest that stands for the version of what is pinned and has no tag
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Go calls them


class Oci:
    """Models of any registry."""

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings
        self._registries: dict[Reference, Registry] = {}

    def manifest(self, reference: Reference) -> Manifest:
        """The files of a tag (`latest` if none is named) or of a digest, with the digest of its manifest.

        Raises what `Transport` says; UnsupportedModel, with what it is, for what is no model.
        """
        document = self._registry(reference).document(reference.pin or reference.version or ONLY)
        try:
            found = self._read(reference, document)
            files, note = _chosen(found, reference)
        except (UnsupportedModel, IntegrityError) as failure:
            raise artifact.within(reference, failure) from None
        return Manifest(
            _named(reference, document),
            files,
            _revision(reference, document),
            source=f"{reference.host}/{reference.path}",
            note=note,
        )

    def remote(self, manifest: Manifest, file: File) -> "Remote":
        return self._registry(manifest.reference).remote(f"sha256:{file.sha256}")

    def card(self, reference: Reference) -> Card:
        """The version that is named, what its publisher says of it, and the tags."""
        manifest = self.manifest(reference)
        version = manifest.reference.version or ONLY
        return of_manifest(manifest, version, self._about(manifest), self.versions(reference))

    def _about(self, manifest: Manifest) -> About:
        """What the manifest and its configuration say, where they can be had and understood."""
        registry = self._registry(manifest.reference)
        content = registry.document(manifest.revision.commit).content
        described = None if artifact.is_index(content) else artifact.config_of(content)
        if described is None or described.size > LARGEST_CONFIG:
            return artifactcard.about(content, {})
        try:
            config = json.loads(registry.blob(f"sha256:{described.digest}", described.size))
        except (MdlError, ValueError, RecursionError):  # a download does without it, too
            config = {}
        return artifactcard.about(content, section(config))

    def versions(self, reference: Reference) -> tuple[str, ...]:
        """The tags, in the registry's order. Raises NotFound, AuthError, NetworkError."""
        return tuple(self._registry(reference).tags())

    def _registry(self, reference: Reference) -> Registry:
        model = reference.model
        if model not in self._registries:
            self._registries[model] = Registry(model, self._settings)
        return self._registries[model]

    def _read(self, reference: Reference, document: Document) -> Artifact:
        for _ in range(DEEPEST):
            if not artifact.is_index(document.content):
                break
            entry = artifact.chosen(document.content, _architecture())
            document = self._registry(reference).document(f"sha256:{entry.digest}")
            if document.size != entry.size:
                raise IntegrityError(
                    f"its manifest has {document.size} bytes, {entry.size} were promised", hint=AT_FAULT
                )
        image = artifact.is_image(document.content)
        return artifact.read(document.content, image=image and self._holds_model(reference, document))

    def _holds_model(self, reference: Reference, document: Document) -> bool:
        config = artifact.config_of(document.content)
        assert config is not None
        try:
            content = json.loads(self._registry(reference).blob(f"sha256:{config.digest}", config.size))
        except (ValueError, RecursionError):
            return False
        return isinstance(content, dict) and artifact.holds_model(content)


def _named(reference: Reference, document: Document) -> Reference:
    """With its version: the tag, else the beginning of the digest that it is pinned to."""
    if reference.version is None and reference.pin is not None:
        digits = document.digest.removeprefix("sha256:")[:PIN_DIGITS]
        return reference.with_version(digits, reference.pin)
    return reference.with_version(reference.version or ONLY, reference.pin)


def _revision(reference: Reference, document: Document) -> Revision:
    if reference.pin:
        return Revision("digest", "", document.digest)
    return Revision("tag", reference.version or ONLY, document.digest)


def _chosen(found: Artifact, reference: Reference) -> tuple[tuple[File, ...], str]:
    """The files to fetch, and what was chosen or left out. Of several quantizations one is taken, as of a
    repository on a hub; where nothing tells which of several models is meant, all are."""
    archives = tuple(_archive(layer) for layer in found.archives)
    sizes = {file.name: file.size or 0 for file in found.files}
    models = variants(sizes)
    left, note = set[str](), ""
    try:
        if models or not archives:  # else what is missing beside the files may be in an archive
            choice = choose(sizes, None, reference.version or ONLY)
            assert choice is not None
            parts = {part for model in models for part in model.parts}
            projectors = {file.name for file in found.files if file.role == "projector"}
            left = (parts | projectors) - set(choice.files)
            note = choice.note
    except UsageError:
        names = ", ".join(model.stem for model in models[:MOST_SHOWN])
        note = f"nothing tells which model is meant, so all {len(models)} come: {show(names, 200)[1:-1]}"
    files = tuple(file for file in found.files if file.name not in left)
    return (*files, *archives), "; ".join(filter(None, (note, found.left_out)))


def _archive(layer: Layer) -> File:
    """An archive as a file that is to be taken apart."""
    from mdl.archive import SUFFIXES

    image = artifact.IMAGE_LAYERS.fullmatch(layer.media_type) and not artifact.name_of(layer)
    name = f"layer-{layer.digest[:PIN_DIGITS]}{SUFFIXES[layer.packed]}"
    return File(name, layer.size, layer.digest, role="image" if image else "archive")


def _architecture() -> str:
    return ARCHITECTURES.get(platform.machine(), platform.machine())
