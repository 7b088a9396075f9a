"""The command that tells all about one model: inspect, of what is here and of what is elsewhere."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import Authorities, ContextSize, Insecure, Json, Model, ModelOption, Offline
from mdl.errors import NotFound

if TYPE_CHECKING:
    from mdl.library import Library
    from mdl.model import Model as ModelRecord
    from mdl.survey import Survey


def inspect(
    name: Model = None,
    model: ModelOption = None,
    files: Annotated[bool, typer.Option("--files", help="Only the files.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only the chat template.")] = False,
    license: Annotated[bool, typer.Option("--license", help="Only the licence.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Only the header's keys and values.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="Only the tensors.")] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Only settings and parameters, and where each comes from.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The whole value of one key of the header.")
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="What its source has, even if the model is here.")
    ] = False,
    context: ContextSize = None,
    insecure: Insecure = False,
    ca: Authorities = None,
    json: Json = False,
    offline: Offline = False,
) -> None:
    """What a model is, here or at its source. Header, files, template, licence, versions.

    \b
    mdl inspect Qwen/Qwen3-0.6B-GGUF   its versions, and which fit this machine
    mdl inspect demo --settings        what is set for it, and by what
    mdl inspect demo --key tokenizer.ggml.model
    """
    from mdl import inspection, runnable

    text = options.one(name, model)
    reach = partial(
        options.open_library, offline=offline, ca=ca, insecure=[text] if insecure else (), ask=not json
    )
    library = reach(tolerant=not remote)
    if not remote and (absent := library.resolve(text).wanted):
        _show_absent(absent, json=json)
        return
    found = None if remote else _here(library, text)
    is_part = files or template or license or metadata or tensors or settings or key is not None
    if found is not None and found.is_api and not is_part:
        from mdl.cli import apis

        apis.show(found, library, json=json)
        return
    if found is None:
        from mdl.survey import survey

        library = reach()  # what asks others needs all that the user has set
        surveyed = survey(library, text, context)
        value, part = partial(inspection.remote_value, surveyed), partial(inspection.remote_part, surveyed)
    else:
        weights = runnable.weights(found)
        value, part = partial(inspection.value, weights), partial(inspection.part, found, weights)
    asked = {
        "files": files,
        "template": template,
        "license": license,
        "metadata": metadata,
        "tensors": tensors,
    }
    wanted = [part for part, is_asked in asked.items() if is_asked]
    if settings:
        here = found or library.here(text)  # which says that it is not
        _show_settings(inspection.settings(library, here, runnable.weights(here), text), json=json)
    elif key is not None:
        _show_value(value(key), json=json, name=key)
    elif wanted:
        _show_parts({name: part(name) for name in wanted}, json=json)
    elif found is None:
        _show_card(library, surveyed, json=json)
    else:
        described = inspection.describe(library, found, weights, context)
        if json:
            ui.show_json(described)
        else:
            _show_model(described)


def _show_absent(model: "ModelRecord", *, json: bool) -> None:
    """What is known of a model of which only the model.json is here."""
    from mdl import documents, modeljson

    card = modeljson.document(modeljson.of(model))
    if json:
        ui.show_json({**documents.model(model), "model_json": card})
        return
    about = card.pop("metadata", {})
    rows = {**card, **about, "file": str(model.card)}
    for label, value in rows.items():
        if value not in ({}, []):
            label, text = (ui.inert(str(each), one_line=True) for each in (label, value))
            ui.out(f"{label:<13} {text}")
    ui.talk(
        f"mdl download {model.reference} fetches it; mdl inspect --remote {model.reference} asks its source"
    )


def _here(library: "Library", text: str) -> "ModelRecord | None":
    """The model on this machine; None where it is elsewhere and may be asked about."""
    resolution = library.resolve(text)
    closed = library.settings.offline or library.settings.pull == "never"
    if resolution.model is None and (closed or resolution.reference is None):
        return library.here(text)  # which says why it is not
    return resolution.model


def _show_parts(parts: dict[str, Any], *, json: bool) -> None:
    if json:
        ui.show_json(parts)
        return
    for name, content in parts.items():
        _SHOW.get(name, _show_text)(content)


def _show_card(library: "Library", surveyed: "Survey", *, json: bool) -> None:
    from mdl import documents

    here = {model.version for model in library.store.versions(surveyed.card.reference)}
    if json:
        ui.show_json(documents.card(surveyed, here))
        return
    from mdl.cli import card

    card.show(surveyed, here)


def _show_value(value: Any, *, json: bool, name: str) -> None:
    if json:
        ui.show_json({name: value})
    else:
        for line in value if isinstance(value, list) else [value]:
            ui.out(ui.inert(str(line)))


def _show_settings(described: dict[str, Any], *, json: bool) -> None:
    if json:
        ui.show_json(described)
        return
    rows = [
        (kind.removesuffix("s"), name, "-" if said["value"] is None else str(said["value"]), said["source"])
        for kind in ("settings", "parameters")
        for name, said in described[kind].items()
    ]
    rows += [
        (name, "", str(said["value"]), said["source"])
        for name in ("system", "template", "messages", "adapters")
        if (said := described[name])["value"]
    ]
    ui.table(
        ("KIND", "NAME", "VALUE", "FROM"),
        [tuple(ui.inert(cell, one_line=True)[:80] for cell in row) for row in rows],
    )
    for label, texts in (("no effect", described["ignored"]), ("note", described["notes"])):
        for text in texts:
            ui.out(f"{label:<13} {ui.inert(text, one_line=True)}")


def _show_text(text: str | None) -> None:
    if text is None:
        raise NotFound("the model has none", hint="mdl inspect MODEL shows what it has")
    ui.out(ui.inert(text.rstrip("\n")))


def _show_files(files: list[dict[str, Any]]) -> None:
    rows = [
        (file["name"], ui.size(file["size"]), file["role"], (file["sha256"] or "-")[:12]) for file in files
    ]
    ui.table(("FILE", "SIZE", "ROLE", "SHA256"), rows, right=(1,))


def _show_metadata(metadata: dict[str, Any]) -> None:
    for key, value in metadata.items():
        text = (
            f"{value['count']:,} x {value['array']}"
            if isinstance(value, dict) and "array" in value
            else str(value)
        )
        shown = ui.inert(text, one_line=True)
        ui.out(f"{ui.inert(key, one_line=True)} = {shown[:200]}{'…' if len(shown) > 200 else ''}")


def _show_tensors(tensors: list[dict[str, Any]]) -> None:
    rows = [(t["name"], " x ".join(map(str, t["shape"])), t["type"], ui.size(t["size"])) for t in tensors]
    ui.table(("TENSOR", "SHAPE", "TYPE", "SIZE"), rows, right=(3,))


_SHOW: dict[str, Callable[[Any], None]] = {
    "files": _show_files,
    "metadata": _show_metadata,
    "tensors": _show_tensors,
}


def _memory(described: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What it takes to run, and what there is."""
    if described["memory"] is None:
        return ()
    from mdl.cli.card import machine_line, memory_line, placed

    fits = {"no": "does not fit: "}.get(placed(described["memory"]), "")
    return (
        ("memory", fits + memory_line(described["memory"])),
        ("machine", machine_line(described["machine"])),
    )


