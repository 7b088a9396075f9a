"""What --json prints, as cli.md promises it to scripts: records in, plain dictionaries out."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from mdl.model import File, Model

if TYPE_CHECKING:
    from mdl.card import Offer
    from mdl.catalog import Entry
    from mdl.checkpoints import Checkpoint
    from mdl.estimate import Place
    from mdl.fetch import Plan
    from mdl.garbage import Piece
    from mdl.header import Facts
    from mdl.machine import Machine
    from mdl.memory import Fit, Need, Part
    from mdl.resolution import Resolution
    from mdl.search import Match
    from mdl.survey import Survey
    from mdl.usage import Share, Usage
    from mdl.verification import Finding, Report


def model(model: Model) -> dict[str, Any]:
    """A version; what is not known is null."""
    summary = model.summary
    return {
        "reference": str(model.reference),
        "host": model.reference.host or None,
        "path": model.reference.path,
        "name": model.reference.name,
        "version": model.version,
        "kind": summary.kind,
        "format": summary.format,
        "quantization": summary.quantization,
        "architecture": summary.architecture,
        "parameters": summary.parameters,
        "context_length": summary.context_length,
        "size": model.size,
        "modified": model.modified.isoformat(),
        "revision": {name: value or None for name, value in model.revision._asdict().items()},
        "folder": str(model.folder),
        "partial": model.partial,
        "problem": model.problem or None,
        "state": model.state,
        "unsupported": summary.unsupported,
        "files": files(model.files),
    }


def listed(found: Model, base_model: str | None, checkpoint: "Checkpoint | None") -> dict[str, Any]:
    """A version in a list: of an adapter its base, of a checkpoint how far it was trained, in steps, samples
    or epochs; null where that is not known."""
    state = {"step": checkpoint.step, "unit": checkpoint.unit or None} if checkpoint else {}
    return {**model(found), "base_model": base_model, "step": None, "unit": None, **state}


def files(files: Sequence[File]) -> list[dict[str, Any]]:
    return [
        {"name": file.name, "size": file.size, "sha256": file.sha256, "role": file.role} for file in files
    ]


def facts(facts: "Facts") -> dict[str, Any]:
    """What a header says, but for the template, which is long."""
    found = dataclasses.asdict(facts)
    del found["chat_template"]
    return found


def card(found: "Survey", here: Collection[str]) -> dict[str, Any]:
    """A model at its source; what is not known is null.

    `version` is the one that the name means, null where it means none, and then `problem` says why. `header`
    is that of the version `header_of`, and `bytes_read` is what reading it took. `best` is the best version
    that fits this machine with a context of `context` tokens. `here` are the versions on this machine.
    """
    card, about = found.card, found.card.about
    fits = found.fitting.fits if found.fitting else {}
    return {
        "reference": str(card.reference),
        "host": card.reference.host or None,
        "path": card.reference.path,
        "name": card.reference.name,
        "version": card.chosen,
        "here": bool(here),
        "source": card.source or None,
        "revision": {name: value or None for name, value in card.revision._asdict().items()},
        "branches": list(card.branches),
        "tags": list(card.tags),
        "kind": found.kind,
        "description": about.description or None,
        "license": found.license,
        "license_link": about.license_link,
        "gate": about.gate,
        "access": about.access,
        "private": about.private,
        "downloads": about.downloads,
        "likes": about.likes,
        "modified": about.modified.isoformat() if about.modified else None,
        "task": about.task,
        "library": about.library,
        "topics": list(about.topics),
        "languages": list(about.languages),
        "base_models": list(found.base_models),
        "quantizer": about.quantizer,
        "architecture": found.architecture,
        "parameters": found.parameters,
        "context_length": found.context_length,
        "header": facts(found.facts) if found.facts else None,
        "header_of": found.sample.version if found.sample else None,
        "header_problem": found.unread or None,
        "bytes_read": found.read,
        "machine": machine(found.fitting.machine, found.fitting.most) if found.fitting else None,
        "context": found.fitting.context if found.fitting else None,
        "best": found.fitting.best if found.fitting else None,
        "problem": card.problem or None,
        "versions": [
            {
                **_offer(offer),
                "here": offer.version in here,
                "memory": memory(fits[offer.version]) if offer.version in fits else None,
            }
            for offer in card.offers
        ],
    }


def machine(machine: "Machine", most: int) -> dict[str, Any]:
    """What this machine has, in bytes, and how much of its own memory models may take by the settings."""
    return {
        "memory_total": machine.memory_total,
        "memory_available": machine.memory_available,
        "memory_limit": most or None,
        "gpus": [
            {
                "name": gpu.name,
                "memory_total": gpu.total,
                "memory_available": gpu.free,
                "usable": gpu.usable,
            }
            for gpu in machine.gpus
        ],
    }


def memory(fit: "Fit") -> dict[str, Any]:
    """How a model would lie in memory with a context of so many tokens, in bytes, all together and on each
    device: `gpu_layers` of its `layers` go to GPUs."""
    return {
        "context": fit.context,
        **_part(fit.need),
        "cpu": _part(fit.need.cpu),
        "gpus": [_part(part) for part in fit.need.gpus],
        "fits": fit.fits,
        "limit": fit.limit or None,
        "gpu_layers": fit.gpu_layers,
        "layers": fit.layers,
    }


def _part(part: "Part | Need") -> dict[str, int]:
    return {
        "weights": part.weights,
        "cache": part.cache,
        "compute": part.compute,
        "total": part.total,
    }


def _offer(offer: "Offer") -> dict[str, Any]:
    return {
        "version": offer.version,
        "format": offer.format,
        "quantization": offer.quantization,
        "size": offer.size,
        "problem": offer.problem or None,
        "files": files(offer.files),
    }


def entry(entry: "Entry", place: "Place | None", here: bool) -> dict[str, Any]:
    """One size of a model of the catalog: `size` and `memory` are bytes, and rough; `recommended` are the
    parameters that its makers recommend; `place` is where on this machine it finds room."""
    return {
        "name": entry.name,
        "family": entry.family,
        "default": entry.is_default,
        "reference": str(entry.reference) if entry.reference else None,
        "description": entry.description,
        "license": entry.license,
        "capabilities": list(entry.capabilities),
        "parameters": entry.parameter_count,
        "context_length": entry.context,
        "quantization": entry.quantization,
        "recommended": dict(entry.parameters),
        "size": entry.download,
        "memory": entry.memory,
        **_place(place),
        "here": here,
    }


def match(match: "Match") -> dict[str, Any]:
    """A repository that a search found. `size`, `memory` and what fits are of `version`, the default, and
    rough; `best` is the best version that fits."""
    about = match.listed.about
    return {
        "reference": str(match.listed.reference),
        "version": next(iter(match.listed.versions), None),
        "versions": list(match.listed.versions),
        "downloads": about.downloads,
        "likes": about.likes,
        "modified": about.modified.isoformat() if about.modified else None,
        "license": about.license,
        "gate": about.gate,
        "private": about.private,
        "task": about.task,
        "architecture": about.architecture,
        "parameters": about.parameters,
        "context_length": about.context_length,
        "size": match.size,
        "memory": match.memory,
        **_place(match.place),
        "best": match.best,
        "here": match.here,
    }


def _place(place: "Place | None") -> dict[str, bool | None]:
    known = place is not None
    return {"fits": place != "no" if known else None, "on_gpu": place == "on GPU" if known else None}


def plan(plan: "Plan") -> dict[str, Any]:
    """What a download would do."""
    files = [
        {
            "name": file.name,
            "size": file.size,
            "sha256": file.sha256,
            "role": file.role,
            "here": file.name in plan.present,
        }
        for file in plan.manifest.files
    ]
    missing = [file.size for file in plan.missing]
    return {
        "reference": str(plan.manifest.reference),
        "note": plan.manifest.note or None,
        "revision": {name: value or None for name, value in plan.manifest.revision._asdict().items()},
        "bytes_missing": None if None in missing else sum(size or 0 for size in missing),
        "files": files,
    }


def resolution(resolution: "Resolution") -> dict[str, Any]:
    """How a string was decided."""
    return {
        "text": resolution.text,
        "name": resolution.name,
        "reference": str(resolution.reference) if resolution.reference else None,
        "others": [str(other) for other in resolution.others],
        "here": resolution.model is not None,
        "steps": [step._asdict() for step in resolution.steps],
        "model": model(resolution.model) if resolution.model else None,
    }


def usage(usage: "Usage") -> dict[str, Any]:
    """What the cache takes, in bytes."""
    totals = ("size", "saved", "on_disk", "partial", "converted", "unused", "copied", "free")
    return {
        "models": [_share(share) for share in usage.shares],
        "totals": {name: getattr(usage, name) for name in totals},
    }


def _share(share: "Share") -> dict[str, Any]:
    names = {"reference": str(share.model.reference), "version": share.model.version}
    return {**names, "size": share.size, "shared": share.shared, "unique": share.unique}


def piece(piece: "Piece") -> dict[str, Any]:
    """Something that nothing uses; bytes, seconds."""
    return {"kind": piece.kind, "path": str(piece.path), "size": piece.size, "age": round(piece.age)}


def report(report: "Report") -> dict[str, Any]:
    """What a verification found."""
    return {
        "findings": [_finding(finding) for finding in report.findings],
        "damaged": len(report.damage),
        "versions": report.versions,
        "contents": report.contents,
        "bytes": report.size,
        "unrecorded": report.unrecorded or None,
    }


def _finding(finding: "Finding") -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "damage": finding.is_damage,
        "reference": str(finding.model.reference) if finding.model else None,
        "path": str(finding.path),
        "what": finding.what,
        "mend": finding.mend or None,
    }
