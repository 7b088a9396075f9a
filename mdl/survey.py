"""A model at its source, looked at from this machine: its card, its header by ranges, and what of it fits.

Knows no terminal, and no source but through its transport.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from mdl import fitting, gguf, machine
from mdl.address import Remote
from mdl.card import Card, Offer
from mdl.catalog import catalog
from mdl.connection import Trust
from mdl.errors import MdlError, UnsupportedModel, UsageError
from mdl.fitting import Fitting
from mdl.header import FIRST_READ, Facts
from mdl.library import Library
from mdl.memory import Fit
from mdl.model import File
from mdl.partial import size_text
from mdl.ranges import PART, Ranges
from mdl.reference import ONE_VERSION, Reference, show
from mdl.resolution import Resolution
from mdl.transports import Transport

_AT_ONCE = 8  # parts of a split model whose headers are asked for


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found out. `sample` is the version whose header was read, and `read` the bytes that it took;
    `unread` says why there is none, or why it is not enough."""

    card: Card
    sample: Offer | None = None
    header: gguf.Header | None = None
    read: int = 0
    unread: str = ""
    fitting: Fitting | None = None  # of a model whose header was read

    @property
    def facts(self) -> Facts | None:
        return gguf.facts(self.header) if self.header else None

    @property
    def kind(self) -> str | None:
        """model, adapter or projector: as the header says, else as the names of the files do."""
        if self.header:
            return gguf.facts(self.header).kind
        offer = self.card.choice or next(iter(self.card.offers), None)
        role = offer.weights[0].role if offer and offer.weights else None
        return "model" if role == "weights" else role

    @property
    def architecture(self) -> str | None:
        return (self.facts and self.facts.architecture) or self.card.about.architecture

    @property
    def license(self) -> str | None:
        return self.card.about.license or (self.facts.license if self.facts else None)

    @property
    def base_models(self) -> tuple[str, ...]:
        base = self.facts and self.facts.base_model
        return self.card.about.base_models or ((base,) if base else ())

    @property
    def parameters(self) -> int | None:
        return (self.facts and self.facts.parameters) or self.card.about.parameters

    @property
    def context_length(self) -> int | None:
        return (self.facts and self.facts.context_length) or self.card.about.context_length


def survey(library: Library, text: str, context: int | None = None) -> Survey:
    """What can be told of a model without fetching it, with a context of so many tokens. Raises what
    `Library.card` does, and UsageError for more tokens than the model learned.

    Of all versions the header of one is read: the one that the name means, else the first.
    """
    transport, card = library.card(text)
    sample = card.choice or next((offer for offer in card.offers if not offer.problem), None)
    if sample is None or sample.format != "gguf" or card.about.access is False:
        return Survey(card)
    ranges = Ranges(Trust(library.settings.ca, frozenset(library.settings.insecure)))
    try:
        header = _header(ranges, transport, card, sample)
    except MdlError as error:  # the rest is worth showing
        return Survey(card, sample, None, ranges.read, error.message)
    found = Survey(card, sample, header, ranges.read)
    if found.kind != "model":
        return found
    here, most = machine.look(), library.settings.memory
    try:
        fits = fitting.fit_all(card.offers, sample, header, here, context, most)
        return replace(found, fitting=fits)
    except UnsupportedModel as error:  # a header that says too little
        return replace(found, unread=error.message)


def fitted(library: Library, text: str, context: int | None = None) -> tuple[str, str]:
    """The name of the best version that fits this machine, and why, in a person's words.

    Raises UsageError where a version is named already, UnsupportedModel where none fits or that cannot be
    told, and what `survey` does.
    """
    found = survey(library, _unversioned(library, text), context)
    card, fits = found.card, found.fitting
    if card.about.access is False:
        library.plan(str(card.reference))  # which says what to do about that
    if fits is None:
        raise UnsupportedModel(
            f"it cannot be told whether {card.reference} fits: {_why_not(found)}", hint="leave out --fit"
        )
    if fits.best is None:
        raise _too_large(found, fits)
    note = f"{fits.best} was chosen, the best that fits: it takes {_explain(fits.fits[fits.best])}"
    if len(card.offers) == 1:
        return text, note
    return str(card.reference.with_version(fits.best, card.reference.pin)), note


def _explain(fit: Fit) -> str:
    gpu = f", {fit.gpu_layers} of {fit.layers} layers on GPUs" if fit.gpu_layers else ""
    return f"{size_text(fit.need.total)} of memory at {fit.context:,} tokens{gpu}"


def _unversioned(library: Library, text: str) -> str:
    """The name of a model, of which any version may be taken."""
    resolution = library.resolve(text)
    if resolution.reference is None or resolution.reference.scheme in ONE_VERSION:
        return text
    if recommended := _recommended(text, resolution):
        return str(recommended.with_version(None, recommended.pin))
    if resolution.name.startswith("sha256:") or Reference.parse(resolution.name).version:
        raise UsageError(f"{show(text)} names a version, and --fit chooses one", hint="leave one of them out")
    if resolution.model is None:
        return text
    return str(resolution.reference.with_version(None, resolution.reference.pin))


def _recommended(text: str, resolution: Resolution) -> Reference | None:
    """What a short name of the catalog means that leaves the quantization open."""
    if ("catalog", "found") not in {(step.step, step.outcome) for step in resolution.steps}:
        return None
    entry = catalog().find(text)
    return entry.reference if entry and not entry.other else None


def _why_not(found: Survey) -> str:
    if found.unread or found.card.problem:
        return found.unread or found.card.problem
    return "it is no GGUF model" if found.header is None else f"it is of the kind {found.kind}"


def _too_large(found: Survey, fits: Fitting) -> UnsupportedModel:
    least = min(fits.fits, key=lambda version: fits.fits[version].need.total)
    return UnsupportedModel(
        f"no version of {found.card.reference} fits: at {fits.context:,} tokens {least} "
        f"{fits.fits[least].limit}",
        hint="a smaller model, or a smaller context (--ctx)",
    )


def _header(ranges: Ranges, transport: Transport, card: Card, offer: Offer) -> gguf.Header:
    """The header of a version; of a split one with the tensors of all parts."""
    manifest = card.manifest(offer)

    def read(file: File, first: int) -> gguf.Header:
        remote = transport.remote(manifest, file)
        if not isinstance(remote, Remote):
            return gguf.read(remote)
        return ranges.header(remote, file.size, first)

    first, *others = offer.weights
    header = read(first, FIRST_READ)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(partial(read, first=PART), others))
    return replace(header, tensors=header.tensors + tuple(t for part in found for t in part.tensors))
