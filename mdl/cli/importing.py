"""The command that brings models of this machine into the cache: import."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import DryRun, Json, Quiet
from mdl.errors import UsageError

if TYPE_CHECKING:
    from mdl.importing import How, Importer, Item
    from mdl.model import Model
    from mdl.reference import Reference


def import_models(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A GGUF file, a model's folder, or a zip or tar of one.")
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to call it: my-model, my-model:v2, org/name:Q4_K_M."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Share the file itself; an error where that cannot be.")
    ] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Make a copy, whatever the disk could share.")] = False,
    move: Annotated[bool, typer.Option("--move", help="Take the original away when it is in.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring models of this machine into the cache. Prints the folder of each.

    They get digests and a model.json. Nothing is copied where the disk can share. A GGUF file that is dropped
    into the models folder needs no import.

    \b
    mdl import llama-2-7b.Q4_K_M.gguf      is then llama-2-7b:Q4_K_M
    mdl import granite.zip                 what mdl wrote, under its own name
    mdl import ./folder --name me/model:v2 --move
    """
    from mdl import documents
    from mdl.importing import Importer

    how = _how(link=link, copy=copy, move=move)
    library = options.open_library(ask=False)
    importer = Importer(library.store, how, _reference(name))
    place = Path(path).expanduser().absolute()
    with _opened(importer, place) as (opened, inside):
        if dry_run:
            _show_plan(opened.items(inside), place if inside != place else None, json=json)
            return
        done = opened.run(inside)
    if how == "move" and place.is_file():
        place.unlink()  # an archive, all of which is in
    if json:
        ui.show_json({"models": [documents.model(model) for model in done]})
        return
    for model in done:
        ui.out(str(model.reference) if quiet else str(model.folder))
        if not quiet:
            ui.talk(_next(model))


def _how(**given: bool) -> "How":
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise UsageError(
            f"--{chosen[0]} and --{chosen[1]} exclude each other", hint="the default needs neither"
        )
    if "link" in chosen:
        return "link"
    return "copy" if "copy" in chosen else "move" if chosen else ""


def _reference(name: str | None) -> "Reference | None":
    if name is None:
        return None
    from mdl.reference import Reference

    return Reference.parse(name)


@contextlib.contextmanager
def _opened(importer: "Importer", path: Path) -> "Iterator[tuple[Importer, Path]]":
    """Who imports what is at a path. What is in an archive is taken apart first, and moved from there."""
    from dataclasses import replace

    from mdl.importing import is_archive, unpacked

    if not is_archive(path):
        yield importer, path
        return
    if importer.how == "link":
        raise UsageError(
            f"{path.name} is an archive: what is in it cannot be shared", hint="leave out --link"
        )
    with unpacked(path, importer.store) as (folder, digests):
        yield replace(importer, how="move", digests=digests), folder


def _show_plan(items: "list[Item]", archive: Path | None, *, json: bool) -> None:
    if json:
        from mdl import documents

        ui.show_json(
            {
                "plans": [
                    {"reference": str(item.model.reference), "files": documents.files(item.model.files)}
                    for item in items
                ]
            }
        )
        return
    for item in items:
        ui.talk(f"{item.model.reference}")
        ui.table(
            ("FILE", "SIZE", "FROM"),
            [
                (file.name, ui.size(file.size), ui.inert(str(archive or source), one_line=True))
                for file, source in zip(item.model.files, item.sources, strict=True)
            ],
            right=(1,),
        )
    ui.talk("nothing was imported")


def _next(model: "Model") -> str:
    """What can be done with it now."""
    if model.summary.kind == "adapter":
        return f"mdl chat MODEL --adapter {model.reference} uses it"
    if model.summary.kind == "model" and model.summary.format == "gguf":
        return f"mdl chat {model.reference} talks to it"
    return f"mdl inspect {model.reference} shows what it is"
