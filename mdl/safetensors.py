"""What safetensors files and the folders around them say about themselves. Never reads weights, runs nothing.

The format: https://huggingface.co/docs/safetensors (8 bytes of length, then JSON). What the architecture is
and how the text is written stands in JSON files beside it.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdl.errors import UnsupportedModel
from mdl.header import Adapter, Facts, NeedMore, Tensor, count, encodable, largest_type, line, open_file
from mdl.header import read as read_header

__all__ = [
    "Header",
    "NeedMore",
    "Tensor",
    "adapter_facts",
    "facts",
    "is_model",
    "parse",
    "quantizer",
    "read",
    "shards",
]

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"

# JSON takes up to twenty times its length in memory; a file of 50,000 tensors has a header of 6 MB.
LARGEST_HEADER = 16 << 20
LARGEST_JSON = 16 << 20
MOST_DIMENSIONS = 16

# Bits of an element (safetensors' `Dtype`)
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8}
BITS |= {"F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of one file. A tensor's `shape` is in PyTorch's order: rows before columns."""

    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]
    data_offset: int


def read(path: Path) -> Header:
    """The header of a file; raises UnsupportedModel with the cause, and OSError."""
    return read_header(path, parse)


def parse(buffer: bytes | bytearray | memoryview, size: int | None = None) -> Header:
    """The header in a prefix of a file of `size` bytes.

    Raises NeedMore when the prefix is too short, and UnsupportedModel when the file is damaged or truncated.
    """
    if len(buffer) < 8:
        raise _damaged("it is shorter than its header") if size is not None and size < 8 else NeedMore(8)
    end = 8 + struct.unpack_from("<Q", buffer)[0]
    if end > LARGEST_HEADER or (size is not None and end > size):
        raise _damaged(f"it claims a header of {end - 8:,} bytes")
    if end > len(buffer):
        raise NeedMore(end)
    document = _json(bytes(buffer[8:end]), "a damaged safetensors file", unique=True)
    metadata = document.pop("__metadata__", {})
    tensors = tuple(_tensor(name, entry) for name, entry in document.items())
    if size is not None:
        _check_whole(max((tensor.offset + tensor.size for tensor in tensors), default=0) + end, size)
    return Header(metadata if isinstance(metadata, dict) else {}, tensors, end)


def _tensor(name: str, entry: object) -> Tensor:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            tensor = Tensor(name, tuple(shape), kind, start, stop - start)
        case _:
            raise _damaged(f"tensor {line(name)!r} is not described as one")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*tensor.shape, start, stop)):
        raise _damaged(f"tensor {line(name)!r} has an impossible shape or place")
    if len(shape) > MOST_DIMENSIONS or (tensor.elements * BITS.get(kind, 0) + 7) // 8 != tensor.size:
        raise _damaged(f"tensor {line(name)!r} is {stop - start:,} bytes, which is not its type and shape")
    return tensor


def _check_whole(end: int, size: int) -> None:
    if end > size:
        raise UnsupportedModel(
            f"truncated: {end - size:,} of {end:,} bytes are missing", hint="download it again"
        )


