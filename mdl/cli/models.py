"""Commands about models as files: download, list, inspect, resolve, rm."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import (
    Authorities,
    DryRun,
    Insecure,
    Json,
    Model,
    ModelOption,
    Models,
    Offline,
    Quiet,
    Yes,
)
from mdl.errors import MdlError, NotFound, UsageError
from mdl.reference import show

if TYPE_CHECKING:
    from mdl.library import Library
    from mdl.model import Model as ModelRecord


def download(
    models: Models = None,
    model: ModelOption = None,
    destination: Annotated[
        str | None, typer.Option(metavar="DIR", help="Put plain files into DIR and nothing into the cache.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only the files that match; may be repeated.")
    ] = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is here already.")] = False,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=64, help="Files to fetch at once.")
    ] = None,
    insecure: Insecure = False,
    ca: Authorities = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> int:
    """Fetch models, or what of them is missing. Prints the folder of each."""
    names = options.several(models, model)
    library = options.open_library(
        offline=offline, jobs=jobs, ca=ca, insecure=names if insecure else (), ask=not json
    )
    if dry_run:
        return _show_plans(library, names, include or [], json=json)
    from mdl.progress import watch

    failures: list[MdlError] = []
    done = []
    for name in names:
        target = options.as_folder(destination, name if len(names) > 1 else None)
        try:
            with watch(json=json, quiet=quiet) as watched:
                found = library.download(
                    name, watched, include=include or [], destination=target, force=force
                )
        except MdlError as failure:
            if len(names) == 1:
                raise
            failures.append(failure)
            ui.error(failure, json=False)
            continue
        done.append(found)
        if not json:
            ui.out(str(found.folder))
    if json:
        from mdl import documents

        ui.show_json({"models": [documents.model(found) for found in done]})
    return failures[0].code if failures else 0


def _show_plans(library: "Library", names: list[str], include: list[str], *, json: bool) -> int:
    plans = [library.plan(name, include) for name in names]
    if json:
        from mdl import documents

        ui.show_json({"plans": [documents.plan(plan) for plan in plans]})
        return 0
    for plan in plans:
        ui.talk(f"{plan.manifest.reference}" + (f": {plan.manifest.note}" if plan.manifest.note else ""))
        here = plan.present
        rows = [
            (file.name, ui.size(file.size), "here" if file.name in here else "to fetch")
            for file in plan.manifest.files
        ]
        ui.table(("FILE", "SIZE", "STATE"), rows, right=(1,))
        total = sum(file.size or 0 for file in plan.missing)
        ui.talk(f"{len(plan.missing)} of {len(rows)} files to fetch, {ui.size(total)}")
    return 0


def list_models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a glob.")
    ] = None,
    versions: Annotated[bool, typer.Option("--versions", help="A line for each version.")] = False,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Adapters too, in a section of their own.")
    ] = False,
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="name, version, size or modified; -size turns it round.")
    ] = "name",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="RULE", help="For instance 'size>1GB' or 'format=gguf'."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The models on this machine."""
    from mdl import documents, listing

    library = options.open_library()
    found = listing.select(library.list(), pattern, filters or [], sort)
    rows = found if versions else listing.newest(found)
    shown = [model for model in rows if adapters or model.summary.kind != "adapter"]
    if json:
        ui.show_json({"models": [documents.model(model) for model in shown]})
    elif quiet:
        for model in shown:
            ui.out(str(model.reference) if versions else str(model.reference.model))
    else:
        _show_list(shown, listing.counts(found), versions)


def _show_list(models: "list[ModelRecord]", counts: dict[str, int], versions: bool) -> None:
    if not models:
        ui.talk("no models here yet: mdl chat demo tries the one that ships with mdl")
        return
    sections = (
        ("", [model for model in models if model.summary.kind != "adapter"]),
        ("Adapters", [model for model in models if model.summary.kind == "adapter"]),
    )
    for title, members in sections:
        if not members:
            continue
        if title:
            ui.out(f"\n{title}")
        rows = []
        for model in members:
            more = counts[str(model.reference.model)] - 1
            version = model.version if versions or not more else f"{model.version} (+{more})"
            state = " (damaged)" if model.problem else " (partial)" if model.partial else ""
            rows.append(
                (str(model.reference.model), version + state, ui.size(model.size), ui.ago(model.modified))
            )
        ui.table(("NAME", "VERSION", "SIZE", "MODIFIED"), rows, right=(2,))
    files = ((model.folder, file) for model in models for file in model.files)
    contents = {file.sha256 or (folder, file.name): file.size or 0 for folder, file in files}
    noun = "version" if versions else "model"
    ui.talk(f"{len(models)} {noun}{'s' if len(models) > 1 else ''}, {ui.size(sum(contents.values()))}")


