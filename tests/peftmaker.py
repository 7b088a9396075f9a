"""Adapters as PEFT saves them, for tests: a configuration and a safetensors file of matrices."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8, "bias": "none"}
TYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16"}  # bfloat16 as its bits
LAYER = "base_model.model.model.layers"


def save(folder: Path, tensors: Mapping[str, Any], **fields: Any) -> Path:
    """Fields of the configuration that are None are left out."""
    config = {name: value for name, value in {**CONFIG, **fields}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    return folder


def safetensors(tensors: Mapping[str, Any]) -> bytes:
    header, data = {}, b""
    for name, array in tensors.items():
        content = array.tobytes()
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": TYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": place}
        data += content
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def pair(module: str, inputs: int, outputs: int, rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """Both matrices of a module, with random values."""
    random = np.random.default_rng([seed, len(module)])
    return {
        f"{module}.lora_A.weight": random.standard_normal((rank, inputs), dtype=np.float32),
        f"{module}.lora_B.weight": random.standard_normal((outputs, rank), dtype=np.float32),
    }


def bfloat16(array: Any) -> Any:
    """Its upper half: the bits of a bfloat16, cut off."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)
