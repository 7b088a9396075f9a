"""How much memory a model needs, and whether a machine has it. Knows no file, system or llama.cpp."""

from typing import Literal, NamedTuple

from mdl.gguf import Header
from mdl.machine import Machine


class Layer(NamedTuple):
    """One block of a model."""

    weights: int  # bytes
    key: int = 0  # numbers that the cache keeps of a token
    value: int = 0
    window: int = 0  # tokens that it looks back at; 0: all


class Shape(NamedTuple):
    """What the memory of a model depends on."""

    architecture: str
    layers: tuple[Layer, ...]
    embedding: int
    vocabulary: int
    trained: int  # context in tokens
    input: int  # bytes of the token embedding
    output: int  # bytes of the output layer
    tied: bool  # the token embedding is the output layer, too

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return sum(layer.weights for layer in self.layers) + self.input + (0 if self.tied else self.output)


class Part(NamedTuple):
    """What one device holds, in bytes."""

    weights: int = 0
    cache: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return sum(self)


class Need(NamedTuple):
    """What a model takes on the CPU's side, and on each GPU, in bytes."""

    cpu: Part
    gpus: tuple[Part, ...] = ()

    @property
    def weights(self) -> int:
        return sum(part.weights for part in (self.cpu, *self.gpus))

    @property
    def cache(self) -> int:
        return sum(part.cache for part in (self.cpu, *self.gpus))

    @property
    def compute(self) -> int:
        return sum(part.compute for part in (self.cpu, *self.gpus))

    @property
    def total(self) -> int:
        return sum(part.total for part in (self.cpu, *self.gpus))


class Fit(NamedTuple):
    """How a model would lie in a machine's memory. `limit` says what it lacks, if it does not fit."""

    fits: bool
    gpu_layers: int  # as llama.cpp counts them: the blocks, and the output layer as one more
    layers: int  # all there are, counted the same way
    context: int
    need: Need
    limit: str = ""

    @property
    def whole(self) -> bool:
        """All layers are on GPUs."""
        return self.fits and 0 < self.layers == self.gpu_layers


CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


def shape(header: Header) -> Shape:
    """What a header tells; of a split model it has the tensors of all parts.

    Raises UnsupportedModel where it is not one of a language model.
    """
    data, architecture = header.metadata, str(header.metadata.get("general.architecture"))

    def number(key: str, default: int = 0) -> int:
        value = data.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else default

    width, heads = number("embedding_length"), max(1, number("attention.head_count", 1))
    kv = number("attention.head_count_kv", heads) * number("attention.key_length", width // heads)
    sizes = {tensor.name: tensor.size for tensor in header.tensors}
    layers = number("block_count")
    blocks = [sum(s for name, s in sizes.items() if name.startswith(f"blk.{n}.")) for n in range(layers)]
    embedding = sizes.get("token_embd.weight", 0)
    return Shape(
        architecture,
        tuple(Layer(size, kv, kv) for size in blocks),
        width,
        number("vocab_size", 32000),
        number("context_length"),
        embedding,
        sizes.get("output.weight", embedding),
        "output.weight" not in sizes,
    )


def need(
    shape: Shape,
    context: int,
    *,
    slots: int = 1,
    cache_types: tuple[CacheType, CacheType] = ("f16", "f16"),
    gpu_layers: int = 0,
    split: tuple[float, ...] = (1.0,),
    micro_batch: int = 512,
    flash_attention: bool = True,
    unified: bool = True,
) -> Need:
    """What llama.cpp takes for a context of so many tokens, which the requests in `slots` share."""
    cells = -(-context // 256) * 256
    cache = sum(2 * (layer.key + layer.value) * cells for layer in shape.layers)
    return Need(Part(shape.weights, cache, micro_batch * shape.vocabulary * 4))


def fit(shape: Shape, machine: Machine, context: int | None = None, *, slots: int = 1) -> Fit:
    """The best way to lay a model into a machine's memory: as many layers as possible on its GPUs."""
    tokens = context or min(shape.trained or 4096, 16384)
    needed = need(shape, tokens, slots=slots)
    enough = needed.total <= machine.memory_available
    limit = (
        "" if enough else f"needs {needed.total:,} bytes of memory, and {machine.memory_available:,} are free"
    )
    return Fit(enough, 0, len(shape.layers) + 1, tokens, needed, limit)
