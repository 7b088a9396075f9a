"""Models of random weights, made on the spot: llama's architecture in three sizes, with the demo's tokenizer.

    python tests/benchmarks/models.py FOLDER [15M] [150M] [1B]

Larger vocabularies are filled up with made-up words. What such a model says means nothing, but is always
plain text, and it never ends by itself: the tokens that are no printable ASCII, and the one that ends an
answer, have a logit of 0, which is never the highest. A grammar can still make it end.
"""

import re
import sys
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

import mdl

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
CONTEXT = 4096
DEVIATION = 0.02  # of the weights


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    kv: int
    ff: int
    vocabulary: int
    kind: str


SIZES = {
    "15M": Size(8, 384, 6, 6, 1024, 2048, "Q8_0"),
    "150M": Size(14, 768, 12, 12, 2048, 32_000, "Q8_0"),
    "1B": Size(11, 2048, 32, 8, 5632, 128_256, "Q4_0"),
}
# Bytes of a block of 32 weights, its scale (float16) first; the deviation of its numbers, all as likely.
BLOCKS = {"Q8_0": (34, 255 / 12**0.5), "Q4_0": (18, 16 / 12**0.5)}


def make(name: str, folder: Path) -> Path:
    """The model of that size in the folder, which may be there already."""
    path = folder / f"random-{name}-{SIZES[name].kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        _write(SIZES[name], beside)
        beside.replace(path)
    return path


def words() -> list[str]:
    """English words that are one token each, behind a space."""
    tokens = GGUFReader(DEMO).fields["tokenizer.ggml.tokens"].contents()
    return [token[1:] for token in tokens if re.fullmatch("Ġ[a-z]{4,}", token)]


def _write(size: Size, path: Path) -> None:
    demo = GGUFReader(DEMO)
    writer = GGUFWriter(path, "llama")
    words = _header(writer, size, demo)
    random = np.random.default_rng(size.layers)
    kind = GGMLQuantizationType[size.kind]
    for tensor, (rows, columns) in _matrices(size).items():
        weights = _weights(random, rows, columns, size.kind)
        if tensor == "output.weight":
            weights.reshape(rows, columns // 32, -1)[[not _is_said(word) for word in words], :, :2] = 0
        writer.add_tensor(tensor, weights, raw_dtype=kind)
    for tensor in _norms(size):
        writer.add_tensor(tensor, np.ones(size.width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _header(writer: GGUFWriter, size: Size, demo: GGUFReader) -> list[str]:
    """Writes it; the tokens."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(size.width)
    writer.add_block_count(size.layers)
    writer.add_feed_forward_length(size.ff)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size.width // size.heads)
    known: dict[str, Any] = {name: field.contents() for name, field in demo.fields.items()}
    words = [*known["tokenizer.ggml.tokens"]]
    known_words = frozenset(words)
    made_up = ("Ġ" + "".join(letters) for letters in product(ascii_lowercase, repeat=5))
    words += islice((word for word in made_up if word not in known_words), size.vocabulary - len(words))
    types = known["tokenizer.ggml.token_type"]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model(known["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(known["tokenizer.ggml.pre"])
    writer.add_token_list(words)
    writer.add_token_types([*types, *[1] * (len(words) - len(types))])
    writer.add_token_merges(known["tokenizer.ggml.merges"])
    writer.add_eos_token_id(known["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(known["tokenizer.chat_template"])
    return words


def _matrices(size: Size) -> dict[str, tuple[int, int]]:
    """Rows and columns of each."""
    width, narrow = size.width, size.width // size.heads * size.kv
    block = {
        "attn_q": (width, width),
        "attn_k": (narrow, width),
        "attn_v": (narrow, width),
        "attn_output": (width, width),
        "ffn_gate": (size.ff, width),
        "ffn_up": (size.ff, width),
        "ffn_down": (width, size.ff),
    }
    inner = {f"blk.{i}.{name}.weight": shape for i in range(size.layers) for name, shape in block.items()}
    whole = (size.vocabulary, width)
    return {"token_embd.weight": whole, **inner, "output.weight": whole}


def _norms(size: Size) -> list[str]:
    inner = [f"blk.{i}.{name}.weight" for i in range(size.layers) for name in ("attn_norm", "ffn_norm")]
    return [*inner, "output_norm.weight"]


def _weights(random: np.random.Generator, rows: int, columns: int, kind: str) -> Any:
    """As bytes: blocks of random numbers under one scale."""
    size, deviation = BLOCKS[kind]
    blocks = random.integers(0, 256, (rows, columns // 32, size), np.uint8)
    blocks[:, :, :2] = np.array([DEVIATION / deviation], "<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def _is_said(word: str) -> bool:
    """Whether the token is plain text, all by itself. `Ġ` is how byte-level tokenizers spell a space."""
    plain = word.replace("Ġ", " ")
    return plain.isascii() and plain.isprintable() and not plain.startswith("<|")


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SIZES:
        print(make(chosen, Path(sys.argv[1])))
