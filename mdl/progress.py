"""How a download is shown: bars on a terminal, lines in a pipe, JSON lines for scripts. All of it on stderr.

Called from the threads of the download.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mdl import ui
from mdl.library import Watch

if TYPE_CHECKING:
    from rich.progress import TaskID

EVERY = 0.25  # seconds between two JSON lines of a file
LINE_EVERY = 5.0  # seconds between two lines of a file in a pipe


@contextlib.contextmanager
def watch(*, json: bool = False, quiet: bool = False, ask: bool = False) -> Iterator[Watch]:
    """What a download tells, shown as fits where stderr goes; `ask` lets it ask a person, if one is there."""
    confirm = ui.confirm if ask and ui.is_interactive() else None
    if json:
        yield Watch(JsonLines(), lambda text: _event(event="note", text=text), confirm)
    elif quiet:
        yield Watch(None, lambda _: None, confirm)
    elif not sys.stderr.isatty():
        yield Watch(Lines(), ui.talk, confirm)
    else:
        with Bars() as bars:
            yield Watch(bars, bars.note, confirm)


def _event(**event: Any) -> None:
    ui.talk(json.dumps(event, ensure_ascii=False))


class _Counts:
    """Bytes of each file, and when something was last told of it."""

    def __init__(self, every: float) -> None:
        self.lock = threading.Lock()
        self.every = every
        self.done: dict[str, int] = {}
        self.sizes: dict[str, int | None] = {}
        self.told: dict[str, float] = {}

    def start(self, name: str, size: int | None, resumed: int) -> None:
        with self.lock:
            self.done[name], self.sizes[name], self.told[name] = resumed, size, time.monotonic()

    def add(self, name: str, count: int) -> bool:
        """Whether it is time to tell."""
        with self.lock:
            self.done[name] = self.done.get(name, 0) + count
            due = time.monotonic() - self.told.get(name, 0) >= self.every
            if due:
                self.told[name] = time.monotonic()
            return due


class JsonLines:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._counts = _Counts(EVERY)

    def started(self, name: str, size: int | None, resumed: int) -> None:
        self._counts.start(name, size, resumed)
        _event(event="start", file=name, size=size, resumed=resumed)

    def advanced(self, name: str, count: int) -> None:
        if self._counts.add(name, count):
            _event(
                event="progress", file=name, done=self._counts.done[name], size=self._counts.sizes.get(name)
            )

    def retrying(self, name: str, reason: str, seconds: float) -> None:
        _event(event="retry", file=name, reason=reason, seconds=round(seconds, 1))

    def finished(self, name: str) -> None:
        _event(event="done", file=name, size=self._counts.done.get(name))


class Lines:
    """Plain lines, few enough for a log."""

    def __init__(self) -> None:
        self._counts = _Counts(LINE_EVERY)
        self._began = time.monotonic()

    def started(self, name: str, size: int | None, resumed: int) -> None:
        self._counts.start(name, size, resumed)
        more = f", {ui.size(resumed)} are here already" if resumed else ""
        ui.talk(f"{_name(name)}: {ui.size(size)}{more}")

    def advanced(self, name: str, count: int) -> None:
        if self._counts.add(name, count):
            done, size = self._counts.done[name], self._counts.sizes.get(name)
            share = f" ({100 * done // size} %)" if size else ""
            ui.talk(f"{_name(name)}: {ui.size(done)}{share}")

    def retrying(self, name: str, reason: str, seconds: float) -> None:
        ui.talk(f"{_name(name)}: {ui.inert(reason, one_line=True)}; again in {seconds:.0f} s")

    def finished(self, name: str) -> None:
        ui.talk(f"{_name(name)}: done")


class Bars:
    """A bar for each file with speed and time left, and one for all of them together."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        wide = console.width >= 72
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None if wide else 8),
            *([DownloadColumn()] if wide else [TextColumn("{task.percentage:>3.0f}%")]),
            TransferSpeedColumn(),
            *([TimeRemainingColumn(compact=True)] if console.width >= 50 else []),
        ]
        self._name_width = 28 if wide else 12
        self._progress = Progress(*columns, console=console, expand=wide)
        self._tasks: dict[str, TaskID] = {}
        self._total: TaskID | None = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(ui.inert(text), markup=False, highlight=False)

    def started(self, name: str, size: int | None, resumed: int) -> None:
        self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(ui.shorten(_name(name), self._name_width), total=size)
        self._progress.reset(self._tasks[name], total=size, completed=resumed)
        self._add_up()

    def advanced(self, name: str, count: int) -> None:
        self._progress.advance(self._tasks[name], count)
        if self._total is not None:
            self._progress.advance(self._total, count)

    def retrying(self, name: str, reason: str, seconds: float) -> None:
        self.note(f"{_name(name)}: {ui.inert(reason, one_line=True)}; again in {seconds:.0f} s")

    def finished(self, name: str) -> None:
        task = self._tasks[name]
        self._progress.update(task, total=self._progress.tasks[task].completed)

    def _add_up(self) -> None:
        """One more line below all files, once there are several."""
        if len(self._tasks) < 2:
            return
        files = [self._progress.tasks[task] for task in self._tasks.values()]
        total = sum(file.total or 0 for file in files)
        done = int(sum(file.completed for file in files))
        if self._total is not None:
            self._progress.remove_task(self._total)
        self._total = self._progress.add_task("together", total=total, completed=done)


def _name(name: str) -> str:
    return ui.inert(name, one_line=True)
