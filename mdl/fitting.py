"""Which versions of a model fit this machine, and which of those is the best. Knows no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mdl import gguf, memory
from mdl.card import Offer
from mdl.errors import UsageError
from mdl.machine import Machine
from mdl.memory import Fit
from mdl.partial import size_text

NOT_QUANTIZED = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class Fitting:
    """How versions, by name, would lie in a machine's memory with a context of so many tokens. Of its own
    memory they may take `most` bytes, if that is not 0. `best` is None where none fits."""

    machine: Machine
    most: int
    context: int
    fits: Mapping[str, Fit]
    best: str | None


def fit_one(header: gguf.Header, machine: Machine, context: int | None, most: int = 0) -> Fit:
    """How a model with this header, which has the tensors of all its parts, would lie in memory.

    `context` is in tokens; None is what `mdl chat` takes. `most` are the bytes of the machine's own memory
    that a model may take, if they are bounded. Raises UsageError for more tokens than the model learned,
    UnsupportedModel for what is no language model.
    """
    shape = memory.shape(header)
    if context is not None and context > shape.trained > 0:
        raise UsageError(
            f"a context of {context:,} tokens is more than the model learned, {shape.trained:,}",
            hint=f"use a context of at most {shape.trained}",
        )
    found = memory.fit(shape, machine, context)
    taken = found.need.cpu.total
    taken += sum(p.total for g, p in zip(machine.usable_gpus, found.need.gpus, strict=False) if g.shared)
    if not most or taken <= most or not found.fits:
        return found
    return found._replace(
        fits=False, limit=f"needs {size_text(taken)} of memory, where {size_text(most)} may be used"
    )


def fit_all(
    offers: Sequence[Offer],
    sample: Offer,
    header: gguf.Header,
    machine: Machine,
    context: int | None,
    most: int = 0,
) -> Fitting:
    """How each version would. `header` is that of `sample`: the other versions have the same tensors in other
    sizes, which are reckoned by the sizes of their files. The rest is as `fit_one` has it."""
    known = [offer for offer in offers if not offer.problem and (offer == sample or offer.loaded)]
    fits = {offer.version: fit_one(_scaled(header, sample, offer), machine, context, most) for offer in known}
    return Fitting(machine, most, fits[sample.version].context, fits, best(known, fits))


def best(offers: Sequence[Offer], fits: Mapping[str, Fit]) -> str | None:
    """The version that loses least: the largest that GPUs hold whole, else the largest that fits. What was
    never quantized is taken only where there is nothing else: Q8_0 is as good, and half as large."""

    def rank(offer: Offer) -> tuple[bool, bool, int]:
        return fits[offer.version].whole, offer.quantization not in NOT_QUANTIZED, offer.loaded or 0

    found = [offer for offer in offers if fits[offer.version].fits]
    return max(found, key=rank).version if found else None


def _scaled(header: gguf.Header, sample: Offer, offer: Offer) -> gguf.Header:
    if offer == sample or not sample.loaded or not offer.loaded:
        return header
    ratio = offer.loaded / sample.loaded
    tensors = tuple(tensor._replace(size=int(tensor.size * ratio)) for tensor in header.tensors)
    return replace(header, tensors=tensors)
