"""What a GGUF file says about itself: metadata and tensors from its header. Knows nothing of other files.

Needs no numpy, never reads the weights, steps over long arrays, and bounds everything that a file can claim.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mdl.errors import UnsupportedModel
from mdl.header import (
    Adapter,
    Facts,
    NeedMore,
    Split,
    Tensor,
    count,
    largest_type,
    line,
    lines,
    open_file,
)
from mdl.header import read as read_header

__all__ = ["MAGIC", "OLD_MAGICS", "Array", "Facts", "Header", "NeedMore", "Tensor"]
__all__ += ["elements", "facts", "parse", "read"]

MAGIC = b"GGUF"
OLD_MAGICS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}  # little-endian words

# Bounds for what no real file comes near; each is also held against the file's size.
LARGEST_HEADER = 64 << 20
LARGEST_STRING = 16 << 20
MOST_KEYS = 4096
MOST_TENSORS = 1 << 17
MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_SHORTEST_KEY = 8 + 4 + 1  # bytes of an empty name, a type and a boolean
_SHORTEST_TENSOR = 8 + 4 + 4 + 8  # bytes of an empty name, no dimensions, a type and an offset
KEPT_STRINGS = 64  # longer arrays are recorded, not read
KEPT_NUMBERS = 512  # so that lists with one number for each layer are at hand

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {number: struct.calcsize(code) for number, code in _SCALARS.items()}
_TYPE_NAMES = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    7: "bool",
    8: "string",
    10: "uint64",
    11: "int64",
    12: "float64",
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

# Tensor type: name, elements in a block, bytes of a block (ggml.h, ggml-common.h)
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

# general.file_type (enum llama_ftype)
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    33: "Q4_0_4_4",
    34: "Q4_0_4_8",
    35: "Q4_0_8_8",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
}
_GUESSED = 1024  # a flag on top of the number


@dataclass(frozen=True, slots=True)
class Array:
    """A long array that was stepped over: `elements` reads it from bytes `offset` to `offset + size`."""

    type: str
    count: int
    offset: int
    size: int


Scalar = bool | int | float | str
Value = Scalar | list[Scalar] | Array
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was checked: every tensor lies within the file, when the file's size was known.

    A tensor's `shape` is in ggml's order: the dimension that is contiguous in memory comes first.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int


def read(path: Path) -> Header:
    """The header of a file; raises UnsupportedModel with the cause, and OSError."""
    return read_header(path, parse)


def parse(buffer: Buffer, size: int | None = None) -> Header:
    """The header in a prefix of a file of `size` bytes.

    Raises NeedMore when the prefix is too short, and UnsupportedModel when the file is damaged, truncated, or
    of a kind that llama.cpp does not read.
    """
    cursor = _Cursor(buffer, size)
    version = _version(cursor)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    if key_count > MOST_KEYS or tensor_count > MOST_TENSORS:
        raise _damaged(f"it claims {tensor_count:,} tensors and {key_count:,} metadata keys")
    cursor.require(_SHORTEST_KEY * key_count + _SHORTEST_TENSOR * tensor_count)
    metadata = _metadata(cursor, key_count)
    alignment = _alignment(metadata)
    tensors = _tensors(cursor, tensor_count, alignment)
    data_offset = _pad(cursor.at, alignment)
    if size is not None and tensors:
        _check_whole(data_offset + tensors[-1].offset + tensors[-1].size, size)
    return Header(version, metadata, tensors, alignment, data_offset)


def elements(path: Path, array: Array) -> list[Scalar]:
    """All elements of a long array; raises UnsupportedModel when the file is no longer what it was."""
    with open_file(path) as file:
        file.seek(array.offset)
        data = file.read(array.size)
    cursor = _Cursor(data, len(data))
    if array.type == "string":
        return [cursor.text() for _ in range(array.count)]
    number = next(number for number, name in _TYPE_NAMES.items() if name == array.type)
    return cursor.numbers(number, array.count)


class _Cursor:
    """A place in the prefix that moves forward and never past its end."""

    def __init__(self, buffer: Buffer, size: int | None) -> None:
        self.buffer = buffer
        self.size = size
        self.at = 0

    def require(self, length: int) -> int:
        """Check that `length` bytes lie ahead; returns where they end."""
        end = self.at + length
        if end > len(self.buffer):
            raise self.short(end)
        return end

    def take(self, length: int) -> int:
        """Step over `length` bytes; returns where they begin."""
        start, self.at = self.at, self.require(length)
        return start

    def short(self, end: int) -> Exception:
        """Why there is nothing at `end - 1`."""
        if self.size is not None and end > self.size:
            return _damaged(f"its header goes on past its end at {self.size:,} bytes")
        if end > LARGEST_HEADER:
            return _damaged(f"its header claims more than {LARGEST_HEADER >> 20} MiB")
        return NeedMore(end)

    def u32(self) -> int:
        return int(_U32.unpack_from(self.buffer, self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.buffer, self.take(8))[0])

    def text(self) -> str:
        length = self.u64()
        if length > LARGEST_STRING:
            raise _damaged(f"it claims a text of {length:,} bytes")
        start = self.take(length)
        return bytes(self.buffer[start : start + length]).decode("utf-8", "backslashreplace")

    def numbers(self, number: int, length: int) -> list[Scalar]:
        start = self.take(length * _SIZES[number])
        return list(struct.unpack_from(f"<{length}{_SCALARS[number]}", self.buffer, start))

    def value(self) -> Value:
        number = self.u32()
        if number == _STRING:
            return self.text()
        if number == _ARRAY:
            return self.array()
        if number not in _SCALARS:
            raise _damaged(f"it has a value of unknown type {number}")
        return self.numbers(number, 1)[0]

    def array(self) -> list[Scalar] | Array:
        number, length, start = self.u32(), self.u64(), self.at
        if number == _STRING:
            if length <= KEPT_STRINGS:
                return [self.text() for _ in range(length)]
            self.skip_texts(length)
        elif number in _SCALARS:
            if length <= KEPT_NUMBERS:
                return self.numbers(number, length)
            self.take(length * _SIZES[number])
        else:
            raise _damaged(
                "it has an array within an array" if number == _ARRAY else "it has an unknown array"
            )
        return Array(_TYPE_NAMES[number], length, start, self.at - start)

    def skip_texts(self, length: int) -> None:
        """Step over texts: the one loop whose speed counts, hence local names and no checks of its own."""
        self.require(8 * length)
        buffer, at, unpack = self.buffer, self.at, _U64.unpack_from
        try:
            for _ in range(length):
                at += 8 + unpack(buffer, at)[0]
        except (struct.error, OverflowError):  # past the end of the prefix, or of what an address can hold
            raise self.short(at + 8) from None
        self.take(at - self.at)


def _version(cursor: _Cursor) -> int:
    start = cursor.take(4)
    magic = bytes(cursor.buffer[start : start + 4])
    if magic in OLD_MAGICS:
        raise UnsupportedModel(
            f"an old {OLD_MAGICS[magic]} file, from before GGUF", hint="look for a GGUF version of this model"
        )
    if magic != MAGIC:
        raise UnsupportedModel("not a GGUF file", hint="check where it came from")
    version = cursor.u32()
    if version and not version & 0xFFFF:  # a small number whose bytes are swapped
        raise UnsupportedModel(
            "a big-endian GGUF file", hint="look for a little-endian version of this model"
        )
    if version == 1:
        raise UnsupportedModel("GGUF version 1, which is no longer read", hint="look for a newer conversion")
    if version not in (2, 3):
        raise UnsupportedModel(f"GGUF version {version}, which is not known", hint="check for a newer mdl")
    return version


def _metadata(cursor: _Cursor, key_count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.text()
        if key in metadata:
            raise _damaged(f"it has the key {line(key)!r} twice")
        metadata[key] = cursor.value()
    return metadata


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _damaged(f"its alignment is {line(str(alignment))!r}")
    return alignment


def _tensors(cursor: _Cursor, tensor_count: int, alignment: int) -> tuple[Tensor, ...]:
    """The tensors; llama.cpp takes them only one after the other, each at the next aligned place."""
    tensors: dict[str, Tensor] = {}
    expected = 0
    for _ in range(tensor_count):
        tensor = _tensor(cursor)
        if tensor.name in tensors:
            raise _damaged(f"it has the tensor {line(tensor.name)!r} twice")
        if tensor.offset != expected:
            raise _damaged(f"tensor {line(tensor.name)!r} is at {tensor.offset:,} instead of {expected:,}")
        tensors[tensor.name] = tensor
        expected = _pad(expected + tensor.size, alignment)
    return tuple(tensors.values())


def _tensor(cursor: _Cursor) -> Tensor:
    name, dimensions = cursor.text(), cursor.u32()
    if dimensions > MOST_DIMENSIONS:
        raise _damaged(f"tensor {line(name)!r} has {dimensions:,} dimensions")
    start = cursor.take(8 * dimensions)
    shape = struct.unpack_from(f"<{dimensions}Q", cursor.buffer, start)
    kind, block, block_size = _tensor_type(name, cursor.u32())
    tensor = Tensor(name, shape, kind, cursor.u64(), 0)
    if tensor.elements >= 1 << 63 or (shape and shape[0] % block):
        raise _damaged(f"tensor {line(name)!r} has an impossible shape")
    return tensor._replace(size=tensor.elements // block * block_size)


def _tensor_type(name: str, number: int) -> tuple[str, int, int]:
    if number in REMOVED_TYPES:
        raise UnsupportedModel(
            f"its tensors are {REMOVED_TYPES[number]}, which llama.cpp no longer reads",
            hint="look for the Q4_0 or IQ4_NL version: it is rearranged while loading",
        )
    if number not in TENSOR_TYPES:
        raise UnsupportedModel(
            f"tensor {line(name)!r} has the unknown type {number}",
            hint="check for a newer mdl; otherwise the file is damaged: download it again",
        )
    return TENSOR_TYPES[number]


def _check_whole(end: int, size: int) -> None:
    if end > size:
        raise UnsupportedModel(
            f"truncated: {end - size:,} of {end:,} bytes are missing", hint="download it again"
        )


def _pad(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _damaged(cause: str) -> UnsupportedModel:
    return UnsupportedModel(f"a damaged GGUF file: {cause}", hint="download it again")


def facts(header: Header, name: str | None = None) -> Facts:
    """What the header tells; `name` stands in where the file has none."""
    data = header.metadata
    architecture = line(data.get("general.architecture"))
    kind = _kind(header, architecture)
    return Facts(
        kind=kind,
        format="gguf",
        name=line(data.get("general.name")) or line(data.get("general.basename")) or name,
        architecture=architecture,
        parameters=sum(tensor.elements for tensor in header.tensors) or None,
        quantization=_quantization(header),
        context_length=count(data.get(f"{architecture}.context_length")),
        embedding_length=count(data.get(f"{architecture}.embedding_length")),
        layers=count(data.get(f"{architecture}.block_count")),
        heads=count(data.get(f"{architecture}.attention.head_count")),
        kv_heads=count(data.get(f"{architecture}.attention.head_count_kv")),
        experts=count(data.get(f"{architecture}.expert_count")),
        experts_used=count(data.get(f"{architecture}.expert_used_count")),
        vocabulary=_vocabulary(data, architecture),
        size_label=line(data.get("general.size_label")),
        license=line(data.get("general.license")) or line(data.get("general.license.name")),
        base_model=_base_model(data),
        tokenizer=line(data.get("tokenizer.ggml.model")),
        chat_template=_text(data.get("tokenizer.chat_template")),
        split=_split(data),
        projectors=tuple(
            sense for sense in ("vision", "audio") if data.get(f"clip.has_{sense}_encoder") is True
        ),
        adapter=_adapter(header) if kind == "adapter" else None,
        tags=lines(data.get("general.tags")),
        languages=lines(data.get("general.languages")),
        sampling=tuple(_sampling(data)),
    )


_SAMPLING = "general.sampling."


def _sampling(data: Mapping[str, object]) -> Iterator[tuple[str, float | int]]:
    """Numbers alone: `general.sampling.sequence` is a text, an order that is llama.cpp's own here."""
    for key, value in data.items():
        if key.startswith(_SAMPLING) and isinstance(value, int | float) and not isinstance(value, bool):
            # 0.1 as 32 bits have it is 0.10000000149011612.
            exact = float(f"{value:.7g}") if isinstance(value, float) else value
            yield key.removeprefix(_SAMPLING)[:40], exact