def _damaged(cause: str) -> UnsupportedModel:
    return UnsupportedModel(f"a damaged safetensors file: {cause}", hint="download it again")


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model in this format, whole or not."""
    return (folder / CONFIG).is_file() and ((folder / INDEX).is_file() or bool(_unindexed(folder)))


def _unindexed(folder: Path) -> tuple[Path, ...]:
    """The weights of a folder that has no index."""
    if (folder / SINGLE).exists():
        return (folder / SINGLE,)
    return tuple(sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER))


def shards(folder: Path) -> tuple[Path, ...]:
    """The weights files of a folder in order; raises UnsupportedModel that names what its index misses."""
    if not (folder / INDEX).exists():
        return _unindexed(folder)
    named = load(folder / INDEX).get("weight_map")
    names = set(named.values()) if isinstance(named, dict) and all(map(_is_name, named.values())) else None
    if not names:
        raise UnsupportedModel(f"{folder / INDEX} names no weights", hint="download it again")
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UnsupportedModel(
            f"{folder} misses {', '.join(missing[:3])}{more}, which {INDEX} names", hint="download it again"
        )
    return tuple(folder / name for name in sorted(names))


def _is_name(value: object) -> bool:
    """Whether an index names a file of its own folder: anything else would let it point anywhere."""
    return isinstance(value, str) and value.endswith(".safetensors") and not set("/\\\0:") & set(value)


def facts(folder: Path, headers: Iterable[Header], name: str | None = None) -> Facts:
    """What a model folder tells; raises UnsupportedModel when its config.json is damaged, and OSError."""
    config = load(folder / CONFIG)
    text = config.get("text_config")  # of a model that also sees, the part that writes
    config = (text if isinstance(text, dict) else {}) | config

    def number(*keys: str) -> int | None:
        return next((found for key in keys if (found := count(config.get(key))) is not None), None)

    tensors = [tensor for header in headers for tensor in header.tensors]
    return Facts(
        kind="model",
        format="safetensors",
        name=line(config.get("_name_or_path")) or name,
        architecture=line(config.get("model_type")),
        parameters=sum(tensor.elements for tensor in tensors) or None,
        quantization=largest_type(tensors),
        context_length=number("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
        embedding_length=number("hidden_size", "n_embd", "d_model"),
        layers=number("num_hidden_layers", "n_layer", "n_layers"),
        heads=number("num_attention_heads", "n_head"),
        kv_heads=number("num_key_value_heads"),
        experts=number("num_local_experts", "num_experts", "n_routed_experts"),
        experts_used=number("num_experts_per_tok"),
        vocabulary=number("vocab_size"),
        chat_template=_chat_template(folder),
        projectors=tuple(sense for sense in ("vision", "audio") if f"{sense}_config" in config),
    )


def quantizer(folder: Path) -> str | None:
    """The method that a model folder was quantized with (awq, gptq, mlx, ...), None for plain weights."""
    config = load(folder / CONFIG)
    for key in ("quantization_config", "compression_config"):
        if isinstance(settings := config.get(key), dict):
            return line(settings.get("quant_method")) or "an unknown method"
    if isinstance(config.get("quantization"), dict):  # what MLX writes: {"group_size": 64, "bits": 4}
        return "mlx"
    return "gptq" if (folder / "quantize_config.json").exists() else None


def adapter_facts(folder: Path, header: Header, name: str | None = None) -> Facts:
    """What a PEFT adapter folder tells; raises UnsupportedModel when its configuration is damaged."""
    config = load(folder / ADAPTER_CONFIG)
    alpha = config.get("lora_alpha")
    return Facts(
        kind="adapter",
        format="safetensors",
        name=name,
        parameters=sum(tensor.elements for tensor in header.tensors) or None,
        quantization=largest_type(header.tensors),
        base_model=line(config.get("base_model_name_or_path")),
        adapter=Adapter(
            type=(line(config.get("peft_type")) or "").lower() or None,
            rank=count(config.get("r")),
            alpha=float(alpha) if isinstance(alpha, int | float) and abs(alpha) < 1e9 else None,
        ),
    )


def _chat_template(folder: Path) -> str | None:
    """The template of a folder, from where newer and older versions of transformers put it."""
    if (folder / "chat_template.jinja").is_file():
        return _bytes(folder / "chat_template.jinja").decode("utf-8", "replace") or None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (
            template := _named_template(load(folder / name).get("chat_template"))
        ):
            return template
    return None


def _named_template(value: object) -> str | None:
    """A template, or of a list of named ones the default."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    return encodable(value) or None if isinstance(value, str) else None


def load(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises UnsupportedModel when it is too large, damaged or no object."""
    return _json(_bytes(path), str(path))


def _bytes(path: Path) -> bytes:
    with open_file(path) as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise UnsupportedModel(f"{path} is larger than {LARGEST_JSON >> 20} MiB", hint="check what it is")
    return content


def _json(content: bytes, what: str, unique: bool = False) -> dict[str, Any]:
    try:
        document = json.loads(content, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{what}: {line(str(error))}", hint="download it again") from None
    if not isinstance(document, dict):
        raise UnsupportedModel(f"{what}: its JSON is no object", hint="download it again")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key stands there twice")
    return document
