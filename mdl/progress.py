"""How a download is shown: bars on a terminal, lines in a pipe, JSON lines for scripts. All of it on stderr.

Called from the threads of the download.
"""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mdl import ui
from mdl.library import Watch

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 0.25  # seconds between two JSON lines of a file
LINE_EVERY = 5.0  # seconds between two lines of a file in a pipe
WIDE = 72  # columns of a terminal that has room for everything
LABEL_WIDE, LABEL_NARROW = 28, 10
MOST_BARS = 12  # of finished files; a model may have a hundred


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
    ui.talk(ui.as_json(event))


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
    """A bar for each file with speed and time left, and below them one for all together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._total: TaskID | None = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self._progress.stop()

    @functools.cached_property
    def _progress(self) -> "Progress":
        """Made for the first file: what is here already needs no rich."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        return Progress(*_columns(console.width), console=console, expand=console.width >= WIDE)

    def note(self, text: str) -> None:
        if self._tasks:
            self._progress.console.print(ui.inert(text), markup=False, highlight=False, soft_wrap=True)
        else:
            ui.talk(ui.inert(text))

    def started(self, name: str, size: int | None, resumed: int) -> None:
        with self._lock:
            if name not in self._tasks:
                self._progress.start()
                wide = LABEL_WIDE if self._progress.console.width >= WIDE else LABEL_NARROW
                label = ui.shorten(_name(name), wide)
                self._tasks[name] = self._progress.add_task(label, total=size)
            self._sizes[name], self._done[name] = size or 0, resumed
            self._progress.reset(self._tasks[name], total=size, completed=resumed)
            self._renew_total()

    def advanced(self, name: str, count: int) -> None:
        with self._lock:
            self._done[name] += count
            self._progress.advance(self._tasks[name], count)
            if self._total is not None:
                self._progress.advance(self._total, count)

    def retrying(self, name: str, reason: str, seconds: float) -> None:
        self.note(f"{_name(name)}: {ui.inert(reason, one_line=True)}; again in {seconds:.0f} s")

    def finished(self, name: str) -> None:
        with self._lock:
            crowded = len(self._tasks) > MOST_BARS
            self._progress.update(self._tasks[name], total=self._done[name], visible=not crowded)

    def _renew_total(self) -> None:
        """The line for all, once there are several; made anew for each file, so that it stays the last."""
        if len(self._tasks) < 2:
            return
        if self._total is not None:
            self._progress.remove_task(self._total)
        total, done = sum(self._sizes.values()), sum(self._done.values())
        self._total = self._progress.add_task("together", total=total, completed=done)


def _columns(width: int) -> list[Any]:
    """What fits beside a bar."""
    from rich import progress
    from rich.text import Text

    class Speed(progress.TransferSpeedColumn):
        """Nothing where a question mark would stand: a file that came in one piece."""

        def render(self, task: progress.Task) -> Text:
            return super().render(task) if task.finished_speed or task.speed else Text("")

    columns = [progress.TextColumn("{task.description}", markup=False)]
    if width >= WIDE:
        time_left = progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True)
        return [*columns, progress.BarColumn(None), progress.DownloadColumn(), Speed(), time_left]
    return [*columns, progress.BarColumn(8), progress.TaskProgressColumn(), Speed()]


def _name(name: str) -> str:
    return ui.inert(name, one_line=True)
