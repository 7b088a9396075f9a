"""The connections that gather one file: who asks for which range, and what becomes of one that fails.

Knows no digests and no other files: what it is given is a `Partial` with gaps, and a way to ask for a range.
"""

import contextlib
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mdl.address import shown
from mdl.errors import IntegrityError
from mdl.partial import PIECE, Partial
from mdl.remote import Client, Limits
from mdl.response import Answer
from mdl.traffic import Host
from mdl.trouble import Stopped, Transient

TICK = 0.05  # seconds between two looks at how it goes
_STILL = 3.0  # seconds that a connection may stand still while others move
_PATIENCE = 1.0  # seconds that it may, once the others have nothing to do
_LINGER = 0.4  # seconds that threads get to notice that they are not needed any more
_UNBOUNDED = sys.maxsize


class Source(Protocol):
    """What a crew knows of its file. `verifiable`: a digest will tell whether the parts fit together."""

    @property
    def verifiable(self) -> bool: ...
    def ask(self, headers: Mapping[str, str]) -> Answer: ...
    def advanced(self, count: int) -> None: ...
    def retrying(self, reason: str, seconds: float) -> None: ...
    def stand_back(self, trouble: Transient) -> None:
        """Let others at the server go first: returns when there is room again."""


class StartOver(Exception):
    """What is on disk cannot be gone on with; `changed` if the object is another one than before."""

    def __init__(self, reason: str, changed: bool) -> None:
        super().__init__(reason)
        self.reason, self.changed = reason, changed


@dataclass(slots=True, eq=False)
class Extent:
    """A range that one connection is getting: the next byte to come, and where to stop.

    `thread` gets it (by ident): it has an answer if it has `begun`, and had something of it last at `moved`.
    """

    position: int
    end: int
    thread: int = 0
    moved: float = 0
    begun: bool = False


