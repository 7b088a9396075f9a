"""The command `config`: what is set, where that is said, and changing it."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mdl import ui
from mdl.cli.options import Json, tell_broken
from mdl.errors import MdlError, NotFound, UsageError
from mdl.reference import show as shown

if TYPE_CHECKING:
    from mdl.config import Value
    from mdl.settings import Key

LONGEST = 1 << 16  # characters of a secret
ACTIONS = ("show", "get", "set", "unset", "path", "edit")

KeyName = Annotated[
    str | None, typer.Argument(metavar="KEY", help="As mdl config show lists them; or aliases.NAME.")
]
Values = Annotated[list[str] | None, typer.Argument(metavar="VALUE...", help="Several make a list.")]


def configure(
    action: Annotated[str, typer.Argument(metavar="ACTION", help=f"{', '.join(ACTIONS)}.")] = "show",
    key: KeyName = None,
    values: Values = None,
    json: Json = False,
) -> None:
    """What is set, by which file or variable, and changing it.

    \b
    mdl config show                               all, and where each comes from
    mdl config get jobs                           one value; secrets too
    mdl config set jobs 8
    mdl config set hosts quay.io/ai-lab ghcr.io   a list
    mdl config set aliases.fast Qwen/Qwen3-0.6B-GGUF:Q8_0
    mdl config set api_key < FILE                 seen in no list of processes
    mdl config unset jobs                         back to the default
    mdl config edit                               what is broken is not kept
    """
    if action not in ACTIONS:
        raise UsageError(f"mdl config does not know {shown(action)}", hint=f"one of {', '.join(ACTIONS)}")
    if key is None and action in _OF_ONE:
        raise UsageError(f"{action} what?", hint="mdl config show lists all keys")
    if (key and action in _OF_ALL) or (values and action != "set"):
        raise UsageError(f"that is too much for mdl config {action}", hint="mdl config --help")
    if action in _OF_ALL:
        _OF_ALL[action](json)
    else:
        _OF_ONE[action](_named(key or ""), values or [], json)


class Named(NamedTuple):
    """A key, or an entry of one that is a table."""

    name: str
    entry: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.entry}" if self.entry else self.name


def _named(text: str) -> Named:
    """A key by its name, with or without its table, or an entry of one: jobs, network.jobs, aliases.fast."""
    from mdl.settings import KEYS, nearest

    first, _, rest = text.partition(".")
    if first in KEYS and (not rest or not KEYS[first].variable):
        return Named(first, rest)
    if rest in KEYS and KEYS[rest].table == first:
        return Named(rest)
    raise UsageError(
        f"{shown(text)} is not a setting", hint=f"{nearest(rest or first)}mdl config show lists all"
    )


def _show(json: bool) -> None:
    from mdl import config
    from mdl.settings import KEYS

    problem = _problem()
    found = config.values(broken=problem is not None)
    if json:
        settings = [_document(KEYS[name], value) for name, value in found.items()]
        cause = problem.message if problem else None
        ui.show_json({"path": str(config.config_path()), "problem": cause, "settings": settings})
        return
    rows = [row for name, value in found.items() for row in _rows(KEYS[name], value)]
    ui.table(("KEY", "VALUE", "FROM"), rows)


def _problem() -> MdlError | None:
    """What is wrong with the file; it is told, too."""
    from mdl import config

    _, broken = config.load_usable()
    if broken:
        tell_broken(broken)
    return broken


def _rows(key: "Key", found: "Value") -> list[tuple[str, str, str]]:
    value = found.value
    if isinstance(value, Mapping) and value:
        return [(f"{key.place}.{name}", each, found.source) for name, each in value.items()]
    return [(key.place, "(hidden)" if key.secret and value else _line(value), found.source)]


def _document(key: "Key", found: "Value") -> dict[str, Any]:
    return {
        "key": key.place,
        "value": None if key.secret else _plain(found.value),
        "from": found.source,
        "type": key.type,
        "default": _plain(key.default),
        "variable": key.variable or None,
        "secret": key.secret,
        "help": key.help,
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return [str(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else str(value) if isinstance(value, Path) else value


def _line(value: Any) -> str:
    return ", ".join(_lines(value)) or "-"


def _lines(value: Any) -> list[str]:
    """A value as people read it: each of a list or table for itself."""
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, Mapping):
        return [f"{name} = {each}" for name, each in value.items()]
    return [str(each) for each in value] if isinstance(value, tuple) else [str(value)] if value != "" else []


def _get(named: Named, _: list[str], json: bool) -> None:
    from mdl import config

    problem = _problem()
    value, source = config.values(broken=problem is not None)[named.name]
    if named.entry:
        if named.entry not in value:
            raise NotFound(f"{shown(str(named))} is not set", hint="mdl config show lists what is")
        value = value[named.entry]
    if json:
        ui.show_json({"key": str(named), "value": _plain(value), "from": source})
    else:
        ui.out("".join(f"{ui.inert(line)}\n" for line in _lines(value)), end="")


def _set(named: Named, given: list[str], json: bool) -> None:
    from mdl import config
    from mdl.settings import KEYS

    key = KEYS[named.name]
    values = given or ([_secret(named)] if key.secret else [])
    if not values:
        raise UsageError(f"set {named} to what?", hint=f"it takes {key.type}: mdl config set {named} VALUE")
    if named.entry or not key.variable:
        _set_entry(named, values)
    else:
        config.save(named.name, _written(key, values))
    _told(named, json)


def _set_entry(named: Named, values: list[str]) -> None:
    """An alias is checked as `mdl alias set` checks it."""
    from mdl import config
    from mdl.cli.models import set_alias

    if not named.entry or len(values) > 1:
        raise UsageError(f"{named.name} is a table", hint=f"mdl config set {named.name}.NAME VALUE")
    if named.name == "aliases":
        set_alias(named.entry, values[0], config.load().aliases)
    else:
        config.save(named.name, values[0], named.entry)


def _written(key: "Key", values: list[str]) -> Any:
    """What stands in the file for what was typed, which is checked: sizes stay as people write them."""
    value = key.parse(values if len(values) > 1 else values[0], key.place)
    if isinstance(value, tuple):
        return [str(each) for each in value]
    if isinstance(value, bool):
        return value
    return int(values[0]) if isinstance(value, int) and values[0].isdecimal() else values[0]


def _unset(named: Named, _: list[str], json: bool) -> None:
    from mdl import config

    config.save(named.name, None, named.entry)
    _told(named, json)


def _told(named: Named, json: bool) -> None:
    """What is in force now. A variable goes before what was just written."""
    from mdl import config
    from mdl.settings import KEYS

    value, source = config.values()[named.name]
    if source.startswith("MDL_"):
        ui.talk(f"{source} is set, and goes before {config.config_path()}")
    if json:
        secret = KEYS[named.name].secret
        ui.show_json({"key": str(named), "value": None if secret else _plain(value), "from": source})


def _secret(named: Named) -> str:
    """From a person who types unseen, or a pipe."""
    if ui.is_interactive():
        from getpass import getpass

        return getpass(f"{named}: ")
    text = sys.stdin.readline(LONGEST).rstrip("\r\n") if sys.stdin else ""
    if not text:
        raise UsageError(f"no {named} came by the pipe", hint=f"mdl config set {named} < FILE")
    return text


def _path(json: bool) -> None:
    from mdl import config

    path = config.config_path()
    if json:
        ui.show_json({"path": str(path), "exists": path.exists()})
    else:
        ui.out(str(path))


def _edit(json: bool) -> None:
    """On a copy, so that what is broken is never in force."""
    import tempfile

    from mdl import config, configfile

    path = config.config_path()
    _problem()
    if config.editor() == [config.EDITOR] and not ui.is_interactive():
        raise UsageError("nobody is here to edit that", hint="mdl config set KEY VALUE needs no editor")
    old = configfile.content(path)
    with tempfile.TemporaryDirectory(prefix="mdl-config-") as folder:
        copy = Path(folder, "config.toml")
        copy.touch(0o600)
        copy.write_text(old or configfile.template(), encoding="utf-8")
        before = configfile.content(copy)
        new = _edited(copy, path)
        if new != before:
            configfile.replace(path, old, new)
    if json:
        ui.show_json({"path": str(path), "changed": new != before})
    else:
        ui.talk("nothing was changed" if new == before else f"{path} is changed")


def _edited(copy: Path, path: Path) -> str:
    """What a person made of a copy. Raises UsageError where it is broken and they do not go on."""
    import subprocess

    from mdl import config, configfile

    while True:
        command = [*config.editor(), str(copy)]
        try:
            code = subprocess.run(command, check=False).returncode
        except OSError as error:
            raise UsageError(
                f"{command[0]} does not start: {error.strerror}", hint="set VISUAL or EDITOR"
            ) from None
        if code:
            raise UsageError(f"{command[0]} ended with {code}: nothing was changed", hint="mdl config edit")
        try:
            text = configfile.content(copy)
            configfile.check(text, path)
            return text
        except MdlError as broken:
            if not ui.is_interactive():
                raise type(broken)(f"{broken.message}: nothing was changed", broken.hint) from None
            ui.error(broken, json=False)
            if not ui.confirm("Edit it again?"):
                raise UsageError("nothing was changed", hint="mdl config edit") from None


# Actions on the configuration as a whole, and on a key of it.
_OF_ALL: dict[str, Callable[[bool], None]] = {"show": _show, "path": _path, "edit": _edit}
_OF_ONE: dict[str, Callable[[Named, list[str], bool], None]] = {"get": _get, "set": _set, "unset": _unset}