_KINDS = {"adapter": "adapter", "mmproj": "projector", "projector": "projector", "imatrix": "imatrix"}
_KINDS_BY_ARCHITECTURE = {"clip": "projector", "controlvector": "control-vector"}  # files without a type


def _kind(header: Header, architecture: str | None) -> str:
    data = header.metadata
    if kind := _KINDS.get(str(data.get("general.type"))):
        return kind
    if kind := _KINDS_BY_ARCHITECTURE.get(architecture or ""):
        return kind
    alone = not header.tensors and _split(data) is None  # a split's first part may hold no tensors
    return "vocabulary" if alone and "tokenizer.ggml.model" in data else "model"


def _quantization(header: Header) -> str | None:
    if not header.tensors:
        return None
    number = count(header.metadata.get("general.file_type"))
    named = FILE_TYPES.get(number & ~_GUESSED) if number is not None else None
    return named or largest_type(header.tensors)


def _vocabulary(data: Mapping[str, Value], architecture: str | None) -> int | None:
    tokens = data.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        return tokens.count
    return len(tokens) if isinstance(tokens, list) else count(data.get(f"{architecture}.vocab_size"))


def _base_model(data: Mapping[str, Value]) -> str | None:
    keys = ("general.base_model.0.repo_url", "general.base_model.0.name")
    return next((text for key in keys if (text := line(data.get(key)))), None)


def _split(data: Mapping[str, Value]) -> Split | None:
    number, parts = count(data.get("split.no")), count(data.get("split.count"))
    return Split(number + 1, parts) if number is not None and parts is not None and parts > 1 else None


def _adapter(header: Header) -> Adapter:
    alpha = header.metadata.get("adapter.lora.alpha")
    down = next((tensor for tensor in header.tensors if tensor.name.endswith(".lora_a")), None)
    return Adapter(
        type=line(header.metadata.get("adapter.type")),
        rank=down.shape[1] if down and len(down.shape) > 1 else None,
        alpha=float(alpha) if isinstance(alpha, int | float) else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
