"""LoRA adapters: what is asked for, whether it fits its base, and the file to load. Knows no names of models.

Everything is decided from headers, before anything is loaded. What PEFT saved is converted once.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mdl import gguf, peft, safetensors
from mdl.errors import UnsupportedModel, UsageError
from mdl.header import line, open_file
from mdl.store import Store
from mdl.weights import Weights

Shape = tuple[int, ...]
STRONGEST = 1000.0  # scale, in either direction
_ENDINGS = (".lora_a", ".lora_b")
_NOT_COMPUTED = ("I8", "I16", "I32", "I64", "F64")  # for these llama.cpp ends the process


class Asked(NamedTuple):
    """An adapter by name, and how strongly it is applied."""

    name: str
    scale: float = 1.0

    @property
    def text(self) -> str:
        """As it was asked for."""
        return self.name if self.scale == 1.0 else f"{self.name}={self.scale:g}"


def asked(text: str) -> Asked:
    """MODEL or MODEL=SCALE. Raises UsageError for a scale that is no number."""
    name, sign, scale = text.rpartition("=")
    if not sign or _is_there(text):
        return Asked(text)
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not name or not abs(factor) <= STRONGEST:
        raise UsageError(
            f"the scale of an adapter cannot be {scale!r:.40}", hint="a number, such as --adapter MODEL=0.5"
        )
    return Asked(name, factor)


def _is_there(text: str) -> bool:
    """Whether a text is a path as a whole."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, ~nobody
        return False


class Pair(NamedTuple):
    """Both parts of what an adapter does to one tensor, by their shapes in ggml's order."""

    a: Shape | None = None
    b: Shape | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A model that adapters are made for: its name for people, and its header."""

    name: str
    layout: peft.Layout
    tensors: Mapping[str, Shape]


def base(weights: Weights, name: str) -> Base:
    """Of GGUF weights. Raises UnsupportedModel for headers that tell too little."""
    headers = [gguf.read(path) for path in weights.files]
    tensors = {tensor.name: tensor.shape for header in headers for tensor in header.tensors}
    return Base(name, peft.layout(headers[0].metadata), tensors)


def fitted(adapter: Weights, base: Base, store: Store, sha256: str | None = None) -> Path:
    """The GGUF file of an adapter that fits a base. `sha256` is that of its safetensors, where it is known.

    Raises UnsupportedModel that names what does not fit, DiskError where a converted one cannot be kept.
    """
    name = adapter.facts.name or adapter.first.name
    try:
        if adapter.format == "gguf":
            _check_file(adapter.first, base)
            return adapter.first
        return _converted(adapter.first, base, store, sha256)
    except UnsupportedModel as failure:
        made_for = f"it was made for {adapter.facts.base_model}" if adapter.facts.base_model else ""
        raise UnsupportedModel(
            f"the adapter {line(name)} cannot be used with {base.name}: {failure.message}",
            failure.hint or made_for or "name the model that it was made for",
        ) from None


def _converted(path: Path, base: Base, store: Store, sha256: str | None) -> Path:
    """The adapter of a PEFT folder as GGUF: as it was made before, or made now."""
    config = path.with_name(safetensors.ADAPTER_CONFIG)
    content = sha256 or _digest(path)
    made_of = [peft.VERSION, content, _digest(config), *base.layout]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    if (found := store.converted(name)) and _is_sound(found):
        _check_file(found, base)
        return found
    plan = peft.plan(path.parent, base.layout)
    _check({module.name: Pair(*module.shapes) for module in plan.modules}, base)
    return store.convert(name, partial(peft.write, plan))


def _is_sound(path: Path) -> bool:
    try:
        return bool(gguf.read(path).tensors)
    except (UnsupportedModel, OSError):
        return False


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What fits


def _check_file(path: Path, base: Base) -> None:
    header = gguf.read(path)
    architecture = header.metadata.get("general.architecture")
    kind = header.metadata.get("adapter.type")
    if architecture != base.layout.architecture:
        raise UnsupportedModel(
            f"it is for {line(architecture)} models, and this is {base.layout.architecture}"
        )
    if kind != "lora":
        raise UnsupportedModel(f"it is an adapter of the kind {line(kind)}, not lora")
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise UnsupportedModel("it is an activated LoRA (aLoRA), which works only behind certain words")
    pairs: dict[str, Pair] = {}
    for tensor in header.tensors:
        name, ending = tensor.name[:-7], tensor.name[-7:]
        if tensor.type in _NOT_COMPUTED or not tensor.elements:
            raise UnsupportedModel(
                f"its tensor {line(tensor.name)} is {_printed(tensor.shape)} {tensor.type}"
            )
        if ending in _ENDINGS:
            side = {ending[-1]: tensor.shape}
            pairs[name] = pairs.get(name, Pair())._replace(**side)
        elif not tensor.name.endswith("_norm.weight"):  # llama.cpp leaves these out
            raise UnsupportedModel(f"its tensor {line(tensor.name)} is no part of a LoRA")
    _check(pairs, base)


def _check(pairs: Mapping[str, Pair], base: Base) -> None:
    """Raises UnsupportedModel that names the first tensor that does not fit, with both shapes."""
    if not pairs:
        raise UnsupportedModel("it changes nothing: it has no tensors")
    for name, (a, b) in pairs.items():
        if a is None or b is None or min(len(a), len(b)) < 2:
            raise UnsupportedModel(f"its {line(name)} misses one of lora_a and lora_b")
        if name not in base.tensors:
            raise UnsupportedModel(f"it changes {line(name)}, which the model does not have")
        rank, other, changed = a[1], b[0], (a[0], b[1], *a[2:])
        if name == "token_embd.weight":  # rows are looked up in lora_a there, not multiplied with it
            rank, other, changed = a[0], b[0], (b[1], a[1])
            if "output.weight" not in base.tensors:  # for this llama.cpp ends the process
                raise UnsupportedModel(f"it changes {name}, with which this model also answers")
        if rank != other:
            raise UnsupportedModel(f"its {line(name)} has rank {rank} in lora_a, {other} in lora_b")
        if changed != base.tensors[name]:
            raise UnsupportedModel(
                f"{line(name)} is {_printed(changed)} in the adapter and {_printed(base.tensors[name])} here"
            )


def _printed(shape: Shape) -> str:
    return " x ".join(map(str, shape))