def _show_model(described: dict[str, Any]) -> None:
    header = described["header"]
    license_line = (described["license"] or "-").strip().partition("\n")[0]
    facts = (
        ("reference", described["reference"]),
        ("version", described["version"]),
        ("name", header["name"]),
        ("kind", f"{described['kind']} ({described['format']})"),
        ("architecture", header["architecture"]),
        ("parameters", ui.amount(header["parameters"])),
        ("quantization", header["quantization"]),
        ("context", header["context_length"]),
        ("embedding", header["embedding_length"]),
        ("layers", header["layers"]),
        ("vocabulary", header["vocabulary"]),
        ("experts", header["experts"]),
        ("base model", header["base_model"]),
        ("adapter", _adapter_line(header["adapter"])),
        *_memory(described),
        ("template", _template_line(described)),
        ("license", license_line),
        ("source", described["source"]),
        ("revision", (described["revision"]["commit"] or "").removeprefix("sha256:")[:12]),
        ("folder", described["folder"]),
    )
    for label, value in facts:
        if value not in (None, "", "-"):
            ui.out(f"{label:<13} {ui.inert(str(value), one_line=True)}")
    _show_profile(described["profile"])
    ui.out("")
    _show_files(described["files"])
    if len(described["versions"]) > 1:
        ui.out("")
        ui.table(
            ("VERSION", "SIZE"),
            [(v["version"], ui.size(v["size"])) for v in described["versions"]],
            right=(1,),
        )


def _adapter_line(adapter: dict[str, Any] | None) -> str:
    """lora, rank 8, alpha 16"""
    if adapter is None:
        return ""
    numbers = (f"{name} {adapter[name]:g}" for name in ("rank", "alpha") if adapter[name] is not None)
    return ", ".join((adapter["type"] or "of an unknown kind", *numbers))


def _template_line(described: dict[str, Any]) -> str:
    source = described["profile"]["template_source"]
    found = "yes" if described["template"] else "no"
    return f"{found} ({source})" if source else found


def _show_profile(profile: dict[str, Any]) -> None:
    """What is set for a model beside its weights, in the words of mdl; a long text is cut."""
    rows = [("system", profile["system"] or "")]
    rows += [("parameter", f"{name} {value}") for name, value in profile["parameters"].items()]
    rows += [("setting", f"{name} {value}") for name, value in profile["settings"].items()]
    rows += [("stop", repr(text)) for text in profile["stop"]]
    rows += [("message", f"{message['role']}: {message['content']}") for message in profile["messages"]]
    rows += [("adapter", name) for name in profile["adapters"]]
    rows += [("no effect", ", ".join(profile["ignored"]))]
    rows += [("note", note) for note in profile["notes"]]
    for label, text in rows:
        if text:
            shown = ui.inert(text, one_line=True)
            ui.out(f"{label:<13} {shown[:200]}{'…' if len(shown) > 200 else ''}")
