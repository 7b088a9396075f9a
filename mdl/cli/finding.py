"""Commands that find models which are not here yet: catalog, what mdl recommends, and search, which asks
Hugging Face besides."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import Json, Offline, Quiet
from mdl.errors import UsageError
from mdl.reference import show

if TYPE_CHECKING:
    from mdl.catalog import Catalog, Entry
    from mdl.estimate import Place
    from mdl.library import Library
    from mdl.search import Match

Page = Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Which page to show.")]
HEAD = ("NAME", "SIZE", "MEMORY", "FITS", "CONTEXT", "LICENSE", "DESCRIPTION")
FOUND = ("NAME", "PARAMETERS", "SIZE", "FITS", "DOWNLOADS", "LIKES", "MODIFIED")


def catalog(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TERMS...]", help="Parts of names and descriptions; or an action."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the sizes of one model, such as qwen3.")
    ] = None,
    fits: Annotated[bool, typer.Option("--fits", help="Only what this machine has the memory for.")] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=10_000, help="Lines of a page; all by default.")
    ] = None,
    page: Page = 1,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Models that mdl recommends, by short names: mdl chat qwen3:4b.

    \b
    mdl catalog                    all of them, and which fit this machine
    mdl catalog vision --fits      those that see images and fit
    mdl catalog show qwen3:4b      what is known of one
    mdl catalog refresh [ADDRESS]  a newer one: https://… or oci://…; catalog_url
    mdl catalog reset              the one that ships with mdl again
    """
    action, *rest = words or [""]
    library = options.open_library(offline=offline, tolerant=action not in ("refresh", "reset"))
    if action == "refresh":
        _refresh(library, rest, json=json)
    elif action == "reset":
        _reset(rest, json=json)
    elif action == "show":
        _show_entry(library, rest, json=json)
    else:
        listed = _Listing(library)
        wanted = listed.select(words or [], family, fits)
        _show_page(listed, wanted, limit or max(1, len(wanted)), page, json=json, quiet=quiet)


class _Listing:
    """The catalog as this machine sees it."""

    def __init__(self, library: "Library") -> None:
        from mdl import machine
        from mdl.catalog import catalog

        self.library, self.catalog, self.machine = library, catalog(), machine.look()
        if self.catalog.problem:
            problem = ui.inert(self.catalog.problem, one_line=True)
            ui.talk(f"{problem}: the catalog that ships with mdl is shown")

    def select(self, terms: Sequence[str], family: str | None, fits: bool) -> "list[Entry]":
        wanted = [term.casefold() for term in terms]
        found = [entry for entry in self.catalog.entries if entry.matches(wanted)]
        if family is not None:
            self.catalog.get(family)  # which raises what is near
            found = [entry for entry in found if entry.family == family.casefold()]
        return [entry for entry in found if not fits or self.place(entry) != "no"]

    def place(self, entry: "Entry") -> "Place | None":
        from mdl import estimate

        if entry.memory is None:
            return None
        return estimate.place(entry.memory, self.machine, self.library.settings.memory)

    def is_here(self, entry: "Entry") -> bool:
        return entry.reference is None or self.library.store.find(entry.reference) is not None

    def document(self, entry: "Entry") -> dict[str, Any]:
        from mdl import documents

        return documents.entry(entry, self.place(entry), self.is_here(entry))

    def row(self, entry: "Entry") -> tuple[str, ...]:
        here = " (here)" if self.is_here(entry) else ""
        sizes = ui.size(entry.download), ui.size(entry.memory), self.place(entry) or "-"
        return f"{entry.name}{here}", *sizes, str(entry.context), entry.license, entry.description


def _show_page(
    listed: _Listing, wanted: "list[Entry]", limit: int, page: int, *, json: bool, quiet: bool
) -> None:
    shown = wanted[limit * (page - 1) : limit * page]
    if json:
        from mdl import documents

        found = listed.catalog
        ui.show_json(
            {
                "updated": found.updated,
                "path": str(found.path),
                "problem": found.problem or None,
                "machine": documents.machine(listed.machine, listed.library.settings.memory),
                "total": len(wanted),
                "page": page,
                "more": len(wanted) > limit * page,
                "models": [listed.document(entry) for entry in shown],
            }
        )
        return
    if quiet:
        for entry in shown:
            ui.out(entry.name)
        return
    if shown:
        ui.table(HEAD, [listed.row(entry) for entry in shown], right=(1, 2, 4), prose=True)
    ui.talk(_summary(listed.catalog, wanted, shown))
    if len(wanted) > limit * page:
        ui.talk(f"more: the same with --page {page + 1}")


def _summary(catalog: "Catalog", wanted: "list[Entry]", shown: "list[Entry]") -> str:
    if not wanted:
        return "nothing in the catalog is called so: mdl search TERMS asks Hugging Face"
    count = f"{len(shown)} of {len(wanted)}" if len(shown) < len(wanted) else str(len(wanted))
    return f"{count} of the catalog of {catalog.updated}: mdl chat NAME, mdl catalog show NAME"


def _show_entry(library: "Library", names: list[str], *, json: bool) -> None:
    if len(names) != 1:
        raise UsageError("mdl catalog show is about one model", hint="such as mdl catalog show qwen3:4b")
    listed = _Listing(library)
    entry = listed.catalog.get(names[0])
    if json:
        ui.show_json(listed.document(entry))
        return
    from mdl import documents
    from mdl.cli.card import machine_line, show_fact

    for label, value in _facts(listed, entry):
        if value:
            show_fact(label, value)
    show_fact("machine", machine_line(documents.machine(listed.machine, library.settings.memory)))
    if not listed.is_here(entry):
        ui.talk(f"not on this machine: mdl download {entry.name}")


