"""LoRA adapters as PEFT saves them, turned into GGUF for one base model. Knows no cache and no llama.cpp.

Names of tensors: https://huggingface.co/docs/peft/developer_guides/checkpoint; fields: `LoraConfig` of PEFT;
what llama.cpp reads: src/llama-adapter.cpp. What cannot be said in a GGUF adapter is refused by its name.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdl import safetensors
from mdl.errors import UnsupportedModel
from mdl.header import Tensor, count, encodable, line, open_file

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # of what is written: files of another one are made anew
MOST_PATTERNS = 4096
MOST_LAYERS = 1024
CONVERTED_FROM = "mdl.converted_from"  # a key: the path of what a file was made of

# Models of these architectures turn pairs of neighbouring rows of queries and keys in llama.cpp, where
# transformers turns the halves of a head: their rows lie in another order in a GGUF file (llama.cpp's
# conversion/llama.py and those that inherit from it, olmo.py, minicpm.py, deci.py).
_PAIRED = {"llama", "mistral3", "deci", "minicpm", "olmo", "granite", "granitemoe", "arcee", "smollm3"}
# And of these the weights are the same in both, row by row.
_SAME = {"qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi2", "phi3"}
_SAME |= {"olmo2", "olmoe", "starcoder2", "stablelm", "command-r", "cohere2", "exaone", "exaone4"}
_SAME |= {"nemotron", "seed_oss", "hunyuan-dense"}

_TYPES = ("F32", "F16", "BF16")
_SIDE = re.compile(r"(.+)\.lora_(?:(embedding)_)?([AB])(?:\.default)?(?:\.weight)?")
_WRAPPER = "base_model.model."
_LITERAL = re.compile(r"[\w.\-]+")  # of the patterns that PEFT takes, those that mean just themselves

# Fields of adapter_config.json that change what an adapter computes, and the values that change nothing.
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole weights beside LoRA (modules_to_save)",
    "trainable_token_indices": "new tokens (trainable_token_indices)",
    "layer_replication": "repeated layers (layer_replication)",
    "fan_in_fan_out": "weights that lie the other way round (fan_in_fan_out)",
    "lora_bias": "biases (lora_bias)",
    "target_parameters": "parameters of experts (target_parameters)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "megatron_config": "Megatron's layers (megatron_config)",
    "arrow_config": "Arrow's routing (arrow_config)",
    "kasa_config": "KaSA",
}
_USED = {"use_rslora", *_REFUSED}  # others that are to come change what is computed, too
# Ways to begin that change the weights of the base, too (init_lora_weights).
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Layout(NamedTuple):
    """What of a base model decides how an adapter for it is written: `heads` and `kv_heads` of each layer."""

    architecture: str
    layers: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]


def layout(metadata: Mapping[str, Any]) -> Layout:
    """Of the header of a GGUF file. Raises UnsupportedModel where that is none of a language model."""
    architecture = str(metadata.get("general.architecture"))
    layers = count(metadata.get(f"{architecture}.block_count")) or 0
    if not 0 < layers <= MOST_LAYERS:
        raise UnsupportedModel(f"its header tells of {layers:,} layers")
    heads = metadata.get(f"{architecture}.attention.head_count")
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    return Layout(architecture, layers, _each(heads, layers), _each(kv_heads, layers))


def _each(value: object, layers: int) -> tuple[int, ...]:
    """A number for each layer, whether the file gives one for all or a list; 0 is unknown."""
    values = value if isinstance(value, list) else [value] * layers
    return tuple(count(found) or 0 for found in values)


class Module(NamedTuple):
    """One weight that an adapter changes, by the name of its tensor in a GGUF base. `factor` stretches `b`,
    so that one alpha serves all; `heads` are those whose rows of `b` are put in order, 0 where none are."""

    name: str
    a: Tensor
    b: Tensor
    factor: float
    heads: int
    embeds: bool

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of both parts as they are written, in ggml's order."""
        a = self.a.shape if self.embeds else self.a.shape[::-1]
        return a, self.b.shape[::-1]


@dataclass(frozen=True, slots=True)
class Plan:
    """An adapter that can be written for a base of this layout."""

    path: Path
    layout: Layout
    alpha: float
    base_model: str | None
    data_offset: int
    modules: tuple[Module, ...]


