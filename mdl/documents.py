"""What --json prints, as cli.md promises it to scripts: records in, plain dictionaries out."""

from typing import TYPE_CHECKING, Any

from mdl.model import Model

if TYPE_CHECKING:
    from mdl.fetch import Plan
    from mdl.library import Resolution


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
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256, "role": file.role}
            for file in model.files
        ],
    }


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
