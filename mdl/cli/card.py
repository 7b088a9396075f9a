"""What a model that is elsewhere looks like on a terminal."""

import textwrap
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mdl import documents, ui
from mdl.card import About, Offer

if TYPE_CHECKING:
    from mdl.survey import Survey

COLUMNS = 80
LABEL = 14
Memory = Mapping[str, Any]  # as `documents.memory` has it
MOST_NAMES = 8  # of branches, tags and topics; --json has all


def show(found: "Survey", here: Collection[str]) -> None:
    """A card as data; the next command to run as talk."""
    for label, value in _facts(found):
        if value:
            show_fact(label, value)
    if found.card.offers:
        ui.out("")
        _show_versions(found, here)
    _say_what_to_do(found, here)


def _show_versions(found: "Survey", here: Collection[str]) -> None:
    """A row for each version, narrow enough for the notes to be seen; what is wrong with one comes below."""
    rows = [_row(offer, found, here) for offer in found.card.offers]
    ui.table(("VERSION", "SIZE", "FILES", "MEMORY", "FITS", "NOTE"), rows, right=(1, 2, 3))
    for offer in found.card.offers:
        if offer.problem:
            ui.out(ui.inert(f"{offer.version} is not whole: {offer.problem}", one_line=True))


def _row(offer: Offer, found: "Survey", here: Collection[str]) -> tuple[str, ...]:
    fit = found.fitting.fits.get(offer.version) if found.fitting else None
    state = (ui.size(fit.need.total), placed(documents.memory(fit))) if fit else ("-", "-")
    marks = {
        "best": found.fitting is not None and offer.version == found.fitting.best,
        "asked for" if found.card.reference.version else "default": offer.version == found.card.chosen,
        "here": offer.version in here,
    }
    note = ", ".join(mark for mark, holds in marks.items() if holds)
    return offer.version, ui.size(offer.size), str(len(offer.files)), *state, note


def placed(memory: Memory) -> str:
    """Where a model would lie: on the GPU, so many layers of it, in the CPU's memory, or nowhere."""
    if not memory["fits"]:
        return "no"
    if not memory["gpu_layers"]:
        return "yes"
    whole = memory["gpu_layers"] == memory["layers"]
    return "on GPU" if whole else f"{memory['gpu_layers']}/{memory['layers']} on GPU"


def memory_line(memory: Memory) -> str:
    """What a model takes of memory, for what and where."""
    parts = [f"{name} {ui.size(memory[name])}" for name in ("weights", "cache", "compute")]
    if memory["gpu_layers"]:
        places = [f"{ui.size(part['total'])} on GPU {n}" for n, part in enumerate(memory["gpus"])]
        places.append(f"{ui.size(memory['cpu']['total'])} on the CPU's side")
        parts[-1] += "; " + ", ".join(places)
    return f"{ui.size(memory['total'])} at {memory['context']:,} tokens: {', '.join(parts)}"


def machine_line(machine: Mapping[str, Any]) -> str:
    """What models may use here."""
    usable = [gpu for gpu in machine["gpus"] if gpu["usable"]]
    gpus = [f"{ui.size(gpu['memory_available'])} on {gpu['name']}" for gpu in usable]
    limit = machine["memory_limit"]
    own = f"{ui.size(machine['memory_available'])} of memory free"
    return ", ".join([own, *([f"{ui.size(limit)} may be used"] if limit else []), *gpus])


def show_fact(label: str, value: str) -> None:
    """A line, or several where it is long, with its label."""
    text = ui.inert(value, one_line=True)
    room = max(min(COLUMNS, ui.columns()) - LABEL, LABEL)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    for name, line in zip([label, *[""] * len(lines)], lines, strict=False):
        ui.out(f"{name:<{LABEL}}{line}".rstrip())


def _facts(found: "Survey") -> tuple[tuple[str, str], ...]:
    card, about = found.card, found.card.about
    return (
        ("reference", str(card.reference)),
        ("description", about.description),
        ("kind", _kind(found)),
        ("architecture", found.architecture or ""),
        ("parameters", ui.amount(found.parameters) if found.parameters else ""),
        ("context", str(found.context_length or "")),
        ("base model", ", ".join(found.base_models)),
        (
            "license",
            " ".join(filter(None, (found.license, about.license_link and f"({about.license_link})"))),
        ),
        ("access", _access(about)),
        ("task", about.task or ""),
        ("topics", _names([topic for topic in about.topics if topic != about.task])),
        ("languages", _names(about.languages)),
        ("popularity", _popularity(about)),
        ("modified", ui.ago(about.modified) if about.modified else ""),
        ("branches", _names(card.branches)),
        ("tags", _names(card.tags)),
        ("revision", f"{card.revision.name} {card.revision.commit.removeprefix('sha256:')[:12]}".strip()),
        ("source", card.source),
        ("projector", _projector(found)),
        ("header", _header(found)),
        ("memory", _memory(found)),
        ("machine", _machine(found)),
        ("problem", card.problem),
    )


def _kind(found: "Survey") -> str:
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


def _memory(found: "Survey") -> str:
    """What the version takes whose header was read."""
    if not found.fitting or not found.sample or found.sample.version not in found.fitting.fits:
        return ""
    fit = found.fitting.fits[found.sample.version]
    return f"{found.sample.version} takes {memory_line(documents.memory(fit))}"


def _machine(found: "Survey") -> str:
    fits = found.fitting
    return machine_line(documents.machine(fits.machine, fits.most)) if fits else ""


def _projector(found: "Survey") -> str:
    offer = found.sample or found.card.choice
    file = offer.projector if offer else None
    return f"{file.name}, {ui.size(file.size)}, comes along" if file else ""


def _header(found: "Survey") -> str:
    if found.sample is None:
        return ""
    what = f"{ui.size(found.read)} of {ui.size(found.sample.size)} read, of {found.sample.version}"
    return f"{what}: {found.unread}" if found.unread else what


def _say_what_to_do(found: "Survey", here: Collection[str]) -> None:
    card, best = found.card, found.fitting.best if found.fitting else None
    if card.about.access is False:
        ui.talk(f"open {card.source}, accept its conditions, then mdl login huggingface.co, or set HF_TOKEN")
    elif card.chosen and card.chosen not in here:
        ui.talk(f"not on this machine: mdl download {card.reference}")
    if best not in (None, card.chosen) and card.reference.version is None:
        ui.talk(f"the best that fits: mdl download --fit {card.reference}")
