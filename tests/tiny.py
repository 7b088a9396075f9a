"""Models of any architecture with random weights and the demo's tokenizer: small, real, and without sense."""

import struct
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from ggufmaker import ARRAY, F32, info, padded, text, value
from giants import Giant, dense, falcon_h1, lfm2, mamba, norms

import mdl

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
INT32 = 5
WORDS = 2048

TINY = {
    "dense": dense("llama", 2, 64, 4, 2, 16, 128, WORDS, context_length=4096),
    "sliding window": dense(
        "gemma3", 6, 64, 4, 1, 16, 128, WORDS, tied=True, context_length=4096, attention_sliding_window=32,
        extra=(
            *norms(64, "post_attention_norm", "post_ffw_norm"), *norms(16, "attn_q_norm", "attn_k_norm")
        ),
    ),
    "recurrent": mamba(2, 64, WORDS),
    "hybrid, by turns": lfm2("ccac", 64, 4, 2, 128, WORDS),
    "hybrid, side by side": falcon_h1(2, 64, 4, 2, 16, 128, WORDS),
}  # fmt: skip


def write(giant: Giant, path: Path, seed: int = 0, tokenizer: dict[str, Any] | None = None) -> Path:
    """The model with weights of which its answers depend on each word of the prompt."""
    random = np.random.default_rng(seed)
    infos, data = [], b""
    for name, shape in giant.tensors:
        infos.append(info(name, shape, F32, len(data)))
        data += padded(_weights(random, name, shape).tobytes(), 32)
    metadata = {**giant.metadata, **(tokenizer or demos_tokenizer())}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    path.write_bytes(padded(head + b"".join(infos), 32) + data)
    return path


def _weights(random: Any, name: str, shape: tuple[int, ...]) -> Any:
    if name.endswith("ssm_a"):  # a decay: it has to be below zero
        return -random.uniform(0.5, 2.0, prod(shape)).astype(np.float32)
    if "norm" in name:
        return random.normal(1.0, 0.1, prod(shape)).astype(np.float32)
    return random.normal(0.0, 0.2, prod(shape)).astype(np.float32)


@cache
def demos_tokenizer() -> dict[str, Any]:
    """The demo's, without an end of the answer: a random model would end at any time."""
    fields = {name: field.contents() for name, field in gguf.GGUFReader(DEMO).fields.items()}
    found = {name: item for name, item in fields.items() if name.startswith("tokenizer.")}
    kinds = found["tokenizer.ggml.token_type"]
    ids = struct.pack("<IIQ", ARRAY, INT32, len(kinds)) + struct.pack(f"<{len(kinds)}i", *kinds)
    return {**found, "tokenizer.ggml.token_type": ids}
