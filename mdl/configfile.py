"""config.toml: what it says, checked, with line and column of what is wrong; conversion of older versions;
changes that keep all else as it was written. Knows no environment.

Version 1 had all keys at the top. Version 2 has those of the network and of the server in their own tables.
A file without a version was written by hand, and is of the version that its keys are of.
"""

import codecs
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdl.errors import Busy, DiskError, MdlError, UsageError
from mdl.settings import KEYS, TABLES, Key, nearest

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Comment

VERSION = 2
LARGEST = 1 << 20  # bytes
LONGEST = 200  # lines of a statement, as far as it is looked for
WORK = 1 << 22  # characters that are read to find where a statement is
_MEND = "mdl config edit opens it"

# What stood at the top in version 1, and where it stands in version 2.
_MOVED = {
    **dict.fromkeys(("offline", "jobs", "connections", "limit_rate", "insecure", "realms", "ca"), "network"),
    **dict.fromkeys(("hf_endpoint", "ollama_endpoint"), "network"),
    **dict.fromkeys(("api_key", "url"), "server"),
}


def read(path: Path) -> dict[str, Any]:
    """The values that a file sets, by the names of keys; none if there is no file.

    One of an older version is converted, on disk too where that can be written: then what it was lies beside
    it, as config.toml.v1.bak. Raises UsageError with line and column, DiskError."""
    text = content(path)
    if not text.strip():
        return {}
    current, version = _converted(text, path)
    values = _values(current, path, text)
    if current != text:
        with suppress(MdlError):  # what cannot be written is converted each time
            _keep(path, text, current, version, values)
    return values


def check(text: str, path: Path) -> dict[str, Any]:
    """The values that a text sets if it is put into `path`. Raises UsageError with line and column."""
    return _values(_converted(text, path)[0], path, text)


