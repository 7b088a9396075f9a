"""The Ollama registry: models as layers for weights, template, parameters and so on. Knows no cache.

The wire is that of any registry; what its layers mean is read off Ollama's own code (server/images.go) and
what its registry serves. What the files of a version mean for answers is told by `profiles`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mdl.card import Card, of_manifest
from mdl.errors import IntegrityError, MdlError, UnsupportedModel
from mdl.model import File, Manifest, Revision
from mdl.reference import ONLY, Reference, show
from mdl.transports.registry import Document, Registry

if TYPE_CHECKING:
    from mdl.address import Remote
    from mdl.config import Settings

PREFIX = "application/vnd.ollama.image."
CONFIG = "ollama.json"  # the format, family and so on, as the publisher's Ollama recorded them
MOST_LAYERS = 10_000  # a model of single tensors has some hundreds
LARGEST_CONFIG = 1 << 20
LONGEST = 256  # characters shown of what a configuration says


class Kind(NamedTuple):
    """What becomes of a layer: the name of its file (of several, each gets its number) and its role."""

    name: str
    role: str
    many: bool = False


KINDS = {
    "model": Kind("model.gguf", "weights", many=True),
    "projector": Kind("mmproj.gguf", "projector", many=True),
    "adapter": Kind("adapter.gguf", "adapter", many=True),
    "license": Kind("LICENSE", "license", many=True),
    "template": Kind("template", "template"),
    "prompt": Kind("template", "template"),  # as templates were called at first
    "system": Kind("system", "system"),
    "params": Kind("params.json", "parameters"),
    "messages": Kind("messages.json", "messages"),
}


class Layer(NamedTuple):
    kind: str  # the end of its media type
    digest: str
    size: int


class Ollama:
    """Models of the Ollama registry, or of what the settings have in its place."""

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings
        self._registries: dict[Reference, Registry] = {}

    def manifest(self, reference: Reference) -> Manifest:
        """The files of a tag, `latest` if none is named, as what they are for and not by their digests.

        Raises what `Transport` says; UnsupportedModel, with what it is, for models without a GGUF file.
        """
        tag = reference.version or ONLY
        document = self._registry(reference).document(reference.pin or tag)
        layers = _layers(document, reference)
        self._require_weights(reference, document, layers)
        files = (*_files(layers), *_config_file(document))
        return Manifest(
            reference.with_version(tag, reference.pin),
            files,
            Revision("tag", tag, document.digest),
            source=f"{self._settings.ollama_endpoint}/{reference.path}",
            note=_left_out(layers),
        )

    def card(self, reference: Reference) -> Card:
        """The version that is named, and the tags where the registry lists them."""
        manifest = self.manifest(reference)
        return of_manifest(manifest, manifest.reference.version or ONLY, tags=self.versions(reference))

    def versions(self, reference: Reference) -> tuple[str, ...]:
        """The tags; none where the registry does not list them, as Ollama's own does not."""
        try:
            return tuple(self._registry(reference).tags())
        except MdlError:
            return ()

    def remote(self, manifest: Manifest, file: File) -> "Remote":
        return self._registry(manifest.reference).remote(f"sha256:{file.sha256}")

    def _registry(self, reference: Reference) -> Registry:
        model = reference.model
        if model not in self._registries:
            self._registries[model] = Registry(model, self._settings, self._settings.ollama_endpoint)
        return self._registries[model]

    def _require_weights(self, reference: Reference, document: Document, layers: tuple[Layer, ...]) -> None:
        if any(layer.kind == "model" for layer in layers):
            return
        what, hint = "holds no weights", "check the name"
        if any(layer.kind == "tensor" for layer in layers):
            what = "has its weights as single tensors, for Apple's MLX, which llama.cpp does not load"
            hint = "look for a tag without mlx in its name"
        else:
            config = self._config(reference, document)
            if host := _text(config, "remote_host"):
                what = f"runs at {show(host)}, and has no weights to download"
                hint = "look for a tag without cloud in its name"
            elif (form := _text(config, "model_format")) not in ("", "gguf"):
                what = f"has its weights as {show(form)}, which llama.cpp does not load"
        raise UnsupportedModel(f"{reference} {what}", hint=hint)

    def _config(self, reference: Reference, document: Document) -> Mapping[str, Any]:
        """The configuration; an empty one where it cannot be understood."""
        described = document.content.get("config")
        if not isinstance(described, dict):
            return {}
        layer = _layer(described, reference)
        if layer.size > LARGEST_CONFIG:
            return {}
        try:
            config = json.loads(self._registry(reference).blob(layer.digest, layer.size))
        except (ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}


def _layers(document: Document, reference: Reference) -> tuple[Layer, ...]:
    """The layers of a manifest. Raises UnsupportedModel for what is no model of Ollama's, IntegrityError."""
    described = document.content.get("layers")
    if not isinstance(described, list) or len(described) > MOST_LAYERS:
        raise UnsupportedModel(
            f"{reference} is no model of Ollama's: {show(document.media_type)}", hint="check the name"
        )
    layers = tuple(_layer(entry, reference) for entry in described)
    for layer in layers:
        if "/" in layer.kind:
            raise UnsupportedModel(
                f"{reference} is no model of Ollama's: it has a layer {show(layer.kind)}",
                hint=f"if it is an artifact of a registry: oci://{reference.host}/{reference.path}",
            )
    return layers


def _layer(described: Any, reference: Reference) -> Layer:
    """One descriptor, checked."""
    if isinstance(described, dict):
        kind, digest, size = (described.get(name) for name in ("mediaType", "digest", "size"))
        if isinstance(kind, str) and isinstance(digest, str) and type(size) is int and size >= 0:
            return Layer(kind.removeprefix(PREFIX), digest, size)
    raise IntegrityError(f"the manifest of {reference} describes a layer that cannot be", hint="try again")


def _files(layers: tuple[Layer, ...]) -> Iterator[File]:
    """The layers as files. Of those that there can be one of, the last counts, as Ollama has it."""
    for name in dict.fromkeys(kind.name for kind in KINDS.values()):
        same = [layer for layer in layers if layer.kind in KINDS and KINDS[layer.kind].name == name]
        if not same:
            continue
        kind = KINDS[same[0].kind]
        same = same if kind.many else same[-1:]
        for number, layer in enumerate(same, start=1):
            yield _file(_numbered(kind, number, len(same)), layer, kind.role)


def _numbered(kind: Kind, number: int, count: int) -> str:
    stem, dot, ending = kind.name.partition(".")
    if kind.role == "weights" and count > 1:
        return f"{stem}-{number:05}-of-{count:05}.{ending}"  # as llama.cpp looks for the parts
    return kind.name if number == 1 else f"{stem}-{number}{dot}{ending}"


def _file(name: str, layer: Layer, role: str) -> File:
    algorithm, _, digest = layer.digest.partition(":")
    if algorithm != "sha256":
        raise IntegrityError(f"{name} is named by {show(layer.digest)}, which is no sha256", hint="try again")
    return File(name, layer.size, digest, role=role)


def _config_file(document: Document) -> Iterator[File]:
    described = document.content.get("config")
    if isinstance(described, dict) and isinstance(described.get("digest"), str):
        size = described.get("size")
        yield _file(CONFIG, Layer("", described["digest"], size if type(size) is int else -1), "config")


def _left_out(layers: tuple[Layer, ...]) -> str:
    kinds = sorted({layer.kind for layer in layers if layer.kind not in KINDS})
    return f"left out, as mdl has no use for it: {', '.join(map(show, kinds[:8]))}" if kinds else ""


def _text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    return value[:LONGEST] if isinstance(value, str) else ""
