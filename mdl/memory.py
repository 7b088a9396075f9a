"""What a model needs of memory at a context, and whether a machine has it. Knows no file and no llama.cpp.

What llama.cpp allocates was read in its source (llama-context.cpp, llama-kv-cache.cpp, llama-graph.cpp and
others; version 0.3.36 of llama-cpp-python); tests/benchmarks/memory.py compares it with what it says itself.
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Literal, NamedTuple

from mdl.engine.request import EngineSettings, Sizes
from mdl.gguf import TENSOR_TYPES
from mdl.machine import Machine
from mdl.shape import Layer, Shape, shape

__all__ = ["CacheType", "Fit", "Layer", "Need", "Part", "Shape", "fit", "lacking", "need", "shape"]

CacheType = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"]

_CELLS_PADDED = 256
_FLOAT = 4  # bytes of what is computed, whatever the weights are
_STEPS_AHEAD = 4  # GGML_SCHED_MAX_COPIES
_CPU = 0

# What is left alone: other programs want some, too, and what llama.cpp and its GPU driver take besides (work
# buffers, the driver's own context on each GPU) is 200 to 500 MB.
_RESERVED_SHARE = 20  # one part in so many of what is free
_LEAST_RESERVED = 512 << 20


class Part(NamedTuple):
    """What one device holds, in bytes."""

    weights: int = 0
    cache: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return sum(self)


class Need(NamedTuple):
    """What a model takes on the CPU's side, and on each GPU. All in bytes."""

    cpu: Part
    gpus: tuple[Part, ...] = ()

    @property
    def weights(self) -> int:
        return sum(part.weights for part in (self.cpu, *self.gpus))

    @property
    def cache(self) -> int:
        """Keys and values of the context, and the state of recurrent layers."""
        return sum(part.cache for part in (self.cpu, *self.gpus))

    @property
    def compute(self) -> int:
        """What is between the layers, and what comes out."""
        return sum(part.compute for part in (self.cpu, *self.gpus))

    @property
    def total(self) -> int:
        return sum(part.total for part in (self.cpu, *self.gpus))


class Fit(NamedTuple):
    """How a model would lie in a machine's memory. `limit` says what it lacks, where it does not fit."""

    fits: bool
    gpu_layers: int  # as llama.cpp counts them: the last ones, and the output layer as one more
    layers: int  # all there are, counted the same way
    context: int  # tokens
    need: Need
    limit: str = ""

    @property
    def whole(self) -> bool:
        """All layers are on GPUs."""
        return self.fits and 0 < self.layers == self.gpu_layers


class _Load(NamedTuple):
    """What is asked of llama.cpp, in its own terms."""

    cells: int  # tokens that the cache of a stream holds
    streams: int  # caches of their own
    slots: int  # sequences at once
    tokens: int  # computed at once
    key: CacheType
    value: CacheType
    flash: bool
    swa_full: bool
    widest: int  # of a layer's values: without flash attention all layers get as much


