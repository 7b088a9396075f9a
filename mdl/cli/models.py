"""Commands about models as files: download, list, resolve, rm, alias."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import (
    Authorities,
    ContextSize,
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
    from pathlib import Path

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
    fit: Annotated[
        bool, typer.Option("--fit", help="Choose the best quantization that fits this machine.")
    ] = False,
    context: ContextSize = None,
    limit_rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Bytes a second of all files together: 500k, 20M, 1.5G."),
    ] = None,
    insecure: Insecure = False,
    ca: Authorities = None,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> int:
    """Fetch models, or what of them is missing. Prints the folder of each.

    \b
    mdl download Qwen/Qwen3-0.6B-GGUF:Q8_0       in this quantization
    mdl download --fit Qwen/Qwen3-0.6B-GGUF      the best that fits this machine
    mdl download quay.io/ai-lab/models/granite-7b-lab:v1.1 ollama://mistral:7b
    mdl download qwen3:4b --destination ./model  there, and not in the cache
    """
    names = options.several(models, model)
    library = options.open_library(
        offline=offline,
        jobs=jobs,
        limit_rate=limit_rate,
        ca=ca,
        insecure=names if insecure else (),
        ask=not json,
    )
    choose = partial(_fitting, library, context=context) if fit else None
    if context is not None and not fit:
        raise UsageError("--ctx says for how large a context a model has to fit", hint="add --fit")
    if dry_run:
        names = [choose(name, ui.talk) for name in names] if choose else names
        return _show_plans(library, names, include or [], json=json)
    from mdl.progress import watch

    failures: dict[str, MdlError] = {}
    done = []
    for name in names:
        target = options.as_folder(destination, name if len(names) > 1 else None)
        try:
            with watch(json=json, quiet=quiet) as watched:
                wanted = choose(name, watched.note) if choose else name
                found = library.download(
                    wanted, watched, include=include or [], destination=target, force=force
                )
        except MdlError as failure:
            if len(names) == 1:
                raise
            failures[name] = failure
            if not json:
                ui.error(failure, json=False)
            continue
        done.append(found)
        if not json:
            ui.out(str(found.folder))
    if json:
        from mdl import documents

        failed = [{"name": name, **ui.told(failure)} for name, failure in failures.items()]
        ui.show_json({"models": [documents.model(found) for found in done], "failed": failed})
    return next((failure.code for failure in failures.values()), 0)


def _fitting(library: "Library", name: str, note: Callable[[str], None], context: int | None) -> str:
    """The version that fits best, by its name; why is told."""
    from mdl.survey import fitted

    chosen, reason = fitted(library, name, context)
    note(reason)
    return chosen


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
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Training checkpoints too, in a section of their own.")
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
    """The models on this machine.

    \b
    mdl list --versions --filter 'size>1GB'   a line for each version
    mdl list --adapters                       and for which model each was made
    mdl list --checkpoints                    by RUN:NAME, RUN@STEP or RUN@latest
    """
    from mdl import documents, listing, runnable

    library = options.open_library(tolerant=True)
    trained = library.checkpoints() if checkpoints else []
    steps = {model.place: state for state, model in trained}
    found = listing.select(library.list(), pattern, filters or [], sort)
    rows = found if versions else listing.newest(found)
    shown = [model for model in rows if adapters or model.summary.kind != "adapter"]
    shown += listing.select([model for _, model in trained], pattern, filters or [], sort)
    called = library.resolver.apis()
    shown += listing.select(list(dict.fromkeys(called.values())), pattern, filters or [], sort)
    made = [model for model in shown if _section(model) and not model.is_api]
    bases = {model.place or model.folder: runnable.base_model(model) for model in made}
    if json:
        places = ((model, model.place or model.folder) for model in shown)
        listed = [documents.listed(model, bases.get(at), steps.get(at)) for model, at in places]
        ui.show_json({"models": listed})
    elif quiet:
        for model in shown:
            whole = versions or model.summary.kind == "checkpoint" or model.is_api
            ui.out(str(model.reference) if whole else str(model.reference.model))
    elif not shown and (pattern or filters):
        ui.talk("nothing here is like that: mdl list shows all")
    else:
        about = {at: base or "-" for at, base in bases.items()}
        about |= {place: state.counted for place, state in steps.items() if place}
        about |= {
            model.folder: ", ".join(name for name, other in called.items() if other == model)
            for model in called.values()
        }
        _show_list(shown, {} if versions else listing.counts(found), about, versions)


# Each with what is told of it alone.
_SECTIONS = {"": None, "Adapters": "BASE", "Checkpoints": "STEP", "APIs": "CALLED"}


def _show_list(
    models: "list[ModelRecord]", counts: dict[str, int], about: "dict[Path, str]", versions: bool
) -> None:
    """`counts` are of the versions of models of which one is shown, `about` tells more by place."""
    if not models:
        ui.talk("no models here yet: mdl chat demo tries the one that ships with mdl")
        return
    for title, column in _SECTIONS.items():
        members = [model for model in models if _section(model) == title]
        if not members:
            continue
        if title:
            ui.out(f"\n{title}")
        rows = [_row(model, counts, about if column else None) for model in members]
        heads = ("NAME", "VERSION", *([column] if column else []), "SIZE", "MODIFIED")
        ui.table(heads, rows, right=(len(heads) - 2,))
    files = ((model.folder, file) for model in models for file in model.files)
    contents = {file.sha256 or (folder, file.name): file.size or 0 for folder, file in files}
    noun = "version" if versions else "model"
    ui.talk(f"{len(models)} {noun}{'s' if len(models) > 1 else ''}, {ui.size(sum(contents.values()))}")


def _section(model: "ModelRecord") -> str:
    if model.is_api:
        return "APIs"
    return {"adapter": "Adapters", "checkpoint": "Checkpoints"}.get(model.summary.kind, "")


_STATES = {
    "error": " (damaged)",
    "not-downloaded": " (not downloaded)",
    "unsupported": " (cannot run)",
}


def _row(model: "ModelRecord", counts: dict[str, int], about: "dict[Path, str] | None") -> tuple[str, ...]:
    name = str(model.reference.model)
    more = 0 if model.summary.kind == "checkpoint" else counts.get(name, 1) - 1
    state = _STATES.get(model.state, " (partial)" if model.partial else "")
    if model.damaged:
        state = _STATES["error"]
    if model.problem and model.summary.kind == "checkpoint":
        state = " (no model)"
    version = f"{model.version} (+{more})" if more else model.version
    extra = () if about is None else (ui.inert(about.get(model.place or model.folder, "-"), one_line=True),)
    if model.is_api:
        return name, model.reference.version or "-", *extra, "-", "-"
    return name, version + state, *extra, ui.size(model.size), ui.ago(model.modified)


def resolve(
    name: Model = None, model: ModelOption = None, json: Json = False, offline: Offline = False
) -> int:
    """How a reference is decided, step by step.

    \b
    mdl resolve granite-7b-lab   which of the models that are called so
    """
    from mdl import documents

    text = options.one(name, model)
    resolver = options.open_library(offline=offline, tolerant=True).resolver
    resolution, failure = resolver.explain(text)
    if json:
        ui.show_json(documents.resolution(resolution))
        return 0 if resolution.reference else failure.code if failure else NotFound.code
    for step in resolution.steps:
        ui.out(f"{step.step:<10} {step.outcome:<8} {ui.inert(step.detail, one_line=True)}")
    if failure:
        raise failure
    if resolution.model and resolution.model.is_api:
        ui.out(f"=> {resolution.model.reference}, which others run")
    elif resolution.model:
        ui.out(f"=> {resolution.model.place or resolution.model.folder}")
    elif resolution.reference:
        ui.out(f"=> not on this machine: mdl download {resolution.reference}")
    if resolution.reference is None:
        raise resolver.unknown(resolution)
    return 0


def remove(
    names: Models = None,
    model: ModelOption = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove versions from the cache, with what only they use.

    \b
    mdl rm Qwen/Qwen3-0.6B-GGUF:Q8_0
    mdl rm --dry-run granite-7b-lab:v1.1   only what that would remove
    """
    library = options.open_library()
    found = [library.removable(name) for name in options.several(names, model)]
    for version in found:
        ui.talk(f"{version.reference} ({version.version}), {ui.size(version.size)}, in {version.folder}")
    if not dry_run and not yes and not ui.is_interactive():
        raise UsageError("nobody is here to ask whether to remove that", hint="say so with --yes")
    removed = found if not dry_run and (yes or ui.confirm("Remove?")) else []
    freed = sum(library.store.remove(version) for version in removed)
    if json:
        ui.show_json({"found": _names(found), "removed": _names(removed), "freed": freed})
    else:
        ui.talk(f"{ui.size(freed)} freed" if removed else "nothing was removed")


