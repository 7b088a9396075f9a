"""What a model that is elsewhere looks like on a terminal."""

import textwrap
from collections.abc import Collection

from mdl import ui
from mdl.card import About, Card, Offer
from mdl.survey import Survey

COLUMNS = 80
LABEL = 14
MOST_NAMES = 8  # of branches, tags and topics; --json has all


def show(found: Survey, here: Collection[str]) -> None:
    """A card as data; the next command to run as talk."""
    for label, value in _facts(found):
        if value:
            _show_fact(label, value)
    if found.card.offers:
        ui.out("")
        rows = [_row(offer, found, here) for offer in found.card.offers]
        ui.table(("VERSION", "SIZE", "NOTE"), rows, right=(1,))
    _say_what_to_do(found.card, here)


def _show_fact(label: str, value: str) -> None:
    lines = textwrap.wrap(ui.inert(value, one_line=True), COLUMNS - LABEL) or [""]
    for name, line in zip([label, *[""] * len(lines)], lines, strict=False):
        ui.out(f"{name:<{LABEL}}{line}".rstrip())


def _facts(found: Survey) -> tuple[tuple[str, str], ...]:
    card, about = found.card, found.card.about
    return (
        ("reference", str(card.reference)),
        ("description", about.description),
        ("kind", _kind(found)),
        ("architecture", found.architecture or ""),
        ("parameters", ui.amount(found.parameters) if found.parameters else ""),
        ("context", str(found.context_length or "")),
        ("base model", ", ".join(about.base_models)),
        (
            "license",
            " ".join(filter(None, (about.license, about.license_link and f"({about.license_link})"))),
        ),
        ("access", _access(about)),
        ("task", about.task or ""),
        ("topics", _names([topic for topic in about.topics if topic != about.task])),
        ("languages", _names(about.languages)),
        ("popularity", _popularity(about)),
        ("modified", ui.ago(about.modified) if about.modified else ""),
        ("branches", _names(card.branches)),
        ("tags", _names(card.tags)),
        ("revision", f"{card.revision.name} {card.revision.commit[:12]}".strip()),
        ("source", card.source),
        ("header", _header(found)),
        ("problem", card.problem),
    )


def _kind(found: Survey) -> str:
    formats = {offer.format for offer in found.card.offers if offer.format}
    kind = f"{found.kind} ({', '.join(sorted(formats))})" if found.kind else ""
    if found.card.about.quantizer:
        return f"{kind}, quantized with {found.card.about.quantizer.upper()}, which llama.cpp does not run"
    if formats == {"safetensors"}:
        return f"{kind}, which llama.cpp does not load: look for a GGUF version to run it"
    return kind


def _access(about: About) -> str:
    if about.gate:
        state = {True: ": you have access", False: ": you have no access yet", None: ""}
        return f"gated ({about.gate}){state[about.access]}"
    return "private" if about.private else ""


def _popularity(about: About) -> str:
    counts = ((about.downloads, "downloads a month"), (about.likes, "likes"))
    return ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)


def _names(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


def _header(found: Survey) -> str:
    if found.sample is None:
        return ""
    what = f"{ui.size(found.read)} of {ui.size(found.sample.size)} read, of {found.sample.version}"
    return f"{what}: {found.unread}" if found.unread else what


def _row(offer: Offer, found: Survey, here: Collection[str]) -> tuple[str, str, str]:
    return offer.version, ui.size(offer.size), ", ".join(_notes(offer, found, here))


def _notes(offer: Offer, found: Survey, here: Collection[str]) -> list[str]:
    parts = len(offer.weights)
    marks = {
        "default": offer.version == found.card.chosen,
        "here": offer.version in here,
        f"{parts} parts": parts > 1,
        "projector": offer.projector is not None,
        offer.problem: bool(offer.problem),
    }
    return [mark for mark, holds in marks.items() if holds]


def _say_what_to_do(card: Card, here: Collection[str]) -> None:
    if card.about.access is False:
        ui.talk(f"open {card.source}, accept its conditions, then log in (hf auth login) or set HF_TOKEN")
    elif card.chosen and card.chosen not in here:
        ui.talk(f"not on this machine: mdl download {card.reference}")
