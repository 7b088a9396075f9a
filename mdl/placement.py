"""How a model is put into the memory that there is for it: its context, and its layers on GPUs. Knows no
process and no llama.cpp.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mdl import gguf, memory
from mdl.engine.request import EngineSettings
from mdl.errors import UnsupportedModel
from mdl.machine import Machine
from mdl.memory import CacheType, Need, Part, Shape

FEWEST_TOKENS = 1024  # to which a context that nobody asked for is shortened, where memory is scarce


@dataclass(frozen=True, slots=True)
class Placement:
    """`settings` say how to load it. It takes `cpu` bytes of the machine's memory and so many of each GPU's;
    `layers` of all its `most_layers` are on GPUs. `note` says what was made smaller than it could be."""

    settings: EngineSettings
    cpu: int = 0
    gpus: tuple[int, ...] = ()
    layers: int = 0
    most_layers: int = 0
    note: str = ""

    @property
    def size(self) -> int:
        return self.cpu + sum(self.gpus)

    @property
    def processor(self) -> str:
        """As "100% CPU", "100% GPU" or "48%/52% CPU/GPU": where its memory is."""
        if not self.size or not sum(self.gpus):
            return "100% CPU"
        if self.layers >= self.most_layers:
            return "100% GPU"
        on_cpu = round(100 * self.cpu / self.size)
        return f"{on_cpu}%/{100 - on_cpu}% CPU/GPU"


def read(files: tuple[Path, ...]) -> gguf.Header:
    """The header of a model, with the tensors of all its parts. Raises UnsupportedModel, DiskError."""
    first, *others = [gguf.read(path) for path in files]
    return replace(first, tensors=first.tensors + tuple(t for part in others for t in part.tensors))


def place(header: gguf.Header, settings: EngineSettings, here: Machine, most: int) -> Placement:
    """As many layers on GPUs as there is room for, and `most` bytes of the machine's memory at most.

    What the settings leave open is decided; a context that they do not ask for is shortened where there is
    no room for it. Raises UnsupportedModel, with the numbers, where nothing fits.
    """
    try:
        shape = memory.shape(header)
    except UnsupportedModel:  # of a kind that is not known, as those that make vectors: about its weights
        size = sum(tensor.size for tensor in header.tensors)
        if limit := memory.lacking(Need(Part(weights=size)), here, most):
            raise _too_large(limit) from None
        return Placement(settings, cpu=size)
    whole = memory.is_whole(shape)
    lacking = ""
    for wanted in _contexts(shape, settings, here):
        for layers in _layers(shape, settings, here):
            chosen = replace(wanted, gpu_layers=layers if here.usable_gpus else settings.gpu_layers)
            needed = _need(shape, chosen, here, layers, whole)
            found = memory.lacking(needed, here, most)
            if not found:
                return _placed(shape, settings, chosen, needed, layers)
            lacking = lacking or found
    raise _too_large(lacking)


def _too_large(lacking: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the model does not fit into the memory that is free: it {lacking}",
        hint="take a smaller quantization, a smaller context (--ctx) or fewer requests at once (--parallel)",
    )


def _contexts(shape: Shape, settings: EngineSettings, here: Machine) -> Iterator[EngineSettings]:
    """With the context that was asked for; else the one that is usual, and then ever shorter ones."""
    usual = memory.sizes(shape, settings, here.memory_total)
    context, cells = usual.context, usual.cells
    yield replace(settings, **usual._asdict())
    if settings.cells is not None:
        return
    while cells > context:
        cells = max(context, cells // 2)
        yield replace(settings, context=context, cells=cells, shared=True)
    while settings.context is None and context > FEWEST_TOKENS:
        context = max(FEWEST_TOKENS, context // 2)
        yield replace(settings, context=context, cells=context, shared=True)


def _layers(shape: Shape, settings: EngineSettings, here: Machine) -> tuple[int, ...]:
    most = len(shape.layers) + 1  # as llama.cpp counts them: the output layer is one
    if not here.usable_gpus:
        return (0,)
    if settings.gpu_layers is not None:
        return (min(settings.gpu_layers, most),)
    return tuple(range(most, -1, -1))


def _need(shape: Shape, settings: EngineSettings, here: Machine, layers: int, whole: bool) -> Need:
    split = tuple(gpu.free for gpu in here.usable_gpus) or (1,)
    return memory.need(
        shape,
        settings.cells or 0,
        slots=settings.slots(bool(settings.shared), whole),
        unified=bool(settings.shared),
        gpu_layers=layers,
        split=split,
        micro_batch=settings.batch,
        cache_types=(_cache_type(settings.cache_type_k), _cache_type(settings.cache_type_v)),
        flash_attention=settings.flash_attention is not False,
    )


def _cache_type(name: str | None) -> CacheType:
    return cast(CacheType, (name or "f16").upper())


def _placed(
    shape: Shape, settings: EngineSettings, chosen: EngineSettings, needed: Need, layers: int
) -> Placement:
    assert chosen.context is not None
    usual = settings.context or settings.usual(shape.trained)
    note = ""
    if chosen.context < usual:
        note = f"the context is {chosen.context:,} tokens: there is no memory for {usual:,}"
    gpus = tuple(part.total for part in needed.gpus)
    return Placement(chosen, needed.cpu.total, gpus, layers, len(shape.layers) + 1, note)