def plan(folder: Path, base: Layout) -> Plan:
    """What is written of an adapter, from its headers alone.

    Raises UnsupportedModel for what llama.cpp could not apply, with its name, and OSError.
    """
    config = safetensors.load(folder / safetensors.ADAPTER_CONFIG)
    path = folder / safetensors.ADAPTER
    _refuse(config, base)
    header = safetensors.read(path)
    settings = _Settings(config)
    modules = tuple(_module(key, *sides, settings) for key, sides in _sides(header.tensors).items())
    if not modules:
        raise UnsupportedModel(f"{path} changes nothing: it has no tensors", "check where it came from")
    base_model = line(config.get("base_model_name_or_path"))
    return Plan(path, base, settings.alpha, base_model, header.data_offset, _mapped(modules, base))


def write(plan: Plan, target: Path) -> None:
    """The GGUF file. Has one tensor at a time in memory.

    Raises UnsupportedModel for values that are no numbers, and OSError.
    """
    import gguf

    with closing(gguf.GGUFWriter(target, plan.layout.architecture)) as writer, open_file(plan.path) as file:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", plan.alpha)
        if plan.base_model:
            writer.add_string("general.base_model.0.name", plan.base_model)
        writer.add_string(CONVERTED_FROM, encodable(str(plan.path)))
        for name, shape, kind in _described(plan):
            writer.add_tensor_info(name, shape, kind, math.prod(shape) * kind.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in _arrays(plan, file):
            writer.write_tensor_data(array)


# The configuration


def _refuse(config: Mapping[str, Any], base: Layout) -> None:
    """Raise UnsupportedModel for what is no plain LoRA, or is for models whose weights GGUF lays out anew."""
    kind = line(config.get("peft_type")) or "nothing"
    found = [what for field, what in _REFUSED.items() if config.get(field) not in _NOTHING]
    unknown = (field for field in config if field.startswith("use_") and field not in _USED)
    found += [line(field) or "" for field in unknown if config[field] not in _NOTHING]
    if kind.upper() != "LORA":
        found = [kind]
    elif config.get("bias", "none") not in ("none", None):
        found.append(f"biases (bias: {line(str(config['bias']))})")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASE):
        found.append(f"a base with other weights (init_lora_weights: {line(begun)})")
    if found:
        raise UnsupportedModel(
            f"the adapter uses {', '.join(found)}, which llama.cpp's adapters cannot do",
            hint="merge it into its base with PEFT, and use that as a GGUF model",
        )
    if base.architecture not in _PAIRED | _SAME:
        raise UnsupportedModel(
            f"PEFT adapters of {line(base.architecture)} models cannot be converted here",
            hint="look for the adapter as a GGUF file",
        )


class _Settings:
    """How strongly each module is changed. `alpha` is the one that the file says for all."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.rank = count(config.get("r", 8)) or 0
        self.alpha = _number(config.get("lora_alpha", 8), "lora_alpha")
        self._roots = config.get("use_rslora") or False
        if not isinstance(self._roots, bool):
            what = "use_rslora is neither true nor false"
            raise UnsupportedModel(f"adapter_config.json: {what}", "check the file")
        self._ranks = _patterns(config.get("rank_pattern"), "rank_pattern")
        self._alphas = _patterns(config.get("alpha_pattern"), "alpha_pattern")

    def factor(self, module: str, rank: int) -> float:
        """By how much more a module is changed than alpha / rank. Raises UnsupportedModel for another rank
        than was said."""
        said = _of(module, self._ranks, self.rank)
        if rank != said:
            raise UnsupportedModel(
                f"{line(module)} has rank {rank}, and adapter_config.json says {said:g}", "download it again"
            )
        alpha = _of(module, self._alphas, self.alpha)
        return alpha / self.alpha * (math.sqrt(rank) if self._roots else 1)


def _number(value: object, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < abs(value) < 1e9:
        return float(value)
    raise UnsupportedModel(f"adapter_config.json: {name} cannot be {line(str(value))}", "check the file")


def _patterns(value: object, name: str) -> dict[str, float]:
    """Numbers by the ends of modules' names."""
    found = value if isinstance(value, dict) else {}
    if len(found) > MOST_PATTERNS:
        raise UnsupportedModel(f"adapter_config.json: {name} has more than {MOST_PATTERNS:,} entries")
    for key in found:
        if not _LITERAL.fullmatch(key):  # an expression from outside may take forever to be tried
            raise UnsupportedModel(
                f"adapter_config.json: {name} has a pattern that is not a plain name: {line(key)!r}"
            )
    return {key: _number(number, name) for key, number in found.items()}


def _of(module: str, patterns: Mapping[str, float], default: float) -> float:
    found = (value for key, value in patterns.items() if f".{module}".endswith(f".{key}"))
    return next(found, default)


# The tensors


