"""What the user has chosen: defaults < config.toml < MDL_* < flags. Nothing else reads the environment."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mdl.errors import DiskError, UsageError

CONFIG_VERSION = 1
Pull = Literal["ask", "missing", "never", "always", "newer"]
_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_PATH = r"[A-Za-z0-9_][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*"
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices that every command shares. `pull` is what happens when a model is not here (A8):
    ask in a terminal and fail in a script, missing (fetch it), never, always (look for changes each time),
    newer (the same, but what is here serves when the source cannot be reached)."""

    home: Path
    pull: Pull = "ask"
    offline: bool = False
    jobs: int = 4  # files at once
    connections: int = 16  # of one download
    limit_rate: int = 0  # bytes a second of all downloads of a process together; 0: as fast as it goes
    memory: int = (
        0  # bytes that a model may take here, where that is less than what is free; 0: no such bound
    )
    hosts: tuple[str, ...] = ()  # where a short name is looked for first, and where else it may come from
    insecure: tuple[str, ...] = ()  # registries that may be asked by http, or with any certificate
    realms: tuple[str, ...] = ()  # hosts that may be shown passwords of registries that ask for tokens there
    ca: str = ""  # a file of certificate authorities to trust besides the system's
    hf_endpoint: str = "https://huggingface.co"
    ollama_endpoint: str = "https://registry.ollama.ai"
    api_key: str = ""  # what mdl serve asks for
    url: str = "http://127.0.0.1:3000"  # of the server that mdl ps and mdl stop ask
    download_hosts: tuple[str, ...] = ()  # from where clients of mdl serve may have models fetched; *: any
    aliases: Mapping[str, str] = field(default_factory=dict)  # the user's own names of models


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings that are in force before flags. Raises UsageError for values that cannot be."""
    environment = os.environ if environment is None else environment
    values = _from_file(config_path(environment))
    if environment.get("MDL_HOME") or "home" not in values:
        values["home"] = _folder(environment, "MDL_HOME", "user_cache_path")
    for name in _names():
        if text := environment.get(f"MDL_{name.upper()}"):
            values[name] = _parse(name, text, f"MDL_{name.upper()}")
    if _flag(environment.get("HF_HUB_OFFLINE", ""), "HF_HUB_OFFLINE"):
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
        **{name: _parse(name, value, f"--{name.replace('_', '-')}") for name, value in given.items()},
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


def _names() -> list[str]:
    return [field.name for field in fields(Settings) if field.name != "home"]


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
    return {name: _parse(name, value, f"{name} in {path}") for name, value in document.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DiskError(
            f"{path} cannot be read: {error}", hint="check its permissions and encoding"
        ) from None


def _parse(name: str, value: Any, where: str) -> Any:
    """A value of a setting from text or TOML, checked."""
    if name == "pull":
        if value not in get_args(Pull):
            raise UsageError(f"{where} cannot be {value!r}", hint=f"one of {', '.join(get_args(Pull))}")
        return value
    if name == "offline":
        return value if isinstance(value, bool) else _flag(str(value), where)
    if name in ("jobs", "connections"):
        return _count(value, where)
    if name == "aliases":
        return _aliases(value, where)
    if name == "limit_rate":
        return _bytes(value, where, "bytes a second, such as 500k or 20M; 0 is no limit")
    if name == "memory":
        return _bytes(value, where, "a size such as 8GB; 0 is all that is free")
    if name in ("hosts", "insecure", "realms"):
        return _places(value, where, with_path=name == "hosts")
    if name == "download_hosts":
        return ("*",) if value in ("*", ["*"]) else _places(value, where, with_path=False)
    if name == "ca":
        return str(Path(str(value)).expanduser()) if value else ""
    if name in ("hf_endpoint", "ollama_endpoint", "api_key", "url"):
        return str(value).rstrip("/")
    if name == "home":
        return Path(str(value)).expanduser()
    raise UsageError(f"{where} is not a setting", hint=f"known: {', '.join(['home', *_names()])}")


def _flag(text: str, where: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise UsageError(f"{where} cannot be {text!r}", hint="write 1 or 0")


def _bytes(value: Any, where: str, hint: str) -> int:
    """Bytes, or bytes a second, as people write them, 500k or 20M, in powers of 1000."""
    match = re.fullmatch(r"(?i)(\d{1,12}(?:\.\d{1,6})?)([kmg]?)b?(?:/s)?", str(value).strip())
    rate = int(float(match[1]) * _POWERS[match[2].lower()]) if match else -1
    if rate < 0 or (rate == 0 and match and float(match[1])):
        raise UsageError(f"{where} cannot be {value!r}", hint)
    return rate


def _places(value: Any, where: str, *, with_path: bool) -> tuple[str, ...]:
    """Hosts, in the spelling that references have: from a list, or separated by commas."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(place, str) for place in given):
        raise UsageError(f"{where} cannot be {value!r}", hint="a list of host names")
    places = (_place(place.strip(), where, with_path) for place in given if place.strip())
    return tuple(dict.fromkeys(places))


def _place(text: str, where: str, with_path: bool) -> str:
    """A host, where models are named with a path that may lead to them: quay.io/ai-lab/models."""
    from mdl.reference import HOST_ALIASES, is_host

    first, _, path = text.rstrip("/").partition("/")
    host = HOST_ALIASES.get(first.lower(), first.lower())
    if not is_host(host) or (path and not (with_path and re.fullmatch(_PATH, path))):
        raise UsageError(f"{where}: {text!r} is not a host name", hint="such as quay.io or localhost:5000")
    return f"{host}/{path}" if path else host


def _aliases(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(model, str) and model for model in value.values()
    ):
        raise UsageError(f"{where} cannot be {value!r}", hint="a table: name = 'host/org/model:version'")
    return dict(value)


def _count(value: Any, where: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 64:
        raise UsageError(f"{where} cannot be {value!r}", hint="a number from 1 to 64")
    return number
