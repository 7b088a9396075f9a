"""The models that mdl recommends, and those that ship with it. Knows no cache and no network."""

import tomllib
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).with_name("catalog.toml")


def catalog() -> dict[str, dict[str, Any]]:
    """The entries of the catalog that ships with mdl, by name."""
    models: dict[str, dict[str, Any]] = tomllib.loads(CATALOG.read_text(encoding="utf-8"))["models"]
    return models


def catalog_path(name: str) -> Path | None:
    """The file of a model that ships with mdl, or None when no such model does."""
    entry = catalog().get(name)
    return CATALOG.parent / entry["file"] if entry and "file" in entry else None
