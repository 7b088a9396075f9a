"""What the memory of a model depends on, read from its header. Knows no machine and no context.

Which layers have a cache, a window or a state follows llama.cpp (version 0.3.36 of llama-cpp-python):
llama-hparams.cpp, llama-model.cpp (create_memory) and models/*.cpp.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mdl.errors import UnsupportedModel
from mdl.gguf import Header, Value
from mdl.header import Tensor, count

MOST_LAYERS = 512  # LLAMA_MAX_LAYERS

# Layers in a row of which all but one look back only so far: the period, the window in tokens where the file
# does not tell, and whether it is the first of a period that sees everything, not the last.
_WINDOWS = {
    "gemma2": (2, 4096, False),
    "gemma3": (6, 0, False),
    "gemma3n": (5, 0, False),
    "gpt-oss": (2, 0, False),
    "cohere2": (4, 0, False),
    "cohere2moe": (4, 0, True),
    "llama4": (4, 8192, False),
    "olmo2": (4, 0, False),
    "exaone4": (4, 4096, False),
    "exaone-moe": (4, 128, False),
    "smallthinker": (4, 4096, True),
    "afmoe": (4, 0, False),
    "plamo3": (8, 0, False),
    "mellum": (4, 0, False),
    "lfm2": (0, 0, False),
    "lfm2moe": (0, 0, False),
}
_STATEFUL = ("ssm_", "time_mix_", "shortconv.")
_QUERIES = ("attn_q.", "attn_q_b.", "attn_k.", "attn_v.", "attn_qkv.", "attn_output.")
_FEED = ("ffn_gate.", "ffn_up.", "ffn_gate_shexp.", "ffn_up_shexp.", "ssm_in.", "shortconv.in_proj.")
_BLOCK = re.compile(r"blk\.(\d{1,4})\.")
_INPUT = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


class Layer(NamedTuple):
    """One block of a model. Widths count the numbers that are kept of one token.

    `key` and `value` are what the cache keeps: nothing without attention, or where another block's serves.
    """

    weights: int  # bytes of all its tensors
    largest: int  # bytes of the largest of them
    key: int = 0
    value: int = 0
    window: int = 0  # tokens that attention looks back at; 0: all
    state: int = 0  # bytes that it keeps of a sequence, however long that is
    heads: int = 0
    attention: int = 0  # width of what is there at once while attention is computed
    feed: int = 0  # the same of the feed-forward part


class Shape(NamedTuple):
    """A model, as far as memory is concerned. Sizes are in bytes."""

    architecture: str
    layers: tuple[Layer, ...]
    embedding: int  # width of what goes from layer to layer
    vocabulary: int  # tokens
    trained: int  # tokens of context that it learned with; 0: unknown
    input: int  # tensors before the first layer
    output: int  # tensors behind the last layer
    tied: int = 0  # of the token embedding, where it is the output layer, too

    @property
    def weights(self) -> int:
        """Bytes of all tensors that are loaded."""
        return sum(layer.weights for layer in self.layers) + self.input + self.output


def shape(header: Header) -> Shape:
    """What a header tells; that of a split model has to have the tensors of all parts.

    Raises UnsupportedModel where it is not that of a language model.
    """
    keys = _Keys(header.metadata)
    count_of_layers, embedding = keys.number("block_count"), keys.number("embedding_length")
    if not 0 < count_of_layers <= MOST_LAYERS or not embedding or not header.tensors:
        raise UnsupportedModel(
            "how much memory it takes cannot be told: it has no header of a language model"
        )
    blocks, outside = _by_block(header.tensors, count_of_layers)
    input_size = sum(tensor.size for tensor in outside if tensor.name.startswith(_INPUT))
    tokens = next((tensor for tensor in outside if tensor.name == "token_embd.weight"), None)
    tied = all(tensor.name != "output.weight" for tensor in outside)
    return Shape(
        keys.architecture,
        _layers(keys, blocks),
        embedding,
        _vocabulary(keys, tokens),
        keys.number("context_length"),
        input_size,
        sum(tensor.size for tensor in outside) - input_size,
        tokens.size if tokens and tied else 0,
    )


class _Keys:
    """The architecture's own keys; what is missing, or is no count, has the default."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))

    def value(self, key: str) -> Value | None:
        return self.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """Of a list with one number for each layer, the largest."""
        found = count(self.value(key))
        return default if found is None else found

    def each(self, key: str, layers: int, default: int = 0) -> list[int]:
        """One number for each layer."""
        value = self.value(key)
        if not isinstance(value, list):
            return [self.number(key, default)] * layers
        numbers = [int(item) if isinstance(item, bool) else count(item) or 0 for item in value[:layers]]
        return numbers + [0] * (layers - len(numbers))


def _by_block(tensors: Iterable[Tensor], layers: int) -> tuple[list[list[Tensor]], list[Tensor]]:
    """The tensors of each block, and the others."""
    blocks: list[list[Tensor]] = [[] for _ in range(layers)]
    outside: list[Tensor] = []
    for tensor in tensors:
        place = _BLOCK.match(tensor.name)
        number = int(place[1]) if place else layers
        (blocks[number] if number < layers else outside).append(tensor)
    return blocks, outside


