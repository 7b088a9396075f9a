"""What an artifact of a registry holds: its manifest read as files, whatever tool has made it. Pure.

Kinds and their media types, as their own specifications and tools have them:
- files with titles: https://oras.land, `podman artifact add`
- CNCF ModelPack: https://github.com/modelpack/model-spec (also what ramalama pushes)
- Docker's models: https://github.com/docker/model-spec
- KitOps ModelKits: https://kitops.org
- container images that hold a model: ramalama's oci transport
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mdl.errors import IntegrityError, MdlError, UnsupportedModel
from mdl.filename import role
from mdl.model import File, refuse_twins
from mdl.reference import show

MOST_LAYERS = 2_000  # the largest models have some hundred shards
MOST_MANIFESTS = 200  # of an index

TITLE = "org.opencontainers.image.title"
NAMES = ("org.cncf.model.filepath", "org.cnai.model.filepath", TITLE)  # the first that is there counts
UNPACK = "io.deis.oras.content.unpack"  # a titled layer that is an archive
MODEL_MARK = "org.cnai.model.model"  # by which an index says which of its manifests is the model
IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
IMAGE_LAYERS = re.compile(r"application/vnd\.(oci\.image\.layer\.v1|docker\.image\.rootfs\.diff)\.tar.*")
IMAGE_LABEL = "org.containers.type"  # of an image that ramalama has made
IMAGE_MODEL = "ai.image.model"

# What it is, by the beginning of its artifactType, of the type of its configuration or of its first layer.
MODELS = {
    "application/vnd.cncf.model.": "a ModelPack",
    "application/vnd.cnai.model.": "a ModelPack",
    "application/vnd.docker.ai.": "a model of Docker's",
    "application/vnd.kitops.modelkit.": "a ModelKit",
}
OTHERS = {
    "application/vnd.cncf.helm.": "a Helm chart",
    "application/vnd.dev.cosign.": "a signature",
    "application/vnd.dev.sigstore.": "a signature",
    "application/vnd.in-toto": "an attestation",
    "application/vnd.wasm.": "a WebAssembly module",
    "application/wasm": "a WebAssembly module",
    "application/vnd.ollama.": "a model of Ollama's",
    "application/spdx+json": "a bill of materials",
    "application/vnd.cyclonedx": "a bill of materials",
}
# Names of layers that have none, by the end of their media type.
UNNAMED = {
    "gguf.v3": "model.gguf",
    "v1.gguf": "model.gguf",
    ".safetensors": "model.safetensors",
    ".mmproj": "mmproj.gguf",
    ".lora": "adapter.gguf",
    ".license": "LICENSE",
    ".jinja": "chat_template.jinja",
    ".dduf": "model.dduf",
}
_PACKED = re.compile(r"[.+]tar(?:[.+](gzip|zstd))?$")
_BESIDE = re.compile(r"vnd\.(cncf\.model|cnai\.model|kitops\.modelkit)\.(dataset|code)\.")
_NO_MODEL = "mdl fetches language models"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Layer(NamedTuple):
    """A descriptor, checked. `packed` is tar, tar+gzip or tar+zstd for an archive of files."""

    media_type: str
    digest: str  # 64 hex digits
    size: int
    annotations: Mapping[str, str]
    packed: str = ""


class Artifact(NamedTuple):
    """What a manifest holds: files by themselves, archives of files, and what people call its kind."""

    kind: str
    files: tuple[File, ...]
    archives: tuple[Layer, ...]
    left_out: str = ""  # what no model needs, in words


def is_index(content: Mapping[str, Any]) -> bool:
    return "manifests" in content and "layers" not in content


def chosen(content: Mapping[str, Any], architecture: str) -> Layer:
    """The descriptor of the manifest of an index that is the model.

    That is the one marked so, else the only one, else of several the one for no machine in particular or for
    this one. `architecture` is the machine's, as Go calls it. Raises UnsupportedModel, IntegrityError.
    """
    entries = content.get("manifests")
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_MANIFESTS:
        raise UnsupportedModel("an index of no use", hint=_NO_MODEL)
    found = [(_layer(entry), _platform(entry)) for entry in entries]
    found = [(layer, place) for layer, place in found if place != "unknown"]  # attestations of docker's
    marked = [layer for layer, _ in found if layer.annotations.get(MODEL_MARK)]
    anywhere = [layer for layer, place in found if not place]
    here = [layer for layer, place in found if place == architecture]
    for layers in (marked, [layer for layer, _ in found], anywhere, here):
        if len(layers) == 1:
            return layers[0]
    raise UnsupportedModel(
        f"an index of {len(found)} manifests, of which none is the model", hint="pin one: host/path@sha256:…"
    )


def config_of(content: Mapping[str, Any]) -> Layer | None:
    """The configuration, if there is one; raises IntegrityError."""
    return _layer(content["config"]) if content.get("config") is not None else None


def is_image(content: Mapping[str, Any]) -> bool:
    """Whether it is a container image by its form: what its configuration says has to be read."""
    config = config_of(content)
    layers = _layers(content)
    untitled = not any(name_of(layer) for layer in layers)
    image = all(IMAGE_LAYERS.fullmatch(layer.media_type) for layer in layers)
    return config is not None and config.media_type in IMAGE_CONFIGS and untitled and image


def holds_model(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of a container image says that a model is in it."""
    inner = config.get("config")
    labels = inner.get("Labels") if isinstance(inner, dict) else None
    mark = labels.get(IMAGE_LABEL) if isinstance(labels, dict) else None
    return isinstance(mark, str) and mark.startswith(IMAGE_MODEL)