def _facts(listed: _Listing, entry: "Entry") -> tuple[tuple[str, str], ...]:
    plain = entry.is_default and entry.size and not entry.other
    sizes = [other.name for other in listed.catalog.entries if other.family == entry.family]
    return (
        ("name", f"{entry.name}, or just {entry.family}" if plain else entry.name),
        ("reference", str(entry.reference or f"{entry.file}, which ships with mdl")),
        ("description", entry.description),
        ("parameters", ui.amount(entry.parameter_count)),
        ("context", str(entry.context)),
        ("capabilities", ", ".join(entry.capabilities)),
        ("license", entry.license),
        ("size", f"about {ui.size(entry.download)} ({entry.quantization})" if entry.download else ""),
        ("memory", f"about {ui.size(entry.memory)} at some 4,000 tokens" if entry.memory else ""),
        ("fits", listed.place(entry) or ""),
        ("recommended", ", ".join(f"{name} {value}" for name, value in entry.parameters.items())),
        ("sizes", ", ".join(sizes) if len(sizes) > 1 else ""),
    )


def _refresh(library: "Library", addresses: list[str], *, json: bool) -> None:
    """Take the catalog from an address, if it is one; what is there stays otherwise."""
    from mdl import catalog, refreshing

    address = " ".join(addresses) or library.settings.catalog_url
    if not address:
        raise UsageError(
            "where is a newer catalog?", hint="mdl catalog refresh https://…, or set catalog_url"
        )
    path = catalog.copy_path()
    check = partial(catalog.checked, path=path)
    found = refreshing.refresh(address, library.settings, path, catalog.LARGEST, check)
    if json:
        ui.show_json({"updated": found.updated, "path": str(path), "models": len(found.entries)})
    else:
        ui.talk(f"the catalog of {found.updated}, {len(found.entries)} models")


def _reset(rest: list[str], *, json: bool) -> None:
    from mdl import catalog

    if rest:
        raise UsageError(f"mdl catalog reset takes nothing more: {show(rest[0])}")
    path = catalog.copy_path()
    there = path.exists()
    path.unlink(missing_ok=True)
    if json:
        ui.show_json({"removed": str(path) if there else None})
    else:
        ui.talk("the catalog is the one that ships with mdl" + ("" if there else ", as it was"))


def search(
    terms: Annotated[
        list[str], typer.Argument(metavar="TERMS...", help="Parts of names; org/part for those of an owner.")
    ],
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="downloads, likes, modified, created or trending.")
    ] = "downloads",
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Models of a page.")] = 20,
    page: Page = 1,
    json: Json = False,
    quiet: Quiet = False,
    offline: Offline = False,
) -> None:
    """Find models in the catalog and on Hugging Face. Tells which fit this machine.

    \b
    mdl search TheBloke/llama      of owners whose names begin so
    mdl search qwen coder 7b       all words are in the name
    mdl search granite --sort likes --limit 50 --page 2
    """
    from mdl import machine
    from mdl.search import search

    library, here = options.open_library(offline=offline), machine.look()
    found = search(library, terms, sort, limit, page, here)
    if quiet:
        for name in (*(e.name for e in found.entries), *(m.listed.reference for m in found.matches)):
            ui.out(str(name))
        return
    listed = _Listing(library)
    if json:
        from mdl import documents

        ui.show_json(
            {
                "terms": terms,
                "machine": documents.machine(here, library.settings.memory),
                "catalog": [listed.document(entry) for entry in found.entries],
                "models": [documents.match(match) for match in found.matches],
                "page": page,
                "more": found.more,
            }
        )
        return
    if found.entries:
        ui.out("Catalog")
        ui.table(HEAD, [listed.row(entry) for entry in found.entries], right=(1, 2, 4), prose=True)
        ui.out("")
    if found.matches:
        ui.out("Hugging Face")
        ui.table(FOUND, [_row(match) for match in found.matches], right=(1, 2, 4, 5))
    _say_what_next(found.matches, found.more, page)


def _row(match: "Match") -> tuple[str, ...]:
    about = match.listed.about
    marks = {"here": match.here, "gated": about.gate, "private": about.private}
    noted = ", ".join(mark for mark, holds in marks.items() if holds)
    name = match.listed.reference.path + (f" ({noted})" if noted else "")
    size = f"~{ui.size(match.size)}" if match.size else "-"
    modified = ui.ago(about.modified) if about.modified else "-"
    counts = ("-" if count is None else f"{count:,}" for count in (about.downloads, about.likes))
    return name, ui.amount(about.parameters), size, _fit(match), *counts, modified


def _fit(match: "Match") -> str:
    """Whether the default version fits, else which does."""
    return f"as {match.best}" if match.place == "no" and match.best else match.place or "-"


def _say_what_next(matches: "Sequence[Match]", more: bool, page: int) -> None:
    if not matches:
        ui.talk("Hugging Face has no GGUF model that is called so" + ("" if page == 1 else " on this page"))
        return
    ui.talk(f"one of them: mdl inspect {matches[0].listed.reference.path}, then mdl download")
    if more:
        ui.talk(f"more: the same with --page {page + 1}")
