"""The keys of config.toml in one table: type, default, environment variable, help and what each can be.
Knows no file and no environment.

A key is a field of `Settings`; to add one is to add a line there.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mdl.errors import UsageError

Pull = Literal["ask", "missing", "never", "always", "newer"]
Parse = Callable[[Any, str], Any]  # a value from text or TOML, and where it stands: the value, checked

_POWERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_PATH = r"[A-Za-z0-9_][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*"
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Key:
    """What may be set. `table` is where in config.toml it stands, "" at the top; `type` says in words what it
    takes; `words` are its values where there are only a few. A `secret` is shown to nobody."""

    name: str
    parse: Parse
    type: str
    help: str
    default: Any = None
    table: str = ""
    words: tuple[str, ...] = ()
    secret: bool = False

    @property
    def place(self) -> str:
        """Its name in config.toml, with the table."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def variable(self) -> str:
        """Of the environment. A table fits into none."""
        return "" if self.type.startswith("table") else f"MDL_{self.name.upper()}"


def text(value: Any, where: str) -> str:
    """One line."""
    if not isinstance(value, str) or not value.isprintable():
        raise UsageError(f"{where} cannot be {value!r:.200}", hint="text on one line, in quotes")
    return value


def address(value: Any, where: str) -> str:
    """Of a server. Without a slash at its end."""
    if not text(value, where).startswith(("http://", "https://")):
        raise UsageError(
            f"{where} cannot be {value!r:.200}", hint="an address, such as http://127.0.0.1:3000"
        )
    return str(value).rstrip("/")


def file(value: Any, where: str) -> str:
    """The path of a file; "" is none."""
    return str(_path(value, where)) if value else ""


def folder(value: Any, where: str) -> Path:
    """One that is the same wherever mdl is started."""
    path = _path(value, where)
    if not path.is_absolute():
        raise UsageError(f"{where} cannot be {value!r:.200}", hint="a whole path, or one that begins with ~/")
    return path


def folder_list(value: Any, where: str) -> tuple[Path, ...]:
    """Folders from a list, or separated as in PATH."""
    given = value.split(os.pathsep) if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(each, str | Path) for each in given):
        raise UsageError(f"{where} cannot be {value!r:.200}", hint="a list of folders")
    return tuple(folder(each, where) for each in given if str(each).strip())


