"""What the user has chosen: defaults < config.toml < MDL_* < flags. Nothing else reads the environment."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mdl import configfile
from mdl.errors import DiskError, MdlError, UsageError
from mdl.settings import KEYS, Key, Pull, Settings, flag, parse

__all__ = [
    "Pull",
    "Settings",
    "auth_paths",
    "config_path",
    "data_path",
    "load",
    "save_alias",
    "wants_color",
    "with_flags",
]


class Value(NamedTuple):
    """What is in force, and what says so: default, config.toml, or a variable of the environment."""

    value: Any
    source: str


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings that are in force before flags. Raises UsageError for values that cannot be, with line and
    column of those in config.toml; DiskError."""
    environment = os.environ if environment is None else environment
    return _settings(environment, configfile.read(config_path(environment)))


def load_usable(environment: Mapping[str, str] | None = None) -> tuple[Settings, MdlError | None]:
    """The settings, and what is wrong with config.toml, if anything is: then they are those without it, and
    offline, for it may have said so. Raises UsageError for what the environment says."""
    environment = os.environ if environment is None else environment
    try:
        file = configfile.read(config_path(environment))
    except MdlError as broken:
        return replace(_settings(environment, {}), offline=True), broken
    return _settings(environment, file), None


def values(environment: Mapping[str, str] | None = None, *, broken: bool = False) -> dict[str, Value]:
    """What is in force of each key, by its name; with `broken` as if there were no config.toml."""
    environment = os.environ if environment is None else environment
    file = {} if broken else configfile.read(config_path(environment))
    return _values(environment, file)


def _settings(environment: Mapping[str, str], file: Mapping[str, Any]) -> Settings:
    return Settings(**{name: found.value for name, found in _values(environment, file).items()})


def _values(environment: Mapping[str, str], file: Mapping[str, Any]) -> dict[str, Value]:
    """A variable of mdl's goes before the file, the file before a variable of another tool."""
    found = {}
    for name, key in KEYS.items():
        if given := environment.get(key.variable):
            value = _expanded(given, key.variable) if name == "home" else given
            found[name] = Value(key.parse(value, key.variable), key.variable)
        elif name in file:
            found[name] = Value(file[name], "config.toml")
        else:
            found[name] = _elsewhere(environment, key)
    return found


def _elsewhere(environment: Mapping[str, str], key: Key) -> Value:
    """What a variable of Hugging Face's says, or the default."""
    if key.name == "offline" and flag(environment.get("HF_HUB_OFFLINE", ""), "HF_HUB_OFFLINE"):
        return Value(True, "HF_HUB_OFFLINE")
    if key.name == "hf_endpoint" and (endpoint := environment.get("HF_ENDPOINT")):
        return Value(endpoint.rstrip("/"), "HF_ENDPOINT")
    if key.name == "home":
        return Value(_folder(environment, key.variable, "user_cache_path"), "default")
    if key.name == "checkpoints":
        with suppress(DiskError):  # no home at all: no runs
            data = _folder(environment, "MDL_DATA_HOME", "user_data_path")
            return Value((data / "checkpoints",), "default")
    return Value(key.default, "default")


def config_path(environment: Mapping[str, str] | None = None) -> Path:
    environment = os.environ if environment is None else environment
    if path := environment.get("MDL_CONFIG"):
        return _expanded(path, "MDL_CONFIG")
    return _folder(environment, "MDL_CONFIG_HOME", "user_config_path") / "config.toml"


def auth_paths() -> list[Path]:
    """Files with credentials for registries, in the order in which they are looked at; mdl's own is first."""
    found = [config_path().parent / "auth.json"]
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        found.append(Path(path))
    if path := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(path, "containers", "auth.json"))
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    found.append(Path(home, "containers", "auth.json"))
    found.append(Path(os.environ.get("DOCKER_CONFIG") or "~/.docker", "config.json"))
    with suppress(RuntimeError):  # no home at all
        return [path.expanduser() for path in found]
    return found[:1]


def variable(name: str) -> str:
    """What the environment says; "" where it says nothing."""
    return os.environ.get(name, "")


def variables(prefix: str) -> list[str]:
    """The names of those variables of the environment that begin so, and say something."""
    return [name for name, value in os.environ.items() if name.startswith(prefix) and value]


def data_path() -> Path:
    """Where chat sessions and their history lie."""
    return _folder(os.environ, "MDL_DATA_HOME", "user_data_path")


def wants_color() -> bool:
    """Whether a terminal may get escape sequences: https://no-color.org, and terminals that know none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def with_flags(settings: Settings, **flags: Any) -> Settings:
    """Flags go before everything else; None is a flag that was not given."""
    given = {name: value for name, value in flags.items() if value is not None}
    return replace(
        settings,
        **{name: parse(name, value, f"--{name.replace('_', '-')}") for name, value in given.items()},
    )


def use_home(folder: Path) -> None:
    """For the rest of this process, and for those that it starts, as if MDL_HOME named this folder."""
    os.environ["MDL_HOME"] = str(folder)


def save_alias(name: str, model: str | None) -> None:
    """Give a model a name of the user's in config.toml, or with None take it away. Raises as `save` does."""
    save("aliases", model, name)


def save(key: str, value: Any, name: str = "") -> None:
    """Set a key in config.toml to a value that TOML has, or with None take it out of there; of a table the
    entry `name`. All else in the file stays as it was written. Raises UsageError where the file is or would
    be broken, DiskError."""
    configfile.change(config_path(), lambda text: configfile.with_value(text, KEYS[key], value, name))


EDITOR = "notepad" if os.name == "nt" else "vi"  # of who names none


def editor(environment: Mapping[str, str] | None = None) -> list[str]:
    """The command that opens a file for a person to edit. Raises UsageError where it cannot be read."""
    import shlex

    environment = os.environ if environment is None else environment
    given = environment.get("VISUAL") or environment.get("EDITOR") or EDITOR
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise UsageError(f"VISUAL or EDITOR cannot be {given!r}: {error}", hint="a command") from None
    return words or [EDITOR]


def _expanded(given: str, variable: str) -> Path:
    try:
        return Path(given).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # nobody knows where that ~ is; no working folder
        raise UsageError(f"{variable} cannot be {given!r}: {error}", hint="name a folder") from None


def _folder(environment: Mapping[str, str], variable: str, kind: str) -> Path:
    if path := environment.get(variable):
        return _expanded(path, variable)
    import platformdirs

    try:
        folder: Path = getattr(platformdirs, kind)("mdl", appauthor=False)
    except RuntimeError as error:  # no home at all
        raise DiskError(f"there is no home folder ({error})", hint=f"set {variable}") from None
    if not folder.is_absolute():
        raise DiskError("there is no home folder", hint=f"set {variable}")
    return folder
