"""Models by parts of their names: those that the catalog knows, and those that Hugging Face lists.

Knows no terminal. One question finds many repositories, so what each would take of memory is reckoned from
its number of parameters and the names of its files; `survey` reads the header of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from mdl import estimate
from mdl.card import Listed
from mdl.catalog import Entry, catalog
from mdl.errors import NotFound, UsageError
from mdl.estimate import Place
from mdl.filename import quantization_of
from mdl.library import Library
from mdl.machine import Machine
from mdl.reference import HUGGING_FACE, show

Sort = Literal["downloads", "likes", "modified", "created", "trending"]
SORTS = get_args(Sort)
MOST_TERMS = 20
LONGEST_TERM = 100  # characters
MOST = 1000  # models that a hub is asked for
MOST_OF_ANYBODY = 300  # where the owner's name is only begun
_PREFIXES = ("https://huggingface.co/", "hf://", f"{HUGGING_FACE}/", "hf.co/")


class Query(NamedTuple):
    """What a hub is asked for. `author` is the beginning of an owner's name, "" for any."""

    author: str
    words: str


@dataclass(frozen=True, slots=True)
class Match:
    """A repository that was found. `size` and `memory` are bytes of its default version, roughly, None where
    nobody knows; `place` is where that would find room, and `best` the best version that does."""

    listed: Listed
    size: int | None
    memory: int | None
    place: Place | None
    best: str | None
    here: bool


class Found(NamedTuple):
    """A page of what was found; `more` tells whether another one follows."""

    entries: tuple[Entry, ...]
    matches: tuple[Match, ...]
    more: bool


def search(library: Library, terms: Sequence[str], sort: str, limit: int, page: int, here: Machine) -> Found:
    """GGUF repositories whose names have all the terms, `limit` of them on a page, and on the first page what
    the catalog has. `org/term` asks for those of owners whose names begin so.

    Raises UsageError, NotFound when offline, AuthError, NetworkError.
    """
    asked = query(terms)
    if sort not in SORTS:
        raise UsageError(f"cannot sort by {show(sort)}", hint=f"one of {', '.join(SORTS)}")
    if limit * page >= MOST:
        raise UsageError(f"a hub is asked for less than {MOST:,} models", hint="add a term")
    if library.settings.offline:
        raise NotFound(
            "Hugging Face cannot be searched: mdl is offline",
            hint="mdl catalog TERMS searches what mdl knows without a network",
        )
    listed = _ask(library, asked, sort, limit * page + 1)
    wanted = listed[limit * (page - 1) : limit * page]
    entries = _in_catalog(asked) if page == 1 else ()
    matches = tuple(_match(library, each, here) for each in wanted)
    return Found(entries, matches, len(listed) > limit * page)


def query(terms: Sequence[str]) -> Query:
    """Raises UsageError for what cannot be a part of a name."""
    words = [word for term in terms for word in _bare(term).split()]
    if not "".join(words).strip("/") or len(words) > MOST_TERMS:
        raise UsageError(f"search for 1 to {MOST_TERMS} words", hint="for instance: mdl search qwen coder")
    for word in words:
        if len(word) > LONGEST_TERM or not word.isprintable() or word.count("/") > 1:
            raise UsageError(f"{show(word)} cannot be a part of a name", hint="write a word, or org/word")
    owners = [word.partition("/")[0] for word in words if "/" in word]
    if len(owners) > 1:
        raise UsageError("a model has one owner", hint=f"write one of {', '.join(map(show, owners))}")
    names = [word.partition("/")[2] if "/" in word else word for word in words]
    return Query("".join(owners), " ".join(filter(None, names)))


def _bare(term: str) -> str:
    return next((term.removeprefix(prefix) for prefix in _PREFIXES if term.startswith(prefix)), term)


def _ask(library: Library, asked: Query, sort: str, most: int) -> list[Listed]:
    """What a hub lists; where nobody has just the name of the owner, of those whose names begin so."""
    from mdl.transports.huggingface import HuggingFace

    hub = HuggingFace(library.settings)
    found = hub.search(asked.words, asked.author, sort, most)
    if found or not asked.author:
        return found
    wider = hub.search(f"{asked.author} {asked.words}".strip(), "", sort, MOST_OF_ANYBODY)
    beginning = asked.author.casefold()
    return [one for one in wider if one.reference.path.casefold().startswith(beginning)][:most]


def _in_catalog(asked: Query) -> tuple[Entry, ...]:
    terms = [*asked.author.casefold().split(), *asked.words.casefold().split()]
    return tuple(entry for entry in catalog().entries if entry.matches(terms))


def _match(library: Library, listed: Listed, here: Machine) -> Match:
    sizes = {version: _size(listed, version) for version in listed.versions}
    places = {
        version: estimate.place(estimate.memory(size), here, library.settings.memory)
        for version, size in sizes.items()
        if size is not None
    }
    default = next(iter(listed.versions), "")
    size = sizes.get(default)
    return Match(
        listed,
        size,
        None if size is None else estimate.memory(size),
        places.get(default),
        _best(sizes, places),
        bool(library.store.versions(listed.reference)),
    )


def _size(listed: Listed, version: str) -> int | None:
    count = listed.about.parameters
    return estimate.size(count, quantization_of(f"{version}.gguf")) if count else None


def _best(sizes: "dict[str, int | None]", places: "dict[str, Place]") -> str | None:
    """The version that loses least of those that find room: the largest that is quantized, if any is."""
    found = [version for version, place in places.items() if place != "no"]
    quantized = [version for version in found if version not in ("F16", "BF16", "F32")]
    return max(quantized or found, key=lambda version: sizes[version] or 0, default=None)
