"""GGUF bytes for tests: well-formed, huge, or broken on purpose. Independent of the reader under test."""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10
F32, F16, Q8_0, I32 = 0, 1, 8, 26
BLOCKS = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), I32: (1, 4)}  # elements, bytes

MODEL = {"general.architecture": "llama", "llama.context_length": 2048, "llama.block_count": 2}


def make(
    metadata: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    tensors: Iterable[tuple[str, tuple[int, ...], int]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
    tensor_count: int | None = None,
    key_count: int | None = None,
    cut: int = 0,
) -> bytes:
    """A file; `tensors` are (name, shape, type). Counts may lie, and the last `cut` bytes are left out.

    A value of type bytes goes in as it is: its type and content, however wrong.
    """
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    infos, data = [], b""
    for name, shape, kind in tensors:
        infos.append(info(name, shape, kind, len(data)))
        data += padded(bytes(weigh(shape, kind)), alignment)
    counts = (
        len(infos) if tensor_count is None else tensor_count,
        len(pairs) if key_count is None else key_count,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    head += b"".join(text(key) + value(item) for key, item in pairs) + b"".join(infos)
    whole = padded(head, alignment) + data if infos else head
    return whole[: len(whole) - cut]


def model(metadata: Mapping[str, Any] = MODEL, **options: Any) -> bytes:
    """A model of one tensor with 64 parameters."""
    return make({**MODEL, **metadata}, [("token_embd.weight", (32, 2), F16)], **options)


def vocabulary(tokens: int, merges: int) -> dict[str, Any]:
    """The metadata of a tokenizer of that size, as bytes that are ready to go in."""
    words = (f"token{number}" for number in range(tokens))
    pairs = (f"tok{number} en{number}" for number in range(merges))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": texts(words, tokens),
        "tokenizer.ggml.scores": struct.pack("<IIQ", ARRAY, FLOAT32, tokens) + bytes(4 * tokens),
        "tokenizer.ggml.token_type": struct.pack("<IIQ", ARRAY, 5, tokens) + bytes(4 * tokens),
        "tokenizer.ggml.merges": texts(pairs, merges),
        "tokenizer.chat_template": "{{ messages }}",
    }


def texts(items: Iterable[str], count: int) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, count) + b"".join(map(text, items))


def info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def weigh(shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor."""
    elements, size = BLOCKS[kind]
    for length in shape:
        size *= length
    return size // elements


def text(item: str) -> bytes:
    raw = item.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """Type and content."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, list):
        kind = value(item[0])[:4] if item else struct.pack("<I", UINT32)
        return (
            struct.pack("<I", ARRAY)
            + kind
            + struct.pack("<Q", len(item))
            + b"".join(value(x)[4:] for x in item)
        )
    if isinstance(item, str):
        return struct.pack("<I", STRING) + text(item)
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    return struct.pack("<II", UINT32, item)


def padded(content: bytes, alignment: int) -> bytes:
    return content + bytes(-len(content) % alignment)
