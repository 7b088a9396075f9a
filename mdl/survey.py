"""A model at its source, looked at from this machine: its card, and its header by ranges.

Knows no terminal, and no source but through its transport.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from mdl import gguf
from mdl.card import Card, Offer
from mdl.errors import MdlError
from mdl.header import FIRST_READ, Facts
from mdl.library import Library
from mdl.model import File
from mdl.ranges import PART, Ranges
from mdl.remote import Remote
from mdl.transports import Transport

_AT_ONCE = 8  # parts of a split model whose headers are asked for


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found out. `sample` is the version whose header was read, and `read` the bytes that it took;
    `unread` says why there is none."""

    card: Card
    sample: Offer | None = None
    header: gguf.Header | None = None
    read: int = 0
    unread: str = ""

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
    def parameters(self) -> int | None:
        return (self.facts and self.facts.parameters) or self.card.about.parameters

    @property
    def context_length(self) -> int | None:
        return (self.facts and self.facts.context_length) or self.card.about.context_length


def survey(library: Library, text: str) -> Survey:
    """What can be told of a model without fetching it. Raises what `Library.card` does.

    Of all versions the header of one is read: the one that the name means, else the first.
    """
    transport, card = library.card(text)
    sample = card.choice or next((offer for offer in card.offers if not offer.problem), None)
    if sample is None or sample.format != "gguf" or card.about.access is False:
        return Survey(card)
    ranges = Ranges()
    try:
        header = _header(ranges, transport, card, sample)
    except MdlError as error:  # the rest is worth showing
        return Survey(card, sample, None, ranges.read, error.message)
    return Survey(card, sample, header, ranges.read)


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