def content(path: Path) -> str:
    """What is in a file, "" if there is none. Raises DiskError for what is no text, or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1).removeprefix(codecs.BOM_UTF8)  # as Notepad writes it
        if len(data) > LARGEST:
            raise DiskError(f"{path} is larger than {LARGEST} bytes", hint="mend it, or move it away")
        return data.decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        line, column = _counted(data[: error.start].decode("utf-8"))
        raise DiskError(
            f"{path}, line {line}, column {column}: this is not UTF-8", hint="mend it, or move it away"
        ) from None
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from None


def change(path: Path, edit: Callable[[str], str]) -> None:
    """Put what `edit` makes of a file's text in its place, in one step; one process at a time. What would be
    broken afterwards is not written. Raises UsageError with line and column, DiskError."""
    with _locked(path):
        text = content(path)
        current, version = _converted(text, path)
        values = _values(current, path, text)  # what is broken is told, not overwritten
        edited = edit(current)
        if edited == current:
            return
        changed = check(edited, path)
        if current != text:
            _write(_backup(path, text, version), text, _mode(path, values))
        _write(path, edited, _mode(path, changed))


def replace(path: Path, old: str, new: str) -> None:
    """Put a text in the place of the one that the file had. Raises Busy if it has another one by now."""
    values = check(new, path)
    with _locked(path):
        if content(path) != old:
            raise Busy(
                f"{path} was changed by somebody else meanwhile", hint="mdl config edit shows how it is"
            )
        _write(path, new, _mode(path, values))


def with_value(text: str, key: Key, value: Any, name: str = "") -> str:
    """The text of a file with a value of a key, or with None without it; of the entry `name` where the key is
    a table. All else stays as it was written."""
    import tomlkit

    document = tomlkit.parse(text or f"version = {VERSION}\n")
    tables = [part for part in (key.table, key.name if name else "") if part]
    last = name or key.name
    holder: Any = document
    for part in tables:
        if part not in holder and value is None:
            return text
        holder = holder.setdefault(part, tomlkit.table())
    if value is None:
        holder.pop(last, None)
    else:
        holder[last] = value
    return tomlkit.dumps(document)


def template() -> str:
    """A file that sets nothing, and tells what could be set."""
    lines = [f"version = {VERSION}"]
    for table in ("", *sorted(TABLES)):
        lines += ["", f"[{table}]"] if table else []
        for key in (key for key in KEYS.values() if key.table == table and key.variable):
            lines += ["", f"# {key.help}", f"# {key.name} = {_toml(key.default)}"]
    lines += [
        line for key in KEYS.values() if not key.variable for line in ("", f"# {key.help}", f"[{key.name}]")
    ]
    return "\n".join(lines) + "\n"


def position(text: str, place: Sequence[str]) -> tuple[int, int] | None:
    """Line and column, from 1, of the statement that sets a key, given by its tables and its name.

    It is where the beginning of a file, as long as that can be read, first has the key."""
    lines = text.replace("\r\n", "\n").split("\n")
    tries = WORK // (len(text) + 1)

    def sets(count: int) -> bool | None:
        """Whether so many lines set the key; None if they cannot be read, or too much was read already."""
        nonlocal tries
        tries -= 1
        document = _parsed("\n".join(lines[:count])) if tries >= 0 else None
        return None if document is None else _holds(document, place)

    for start in (number for number, line in enumerate(lines) if place[-1] in line):
        if sets(start) is False:
            ends = range(start + 1, min(start + LONGEST, len(lines)) + 1)
            if next((found for found in map(sets, ends) if found is not None), False):
                return start + 1, len(lines[start]) - len(lines[start].lstrip()) + 1
    return None


def _parsed(text: str) -> dict[str, Any] | None:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def _holds(document: Any, place: Sequence[str]) -> bool:
    for part in place:
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True


def _document(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        cause = str(error) if not isinstance(error, RecursionError) else "this is nested too deeply"
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", cause, re.DOTALL)
        if found is None:
            raise UsageError(f"{path}: {cause}", hint=_MEND) from None
        line, column = (int(found[2]), int(found[3])) if found[2] else _counted(text)
        raise UsageError(f"{path}, line {line}, column {column}: {found[1]}", hint=_MEND) from None


def _counted(text: str) -> tuple[int, int]:
    """Line and column of what follows a text."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


def _values(current: str, path: Path, written: str) -> dict[str, Any]:
    """What a file of this version sets. Where something is wrong is told of what was `written`."""
    found: dict[str, Any] = {}
    for table, name, value in _statements(_document(current, path)):
        try:
            found[name] = _key(table, name).parse(value, f"{table}.{name}" if table else name)
        except UsageError as error:
            place = position(written, (table, name) if table else (name,)) or position(written, (name,))
            where = f"{path}, line {place[0]}, column {place[1]}" if place else f"{path}"
            raise UsageError(f"{where}: {error.message}", error.hint) from None
    return found


