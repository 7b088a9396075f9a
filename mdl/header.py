"""A weights file's header, whatever its format: what is read of it, and how. Knows no format and no folder.

Readers work on a prefix and raise `NeedMore` until it is long enough. So the same code reads a file here and,
with range requests, one on the other side of the world.
"""

import math
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mdl.errors import UnsupportedModel

LONGEST_LINE = 256  # characters kept of a name, a licence, a tag
FIRST_READ = 1 << 18  # covers the small models; the vocabulary of a large one takes 5 to 15 MB
_LARGEST_COUNT = 1 << 53  # what JSON and TOML still hold exactly

Parsed = TypeVar("Parsed")


class NeedMore(Exception):
    """The prefix is too short: `n` bytes from the start of the file are needed, maybe more after that."""

    def __init__(self, n: int) -> None:
        super().__init__(f"{n} bytes of the file are needed")
        self.n = n


class Tensor(NamedTuple):
    """A tensor as its file describes it: `shape` in the file's order, `offset` and `size` in bytes.

    `offset` counts from the start of the data, which begins where the header ends.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Adapter:
    """How an adapter changes its base model, e.g. lora, rank 8, alpha 16."""

    type: str | None = None
    rank: int | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a split model a file is; `number` counts from 1."""

    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What weights say about themselves. None is unknown; lengths are in tokens, dimensions or layers.

    Strings come from the file: they are cut to one bounded line (`chat_template` is whole), but not yet inert
    on a terminal.
    """

    kind: str  # model, adapter, projector, vocabulary, imatrix, control-vector
    format: str  # gguf, safetensors
    name: str | None = None
    architecture: str | None = None
    parameters: int | None = None  # of this file only when `split` is set
    quantization: str | None = None
    context_length: int | None = None
    embedding_length: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    vocabulary: int | None = None
    size_label: str | None = None
    license: str | None = None
    base_model: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    split: Split | None = None
    projectors: tuple[str, ...] = ()  # vision, audio
    adapter: Adapter | None = None
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    sampling: tuple[tuple[str, float | int], ...] = ()  # how its maker wants tokens chosen; not yet checked


def line(value: object) -> str | None:
    """A value as one line of bounded length; None when it is no text or empty."""
    if not isinstance(value, str):
        return None
    return " ".join(encodable(value[: 4 * LONGEST_LINE]).split())[:LONGEST_LINE] or None


def encodable(text: str) -> str:
    """Text that can be written: JSON can spell halves of characters, which no file and no terminal takes."""
    return text.encode("utf-8", "replace").decode()


def lines(value: object) -> tuple[str, ...]:
    """The first 64 texts of a list, each as one line."""
    found = map(line, value[:64]) if isinstance(value, list) else ()
    return tuple(text for text in found if text)


def count(value: object) -> int | None:
    """A value as a count; of a list (one for each layer) the largest; None when it is no such thing."""
    if isinstance(value, list):
        return max((number for number in map(count, value) if number is not None), default=None)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_COUNT:
        return value
    return None


def largest_type(tensors: Iterable[Tensor]) -> str | None:
    """The type that holds most elements: what a file is quantized to when it does not say."""
    sums: dict[str, int] = {}
    for tensor in tensors:
        sums[tensor.type] = sums.get(tensor.type, 0) + tensor.elements
    return max(sums, key=lambda name: sums[name], default=None)


def open_file(path: Path) -> FileIO:
    """A regular file, open for unbuffered reading; raises OSError, and UnsupportedModel for anything else.

    Never waits: opening a named pipe blocks until somebody writes to it (Windows has neither flag nor pipe).
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return FileIO(descriptor)
    os.close(descriptor)
    raise UnsupportedModel(f"{path} is not a regular file")


LARGEST_TEXT = 1 << 20  # bytes


def read_text(path: Path) -> str:
    """What lies beside weights, as a text in UTF-8. Raises UnsupportedModel, with the name of the file, for
    what cannot be read as one."""
    try:
        with open_file(path) as file:
            data = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise UnsupportedModel(f"{path.name} cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_TEXT:
        raise UnsupportedModel(f"{path.name} is longer than {LARGEST_TEXT:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnsupportedModel(f"{path.name} is no text in UTF-8") from None


def read(path: Path, parse: Callable[[Any, int], Parsed]) -> Parsed:
    """What `parse` makes of the file's header; raises OSError and UnsupportedModel, which names the file.

    Reads growing prefixes instead of mapping the file: a mapped file that shrinks ends the process.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(FIRST_READ)
        while True:
            try:
                return parse(prefix, size)
            except NeedMore as short:
                more = file.read(max(short.n, 4 * len(prefix)) - len(prefix))
            except UnsupportedModel as error:
                raise UnsupportedModel(f"{path}: {error.message}", error.hint) from None
            if not more:
                raise UnsupportedModel(f"{path} became shorter while it was read", hint="try again")
            prefix += more
