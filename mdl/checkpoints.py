"""Training checkpoints: which there are in folders of runs, and which one a name means. Opens no weights.

    FOLDER/RUN/checkpoint-500/     transformers' Trainer; also step_500, global_step500, ckpt-500, iter_500
    FOLDER/RUN/samples_1024/       InstructLab; also epoch_2, and best, last, final
    FOLDER/RUN/checkpoint-500.gguf one that was converted

A run may lie deeper, and is called by its path then; a folder that has checkpoints itself is a run, too.
"""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mdl import safetensors
from mdl.errors import NotFound, UnsupportedModel
from mdl.header import count

DEEPEST = 3  # folders below one that is configured
MOST_ENTRIES = 10_000  # of a folder
MOST_FOLDERS = 10_000  # that are looked into
LATEST = "latest"
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_STATE = "trainer_state.json"  # of transformers' Trainer
_UNITS = {"samples": "samples", "epoch": "epochs"}  # what else is counted than steps
_NUMBERED = re.compile(
    r"(?i)(checkpoint|ckpt|(?:global_)?steps?|samples|epoch|iter(?:ation)?)[-_]?(\d{1,12})"
)
_WORDS = ("best", "last", "final", LATEST)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")  # as in references


class Checkpoint(NamedTuple):
    """One state of a run. `step` counts `unit`s: steps, samples or epochs; None is unknown."""

    run: str
    name: str
    path: Path
    step: int | None
    unit: str
    modified: datetime

    @property
    def counted(self) -> str:
        """500, or 96 samples; - where it is unknown."""
        if self.step is None:
            return "-"
        if self.unit == "steps":
            return str(self.step)
        return f"{self.step} {self.unit if self.step != 1 else self.unit[:-1]}"

    @property
    def has_plain_name(self) -> bool:
        """Whether it can be asked for by run and name, or only by its path."""
        return all(map(_is_plain, (*self.run.split("/"), self.name)))


def everything(folders: Sequence[Path]) -> list[Checkpoint]:
    """Of all runs, each in the order of training. Of runs with one name that of the first folder."""
    found: dict[str, list[Checkpoint]] = {}
    for folder in folders:
        for run, place in _runs(folder):
            if members := of_run(place, run):
                found.setdefault(run, members)
    return [checkpoint for run in sorted(found) for checkpoint in found[run]]


def find(folders: Sequence[Path], text: str) -> Checkpoint | None:
    """What RUN/NAME, RUN:NAME, RUN@NAME, RUN@STEP, RUN@latest or RUN alone, which is the latest, means.

    None where there is no such run. Raises NotFound for one without this checkpoint.
    """
    for run, wanted in _readings(text):
        for folder in folders:
            members = of_run(_place(folder, run), run)
            if members and (chosen := _chosen(members, wanted)):
                return chosen
            if members and (wanted.isdecimal() or _NUMBERED.fullmatch(wanted) or "@" in text):
                names = ", ".join(member.name for member in members[-3:])
                raise NotFound(f"the run {run} has no checkpoint {wanted}", hint=f"its last ones: {names}")
    return None


def of_run(place: Path, run: str) -> list[Checkpoint]:
    """The checkpoints of a run, in the order of training; none if it is no run."""
    entries = _entries(place)
    folders = [_read(Path(entry.path), run, entry.name) for entry in entries if _is_checkpoint(entry)]
    taken = {found.name for found in folders}
    files = [Path(entry.path) for entry in entries if _is_gguf(entry)]
    found = folders + [_read(path, run, path.name if path.stem in taken else path.stem) for path in files]
    # What counts different things has only its time; a file is what a folder of the same step was made to.
    counted = len({one.unit for one in found}) == 1 and all(one.step is not None for one in found)
    return sorted(
        found, key=lambda one: (counted and one.step, counted and one.path in files, one.modified, one.name)
    )


def _readings(text: str) -> Iterator[tuple[str, str]]:
    """What may be the run in a name, and what the checkpoint."""
    for mark in "@:":
        run, found, wanted = text.partition(mark)
        if found:
            if _is_path(run) and _is_plain(wanted):
                yield run, wanted
            return
    if _is_path(text):
        run, _, wanted = text.rpartition("/")
        if run:
            yield run, wanted
        yield text, LATEST


def _chosen(members: list[Checkpoint], wanted: str) -> Checkpoint | None:
    named = [member for member in members if wanted in (member.name, member.path.name)]
    if wanted.isdecimal() and not named:
        named = [member for member in members if member.step == int(wanted)]
    if wanted == LATEST and not named:
        named = [member for member in members if _has_weights(member.path)] or members
    return named[-1] if named else None


def _place(folder: Path, run: str) -> Path:
    """Where a run lies: a folder that is one itself is called by its own name."""
    own = folder / run
    return folder if run == folder.name and not _is_folder(own) else own


def _runs(folder: Path) -> Iterator[tuple[str, Path]]:
    """What may be runs, with their names."""
    yield folder.name, folder
    below = deque([(folder, "", 0)])
    budget = MOST_FOLDERS
    while below and (budget := budget - 1) > 0:
        place, name, depth = below.popleft()
        for entry in _entries(place):
            if _is_folder(entry) and not _is_checkpoint(entry):
                run = f"{name}/{entry.name}".lstrip("/")
                yield run, Path(entry.path)
                if depth + 1 < DEEPEST and not entry.is_symlink():
                    below.append((Path(entry.path), run, depth + 1))


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    """What lies in a folder, by name; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry, _ in zip(entries, range(MOST_ENTRIES), strict=False)]
    except OSError:
        return []
    return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_checkpoint(entry: "os.DirEntry[str]") -> bool:
    if not _is_folder(entry):
        return False
    if entry.name.lower() in _WORDS:
        return _has_weights(Path(entry.path))
    return _NUMBERED.fullmatch(entry.name) is not None


def _is_folder(entry: "os.DirEntry[str] | Path") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the same
        return False


def _is_gguf(entry: "os.DirEntry[str]") -> bool:
    return entry.name.lower().endswith(".gguf") and _is_file(Path(entry.path))


def _has_weights(path: Path) -> bool:
    return _is_file(path) or any(entry.name.endswith(_WEIGHTS) for entry in _entries(path))


def _read(path: Path, run: str, name: str) -> Checkpoint:
    match = _NUMBERED.search(path.stem if _is_file(path) else path.name)
    unit = _UNITS.get(match[1].lower(), "steps") if match else ""
    step = int(match[2]) if match else None
    state = path / _STATE
    if unit in ("", "epochs") and _is_file(state):
        unit, step = "steps", _global_step(state)
    return Checkpoint(run, name, path, step, unit, _modified(state if _is_file(state) else path))


def _global_step(state: Path) -> int | None:
    try:
        return count(safetensors.load(state).get("global_step"))
    except (UnsupportedModel, OSError):
        return None


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:  # removed meanwhile
        return datetime.fromtimestamp(0, UTC)


def _is_path(text: str) -> bool:
    return all(map(_is_plain, text.split("/")))


def _is_plain(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and ".." not in text