def inspect(
    name: Model = None,
    model: ModelOption = None,
    files: Annotated[bool, typer.Option("--files", help="Only the files.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only the chat template.")] = False,
    license: Annotated[bool, typer.Option("--license", help="Only the licence.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="Only the header's keys and values.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="Only the tensors.")] = False,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The whole value of one key of the header.")
    ] = None,
    json: Json = False,
) -> None:
    """Header, files, template, licence and versions of a model."""
    from mdl import inspection

    library = options.open_library()
    found = library.here(options.one(name, model))
    weights = library.weights(found)
    asked = {
        "files": files,
        "template": template,
        "license": license,
        "metadata": metadata,
        "tensors": tensors,
    }
    wanted = [part for part, is_asked in asked.items() if is_asked]
    if key is not None:
        value = inspection.value(weights, key)
        _show_value(value, json=json, name=key)
    elif wanted:
        parts = {part: inspection.part(found, weights, part) for part in wanted}
        if json:
            ui.show_json(parts)
        for part in [] if json else wanted:
            _SHOW.get(part, _show_text)(parts[part])
    elif json:
        ui.show_json(inspection.describe(library, found, weights))
    else:
        _show_model(inspection.describe(library, found, weights))


def _show_value(value: Any, *, json: bool, name: str) -> None:
    if json:
        ui.show_json({name: value})
    else:
        for line in value if isinstance(value, list) else [value]:
            ui.out(ui.inert(str(line)))


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
        ("template", "yes" if described["template"] else "no"),
        ("license", license_line),
        ("source", described["source"]),
        ("revision", (described["revision"]["commit"] or "")[:12]),
        ("folder", described["folder"]),
    )
    for label, value in facts:
        if value not in (None, "", "-"):
            ui.out(f"{label:<13} {ui.inert(str(value), one_line=True)}")
    ui.out("")
    _show_files(described["files"])
    if len(described["versions"]) > 1:
        ui.out("")
        ui.table(
            ("VERSION", "SIZE"),
            [(v["version"], ui.size(v["size"])) for v in described["versions"]],
            right=(1,),
        )


def resolve(
    name: Model = None, model: ModelOption = None, json: Json = False, offline: Offline = False
) -> int:
    """How a reference is decided, step by step."""
    from mdl import documents

    text = options.one(name, model)
    resolution, failure = options.open_library(offline=offline).explain(text)
    if json:
        ui.show_json(documents.resolution(resolution))
        return 0 if resolution.reference else failure.code if failure else NotFound.code
    for step in resolution.steps:
        ui.out(f"{step.step:<8} {step.outcome:<8} {ui.inert(step.detail, one_line=True)}")
    if failure:
        raise failure
    if resolution.model:
        ui.out(f"=> {resolution.model.place or resolution.model.folder}")
    elif resolution.reference:
        ui.out(f"=> not on this machine: mdl download {resolution.reference}")
    if resolution.reference is None:
        raise NotFound(f"nothing is called {show(text)}", hint="mdl list shows what is here")
    return 0


def remove(
    names: Models = None,
    model: ModelOption = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove versions from the cache, with what only they use."""
    library = options.open_library()
    found = [library.removable(name) for name in options.several(names, model)]
    for version in found:
        ui.talk(f"{version.reference} ({version.version}), {ui.size(version.size)}, in {version.folder}")
    if dry_run:
        ui.talk("nothing was removed")
        return
    if not yes and not ui.is_interactive():
        raise UsageError("nobody is here to ask whether to remove that", hint="say so with --yes")
    if not yes and not ui.confirm("Remove?"):
        ui.talk("nothing was removed")
        return
    freed = sum(library.store.remove(version) for version in found)
    if json:
        ui.show_json({"removed": [str(version.reference) for version in found], "freed": freed})
    else:
        ui.talk(f"{ui.size(freed)} freed")


def alias(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="list, set or rm.")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A name of your own.")] = None,
    target: Model = None,
    model: ModelOption = None,
    json: Json = False,
) -> None:
    """Names of your own for models: mdl alias set fast Qwen/Qwen3-0.6B-GGUF:Q8_0."""
    from mdl import config

    aliases = config.load().aliases
    if action == "set":
        _set_alias(name, options.one(target, model), aliases)
    elif action == "rm":
        if name is None or name not in aliases:
            raise NotFound(
                f"there is no alias {show(name or '')}", hint="mdl alias shows those that there are"
            )
        config.save_alias(name, None)
    elif action != "list":
        raise UsageError(f"mdl alias does not know {show(action)}", hint="list, set or rm")
    elif json:
        ui.show_json({"aliases": dict(aliases)})
    elif aliases:
        ui.table(("NAME", "MODEL"), sorted(aliases.items()))
    else:
        ui.talk("no aliases yet: mdl alias set NAME MODEL")


def _set_alias(name: str | None, target: str, aliases: Mapping[str, str]) -> None:
    """Keep what a name means. A path is kept whole, and an alias as what it means now."""
    from pathlib import Path

    from mdl import config
    from mdl.reference import Reference

    reference = Reference.parse(name or "")
    if reference.scheme != "short" or reference.pin:
        raise UsageError(
            f"{show(name or '')} cannot be an alias", hint="a name without slashes, such as fast"
        )
    path = Path(target).expanduser()
    if target.startswith((".", "~", "/")) or path.exists():
        target = str(path.absolute())
    else:
        Reference.parse(target)
    config.save_alias(str(reference), aliases.get(target, target))
