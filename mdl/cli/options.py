"""Options that several commands share, declared once, and what they mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdl.errors import UsageError

if TYPE_CHECKING:
    from mdl.library import Library

Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A path, a cached model, or host/org/name:version.")
]
Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Paths, cached models, or host/org/name:version."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="The same as the argument MODEL.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only names or folders.")]
Pull = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN", help="What to do about a model that is not here: missing, never, always, newer."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def one(model: str | None, option: str | None) -> str:
    """The model that a command is about, however it was given."""
    return several([model] if model else [], option)[0]


def several(models: list[str] | None, option: str | None) -> list[str]:
    given = [*(models or []), *([option] if option else [])]
    if not given:
        raise UsageError("which model?", hint="name one, for instance: demo; mdl list shows what is here")
    return given


def open_library(pull: str | None = None, offline: bool = False, jobs: int | None = None) -> "Library":
    from mdl import config
    from mdl.library import Library

    return Library(config.with_flags(config.load(), pull=pull, offline=offline or None, jobs=jobs))


def as_folder(text: str | None, name: str | None) -> Path | None:
    """Where a copy goes: the folder that was named; one below it for each model when there are several."""
    if text is None:
        return None
    folder = Path(text).expanduser()
    if name is None:
        return folder
    from mdl.reference import Reference

    return folder.joinpath(*Reference.parse(name).path_parts())
