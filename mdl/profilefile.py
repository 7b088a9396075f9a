"""The profiles that there are, those of the user and those that ship with mdl, and which of them count.
Knows no engine and no terminal.

The user's are files in `profiles/` beside config.toml, in the order of their names. Those that ship with mdl
are defaults: a later version of them may lie in the data folder. A user's profile of the same title takes the
place of a shipped one; else both count, and what the user's one sets goes first.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mdl import config
from mdl.errors import DiskError, MdlError, NotFound, UsageError
from mdl.model import Model
from mdl.profiles import Profile

if TYPE_CHECKING:
    from mdl.profiletext import Written  # which every command would wait for, and few have profiles
    from mdl.settings import Settings

SHIPPED = Path(__file__).parent / "shipped" / "profiles.toml"
REFRESHED = "profiles.toml"  # in the data folder: newer ones than those that came with mdl
MOST_FILES = 1000


class Shelf(NamedTuple):
    """The profiles, and what could not be read of them."""

    written: "tuple[Written, ...]"
    failures: tuple[MdlError, ...] = ()


class Asked(NamedTuple):
    """How somebody asks for a model: over which API path, if any. `allowed` are the models that may be meant,
    and `loaded` those that are up, which are taken first."""

    path: str = ""
    allowed: Callable[[Model], bool] = lambda _: True
    loaded: Callable[[Model], bool] = lambda _: False


class Here(Protocol):
    """What is on this machine."""

    def found(self, text: str) -> Model | None:
        """By a reference or a path."""

    def everything(self) -> Iterable[Model]: ...


class Meant(NamedTuple):
    """What a name stands for: the first model of its profiles that is here; else the reference of the first
    that could be fetched."""

    profile: "Written"
    model: Model | None
    reference: str | None


def folder() -> Path:
    """Where the user's profiles are."""
    return config.config_path().parent / "profiles"


def users() -> Shelf:
    """The user's own, in the order in which they count. What is broken is left out, and told."""
    written: list[Written] = []
    failures: list[MdlError] = []
    try:
        paths = files()
    except DiskError as failure:
        return Shelf((), (failure,))
    for path in paths:
        try:
            written += _read(path)
        except MdlError as failure:
            failures.append(failure)
    return Shelf(tuple(written), tuple(failures))


def _read(path: Path) -> "tuple[Written, ...]":
    """The profiles of a file, read once for as long as it is the same, and what their templates come from."""
    before, written = _kept.get(path, ((), ()))
    now = _statuses(path, written)
    if not before or now != before:
        from mdl.profiletext import read

        written = tuple(read(path))
        _kept[path] = _statuses(path, written), written
    return written


_kept: "dict[Path, tuple[tuple[object, ...], tuple[Written, ...]]]" = {}


def _statuses(path: Path, written: "Iterable[Written]") -> tuple[object, ...]:
    """What tells whether files are the same; for one that is not there something that never is."""
    return tuple(map(_status, (path, *(place for each in written for place in each.beside))))


