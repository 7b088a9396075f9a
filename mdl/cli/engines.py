"""Commands that ask a running server: ps, stop."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import Json, ModelOption, Models, Quiet
from mdl.errors import UsageError

if TYPE_CHECKING:
    from mdl.client import Client

Url = Annotated[
    str | None, typer.Option(metavar="URL", help="The server to ask, if it is not http://127.0.0.1:3000.")
]
Key = Annotated[
    str | None, typer.Option(metavar="KEY", help="The key of the server; better set as MDL_API_KEY.")
]


def ps(url: Url = None, api_key: Key = None, json: Json = False, quiet: Quiet = False) -> None:
    """What a running server has loaded, and for how long.

    \b
    mdl ps                              the server of this machine
    mdl ps --url http://192.0.2.7:3000  another one; MDL_API_KEY is its key
    """
    client = _client(url, api_key)
    engines = client.engines()
    if json:
        ui.show_json({"url": client.url, "engines": engines})
    elif quiet:
        for engine in engines:
            ui.out(_text(engine, "model"))
    else:
        _show(engines, client.url)


def stop(
    models: Models = None,
    model: ModelOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is loaded.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for the answers that it is giving.")
    ] = False,
    url: Url = None,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Make a running server let go of models.

    \b
    mdl stop demo    once its answers are given
    mdl stop --all --force
    """
    client = _client(url, api_key)
    if everything and (models or model):
        raise UsageError("--all means every model", hint="name models, or leave them out")
    named = [_text(engine, "model") for engine in client.engines()] if everything else []
    names = named if everything else options.several(models, model)
    for name in names:
        client.stop(name, force)
        if not json:
            ui.out(f"{ui.inert(name, one_line=True)} is stopped")
    if json:
        ui.show_json({"url": client.url, "stopped": names})


def _client(url: str | None, key: str | None) -> "Client":
    from mdl import config
    from mdl.client import Client

    settings = config.with_flags(config.load(), url=url, api_key=key)
    return Client(settings.url, settings.api_key)


def _show(engines: list[dict[str, Any]], url: str) -> None:
    if not engines:
        ui.talk(f"nothing is loaded by {url}")
        return
    rows = [
        (
            _text(engine, "name"),
            _text(engine, "version"),
            ui.size(_count(engine, "size")),
            _text(engine, "processor") or "-",
            str(_count(engine, "context") or "-"),
            _until(engine),
        )
        for engine in engines
    ]
    ui.table(("NAME", "VERSION", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows, right=(2, 4))
    for engine in engines:
        if note := _text(engine, "note"):
            ui.talk(f"{_text(engine, 'name')}: {note}")


def _until(engine: dict[str, Any]) -> str:
    """When it goes, or what it does until it is known when."""
    state, until = _text(engine, "state"), _text(engine, "until")
    if state != "ready":
        return state
    try:
        return ui.ahead(datetime.fromisoformat(until)) if until else "forever"
    except (ValueError, TypeError):
        return "-"


def _text(engine: dict[str, Any], name: str) -> str:
    """Of what a server says nothing is taken as it is."""
    value = engine.get(name)
    return ui.inert(value, one_line=True) if isinstance(value, str) else ""


def _count(engine: dict[str, Any], name: str) -> int | None:
    value = engine.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