def read(content: Mapping[str, Any], *, image: bool = False) -> Artifact:
    """The files and archives of a manifest; with `image` those of a container image that holds a model.

    Raises UnsupportedModel, with what it is, for what is no model; IntegrityError for a manifest that cannot
    be, or leads astray.
    """
    kind = kind_of(content)
    if kind in OTHERS.values():
        raise UnsupportedModel(kind, hint=_NO_MODEL)
    layers = _layers(content)
    beside = [layer for layer in layers if _BESIDE.search(layer.media_type)]
    packed = [layer._replace(packed=_packing(layer)) for layer in layers if layer not in beside]
    plain = [layer for layer in packed if not layer.packed]
    archives = tuple(layer for layer in packed if layer.packed)
    if not image and any(map(is_of_image, archives)):
        raise UnsupportedModel("a container image", hint="it holds no model that mdl knows of")
    files = _files(plain, kind)
    weights = any(role(file.name) in ("weights", "adapter", "projector") for file in files)
    if not weights and not archives:
        names = ", ".join(file.name for file in files[:4]) or "nothing"
        raise UnsupportedModel(f"{kind} without weights: {show(names, 120)}", hint=_NO_MODEL)
    left_out = f"layers of data and code left out: {len(beside)}" if beside else ""
    return Artifact(kind, files, archives, left_out)


def titled(content: Mapping[str, Any], title: str) -> Layer:
    """The layer of that title, or the only one. Raises UnsupportedModel, IntegrityError."""
    layers = [] if is_index(content) else _layers(content)
    found = [layer for layer in layers if name_of(layer).removeprefix("./") == title] or layers
    if len(found) != 1:
        raise UnsupportedModel(f"an artifact of {len(layers)} layers, none of which is {title}")
    return found[0]


def kind_of(content: Mapping[str, Any]) -> str:
    """What people call what it says it is."""
    config = content.get("config")
    described = config.get("mediaType") if isinstance(config, dict) else None
    types = [kind for kind in (content.get("artifactType"), described) if isinstance(kind, str)]
    for kind in (*types, *_first_type(content)):
        for beginning, words in (MODELS | OTHERS).items():
            if kind.startswith(beginning):
                return words
    known = next((kind for kind in types if not kind.startswith("application/vnd.oci.empty")), "")
    return f"an artifact of the type {show(known)}" if known and known not in IMAGE_CONFIGS else "an artifact"


def _first_type(content: Mapping[str, Any]) -> list[str]:
    """Of the first layer, by which those are known that say no more of themselves; not that of a file."""
    layers = content.get("layers")
    first = layers[0] if isinstance(layers, list) and layers else None
    kind = first.get("mediaType") if isinstance(first, dict) and not first.get("annotations") else None
    return [kind] if isinstance(kind, str) else []


def _layers(content: Mapping[str, Any]) -> list[Layer]:
    entries = content.get("layers")
    if not isinstance(entries, list):
        kind = content.get("mediaType")
        raise UnsupportedModel(f"no artifact: {show(str(kind))}", hint=_NO_MODEL)
    if len(entries) > MOST_LAYERS:
        raise IntegrityError(f"{len(entries):,} layers, which no model has", hint=_NO_MODEL)
    return [_layer(entry) for entry in entries]