class Plan:
    """Which ranges of a file are still to come and who is getting them: arithmetic, nothing else."""

    def __init__(self, gaps: Iterable[tuple[int, int]]) -> None:
        self._open = deque(Extent(*gap) for gap in gaps)
        self._taken: list[Extent] = []
        self._block: int | None = None

    def add(self, start: int, end: int) -> None:
        self._open.append(Extent(start, end))

    def take(self, steal: bool, patience: float = 0) -> Extent | None:
        """The next range for an idle connection. If nothing is free and it may `steal`: half of somebody's,
        or all of what somebody waits for an answer for since before `patience`."""
        if not self._open and steal:
            self._split_largest()
        if not self._open and steal:
            self._take_over(patience)
        if not self._open:
            return None
        extent = self._open.popleft()
        self._taken.append(extent)
        self._narrow(extent)
        return extent

    def extend(self, extent: Extent, limit: int) -> bool:
        """Add what follows it, up to `limit`, where nobody has an answer for that: this one's has it too."""
        followers = itertools.chain(self._open, (other for other in self._taken if not other.begun))
        follower = next((other for other in followers if other.position == extent.end < other.end), None)
        if follower is None or follower.end > limit:
            return False
        extent.end, follower.end = follower.end, follower.position
        with contextlib.suppress(ValueError):
            self._open.remove(follower)
        self._narrow(extent)
        return True

    def done(self) -> bool:
        """Whether nobody has anything left to get."""
        return not self._open and not any(one.begun or one.position < one.end for one in self._taken)

    def busy(self) -> int:
        return sum(extent.position < extent.end for extent in self._taken)

    def behind(self, moved: float) -> list[Extent]:
        """What has had nothing since some time before that."""
        return [extent for extent in self._taken if extent.moved < moved and extent.position < extent.end]

    def share(self, block: int | None) -> None:
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

    def _take_over(self, patience: float) -> None:
        for late in self._taken:
            if not late.begun and late.position < late.end and late.moved < patience:
                self._open.append(Extent(late.position, late.end))
                late.end = late.position
                return

    def reserve(self, extent: Extent, count: int) -> int:
        """How many of `count` bytes that came for `extent` are its own; they count as got from now on."""
        count = min(count, extent.end - extent.position)
        extent.position += count
        return count

    def give_back(self, extent: Extent) -> None:
        """Somebody else has to get the rest of it."""
        self._taken.remove(extent)
        extent.begun = False
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

    def __init__(self, source: Source, partial: Partial, client: Client, host: Host, splits: bool) -> None:
        """Of the connections that `host` bears, one is this crew's; it asks for each more."""
        self._source, self._partial, self._client, self._host = source, partial, client, host
        self._limits, self._splits = client.limits, splits
        self.transferred = 0
        self._plan = Plan([(0, _UNBOUNDED)] if partial.total is None else partial.gaps())
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._active = self._failures = 0
        self._failure: BaseException | None = None
        self._told = self._counted = self._failed_at = 0
        self._moved = self._hire_at = 0.0
        self._finished = False
        self._caution = self._limits.backoff

    def run(self, answer: Answer | None) -> None:
        """Gather everything that is missing; `answer` is an open one from the start of the file."""
        if answer and self._partial.total == 0:
            self._plan.add(0, 0)  # to see that nothing comes
        self._hire(answer)
        try:
            while self._active and not self._failure and not self._finished:
                with self._changed:
                    self._changed.wait(TICK)
                self._report()
                self._break_still()
                self._grow()
                self._finish()
        finally:
            self._dismiss()
        if self._failure:
            raise self._failure

    def _hire(self, answer: Answer | None = None) -> None:
        with self._changed:
            self._active += 1
        self._threads.append(spawn(lambda: self._work(answer), "connection"))

    def _dismiss(self) -> None:
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
        """More connections, as far as the server's other files and its temper let us."""
        now = time.monotonic()
        self._host.look(now, 0 if self._client.traffic.rate.reached else self._limits.enough)
        if self._splits and self._counted and now >= self._hire_at:
            self._hire_more()

    def _hire_more(self) -> None:
        wanted = self._limits.connections - self._active
        granted = sum(1 for _ in itertools.takewhile(lambda _: self._host.enter(extra=True), range(wanted)))
        if not granted:
            return
        with self._changed:
            self._plan.share(self._limits.block)
            useful = min(granted, self._plan.room())
        for _ in range(useful):
            self._hire()
        for _ in range(granted - useful):
            self._host.leave()

    def _break_still(self) -> None:
        """Connections that stand still while others move have what those could get."""
        with self._changed:
            behind, busy = self._plan.behind(self._moved), self._plan.busy()
        patience = _PATIENCE if len(behind) == busy else _STILL  # those who moved have left
        for extent in behind:
            asked = self._client.asked(extent.thread)
            if asked and asked < self._moved and time.monotonic() - max(extent.moved, asked) > patience:
                self._client.cut([extent.thread])

    def _finish(self) -> None:
        """Leave those alone who wait for an answer that nobody needs any more."""
        with self._changed:
            self._finished = bool(self._partial.total) and self._plan.done()

    def _work(self, answer: Answer | None) -> None:
        served = contextlib.ExitStack()
        try:
            while extent := self._claim():
                try:
                    answer = answer or self._ask(extent)
                    served.close()
                    served.enter_context(self._host.serves())
                    self._receive(extent, answer)
                except Transient as trouble:
                    served.close()
                    if not self._stays(extent, trouble):
                        return
                answer = None
        except BaseException as error:  # noqa: BLE001  raised again by the runner
            self._fail(error)
        finally:
            served.close()
            if answer:
                answer.close()

    def _claim(self) -> Extent | None:
        with self._changed:
            if self._active == 1:
                self._plan.share(None)  # alone, it need not ask for every block
            spare = self._active > 1 and self._host.spares()
            now, extent = time.monotonic(), None
            if not (self._failure or self._finished or spare):
                extent = self._plan.take(self._splits, now - _PATIENCE)
            if extent is None:
                self._leave()
                return None
            extent.thread, extent.moved = threading.get_ident(), now
            return extent

    def _leave(self) -> None:
        self._active -= 1
        if self._active:
            self._host.leave()
        self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._leave()

    def _stays(self, extent: Extent, trouble: Transient) -> bool:
        """Whether this connection tries again, after its pause; not if others can do its work."""
        with self._changed:
            self._plan.give_back(extent)
            self._be_careful(trouble)
            leaves = bool(self._failure) or self._finished or self._active > 1
            if leaves:
                self._leave()
        if leaves:
            if trouble.news and trouble.wait:
                self._source.retrying(trouble.message, trouble.wait)
            return False
        if trouble.crowded:
            self._source.stand_back(trouble)
            return True
        return self._tries_again(trouble)

    def _be_careful(self, trouble: Transient) -> None:
        """Nobody is hired for a while; one that is refused tells the host, which bears in mind how many it
        may have, and others are a sign of trouble on the way."""
        if trouble.refusal:
            self._hire_at = time.monotonic() + self._limits.backoff / 4
        else:
            self._hire_at = time.monotonic() + self._caution
            self._caution = min(self._caution * 2, self._limits.longest_wait)

    def _tries_again(self, trouble: Transient) -> bool:
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
            ends = answer.extent[1] if answer.extent and answer.status == 206 else _UNBOUNDED
            with self._changed:
                extent.begun = True
            with self._client.traffic.rate.reader():
                self._read(extent, answer, ends)
            self._conclude(extent, answer, ends)
        finally:
            answer.close()

    def _read(self, extent: Extent, answer: Answer, ends: int) -> None:
        pace, rate = _Pace(self._limits, answer), self._client.traffic.rate
        while extent.position < extent.end or self._goes_on(extent, ends):
            data = answer.read(min(rate.portion(self._limits.chunk), extent.end - extent.position))
            if not data:
                return
            self._store(extent, data)
            pace.add(len(data))
            if wait := rate.pay(len(data)):
                self._client.sleep(wait)
                pace.excuse(wait)

    def _goes_on(self, extent: Extent, ends: int) -> bool:
        """Whether the answer goes on with what nobody else is getting."""
        with self._changed:
            spare = self._active > 1 and self._host.spares()
            return not (self._failure or spare) and self._plan.extend(extent, ends)

    def _store(self, extent: Extent, data: bytes) -> None:
        with self._changed:
            if self._failure:
                raise Stopped
            offset = extent.position
            count = self._plan.reserve(extent, len(data))
            self._counted += count
            self.transferred += len(data)
            self._moved = extent.moved = time.monotonic()
        self._host.count(len(data))
        if count:  # somebody else may have got it meanwhile
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

    def excuse(self, seconds: float) -> None:
        """For so long it was us who did not read."""
        self._since += seconds

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