def flag(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in _TRUE | _FALSE:
        raise UsageError(f"{where} cannot be {value!r:.200}", hint="write 1 or 0")
    return str(value).lower() in _TRUE


def number(least: int, most: int) -> Parse:
    """Parses whole numbers between these."""

    def parse(value: Any, where: str) -> int:
        try:
            found = None if isinstance(value, bool | float) else int(value)
        except (TypeError, ValueError):
            found = None
        if found is None or not least <= found <= most:
            raise UsageError(f"{where} cannot be {value!r:.200}", hint=f"a number from {least} to {most}")
        return found

    return parse


def amount(hint: str) -> Parse:
    """Parses bytes, or bytes a second, as people write them, 500k or 20M, in powers of 1000."""

    def parse(value: Any, where: str) -> int:
        match = re.fullmatch(r"(?i)(\d{1,12}(?:\.\d{1,6})?)([kmg]?)b?(?:/s)?", str(value).strip())
        count = int(float(match[1]) * _POWERS[match[2].lower()]) if match else -1
        if count < 0 or (count == 0 and match and float(match[1])):
            raise UsageError(f"{where} cannot be {value!r:.200}", hint)
        return count

    return parse


def word(*words: str) -> Parse:
    """Parses one of a few words."""

    def parse(value: Any, where: str) -> str:
        if value not in words:
            raise UsageError(f"{where} cannot be {value!r:.200}", hint=f"one of {', '.join(words)}")
        return str(value)

    return parse


def host_list(value: Any, where: str) -> tuple[str, ...]:
    """Hosts in the spelling that references have, from a list, or separated by commas."""
    return tuple(dict.fromkeys(_place(each, where, False) for each in listed(value, where)))


def any_host_list(value: Any, where: str) -> tuple[str, ...]:
    """The same, or * for any."""
    return ("*",) if value in ("*", ["*"], ("*",)) else host_list(value, where)


def place_list(value: Any, where: str) -> tuple[str, ...]:
    """Hosts, each of which may be followed by a path that leads to models: quay.io/ai-lab/models."""
    return tuple(dict.fromkeys(_place(each, where, True) for each in listed(value, where)))


def listed(value: Any, where: str) -> list[str]:
    """The texts of a list, or of what is separated by commas."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise UsageError(f"{where} cannot be {value!r:.200}", hint="a list of texts")
    return [each.strip() for each in given if each.strip()]


def name_table(value: Any, where: str) -> dict[str, str]:
    """A table of texts, none of them empty."""
    if not isinstance(value, Mapping) or not all(isinstance(each, str) and each for each in value.values()):
        raise UsageError(f"{where} cannot be {value!r:.200}", hint="a table: name = 'host/org/model:version'")
    return {str(name): str(each) for name, each in value.items()}


def _path(value: Any, where: str) -> Path:
    try:
        return Path(text(str(value) if isinstance(value, Path) else value, where)).expanduser()
    except RuntimeError as error:  # nobody knows where that ~ is
        raise UsageError(f"{where} cannot be {value!r:.200}: {error}", hint="a path") from None


def _place(given: str, where: str, with_path: bool) -> str:
    from mdl.reference import HOST_ALIASES, is_host

    first, _, path = given.rstrip("/").partition("/")
    host = HOST_ALIASES.get(first.lower(), first.lower())
    if not is_host(host) or (path and not (with_path and re.fullmatch(_PATH, path))):
        raise UsageError(
            f"{where}: {given!r:.200} is not a host name", hint="such as quay.io or localhost:5000"
        )
    return f"{host}/{path}" if path else host


def _key(default: Any, parse: Parse, type: str, help: str, **more: Any) -> Any:
    """A field of Settings, with what there is to know about it. A default that can be called makes it."""
    if callable(default):
        about = Key("", parse, type, help, default(), **more)
        return field(default_factory=default, metadata={"key": about})
    return field(default=default, metadata={"key": Key("", parse, type, help, default, **more)})


_FOLDER = Key("", folder, "folder", "Where models are kept; by default the platform's folder for caches.")


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices that every command shares, each with its default, what it takes, and one line of help.
    Where each stands in config.toml, and its variable, is in KEYS.

    `pull` is what happens when a model is not here (A8): ask in a terminal and fail in a script, missing
    (fetch it), never, always (look for changes each time), newer (the same, but what is here serves when the
    source cannot be reached)."""

    home: Path = field(metadata={"key": _FOLDER})
    pull: Pull = _key(
        "ask",
        word(*get_args(Pull)),
        "ask, missing, never, always or newer",
        "What to do about a model that is not here; missing is to fetch it.",
        words=get_args(Pull),
    )
    memory: int = _key(
        0,
        amount("a size such as 8GB; 0 is all that is free"),
        "size",
        "The most that a model may take here; 0 is all that is free.",
    )
    hosts: tuple[str, ...] = _key(
        (), place_list, "list of hosts", "Where a short name is looked for first, and where it may come from."
    )
    aliases: Mapping[str, str] = _key(dict, name_table, "table of names", "Your own names of models.")
    checkpoints: tuple[Path, ...] = _key(
        (),
        folder_list,
        "list of folders",
        "Where training runs keep their checkpoints; by default checkpoints in the folder for data.",
    )
    catalog_url: str = _key(
        "", text, "address", "Where mdl catalog refresh gets the catalog: https://… or oci://…"
    )
    profiles_url: str = _key(
        "", text, "address", "Where mdl profile refresh gets profiles: https://… or oci://…"
    )

    offline: bool = _key(
        False, flag, "true or false", "Never use the network.", table="network", words=("true", "false")
    )
    jobs: int = _key(4, number(1, 64), "number, 1 to 64", "Files to fetch at once.", table="network")
    connections: int = _key(
        16, number(1, 64), "number, 1 to 64", "Connections of one download.", table="network"
    )
    limit_rate: int = _key(
        0,
        amount("bytes a second, such as 500k or 20M; 0 is no limit"),
        "size",
        "Bytes a second of all downloads of one mdl together; 0 is no limit.",
        table="network",
    )
    insecure: tuple[str, ...] = _key(
        (),
        host_list,
        "list of hosts",
        "Registries that may be asked by http, or with any certificate.",
        table="network",
    )
    realms: tuple[str, ...] = _key(
        (),
        host_list,
        "list of hosts",
        "Hosts that may see the passwords of registries that ask for tokens there.",
        table="network",
    )
    ca: str = _key(
        "", file, "file", "Certificate authorities to trust besides the system's.", table="network"
    )
    hf_endpoint: str = _key(
        "https://huggingface.co", address, "address", "Where Hugging Face is.", table="network"
    )
    ollama_endpoint: str = _key(
        "https://registry.ollama.ai", address, "address", "Where Ollama's registry is.", table="network"
    )

    api_key: str = _key("", text, "text", "What mdl serve asks its clients for.", table="server", secret=True)
    url: str = _key(
        "http://127.0.0.1:3000",
        address,
        "address",
        "The server that mdl ps and mdl stop ask.",
        table="server",
    )
    download_hosts: tuple[str, ...] = _key(
        (),
        any_host_list,
        "list of hosts",
        "From where clients of mdl serve may have models fetched; * is anywhere. By default huggingface.co, "
        "registry.ollama.ai and the hosts of `hosts`.",
        table="server",
    )


KEYS: dict[str, Key] = {each.name: replace(each.metadata["key"], name=each.name) for each in fields(Settings)}
TABLES = frozenset(key.table for key in KEYS.values() if key.table)


def parse(name: str, value: Any, where: str) -> Any:
    """A value of a key from text or TOML, checked. Raises UsageError that names `where`."""
    if name not in KEYS:
        raise UsageError(f"{where} is not a setting", hint=f"{nearest(name)}mdl config show lists all")
    return KEYS[name].parse(value, where)


def nearest(name: str) -> str:
    """What was probably meant, as the beginning of a hint; "" if nothing is near."""
    from difflib import get_close_matches

    close = get_close_matches(name, KEYS, 1)
    return f"did you mean {close[0]}? " if close else ""
