"""The connections that gather one file: who asks for which range, and what becomes of one that fails.

Knows no digests and no other files: what it is given is a `Partial` with gaps, and a way to ask for a range.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mdl.errors import IntegrityError
from mdl.partial import PIECE, Partial
from mdl.remote import Answer, Client, Limits, Stopped, Transient, shown

TICK = 0.05  # seconds between two looks at how it goes
_SETTLE = 0.1  # seconds that new connections get before more are hired
_LINGER = 0.4  # seconds that threads get to notice that they are not needed any more
_UNBOUNDED = sys.maxsize


class Source(Protocol):
    """What a crew knows of its file. `verifiable`: a digest will tell whether the parts fit together."""

    @property
    def verifiable(self) -> bool: ...
    def ask(self, headers: Mapping[str, str]) -> Answer: ...
    def advanced(self, count: int) -> None: ...
    def retrying(self, reason: str, seconds: float) -> None: ...


class StartOver(Exception):
    """What is on disk cannot be gone on with; `changed` if the object is another one than before."""

    def __init__(self, reason: str, changed: bool) -> None:
        super().__init__(reason)
        self.reason, self.changed = reason, changed


@dataclass(slots=True, eq=False)
class Extent:
    """A range that one connection is getting: the next byte to come, and where to stop."""

    position: int
    end: int


class Plan:
    """Which ranges of a file are still to come and who is getting them: arithmetic, nothing else."""

    def __init__(self, gaps: Iterable[tuple[int, int]]) -> None:
        self._open = deque(Extent(*gap) for gap in gaps)
        self._taken: list[Extent] = []
        self._block: int | None = None

    def add(self, start: int, end: int) -> None:
        self._open.append(Extent(start, end))

    def take(self, steal: bool) -> Extent | None:
        """The next range for an idle connection; with `steal`, half of somebody's if nothing is free."""
        if not self._open and steal:
            self._split_largest()
        if not self._open:
            return None
        extent = self._open.popleft()
        self._taken.append(extent)
        self._narrow(extent)
        return extent

    def share(self, block: int) -> None:
        """From now on nobody has more than about `block` bytes, so that the front of the file comes first."""
        self._block = block
        for extent in list(self._taken):
            self._narrow(extent)

    def _narrow(self, extent: Extent) -> None:
        if self._block is not None:
            self._cut(extent, extent.position + self._block)

    def _cut(self, extent: Extent, at: int) -> None:
        at = -(-at // PIECE) * PIECE  # a piece has one writer
        if at < extent.end:
            self._open.appendleft(Extent(at, extent.end))
            extent.end = at

    def _split_largest(self) -> None:
        largest = max(self._taken, key=lambda extent: extent.end - extent.position, default=None)
        if largest and largest.end - largest.position > 2 * PIECE:
            self._cut(largest, (largest.position + largest.end) // 2)

    def reserve(self, extent: Extent, count: int) -> int:
        """How many of `count` bytes that came for `extent` are its own; they count as got from now on."""
        count = min(count, extent.end - extent.position)
        extent.position += count
        return count

    def give_back(self, extent: Extent) -> None:
        """Somebody else has to get the rest of it."""
        self._taken.remove(extent)
        if extent.position < extent.end:
            self._open.appendleft(extent)

    def room(self) -> int:
        """How many more connections would find something worth a request."""
        block = self._block or _UNBOUNDED
        return sum(-(-(extent.end - extent.position) // block) for extent in self._open)


class Crew:
    """The connections that gather one Partial.

    A connection that fails while others work hands its range back and leaves; the last one stays and retries.
    """

    def __init__(
        self, source: Source, partial: Partial, client: Client, budget: threading.Semaphore, splits: bool
    ) -> None:
        """`budget` is what all files share: each connection but a file's first takes one from it."""
        self._source, self._partial, self._client, self._budget = source, partial, client, budget
        self._limits, self._splits = client.limits, splits
        self.transferred = 0
        self._plan = Plan([(0, _UNBOUNDED)] if partial.total is None else partial.gaps())
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._active = self._failures = 0
        self._failure: BaseException | None = None
        self._told = self._counted = self._failed_at = 0
        self._look_at = time.monotonic() + _SETTLE
        self._looked = (time.monotonic(), 0)
        self._caution = self._limits.backoff

    def run(self, answer: Answer | None) -> None:
        """Gather everything that is missing; `answer` is an open one from the start of the file."""
        if answer and self._partial.total == 0:
            self._plan.add(0, 0)  # to see that nothing comes
        self._hire(answer)
        try:
            while self._active and not self._failure:
                with self._changed:
                    self._changed.wait(TICK)
                self._report()
                self._grow()
        finally:
            self._dismiss()
        if self._failure:
            raise self._failure

    def _hire(self, answer: Answer | None = None) -> None:
        with self._changed:
            self._active += 1
        self._threads.append(spawn(lambda: self._work(answer), "connection"))

    def _dismiss(self) -> None:
        if self._failure:
            self._client.cut([thread.ident for thread in self._threads if thread.is_alive()])
        join(self._threads)
        self._report()
        self._partial.end()

    def _report(self) -> None:
        count = self._counted - self._told
        if count:
            self._told += count
            self._source.advanced(count)

    def _grow(self) -> None:
        """Twice and more connections while each is slower than what one could do."""
        now = time.monotonic()
        if not self._counted:
            self._looked = (now, 0)  # what an answer lets us wait for says nothing about its speed
        if not self._splits or now < self._look_at or not self._counted:
            return
        then, counted = self._looked
        speed = (self._counted - counted) / (now - then) / max(self._active, 1)
        self._looked, self._look_at = (now, self._counted), now + _SETTLE
        if speed < self._limits.enough:
            self._hire_more()

    def _hire_more(self) -> None:
        wanted = min(self._active * 3, self._limits.connections - self._active)
        granted = sum(self._budget.acquire(blocking=False) for _ in range(wanted))
        with self._changed:
            if granted:
                self._plan.share(self._limits.block)
            useful = min(granted, self._plan.room())
        for _ in range(useful):
            self._hire()
        if granted > useful:
            self._budget.release(granted - useful)

    def _work(self, answer: Answer | None) -> None:
        try:
            while extent := self._claim():
                try:
                    self._receive(extent, answer or self._ask(extent))
                except Transient as trouble:
                    if not self._stays(extent, trouble):
                        return
                answer = None
        except BaseException as error:  # noqa: BLE001  raised again by the runner
            self._fail(error)
        finally:
            if answer:
                answer.close()

    def _claim(self) -> Extent | None:
        with self._changed:
            extent = None if self._failure else self._plan.take(self._splits)
            if extent is None:
                self._leave()
            return extent

    def _leave(self) -> None:
        self._active -= 1
        if self._active:
            self._budget.release()
        self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._leave()

    def _stays(self, extent: Extent, trouble: Transient) -> bool:
        """Whether this connection tries again, after its pause; not if others can do its work."""
        with self._changed:
            self._plan.give_back(extent)
            self._look_at = time.monotonic() + self._caution
            self._caution = min(self._caution * 2, self._limits.longest_wait)
            if self._failure or self._active > 1:
                self._leave()
                return False
            self._count_failure()
        if self._failures > self._limits.retries:
            self._fail(trouble)
            return False
        self._client.pause(self._failures, trouble, self._source.retrying)
        return True

    def _count_failure(self) -> None:
        progress = self._counted - self._failed_at
        self._failures = 1 if progress > self._limits.min_speed * self._limits.window else self._failures + 1
        self._failed_at = self._counted

    def _ask(self, extent: Extent) -> Answer:
        """An open answer that starts where `extent` does and is of the same object. Raises StartOver."""
        with self._changed:
            start, end = extent.position, extent.end  # others may shorten it while we wait for the answer
        whole = start == 0 and end in (self._partial.total, _UNBOUNDED)
        answer = self._source.ask({} if whole else self._range_headers(start, end))
        try:
            _refuse_other_object(answer, None if whole else (start, end), self._partial)
            answer.refuse_coding()
        except BaseException:
            answer.close()
            raise
        return answer

    def _range_headers(self, start: int, end: int) -> dict[str, str]:
        total, validator = self._partial.total, self._partial.validator
        if total is None or not (validator or self._source.verifiable):
            raise StartOver("the server does not say whether the rest is of the same file", changed=False)
        headers = {"Range": f"bytes={start}-{end - 1}"}
        return headers | ({"If-Range": validator} if validator else {})

    def _receive(self, extent: Extent, answer: Answer) -> None:
        try:
            pace = _Pace(self._limits, answer)
            ends = answer.extent[1] if answer.extent and answer.status == 206 else _UNBOUNDED
            while extent.position < extent.end:
                data = answer.read(min(self._limits.chunk, extent.end - extent.position))
                if not data:
                    break
                self._store(extent, data)
                pace.add(len(data))
            self._conclude(extent, answer, ends)
        finally:
            answer.close()

    def _store(self, extent: Extent, data: bytes) -> None:
        with self._changed:
            if self._failure:
                raise Stopped
            offset = extent.position
            count = self._plan.reserve(extent, len(data))
            self._counted += count
            self.transferred += len(data)
        self._partial.write(memoryview(data)[:count], offset)

    def _conclude(self, extent: Extent, answer: Answer, ends: int) -> None:
        whole = extent.position == extent.end
        if not whole and extent.position != ends and self._partial.total is not None:
            raise Transient(f"{shown(answer.url)} closed the connection early")
        if whole and extent.end == self._partial.total and answer.length is None and answer.read(1):
            raise IntegrityError(
                f"{shown(answer.url)} sends more than the {extent.end} bytes that were promised",
                hint="check whether it was replaced at its source",
            )
        with self._changed:
            if self._partial.total is None:
                extent.end = extent.position
            self._plan.give_back(extent)


class _Pace:
    """Drops a connection that is slower than the limit for a whole window."""

    def __init__(self, limits: Limits, answer: Answer) -> None:
        self._limits, self._url = limits, answer.url
        self._since, self._count = time.monotonic(), 0

    def add(self, count: int) -> None:
        self._count += count
        now = time.monotonic()
        if now - self._since < self._limits.window:
            return
        if self._count < self._limits.min_speed * (now - self._since):
            speed = self._count / (now - self._since)
            raise Transient(f"{shown(self._url)} sends only {speed:.0f} bytes a second")
        self._since, self._count = now, 0


def _refuse_other_object(answer: Answer, asked: tuple[int, int] | None, partial: Partial) -> None:
    """Raise StartOver unless `answer` is what was asked of the object that `partial` was begun with.

    `asked` is (start, end), or None for the whole file.
    """
    same = not (answer.validator and partial.validator) or answer.validator == partial.validator
    if answer.status == 200 and same and answer.length in (None, partial.total):
        if asked:
            raise StartOver(f"{shown(answer.url)} cannot send a part of the file", changed=False)
        return
    begins, ends, total = answer.extent or (-1, _UNBOUNDED, None)
    fits = asked and (begins, total) == (asked[0], partial.total) and ends <= asked[1]
    if answer.status != 206 or not same or not fits:
        raise StartOver(f"{shown(answer.url)} changed while it was downloaded", changed=True)


def spawn(work: Callable[[], None], name: str) -> threading.Thread:
    """A running thread. A daemon, because nothing can wake one that waits for a name server; when that one
    wakes, it finds that it was dismissed and touches nothing."""
    thread = threading.Thread(target=work, name=f"mdl-{name}", daemon=True)
    thread.start()
    return thread


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait for them, but not for long: see `spawn`."""
    until = time.monotonic() + _LINGER
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