def _statements(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Table, name and value of each key."""
    for name, value in document.items():
        if name in TABLES and isinstance(value, dict):
            yield from ((name, inner, each) for inner, each in value.items())
        elif name != "version":
            yield "", name, value


def _key(table: str, name: str) -> Key:
    key = KEYS.get(name)
    if key is None:
        known = "is a table" if name in TABLES else "is not a setting"
        raise UsageError(f"{name} {known}", hint=f"{nearest(name)}mdl config show lists all")
    if key.table != table:
        place = f"in the table [{key.table}]" if key.table else "at the top, before all tables"
        raise UsageError(f"{name} stands at the wrong place", hint=f"it belongs {place}")
    return key


def _converted(text: str, path: Path) -> tuple[str, int]:
    """The text as it is in this version, and the version that it was of."""
    document = _document(text, path)
    version = document.get("version", 1 if document.keys() & _MOVED.keys() else VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        line, column = position(text, ("version",)) or (1, 1)
        raise UsageError(
            f"{path}, line {line}, column {column}: {version!r:.200} is no version", hint=f"1 to {VERSION}"
        )
    if version > VERSION:
        raise UsageError(f"{path} has version {version}, this mdl knows {VERSION}", hint="update mdl")
    if version == VERSION:
        return text, VERSION
    import tomlkit

    try:
        parsed = tomlkit.parse(text if "version" in document else f"version = {version}\n{text}")
        for step in range(version, VERSION):
            CONVERSIONS[step](parsed)
        parsed["version"] = VERSION
    except (ValueError, tomlkit.exceptions.TOMLKitError) as error:
        raise UsageError(f"{path} cannot be converted: {error}", hint=_MEND) from None
    return tomlkit.dumps(parsed), version


def _into_tables(document: "TOMLDocument") -> None:
    """From version 1 to 2. A key that is in its table already stays where it is, and is told later."""
    from tomlkit import table
    from tomlkit.items import Table

    for name, home in _MOVED.items():
        if name not in document:
            continue
        holder: Any = document.setdefault(home, table())
        if isinstance(holder, dict) and name not in holder:
            comments, item = _comments_above(document, name), document.item(name)
            document.remove(name)
            for comment in comments:
                if isinstance(holder, Table):  # what is written inline has no room for them
                    holder.add(comment)
            holder[name] = item


def _comments_above(document: "TOMLDocument", name: str) -> list["Comment"]:
    """The lines of comment that stand right above a key, taken out of the file."""
    from tomlkit.items import Comment, Null

    body = document.body
    at = next(number for number, (key, _) in enumerate(body) if key is not None and key.key == name)
    first = at
    while first and isinstance(body[first - 1][1], Comment | Null):
        first -= 1
    taken = [item for _, item in body[first:at] if isinstance(item, Comment)]
    body[first:at] = [(None, Null())] * (at - first)
    return taken


# Each makes a file of the next version of one of its own.
CONVERSIONS: dict[int, Callable[["TOMLDocument"], None]] = {1: _into_tables}


def _keep(path: Path, text: str, current: str, version: int, values: Mapping[str, Any]) -> None:
    """Write what a file was converted to, and what it was beside it. Another process may have done it."""
    with _locked(path, seconds=1):
        if content(path) == text:
            _write(_backup(path, text, version), text, _mode(path, values))
            _write(path, current, _mode(path, values))


def _backup(path: Path, text: str, version: int) -> Path:
    """A file that is not there yet, or has that text already."""
    for number in range(1, 100):
        found = path.with_name(f"{path.name}.v{version}.bak{number if number > 1 else ''}")
        if not found.exists() or content(found) == text:
            return found
    raise DiskError(f"{path.parent} is full of backups", hint="remove some")


def _mode(path: Path, values: Mapping[str, Any]) -> int:
    """The permissions that a file keeps, or gets. Others never read secrets."""
    secret = any(KEYS[name].secret and value for name, value in values.items())
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mode = 0o600
    return mode & 0o600 if secret else mode


@contextmanager
def _locked(path: Path, seconds: float = 10) -> Iterator[None]:
    """One process at a time changes a file. Raises Busy where another one does for long, and DiskError for
    all that the disk refuses meanwhile."""
    import portalocker

    if path.exists() and not path.is_file():  # such as /dev/null: it would not be that any more
        raise DiskError(f"{path} is no file to write to", hint="MDL_CONFIG names another")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with portalocker.Lock(path.with_name(f"{path.name}.lock"), "a", timeout=seconds):
            yield
    except portalocker.AlreadyLocked:
        raise Busy(f"{path} is being changed by another mdl", hint="try again when it has ended") from None
    except portalocker.LockException as error:
        raise DiskError(f"{path} cannot be locked: {error}", hint="check its file system") from None
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}", hint="check its permissions") from None


def _write(path: Path, text: str, mode: int) -> None:
    """In one step. A link stays one: what it leads to is changed."""
    place = path.resolve()
    beside = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        beside.touch(0o600)
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(mode)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _toml(value: Any) -> str:
    """A default as it would be written."""
    import tomlkit

    if value is None:
        return '"…"'
    return str(tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string())
