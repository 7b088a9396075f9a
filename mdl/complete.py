"""What a shell asks for when Tab is pressed: `mdl __complete KIND PREFIX`, of the kinds in KINDS.

Lies beside the command line and not in it, because that would import typer. Knows only the names of folders:
no model is read.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mdl.reference import Reference

PLAIN = set("._+-:/@%,")  # beside letters and digits: what no shell evaluates, wherever it stands in a word
ADDRESSES = ("https", "http", "file")  # named only in full


def complete(words: list[str]) -> int:
    """Print the names that the last word may become, one a line.

    Silent about whatever is wrong: the person is in the middle of a line of their own.
    """
    kind, prefix = [*words, "", ""][:2]
    try:
        names = KINDS[kind](prefix) if kind in KINDS else set()
        # Not through sys.stdout: a shell that stops listening would make Python complain when it ends.
        os.write(1, "".join(f"{name}\n" for name in sorted(names)).encode())
    except (Exception, KeyboardInterrupt):  # noqa: BLE001 - a bug too would end up in that line
        pass
    return 0


def models(prefix: str) -> set[str]:
    """The names of models, of the user, the cache, checkpoints and the catalog, that start with a prefix."""
    return cached(prefix) | _offered({*_catalog(prefix), *_given(), *_trained()}, prefix)


def cached(prefix: str) -> set[str]:
    """The same of what is in the cache alone, for commands that are about that."""
    found, aliases = _known()
    return _offered(spellings(found, slashes="/" in prefix) | aliases, prefix)


def keys(prefix: str) -> set[str]:
    """The keys of the configuration, as they are listed once something is typed, and each of the user's
    aliases as one."""
    from mdl.settings import KEYS

    plain = {name for name, key in KEYS.items() if key.variable}
    if prefix:
        plain |= {f"{key.table}.{name}" for name, key in KEYS.items() if key.table}
    return _offered(plain | {f"aliases.{name}" for name in _known()[1]}, prefix)


def aliases(prefix: str) -> set[str]:
    return _offered(_known()[1], prefix)


def profiles(prefix: str) -> set[str]:
    """Shipped ones and the user's, by their titles."""
    from mdl import profilefile

    return _offered((written.title for written in profilefile.all_profiles().written), prefix)


def entries(prefix: str) -> set[str]:
    """Of the catalog."""
    return _offered(_catalog(prefix), prefix)


KINDS = {
    "model": models,
    "cached": cached,
    "key": keys,
    "alias": aliases,
    "profile": profiles,
    "entry": entries,
}


def _offered(names: Iterable[str], prefix: str) -> set[str]:
    return {name for name in names if name.startswith(prefix) and is_inert(name)}


def spellings(references: Iterable[Reference], *, slashes: bool) -> set[str]:
    """Every reference in full, and what is short for just one model: `org/name:version` for a person who
    types slashes, `name` and `name:version` for one who does not."""
    full: set[str] = set()
    short: dict[str, set[str]] = {}
    for reference in references:
        full.add(str(reference))
        for name in _short(reference, slashes=slashes):
            short.setdefault(name, set()).add(_model(reference))
    return full | {name for name, meant in short.items() if len(meant) == 1}


def is_inert(name: str) -> bool:
    """Whether a name is one word to every shell and does nothing to a terminal."""
    return name[:1].isalnum() and all(character.isalnum() or character in PLAIN for character in name)


def _short(reference: Reference, *, slashes: bool) -> Iterator[str]:
    is_file_name = reference.path.endswith(".gguf")  # which would be taken for a path
    if reference.scheme in ADDRESSES or reference.pin is not None or is_file_name:
        return
    model = _model(reference)
    version = str(reference).removeprefix(model)
    if slashes:
        yield "/".join(model.split("/")[-2:]) + version
    else:
        yield reference.name
        yield reference.name + version


def _model(reference: Reference) -> str:
    """What `str(reference.model)` is for these, without checking each name a second time."""
    return f"{reference.host}/{reference.path}" if reference.host else reference.path


def _known() -> tuple[list[Reference], set[str]]:
    """What is in the cache, and the user's own names."""
    from mdl import config
    from mdl.errors import MdlError
    from mdl.reader import Reader

    try:
        settings, _ = config.load_usable()  # a broken config.toml is told by every other command
    except MdlError:
        return [], set()
    return [reference for reference, _ in Reader(settings.home, _unread).names()], set(settings.aliases)


def _trained() -> Iterator[str]:
    """Training checkpoints, and the latest one of each run."""
    from mdl import config
    from mdl.errors import MdlError

    with suppress(MdlError):
        folders = [folder for folder in config.load_usable()[0].checkpoints if folder.is_dir()]
        if folders:
            from mdl.checkpoints import everything

            for checkpoint in everything(folders):
                yield from (f"{checkpoint.run}:{checkpoint.name}", f"{checkpoint.run}@latest")


def _unread(folder: Path) -> NoReturn:
    raise AssertionError(f"completion reads no models: {folder}")


def _given() -> Iterable[str]:
    """Names that profiles of the user give."""
    from mdl import profilefile

    return profilefile.names()


def _catalog(prefix: str) -> Iterable[str]:
    """Models that are recommended, and their sizes once a colon asks for them."""
    from mdl.catalog import catalog

    return (name for name in catalog().names() if ":" in prefix or ":" not in name)