def _status(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return object()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def shipped() -> Shelf:
    """Those that ship with mdl, or what `refresh` put in their place, if that can be used."""
    try:
        return Shelf(_shipped(refreshed()))
    except (FileNotFoundError, DiskError):  # there are none, or there is no home at all
        return Shelf(_shipped(SHIPPED))
    except MdlError as failure:
        return Shelf(_shipped(SHIPPED), (failure,))


def all_profiles() -> Shelf:
    """The user's first; a shipped one of the same title as one of the user's does not count."""
    own, defaults = users(), shipped()
    titles = {written.title for written in own.written}
    kept = tuple(written for written in defaults.written if written.title not in titles)
    return Shelf((*own.written, *kept), (*own.failures, *defaults.failures))


Sourced = list[tuple[str, Profile]]


def matching(
    model: Model, name: str = "", path: str = "", here: Here | None = None
) -> tuple[Sourced, Sourced]:
    """What profiles set for a model that was asked for by this name and over this API path, each with a word
    about where it comes from, the least important first: the shipped ones, and the user's. What is `here`
    tells of names that are short for the model."""
    shelf = all_profiles()
    own = [written for written in shelf.written if not written.shipped]
    defaults = [written for written in shelf.written if written.shipped]
    found = _fitting(own, model, name, path, here)
    notes = tuple(map(left_out, shelf.failures))
    if notes:
        from mdl.profiletext import Written

        found.append(Written("", "", Profile(notes=notes)))
    return _sourced(_fitting(defaults, model, name, path)), _sourced(found)


def left_out(failure: MdlError) -> str:
    """What to tell of a profile that cannot be read."""
    return f"a profile is left out: {failure.message}"


def _sourced(found: "Iterable[Written]") -> Sourced:
    return [(_source(written), written.profile) for written in found]


def meant(name: str, asked: Asked, here: Here) -> Meant | None:
    """What a name stands for; None where no profile has it."""
    called = [written for written in users().written if name in written.names and written.models]
    called = [written for written in called if _is_over(written, asked.path, name)]
    for written in called:
        if (model := _present(written, asked, here)) is not None:
            return Meant(written, model, None)
    for written in called:
        for condition in written.models:
            if (reference := condition.reference) is not None:
                return Meant(written, None, reference)
    return Meant(called[0], None, None) if called else None


def files() -> list[Path]:
    """The files of the user's profiles. Raises DiskError."""
    place = folder()
    try:
        paths = (path for path in place.iterdir() if path.suffix == ".toml" and path.name[0] != ".")
        found = sorted(paths, key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiskError(f"{place} cannot be read: {error.strerror}", hint="check its permissions") from None
    return found[:MOST_FILES]


def names() -> dict[str, list[str]]:
    """All names that profiles give to models, each with the references of those that it may stand for."""
    found: dict[str, list[str]] = {}
    for written in users().written:
        references = [each.reference for each in written.models if each.reference is not None]
        for name in written.names if written.models else ():
            found.setdefault(name, []).extend(references)
    return found


def find(title: str) -> "Written":
    """By its title, or a name that it gives. Raises NotFound, with the nearest, where there is none."""
    from difflib import get_close_matches

    from mdl.reference import show

    shelf = all_profiles()
    for written in shelf.written:
        if written.title == title:
            return written
    for written in shelf.written:
        if title in written.names:
            return written
    near = get_close_matches(title, [written.title for written in shelf.written], 1)
    hint = f"did you mean {near[0]}?" if near else "mdl profile list shows all"
    raise NotFound(f"there is no profile {show(title)}", hint=hint)


# Which of them count


def _fitting(
    profiles: "list[Written]", model: Model, name: str, path: str, here: Here | None = None
) -> "list[Written]":
    """Those for all names, where the first goes before the others; then the first that has this one."""
    over = [written for written in profiles if _is_over(written, path, name)]
    fitting = [
        written for written in over if _is_for(written, model, here if name in written.names else None)
    ]
    general = [written for written in fitting if not written.names]
    called = [written for written in fitting if name in written.names]
    return [*reversed(general), *called[:1]]


def _is_for(written: "Written", model: Model, here: Here | None) -> bool:
    if not written.models or any(condition.holds(model) for condition in written.models):
        return True
    references = [condition.reference for condition in written.models if condition.reference is not None]
    found = (here.found(reference) for reference in references) if here is not None else ()
    return any(_is_same(each, model) for each in found if each is not None)


def _is_same(one: Model, other: Model) -> bool:
    return (one.place or one.folder) == (other.place or other.folder)


def _is_over(written: "Written", path: str, name: str) -> bool:
    """Whether it counts over an API path. Who asks by its name, and over no path at all, means it too."""
    if not written.paths or (not path and name in written.names):
        return True
    return any(fnmatchcase(path, pattern) for pattern in written.paths)


def _present(written: "Written", asked: Asked, here: Here) -> Model | None:
    """The model of a profile that is loaded, else the first that is here."""
    found = [model for model in _candidates(written, here) if asked.allowed(model)]
    return next((model for model in found if asked.loaded(model)), found[0] if found else None)


def _candidates(written: "Written", here: Here) -> Iterator[Model]:
    for condition in written.models:
        if (reference := condition.reference) is not None:
            model = here.found(reference)
            found = [model] if model is not None else []
        else:
            found = [model for model in here.everything() if condition.holds(model)]
        yield from found


def _source(written: "Written") -> str:
    if not written.source:
        return "profiles"
    return f"the profile {written.title}, shipped" if written.shipped else f"the profile {written.title}"


# Files


def _shipped(path: Path) -> "tuple[Written, ...]":
    """Read once for as long as the file is the same. Raises UsageError, DiskError."""
    status = path.stat()
    return _shipped_at(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _shipped_at(path: Path, *_: int) -> "tuple[Written, ...]":
    from mdl.profiletext import load, parse

    return tuple(parse(load(path), path.stem, str(path), path.parent, shipped=True))


# What is written


def path_of(title: str) -> Path:
    """Where a profile of the user of this title lies. Raises UsageError for what cannot be a file's name."""
    from mdl.reference import show

    if not re.fullmatch(r"[^\W_][\w.+-]{0,79}", title) or title.endswith("."):
        raise UsageError(f"{show(title)} cannot be the name of a profile", "letters, digits, dots and dashes")
    return folder() / f"{title}.toml"


def save(title: str, text: str, *, force: bool = False) -> Path:
    """Write a profile of the user's, which is checked first. Raises UsageError, also where one of this title
    is there already, DiskError."""
    from mdl.profiletext import parse
    from mdl.refreshing import keep

    path = path_of(title)
    parse(text, title, str(path), path.parent)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", hint="replace it with --force")
    keep(path, text.encode())
    return path


def refresh(address: str, settings: "Settings") -> int:
    """Put the profiles at an address in the place of those that ship with mdl; how many they are. The user's
    stay as they are. Raises what `refreshing.refresh` does."""
    from mdl import refreshing
    from mdl.profiletext import LARGEST, parse

    def check(data: bytes) -> int:
        try:
            found = parse(data.decode("utf-8"), REFRESHED, "they", Path(), shipped=True)
        except UnicodeDecodeError:
            raise UsageError("they are no text in UTF-8") from None
        return len(found)

    return refreshing.refresh(address, settings, refreshed(), LARGEST, check)


def refreshed() -> Path:
    """Where profiles that were fetched lie."""
    return config.data_path() / REFRESHED
