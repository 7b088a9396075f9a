"""What the manifest and configuration of an artifact say of its model: JSON in, `About` out. Pure; every
field may hold anything.

Annotations: https://github.com/opencontainers/image-spec/blob/main/annotations.md. Configurations: those of
ModelPack (https://github.com/modelpack/model-spec) and Docker (https://github.com/docker/model-spec).
"""

import re
from collections.abc import Mapping
from typing import Any

from mdl.card import About, moment, number, section
from mdl.header import line, lines

ANNOTATION = "org.opencontainers.image."
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def about(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> About:
    """What is told there; what is missing or of the wrong kind is unknown."""
    notes, described, model = (
        section(part)
        for part in (manifest.get("annotations"), config.get("descriptor"), config.get("config"))
    )
    licenses = line(notes.get(f"{ANNOTATION}licenses")) or ", ".join(lines(described.get("licenses")))
    created = notes.get(f"{ANNOTATION}created") or described.get("createdAt") or described.get("created")
    return About(
        description=line(notes.get(f"{ANNOTATION}description")) or line(described.get("description")) or "",
        license=licenses or None,
        modified=moment(created),
        architecture=line(model.get("architecture")),
        parameters=_amount(model.get("paramSize") or model.get("parameters")),
        context_length=number(model.get("context_size")),
    )


def _amount(value: object) -> int | None:
    """A number of parameters as people write it: 8b, 361.82 M."""
    match = re.fullmatch(r"(?i)(\d{1,9}(?:\.\d{1,9})?)\s*([kmbt]?)", line(value) or "")
    return int(float(match[1]) * _POWERS[match[2].lower()]) if match else None
