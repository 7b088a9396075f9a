"""What a model is, for `mdl inspect`: header, files, template, licence, versions. Knows no terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mdl import (
    documents,
    fitting,
    gguf,
    layers,
    machine,
    modeljson,
    packaged,
    placement,
    profiles,
    safetensors,
)
from mdl.errors import NotFound, UnsupportedModel
from mdl.header import Tensor
from mdl.library import Library
from mdl.machine import Machine
from mdl.model import Model
from mdl.profiles import Profile
from mdl.weights import Weights

if TYPE_CHECKING:
    from mdl.memory import Fit
    from mdl.survey import Survey

LONGEST_TEXT = 1 << 20  # bytes that are read of a licence


def describe(library: Library, model: Model, weights: Weights, context: int | None = None) -> dict[str, Any]:
    """Everything but the header's raw keys and tensors; the memory that it takes for a context of so many
    tokens. Raises UsageError for more of them than the model learned."""
    here = machine.look()
    fit = _fit(weights, here, context, library.settings.memory)
    profile = profiles.merged(packaged.of(model), modeljson.profile(model))
    return {
        **documents.model(model),
        "header": documents.facts(weights.facts),
        "memory": documents.memory(fit) if fit else None,
        "machine": documents.machine(here, library.settings.memory) if fit else None,
        "source": model.source or None,
        "template": _template(profile, weights),
        "profile": profiles.as_document(profile),
        "license": license_text(model) or weights.facts.license,
        "versions": [
            {"version": version.version, "size": version.size, "modified": version.modified.isoformat()}
            for version in library.store.versions(model.reference)
        ],
    }


def _fit(weights: Weights, here: Machine, context: int | None, most: int) -> "Fit | None":
    """How a model lies in this machine's memory; None for what llama.cpp does not load."""
    if weights.format != "gguf" or weights.kind != "model":
        return None
    try:
        return fitting.fit_one(placement.read(weights.files), here, context, most)
    except UnsupportedModel:  # a header that says too little
        return None


def settings(library: Library, model: Model, weights: Weights, name: str) -> dict[str, Any]:
    """What is in force for a model that is asked for by this name, and where each value comes from."""
    return layers.as_document(layers.of(library, model, weights, name))


def part(model: Model, weights: Weights, name: str) -> Any:
    """Its files, template, license, metadata or tensors."""
    if name == "files":
        return documents.model(model)["files"]
    if name == "template":
        return _template(packaged.of(model), weights)
    if name == "license":
        return license_text(model) or weights.facts.license
    if name == "metadata":
        return metadata(weights)
    return [_tensor(tensor) for tensor in tensors(weights)]


def _template(profile: Profile, weights: Weights) -> str | None:
    """The template that prompts are written with."""
    return profile.template if profile.template is not None else weights.facts.chat_template


def metadata(weights: Weights) -> dict[str, Any]:
    """The header's keys; of a long array its type and length."""
    if weights.format == "gguf":
        return _keys(gguf.read(weights.first))
    folder = weights.first.parent
    names = (safetensors.CONFIG, safetensors.ADAPTER_CONFIG)
    return {
        key: value
        for name in names
        if (folder / name).is_file()
        for key, value in safetensors.load(folder / name).items()
    }


def value(weights: Weights, key: str) -> Any:
    """The whole value of one key; raises NotFound with the nearest name."""
    found: Mapping[str, Any] = (
        gguf.read(weights.first).metadata if weights.format == "gguf" else metadata(weights)
    )
    chosen = _named(found, key)
    return gguf.elements(weights.first, chosen) if isinstance(chosen, gguf.Array) else chosen


def remote_part(found: "Survey", name: str) -> Any:
    """The same of a model that is elsewhere. Raises UnsupportedModel where its header was not read."""
    if name == "files":
        return documents.files(list(dict.fromkeys(f for offer in found.card.offers for f in offer.files)))
    if name == "license":
        return found.license
    header = _header(found)
    if name == "template":
        return gguf.facts(header).chat_template
    if name == "metadata":
        return _keys(header)
    return [_tensor(tensor) for tensor in header.tensors]


def remote_value(found: "Survey", key: str) -> Any:
    """The value of one key; of a long array its type and length. Raises NotFound with the nearest name."""
    return _shortened(_named(_header(found).metadata, key))


def _header(found: "Survey") -> gguf.Header:
    if found.header is None:
        cause = found.unread or "it is no GGUF file, or may not be read"
        raise UnsupportedModel(f"{found.card.reference} has no header to show: {cause}", "download it first")
    return found.header


def _keys(header: gguf.Header) -> dict[str, Any]:
    return {key: _shortened(value) for key, value in header.metadata.items()}


def _named(found: Mapping[str, Any], key: str) -> Any:
    """The value of a key; raises NotFound with the nearest name."""
    if key not in found:
        import difflib

        near = difflib.get_close_matches(key, found, n=1, cutoff=0.5)
        raise NotFound(
            f"the header has no key {key!r}", hint=f"did you mean {near[0]}?" if near else "see --metadata"
        )
    return found[key]


def tensors(weights: Weights) -> list[Tensor]:
    """The tensors of all parts, in the order of the files."""
    read = gguf.read if weights.format == "gguf" else safetensors.read
    return [tensor for path in weights.files for tensor in read(path).tensors]


def license_text(model: Model) -> str | None:
    """The licence that lies beside the weights."""
    for path in model.paths("license"):
        with path.open("rb") as file:
            return file.read(LONGEST_TEXT).decode("utf-8", "replace")
    return None


def _shortened(value: Any) -> Any:
    return {"array": value.type, "count": value.count} if isinstance(value, gguf.Array) else value


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "type": tensor.type, "size": tensor.size}
