"""Small models that embed or rank, of random weights, and what they compute, computed by numpy."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from ggufmaker import ARRAY, F32, info, padded, text, texts, value
from giants import Giant, dense
from tiny import INT32, WORDS, write

MEAN, CLS, LAST, RANK = 1, 2, 3, 4  # enum llama_pooling_type
PAD, UNKNOWN, BEGIN, END = range(4)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
LAYERS, WIDTH, HEADS, FF, POSITIONS = 2, 32, 4, 64, 128
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"▁{letter}" for letter in LETTERS), "▁hello"]

Weights = dict[str, Any]


def decoder(pooling: int | None, architecture: str = "llama") -> Giant:
    """One that reads forwards."""
    keys = {} if pooling is None else {"pooling_type": pooling}
    return dense(architecture, 2, 64, 4, 2, 16, 128, WORDS, context_length=2048, **keys)


def ranker(template: str) -> Giant:
    """A decoder that ranks, as Qwen's: whether the last token says yes or no, below a template."""
    extra = (("attn_q_norm.weight", (16,)), ("attn_k_norm.weight", (16,)))
    model = dense("qwen3", 2, 64, 4, 2, 16, 128, WORDS, context_length=2048, pooling_type=RANK, extra=extra)
    metadata = {"qwen3.classifier.output_labels": ["yes", "no"], "tokenizer.chat_template.rerank": template}
    return model._replace(
        metadata={**model.metadata, **metadata}, tensors=(*model.tensors, ("cls.output.weight", (64, 2)))
    )


def write_decoder(path: Path, pooling: int | None) -> Path:
    return write(decoder(pooling), path)


def write_bert(path: Path, pooling: int | None, seed: int = 0) -> Weights:
    """BERT, which reads in both directions; its weights."""
    random = np.random.default_rng(seed)
    weights = {name: _weight(random, name, shape) for name, shape in _shapes(pooling == RANK).items()}
    infos, data = [], b""
    for name, weight in weights.items():
        infos.append(info(name, weight.shape[::-1], F32, len(data)))
        data += padded(weight.tobytes(), 32)
    metadata = _metadata(pooling)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    path.write_bytes(padded(head + b"".join(infos), 32) + data)
    return weights


def _weight(random: Any, name: str, shape: tuple[int, ...]) -> Any:
    centre = 1.0 if name.endswith("norm.weight") else 0.0
    return random.normal(centre, 0.2, shape).astype(np.float32)


def _shapes(ranks: bool) -> dict[str, tuple[int, ...]]:
    """Rows first, as numpy has it."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(WORDPIECES), WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (POSITIONS, WIDTH),
    }
    for part in (
        "token_embd_norm",
        *(f"blk.{i}.{n}_output_norm" for i in range(LAYERS) for n in ("attn", "layer")),
    ):
        shapes |= {f"{part}.weight": (WIDTH,), f"{part}.bias": (WIDTH,)}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= _linear(f"blk.{layer}.{name}", WIDTH, WIDTH)
        shapes |= _linear(f"blk.{layer}.ffn_up", FF, WIDTH) | _linear(f"blk.{layer}.ffn_down", WIDTH, FF)
    return shapes | (_linear("cls", WIDTH, WIDTH) | _linear("cls.output", 1, WIDTH) if ranks else {})


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _metadata(pooling: int | None) -> dict[str, Any]:
    kinds = [3 if word.startswith("[") else 1 for word in WORDPIECES]
    return {
        "general.architecture": "bert",
        "bert.block_count": LAYERS,
        "bert.context_length": POSITIONS,
        "bert.embedding_length": WIDTH,
        "bert.feed_forward_length": FF,
        "bert.attention.head_count": HEADS,
        "bert.attention.layer_norm_epsilon": 1e-5,
        "bert.attention.causal": False,
        **({} if pooling is None else {"bert.pooling_type": pooling}),
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": texts(WORDPIECES, len(WORDPIECES)),
        "tokenizer.ggml.token_type": struct.pack("<IIQ", ARRAY, INT32, len(kinds))
        + struct.pack(f"<{len(kinds)}i", *kinds),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.seperator_token_id": END,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_sep_token": False,
    }


# What it computes


def hidden(weights: Weights, tokens: list[int]) -> Any:
    """A row for each token."""
    rows = weights["token_embd.weight"][tokens] + weights["token_types.weight"][0]
    rows = _norm(weights, "token_embd_norm", rows + weights["position_embd.weight"][: len(tokens)])
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        rows = _norm(weights, f"{block}.attn_output_norm", rows + _attention(weights, block, rows))
        inner = _apply(weights, f"{block}.ffn_up", rows)
        gelu = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        rows = _norm(weights, f"{block}.layer_output_norm", rows + _apply(weights, f"{block}.ffn_down", gelu))
    return rows


def score(weights: Weights, tokens: list[int]) -> float:
    first = np.tanh(_apply(weights, "cls", hidden(weights, tokens)[0]))
    return float(_apply(weights, "cls.output", first)[0])


def _attention(weights: Weights, block: str, rows: Any) -> Any:
    parts = (_apply(weights, f"{block}.attn_{name}", rows) for name in "qkv")
    query, key, given = (part.reshape(len(rows), HEADS, -1).swapaxes(0, 1) for part in parts)
    scores = query @ key.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = shares / shares.sum(axis=-1, keepdims=True) @ given
    return _apply(weights, f"{block}.attn_output", mixed.swapaxes(0, 1).reshape(len(rows), -1))


def _apply(weights: Weights, name: str, rows: Any) -> Any:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, rows: Any) -> Any:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