def need(
    shape: Shape,
    context: int,
    *,
    slots: int = 1,
    cache_types: tuple[CacheType, CacheType] = ("F16", "F16"),
    gpu_layers: int = 0,
    split: tuple[int, ...] = (1,),
    micro_batch: int = 512,
    flash_attention: bool = True,
    unified: bool = True,
    swa_full: bool = True,
) -> Need:
    """What llama.cpp allocates for a context of so many tokens, which `slots` requests at once share.

    `gpu_layers` are the last ones, the output layer being the last of all; GPUs take shares of them by
    `split`. `micro_batch` is how many tokens are computed at once. `unified` is one cache for all requests;
    otherwise each has an equal part. `swa_full` keeps all tokens even behind a sliding window, as llama.cpp
    does by default, and so the engine.
    """
    cells, streams = _padded(context), 1
    if not unified:
        cells, streams = _padded(cells // slots), slots
    tokens = min(micro_batch, context)
    widest = max((layer.value for layer in shape.layers), default=0)
    load = _Load(cells, streams, slots, tokens, *cache_types, flash_attention, swa_full, widest)
    devices = _devices(len(shape.layers) + 1, gpu_layers, split)
    parts = [_part(shape, load, devices, device) for device in range(len(split) + 1)]
    return Need(parts[_CPU], tuple(parts[1:]) if gpu_layers else ())


def _padded(cells: int) -> int:
    return -(-cells // _CELLS_PADDED) * _CELLS_PADDED


def _devices(layers: int, gpu_layers: int, split: tuple[int, ...]) -> list[int]:
    """Where each layer lies, the output layer last: 0 is the CPU, the GPUs follow."""
    offloaded = min(gpu_layers, layers)
    ends = [end / max(1, sum(split)) for end in accumulate(split)]
    gpus = [1 + bisect_right(ends[:-1], number / offloaded) for number in range(offloaded)]
    return [_CPU] * (layers - offloaded) + gpus


def _part(shape: Shape, load: _Load, devices: list[int], device: int) -> Part:
    layers = [layer for layer, place in zip(shape.layers, devices, strict=False) if place == device]
    has_output = devices[-1] == device
    weights = sum(layer.weights for layer in layers)
    if device == _CPU:
        weights += shape.input
    if has_output:
        weights += shape.output + (shape.tied if device != _CPU else 0)
    compute = _compute(shape, load, layers, has_output)
    if device == _CPU:
        compute += _outside(shape, load, alone=not any(devices))
    elif compute:
        compute += _borrowed(shape, devices) + _ahead(shape, load, devices)
    return Part(weights, sum(_cache(layer, load) for layer in layers), compute)


def _cells(layer: Layer, load: _Load) -> int:
    """Tokens that the cache of a layer holds: behind a window, those of the step that is computed, too."""
    if not layer.window or load.swa_full:
        return load.cells
    sequences = load.slots if load.streams == 1 else 1
    return _padded(min(load.cells, layer.window * sequences + load.tokens))


def _cache(layer: Layer, load: _Load) -> int:
    value = layer.value if load.flash or not layer.value else load.widest
    token = _size(layer.key, load.key) + _size(value, load.value)
    return token * _cells(layer, load) * load.streams + layer.state * load.slots


def _size(numbers: int, kind: CacheType) -> int:
    block, size = _BLOCKS[kind]
    return -(-numbers // block) * size


_BLOCKS = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}


def _compute(shape: Shape, load: _Load, layers: list[Layer], has_output: bool) -> int:
    """The largest of the steps that one buffer serves, each in its turn: a layer, and the output.

    The output hardly ever finds one piece that is large enough: about half a layer's step lies in its way.
    """
    passed = _FLOAT * load.tokens * shape.embedding
    masks = _masks(layers, load)
    steps = [2 * passed + masks + _FLOAT * load.tokens * _widest(layer) for layer in layers]
    scored = [step + _scores(layer, load) for layer, step in zip(layers, steps, strict=True)]
    if has_output:
        logits = _FLOAT * load.tokens * shape.vocabulary
        scored.append(logits + max(2 * passed, *(step // 2 for step in steps), 0))
    return max(scored, default=0)


def _masks(layers: Iterable[Layer], load: _Load) -> int:
    """Who looks at whom: one for each size of cache."""
    cells = sum({_cells(layer, load) for layer in layers if layer.heads})
    return cells * load.tokens * (2 if load.flash else _FLOAT)


def _widest(layer: Layer) -> int:
    return max(layer.attention, layer.feed)


def _scores(layer: Layer, load: _Load) -> int:
    """How much each token looks at each other one, which flash attention never has at once."""
    return 0 if load.flash else _FLOAT * load.tokens * layer.heads * _cells(layer, load)


def _outside(shape: Shape, load: _Load, alone: bool) -> int:
    """What the CPU has besides: the answers' logits, and what GPUs begin with."""
    answers = _FLOAT * load.slots * shape.vocabulary
    if alone:
        return answers
    return answers + _masks(shape.layers, load) + _FLOAT * load.tokens * shape.embedding


def _borrowed(shape: Shape, devices: list[int]) -> int:
    """Prompts are computed on a GPU, even in layers that stay with the CPU: one matrix at a time visits."""
    stay = [layer for layer, place in zip(shape.layers, devices, strict=False) if place == _CPU]
    return max((layer.largest for layer in stay), default=0)


def _ahead(shape: Shape, load: _Load, devices: list[int]) -> int:
    """Several GPUs that hold all layers work on several steps at once: each has its own inputs."""
    if _CPU in devices or len(set(devices)) == 1:
        return 0
    return (_STEPS_AHEAD - 1) * (_masks(shape.layers, load) + _FLOAT * load.tokens * shape.embedding)


def default_context(shape: Shape, memory: int) -> int:
    """Tokens of a context that nobody asked for, as `mdl chat` takes it on a machine with so much memory."""
    return sizes(shape, EngineSettings(parallel=1), memory).context


def sizes(shape: Shape, settings: EngineSettings, memory: int) -> Sizes:
    """The cache as the engine makes it on a machine with so much memory."""
    token = sum(2 * (layer.key + layer.value) for layer in shape.layers)
    return settings.sizes(shape.trained, token, memory, is_whole(shape))


def is_whole(shape: Shape) -> bool:
    """Whether the model has a state that is one for all tokens."""
    return any(layer.state for layer in shape.layers)


def fit(shape: Shape, machine: Machine, context: int | None = None, *, slots: int = 1) -> Fit:
    """The best way to lay a model into a machine's memory: as many layers as there is room for on its GPUs.

    A twentieth of what is free on each device is left alone, 512 MiB at least. None is `default_context`.
    """
    tokens = context or default_context(shape, machine.memory_total)
    split = tuple(gpu.free for gpu in machine.usable_gpus)
    layers = len(shape.layers) + 1
    for gpu_layers in range(layers if any(split) else 0, -1, -1):
        needed = need(shape, tokens, slots=slots, gpu_layers=gpu_layers, split=split or (1,))
        limit = lacking(needed, machine, room(machine.memory_available))
        if not limit:
            return Fit(True, gpu_layers, layers, tokens, needed)
    return Fit(False, 0, layers, tokens, needed, limit)


def room(free: int) -> int:
    """How much of what is free a model may take."""
    return max(0, free - max(_LEAST_RESERVED, free // _RESERVED_SHARE))


def lacking(needed: Need, machine: Machine, most: int) -> str:
    """Why there is no room on the GPUs, or in `most` bytes of the machine's own memory; "" where there is."""
    gpus = list(zip(machine.usable_gpus, needed.gpus, strict=False))
    for gpu, part in gpus:
        if part.total > room(gpu.free):
            return _too_much(part.total, room(gpu.free), gpu.name)
    memory = needed.cpu.total + sum(part.total for gpu, part in gpus if gpu.shared)
    if memory > most:
        return _too_much(memory, most, "memory")
    return ""


def _too_much(size: int, most: int, where: str) -> str:
    unit, name = (1e9, "GB") if max(size, most) >= 1e9 else (1e6, "MB")
    return f"needs {size / unit:.1f} {name} of {where}, where {max(0, most) / unit:.1f} {name} can be used"
