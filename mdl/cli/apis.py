"""What commands say of models at APIs, and how keys for them are kept."""

from typing import TYPE_CHECKING, Any

from mdl import ui

if TYPE_CHECKING:
    from mdl.config import Settings
    from mdl.library import Library
    from mdl.model import Model
    from mdl.reference import Reference


def log_in(api: "Reference", secret: str, settings: "Settings") -> None:
    """Keeps a key, unless the API refuses it."""
    from mdl import upstream

    file = upstream.keep_key(api, secret, settings)
    ui.talk(f"the key for {api.host} is kept in {file}")


def describe(model: "Model", library: "Library") -> dict[str, Any]:
    """What is known of a model at an API without asking it. Of the key only where it comes from."""
    from dataclasses import replace

    from mdl import documents, upstream

    # What it is can be told, though nobody may be asked.
    place = upstream.of(model, replace(library.settings, offline=False))
    return {
        **documents.model(model),
        "api": {
            "kind": place.reference.scheme,
            "reference": str(place.reference),
            "address": place.address,
            "model": place.model,
            "api_version": place.reference.version,
            "key": place.key.source or None,
        },
    }


def show(model: "Model", library: "Library", *, json: bool) -> None:
    """What `mdl inspect` tells of it."""
    described = describe(model, library)
    if json:
        ui.show_json(described)
        return
    api = described["api"]
    ui.out(f"{described['reference']}, which others run")
    rows = [
        ("API", "Azure OpenAI" if api["kind"] == "azure" else "OpenAI"),
        ("address", api["address"]),
        ("model", api["model"]),
        *([("api-version", api["api_version"])] if api["api_version"] else []),
        ("key", f"from {api['key']}" if api["key"] else "none"),
    ]
    for name, value in rows:
        ui.out(f"  {name:<12} {ui.inert(value, one_line=True)}")
