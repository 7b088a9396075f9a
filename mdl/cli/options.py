"""Options that several commands share, declared once, and what they mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.errors import MdlError, UsageError
from mdl.reference import show

if TYPE_CHECKING:
    from mdl.config import Settings
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
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Ask the registry by http, or whatever its certificate says."),
]
Authorities = Annotated[
    str | None,
    typer.Option("--ca", metavar="FILE", help="Certificate authorities to trust besides the system's."),
]
ContextSize = Annotated[
    int | None,
    typer.Option(
        "--ctx", metavar="TOKENS", min=16, max=1 << 26, help="Tokens of prompt and answer together."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def one(model: str | None, option: str | None) -> str:
    """The model that a command is about, however it was given."""
    found = several([model] if model else [], option)
    if len(found) > 1:
        raise UsageError(f"one model, not two: {show(found[0])}, {show(found[1])}", hint="leave out --model")
    return found[0]


def several(models: list[str] | None, option: str | None) -> list[str]:
    given = [*(models or []), *([option] if option else [])]
    if not given:
        raise UsageError("which model?", hint="name one, for instance: demo; mdl list shows what is here")
    return given


def open_library(
    *, ask: bool = True, insecure: Sequence[str] = (), tolerant: bool = False, **flags: Any
) -> "Library":
    """The library under these flags, by their names in `config.Settings`. With `ask` a person is asked which
    of several models a name means. The registries of the models `insecure` may be asked by http. With
    `tolerant` a broken config.toml is no error, as in `usable_settings`."""
    from mdl import config
    from mdl.library import Library

    loaded = usable_settings() if tolerant else config.load()
    settings = config.with_flags(loaded, **{name: value or None for name, value in flags.items()})
    if insecure:
        from mdl.reference import Reference

        hosts = (*settings.insecure, *(Reference.parse(model).host for model in insecure))
        settings = config.with_flags(settings, insecure=hosts)
    return Library(settings, ui.choose if ask and ui.is_interactive() else None)


def usable_settings() -> "Settings":
    """The settings, for a command that only looks: it neither removes nor serves, and can do without the
    network. If config.toml is broken that is told, and they are the defaults, offline; for the file may have
    said `offline`, where models are, or whom to trust."""
    from mdl import config

    settings, broken = config.load_usable()
    if broken:
        tell_broken(broken)
    return settings


def tell_broken(broken: MdlError) -> None:
    """What is wrong with config.toml, and what that means for now."""
    ui.talk(f"mdl: {ui.inert(broken.message, one_line=True)}")
    ui.talk("mdl goes on with defaults, offline; mdl config edit mends it")


def as_folder(text: str | None, name: str | None) -> Path | None:
    """Where a copy goes: the folder that was named; one below it for each model when there are several."""
    if text is None:
        return None
    folder = Path(text).expanduser()
    if name is None:
        return folder
    from mdl.reference import Reference

    return folder.joinpath(*Reference.parse(name).path_parts())
