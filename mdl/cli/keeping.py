"""Commands that keep the cache in order: verify, prune, df."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdl import ui
from mdl.cli import options
from mdl.cli.options import DryRun, Json, ModelOption, Models, Yes
from mdl.errors import IntegrityError, UsageError
from mdl.reference import show

if TYPE_CHECKING:
    from mdl.garbage import Piece
    from mdl.usage import Usage
    from mdl.verification import Finding, Report

LONG = 64 << 20  # bytes whose reading is worth a word
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_KINDS = {
    "content": "unused contents",
    "partial": "partial downloads",
    "leftover": "leftovers of killed commands",
    "converted": "converted adapters whose source is gone",
}


def verify(
    models: Models = None,
    model: ModelOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Sizes and times; contents only where these look wrong.")
    ] = False,
    sample: Annotated[
        str,
        typer.Option(metavar="PERCENT", help="Read only so much of all contents, the longest unread first."),
    ] = "100%",
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Tell only what is found.")] = False,
) -> int:
    """Check what is in the cache against its digests. Says how to mend what is damaged.

    \b
    mdl verify                   everything
    mdl verify granite-7b-lab    all versions of one model
    mdl verify --sample 10%      a part each time, the longest unread first
    """
    from mdl import documents, verification

    library = options.open_library()
    named = [*(models or []), *([model] if model else [])]
    found = {version.folder: version for name in named for version in library.meant(name)}
    check = verification.Verification(
        library.store,
        list(found.values()) or verification.everything(library.store),
        everything=not named,
        quick=quick,
        share=_share(sample),
    )
    with _told(check.size, json=json, quiet=quiet) as advance:
        report = check.run(advance)
    if json:
        ui.show_json(documents.report(report))
        return IntegrityError.code if report.damage else 0
    for finding in report.findings:
        ui.out(_line(finding, library.store.root))
    if not quiet:
        versions = f"{report.versions} version{'' if report.versions == 1 else 's'}"
        ui.talk(f"{versions}, {ui.size(report.size)} read")
    if report.unrecorded:
        ui.talk(f"the damage could not be noted: {report.unrecorded}")
    if report.damage:
        raise _damaged(report)
    return 0


def _damaged(report: "Report") -> IntegrityError:
    count = len(report.damage)
    commands = list(dict.fromkeys(finding.mend for finding in report.damage if finding.mend))
    hint = "what nothing had is forgotten"
    if commands:
        hint = commands[0] if len(commands) == 1 else f"{commands[0]}; {len(commands) - 1} more above"
    return IntegrityError(f"{count} file{' is' if count == 1 else 's are'} damaged or missing", hint=hint)


def _line(finding: "Finding", root: Path) -> str:
    """What, where, and how to mend it."""
    path = finding.path.relative_to(root) if finding.path.is_relative_to(root) else finding.path
    mend = f"; {finding.mend}" if finding.mend else ""
    return ui.inert(f"{path}: {finding.what}{mend}", one_line=True)


def _share(text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError(
            f"--sample cannot be {show(text)}", hint="a percentage of all bytes, for instance 10%"
        )
    return share


@contextlib.contextmanager
def _told(size: int, *, json: bool, quiet: bool) -> "Iterator[Callable[[int], None]]":
    """Progress of reading so many bytes; nothing for what takes a moment."""
    from mdl.progress import watch

    with watch(json=json, quiet=quiet) as watched:
        progress = watched.progress if size >= LONG else None
        if progress is None:
            yield lambda _: None
            return
        progress.started("reading", size, 0)
        yield lambda count: progress.advanced("reading", count)
        progress.finished("reading")


def prune(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Only what has been unused for so long: 30d, 12h.")
    ] = "0",
    partials: Annotated[
        bool, typer.Option("--partials", help="Partial downloads too, though they could go on.")
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove from the cache what nothing uses.

    \b
    mdl prune --dry-run                     only what that would be
    mdl prune --partials --older-than 30d   also downloads nobody goes on with
    """
    from mdl import documents, garbage

    store = options.open_library().store
    found = garbage.find(store, older=_age(older_than), partials=partials)
    if not json:
        _show_pieces(found)
    if found and not dry_run and not yes:
        if json or not ui.is_interactive():
            raise UsageError("nobody is here to ask whether to remove that", hint="say so with --yes")
        dry_run = not ui.confirm("Remove?")
    removed = [] if dry_run else garbage.collect(store, found)
    freed = sum(piece.size for piece in removed)
    if json:
        ui.show_json(
            {
                "found": [documents.piece(piece) for piece in found],
                "removed": [documents.piece(piece) for piece in removed],
                "freed": freed,
            }
        )
    elif found:
        ui.talk(
            "nothing was removed" if dry_run else f"{ui.size(freed)} freed{_kept(len(found), len(removed))}"
        )


def _age(text: str) -> float:
    """30d, 12h, 45m as seconds."""
    number, factor = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    if not number.isdecimal() or len(number) > 9:
        raise UsageError(f"--older-than cannot be {show(text)}", hint="for instance 30d, 12h, 45m")
    return int(number) * factor


def _kept(found: int, removed: int) -> str:
    return f"; {found - removed} of {found} are in use by now" if removed < found else ""


def _show_pieces(found: "list[Piece]") -> None:
    if not found:
        ui.talk("there is nothing to remove")
    for kind, noun in _KINDS.items():
        pieces = [piece for piece in found if piece.kind == kind]
        count = len(
            {piece.path.name.partition(".")[0] for piece in pieces}
        )  # a download is more than one file
        if pieces:
            ui.talk(f"{noun}: {count}, {ui.size(sum(piece.size for piece in pieces))}")


def df(json: Json = False) -> None:
    """What models take on the disk, and what sharing saves."""
    from mdl import documents, usage

    found = usage.measure(options.open_library(tolerant=True).store)
    if json:
        ui.show_json(documents.usage(found))
    else:
        _show_usage(found)


def _show_usage(found: "Usage") -> None:
    rows = [
        (
            str(share.model.reference.model),
            share.model.version,
            ui.size(share.size),
            ui.size(share.shared),
            ui.size(share.unique),
        )
        for share in found.shares
    ]
    if rows:
        ui.table(("NAME", "VERSION", "SIZE", "SHARED", "UNIQUE"), rows, right=(2, 3, 4))
        ui.out("")
    totals = (
        ("models", found.size, f"in {len(rows)} version{'' if len(rows) == 1 else 's'}"),
        ("shared", found.saved, "saved, because what is the same is stored once"),
        ("adapters", found.converted, "converted to the format that is loaded"),
        ("partial", found.partial, "downloads that can go on; mdl prune --partials removes them"),
        ("unused", found.unused, "mdl prune removes it"),
        ("copied", found.copied, "stored more than once, where no hard links could be made"),
        ("on disk", found.on_disk, "all together"),
        ("free", found.free, ""),
    )
    for label, size, remark in totals:
        if size or label in ("models", "on disk", "free"):
            ui.out(f"{label:<9}{ui.size(size):>8}  {remark}".rstrip())