def _sides(tensors: tuple[Tensor, ...]) -> dict[tuple[str, bool], tuple[Tensor, Tensor]]:
    """Both parts of each module, by its name in transformers and whether it embeds."""
    found: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for tensor in tensors:
        match = _SIDE.fullmatch(tensor.name)
        if match is None:
            raise _wrong(tensor, "is no part of a LoRA that llama.cpp could apply")
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.type not in _TYPES:
            shape = " x ".join(map(str, tensor.shape))
            raise _wrong(tensor, f"is {shape} {line(tensor.type)}, not a matrix of {', '.join(_TYPES)}")
        key = match[1].removeprefix(_WRAPPER), bool(match[2])
        if found.setdefault(key, {}).setdefault(match[3], tensor) is not tensor:
            raise _wrong(tensor, "is there twice, under another name too")
    for sides in found.values():
        if len(sides) < 2:
            raise _wrong(next(iter(sides.values())), "has no counterpart: lora_A and lora_B go together")
    return {key: (sides["A"], sides["B"]) for key, sides in found.items()}


def _module(key: tuple[str, bool], a: Tensor, b: Tensor, settings: _Settings) -> Module:
    """Still by its name in transformers."""
    name, embeds = key
    rank = a.shape[0]
    if b.shape[1] != rank:
        raise _wrong(b, f"has rank {b.shape[1]}, and its lora_A {rank}")
    return Module(name, a, b, settings.factor(name, rank), 0, embeds)


def _mapped(modules: tuple[Module, ...], base: Layout) -> tuple[Module, ...]:
    """By the names of the base's tensors, with the heads that are put in order."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == base.architecture)
    names = gguf.get_tensor_name_map(architecture, base.layers)
    mapped = []
    for module in modules:
        plain = module.name.replace("language_model.", "", 1)
        name = names.get_name(f"{plain}.weight", (".weight",))
        if name is None or module.embeds != (name == "token_embd.weight"):
            raise _wrong(module.a, f"belongs to no weight of {base.architecture} models that LoRA can change")
        mapped.append(module._replace(name=name, heads=_heads(name, base)))
    if len({module.name for module in mapped}) < len(mapped):
        raise UnsupportedModel("the adapter changes a weight twice", hint="check where it came from")
    return tuple(mapped)


def _heads(name: str, base: Layout) -> int:
    found = re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.weight", name)
    if found is None or base.architecture not in _PAIRED:
        return 0
    heads = base.heads if found[2] == "q" else base.kv_heads
    layer = int(found[1])
    if layer >= len(heads) or not heads[layer]:
        raise UnsupportedModel(f"the base does not tell how many heads {name} has")
    return heads[layer]


def _described(plan: Plan) -> "Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]":
    """Name, shape in numpy's order, and type of what `_arrays` gives."""
    import numpy as np

    for module in plan.modules:
        a, b = module.shapes
        yield f"{module.name}.lora_a", a[::-1], np.dtype("<f2" if module.a.type == "F16" else "<f4")
        exact = module.b.type == "F16" and module.factor == 1
        yield f"{module.name}.lora_b", b[::-1], np.dtype("<f2" if exact else "<f4")


def _arrays(plan: Plan, file: Any) -> "Iterator[np.ndarray[Any, Any]]":
    """Both parts of each module as they are written, one after the other."""
    for module in plan.modules:
        a = _values(file, plan.data_offset, module.a)
        yield a.T.copy() if module.embeds else a
        b = _values(file, plan.data_offset, module.b)
        if module.heads:
            b = _paired(b, module.heads, module.b)
        yield b if module.factor == 1 else b.astype("<f4") * module.factor


def _values(file: Any, start: int, tensor: Tensor) -> "np.ndarray[Any, Any]":
    """A matrix as the file has it; BF16, with which not all devices compute, as F32, which holds as much."""
    import numpy as np

    file.seek(start + tensor.offset)
    data = file.read(tensor.size)
    if len(data) < tensor.size:
        raise _wrong(tensor, "is cut off: the file became shorter while it was read")
    if tensor.type == "BF16":
        found = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        found = np.frombuffer(data, "<f2" if tensor.type == "F16" else "<f4")
    if not np.isfinite(found).all():
        raise _wrong(tensor, "has values that are no numbers")
    return found.reshape(tensor.shape)


def _paired(b: "np.ndarray[Any, Any]", heads: int, tensor: Tensor) -> "np.ndarray[Any, Any]":
    """Rows from the order of halves to that of pairs, within each head."""
    rows, rank = b.shape
    if rows % (2 * heads):
        raise _wrong(tensor, f"has {rows} rows, which are not those of {heads} heads")
    return b.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)


def _wrong(tensor: Tensor, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"tensor {line(tensor.name)} {what}", hint="look for the adapter as a GGUF file")
