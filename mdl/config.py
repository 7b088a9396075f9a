"""What the user has chosen: defaults < config.toml < MDL_* < flags. Nothing else reads the environment."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdl.errors import DiskError, UsageError
from mdl.settings import KEYS, Pull, Settings, flag, parse

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

CONFIG_VERSION = 1


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings that are in force before flags. Raises UsageError for values that cannot be."""
    environment = os.environ if environment is None else environment
    values = _from_file(config_path(environment))
    if environment.get("MDL_HOME") or "home" not in values:
        values["home"] = _folder(environment, "MDL_HOME", "user_cache_path")
    for key in KEYS.values():
        if key.name != "home" and (text := environment.get(key.variable)):
            values[key.name] = key.parse(text, key.variable)
    if flag(environment.get("HF_HUB_OFFLINE", ""), "HF_HUB_OFFLINE"):
        values.setdefault("offline", True)
    if endpoint := environment.get("HF_ENDPOINT"):
        values.setdefault("hf_endpoint", endpoint.rstrip("/"))
    return Settings(**values)


def config_path(environment: Mapping[str, str] | None = None) -> Path:
    environment = os.environ if environment is None else environment
    if path := environment.get("MDL_CONFIG"):
        return Path(path).expanduser()
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


def save_alias(name: str, model: str | None) -> None:
    """Give a model a name of the user's in config.toml, or with None take that name away. All else in the
    file stays as it was written. Raises UsageError where the file is broken, DiskError."""
    import tomlkit

    path = config_path()
    with _rewriting(path) as text:
        document = tomlkit.parse(_read(path) or f"version = {CONFIG_VERSION}\n")
        names = document.setdefault("aliases", tomlkit.table())
        if model is None:
            names.pop(name, None)
        else:
            names[name] = model
        text.append(tomlkit.dumps(document))


@contextmanager
def _rewriting(path: Path) -> Iterator[list[str]]:
    """The text that is put into the list takes the file's place, in one step; one process at a time."""
    import portalocker

    _from_file(path)  # what is broken is told, not overwritten
    text: list[str] = []
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with portalocker.Lock(path.with_name(f"{path.name}.lock"), "a", timeout=10):
            yield text
            beside = path.with_name(f"{path.name}.{os.getpid()}")
            with beside.open("w", encoding="utf-8") as file:
                file.write("".join(text))
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                beside.chmod(stat.S_IMODE(path.stat().st_mode))
            beside.replace(path.resolve())
    except (OSError, portalocker.LockException) as error:
        raise DiskError(f"{path} cannot be written: {error}", hint="check its permissions") from None


def _folder(environment: Mapping[str, str], variable: str, kind: str) -> Path:
    if path := environment.get(variable):
        return Path(path).expanduser().absolute()
    import platformdirs

    try:
        folder: Path = getattr(platformdirs, kind)("mdl", appauthor=False)
    except RuntimeError as error:  # no home at all
        raise DiskError(f"there is no home folder ({error})", hint=f"set {variable}") from None
    if not folder.is_absolute():
        raise DiskError("there is no home folder", hint=f"set {variable}")
    return folder


def _from_file(path: Path) -> dict[str, Any]:
    text = _read(path)
    if not text:
        return {}
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="mend it, or move it away") from None
    version = document.pop("version", CONFIG_VERSION)
    if version != CONFIG_VERSION:
        raise UsageError(
            f"{path} has version {version!r}, this mdl knows {CONFIG_VERSION}", hint="update mdl"
        )
    return {name: parse(name, value, f"{name} in {path}") for name, value in document.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DiskError(
            f"{path} cannot be read: {error}", hint="check its permissions and encoding"
        ) from None