def _vocabulary(keys: _Keys, embedding: Tensor | None) -> int:
    if embedding and len(embedding.shape) > 1:
        return embedding.shape[1]
    return keys.number("vocab_size")


def _layers(keys: _Keys, blocks: list[list[Tensor]]) -> tuple[Layer, ...]:
    count_of_layers = len(blocks)
    used = count_of_layers - keys.number("nextn_predict_layers")  # those that draft tokens are not loaded
    heads = keys.each("attention.head_count", count_of_layers)
    cached = keys.each("attention.head_count_kv", count_of_layers, max(heads))
    windows = _windows(keys, count_of_layers)
    own = _with_own_cache(keys, count_of_layers)
    layers = []
    for number, tensors in enumerate(blocks):
        attends = _attends(tensors)
        key, value = _head(keys, max(heads), windows[number] > 0)
        kept = cached[number] if attends and number < own else 0
        layer = Layer(
            weights=sum(tensor.size for tensor in tensors),
            largest=max((tensor.size for tensor in tensors), default=0),
            key=kept * key,
            value=kept * value,
            window=windows[number],
            state=_state(keys, max(heads)) if _has(tensors, _STATEFUL) else 0,
            heads=heads[number] if attends else 0,
            attention=_width(tensors, _QUERIES),
            feed=_feed(tensors, keys.number("expert_used_count")),
        )
        layers.append(layer if number < used else Layer(0, 0))
    return tuple(layers)


def _has(tensors: Iterable[Tensor], names: tuple[str, ...]) -> bool:
    return any(_inner(tensor).startswith(names) for tensor in tensors)


def _inner(tensor: Tensor) -> str:
    """The name within its block."""
    return tensor.name.split(".", 2)[2]


def _attends(tensors: Iterable[Tensor]) -> bool:
    if _has(tensors, ("attn_k.", "attn_kv_a_mqa.")):
        return True
    return _has(tensors, ("attn_qkv.",)) and not _has(tensors, _STATEFUL)


def _with_own_cache(keys: _Keys, layers: int) -> int:
    """The number of layers at the start that have a cache; those behind use the same one."""
    if keys.architecture == "gemma3n":
        return 20
    return layers - keys.number("attention.shared_kv_layers")


def _head(keys: _Keys, heads: int, windowed: bool) -> tuple[int, int]:
    """Widths of a key and a value of one head. With multi-head latent attention the keys hold both."""
    default = keys.number("embedding_length") // max(1, heads)
    key = keys.number("attention.key_length", default)
    value = keys.number("attention.value_length", default)
    if windowed:
        key = keys.number("attention.key_length_swa", key)
        value = keys.number("attention.value_length_swa", value)
    return key, 0 if keys.number("attention.key_length_mla") else value


def _windows(keys: _Keys, layers: int) -> list[int]:
    """Tokens that each layer looks back at; 0: all."""
    key = "attention.sliding_window_pattern"
    listed = isinstance(keys.value(key), list)
    if keys.architecture not in _WINDOWS and not listed:
        return [0] * layers
    period, default, first = _WINDOWS.get(keys.architecture, (0, 0, False))
    window = _window(keys, default, layers)
    if listed:
        return [window * (number > 0) for number in keys.each(key, layers)]
    period = keys.number(key, period)
    sees_all = 0 if first else period - 1
    return [window if not period or number % period != sees_all else 0 for number in range(layers)]


def _window(keys: _Keys, default: int, layers: int) -> int:
    given = keys.value("attention.sliding_window")
    if keys.architecture == "exaone4" and layers != 64:  # only its largest model has one
        return 0
    if keys.architecture == "llama4":
        return 0 if given == 0 else default
    if keys.architecture == "smallthinker":
        return default if given else 0
    return keys.number("attention.sliding_window", default)


def _state(keys: _Keys, heads: int) -> int:
    """Bytes of a recurrent layer's state of one sequence: of its convolution, and of what it remembers."""
    width = keys.number("embedding_length")
    if head := keys.number("wkv.head_size"):
        return 4 * (keys.number("token_shift_count", 2) * width + width * head)
    if length := keys.number("shortconv.l_cache"):
        return 4 * width * (length - 1)
    if head := keys.number("kda.head_dim"):
        kernel = keys.number("ssm.conv_kernel", 4)
        return 4 * (3 * (kernel - 1) * heads * head + head * head * heads)
    inner, size = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    kernel = max(1, keys.number("ssm.conv_kernel"))
    return 4 * ((kernel - 1) * (inner + 2 * keys.number("ssm.group_count") * size) + size * inner)


def _width(tensors: Iterable[Tensor], names: tuple[str, ...]) -> int:
    """What the named matrices give for one token, all together."""
    matrices = [tensor for tensor in tensors if _inner(tensor).startswith(names) and len(tensor.shape) > 1]
    return sum(tensor.shape[1] for tensor in matrices)


def _feed(tensors: Iterable[Tensor], used: int) -> int:
    """The same of the feed-forward part, where each token takes its own experts."""
    experts = [tensor for tensor in tensors if len(tensor.shape) > 2]
    each = [tensor for tensor in tensors if len(tensor.shape) == 2]
    return _width(each, _FEED) + max(used, 1) * _width(experts, ("ffn_",))