def _layer(entry: Any) -> Layer:
    """A descriptor as the specification has it. Foreign layers, which are somewhere else, are refused."""
    if not isinstance(entry, dict):
        raise IntegrityError("a descriptor that is none", hint="the registry or who pushed it is at fault")
    kind, digest, size = (entry.get(name) for name in ("mediaType", "digest", "size"))
    notes = entry.get("annotations") or {}
    if not (isinstance(kind, str) and isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise IntegrityError(f"a layer named by {show(str(digest))}, which is no sha256", hint=_NO_MODEL)
    if type(size) is not int or not 0 <= size < 1 << 50 or not isinstance(notes, dict):
        raise IntegrityError(f"a layer of an impossible size: {show(str(size))}", hint=_NO_MODEL)
    if entry.get("urls") or "foreign" in kind or "nondistributable" in kind:
        raise UnsupportedModel(
            "an artifact with a layer on another server", hint="mdl fetches only from the registry"
        )
    notes = {name: value for name, value in notes.items() if isinstance(name, str) and isinstance(value, str)}
    return Layer(kind, digest.removeprefix("sha256:"), size, notes)


def _platform(entry: Mapping[str, Any]) -> str:
    platform = entry.get("platform")
    return str(platform.get("architecture") or "") if isinstance(platform, dict) else ""


def _packing(layer: Layer) -> str:
    """How the files of a layer are packed; "" where the layer is a file.

    `oras push` gives every file the type of an image's layer; what is titled so is an archive only if that is
    said too, or if it is compressed and called as folders are: so oras-py pushes them. What is titled and of
    a type that nobody knows is a file, whatever the end of the type.
    """
    match = _PACKED.search(layer.media_type)
    if match is None:
        return ""
    if not layer.media_type.startswith(tuple(MODELS)):
        title = name_of(layer)
        folder = layer.annotations.get(UNPACK) == "true" or (match[1] and "." not in title.split("/")[-1])
        if not IMAGE_LAYERS.fullmatch(layer.media_type) or (title and not folder):
            return ""
    return f"tar+{match[1]}" if match[1] else "tar"


def is_of_image(layer: Layer) -> bool:
    """Whether it is a part of a container's file system."""
    return IMAGE_LAYERS.fullmatch(layer.media_type) is not None and not name_of(layer)


def name_of(layer: Layer) -> str:
    """What its annotations call it, if they do."""
    return next((layer.annotations[name] for name in NAMES if layer.annotations.get(name)), "")


def _files(layers: Sequence[Layer], kind: str) -> tuple[File, ...]:
    """The files that are layers of their own, named by their annotations or by what they are for."""
    unnamed: dict[str, list[Layer]] = {}
    for layer in layers:
        if not name_of(layer):
            unnamed.setdefault(_plain_name(layer, kind), []).append(layer)
    names = {id(layer): name_of(layer) for layer in layers if name_of(layer)}
    for name, same in unnamed.items():
        for number, layer in enumerate(same, start=1):
            names[id(layer)] = _numbered(name, number, len(same))
    found = tuple(_file(names[id(layer)], layer) for layer in layers)
    refuse_twins(found)
    return found


def _plain_name(layer: Layer, kind: str) -> str:
    name = next((name for ending, name in UNNAMED.items() if layer.media_type.endswith(ending)), "")
    if not name:
        raise UnsupportedModel(
            f"{kind} with a layer of the type {show(layer.media_type)}, which has no name",
            hint=_NO_MODEL,
        )
    return name


def _numbered(name: str, number: int, count: int) -> str:
    stem, dot, ending = name.partition(".")
    if count > 1 and name.startswith("model."):
        return f"{stem}-{number:05}-of-{count:05}.{ending}"  # as the parts of a split are called
    return name if number == 1 else f"{stem}-{number}{dot}{ending}"


def _file(name: str, layer: Layer) -> File:
    name = name.removeprefix("./")
    return File(name, layer.size, layer.digest, role=role(name))


def within(reference: object, failure: MdlError) -> MdlError:
    """The same failure, about a reference: what is wrong with it, or else what it is."""
    joint = ":" if isinstance(failure, IntegrityError) else " is"
    return type(failure)(f"{reference}{joint} {failure.message}", failure.hint)