def _names(models: "list[ModelRecord]") -> list[str]:
    return [str(model.reference) for model in models]


def alias(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="list, set or rm.")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A name of your own.")] = None,
    target: Model = None,
    model: ModelOption = None,
    json: Json = False,
) -> None:
    """Names of your own for models.

    \b
    mdl alias                                        all of them
    mdl alias set fast Qwen/Qwen3-0.6B-GGUF:Q8_0     then: mdl chat fast
    mdl alias rm fast
    """
    from mdl import config

    aliases = (options.usable_settings() if action == "list" else config.load()).aliases
    if action == "set":
        set_alias(name, options.one(target, model), aliases)
    elif action == "rm":
        if name is None or name not in aliases:
            raise NotFound(
                f"there is no alias {show(name or '')}", hint="mdl alias shows those that there are"
            )
        config.save_alias(name, None)
    elif action != "list":
        raise UsageError(f"mdl alias does not know {show(action)}", hint="list, set NAME MODEL, or rm NAME")
    if json:
        now = aliases if action == "list" else config.load().aliases
        ui.show_json({"aliases": dict(now)})
    elif action == "list" and aliases:
        ui.table(("NAME", "MODEL"), sorted(aliases.items()))
    elif action == "list":
        ui.talk("no aliases yet: mdl alias set NAME MODEL")


def set_alias(name: str | None, target: str, aliases: Mapping[str, str]) -> None:
    """Keep what a name means. A path is kept whole, and an alias as what it means now."""
    from mdl import config
    from mdl.reference import Reference

    reference = Reference.parse(name or "")
    if reference.scheme != "short" or reference.pin:
        raise UsageError(
            f"{show(name or '')} cannot be an alias", hint="a name without slashes, such as fast"
        )
    whole = _whole_path(target)
    if not whole:
        Reference.parse(target)
    config.save_alias(str(reference), aliases.get(whole or target, whole or target))


def _whole_path(text: str) -> str:
    """What it is from everywhere, if it is a path; else ""."""
    from pathlib import Path

    try:
        path = Path(text).expanduser()
        is_path = text.startswith((".", "~", "/")) or (text and path.exists())
    except (OSError, RuntimeError):  # too long a name, ~nobody
        return ""
    return str(path.absolute()) if is_path else ""
