"""What all downloads of a process share: how fast bytes may come, and how many connections a server bears.

Knows no HTTP, no files and no threads of its own; whoever asks says what happened, and waits himself.
"""

import contextlib
import random
import threading
import time
from collections.abc import Generator, Iterator

_CREDIT = 0.15  # seconds of the limit that may be caught up on after a pause
_SPREAD = 0.05  # seconds of the limit that all readers together take before they pay
_FIRST = 0.1  # seconds that new connections get before more are asked for
_WINDOW = 2.0  # seconds over which two numbers of connections are compared
_CALM = 10.0  # seconds between two such comparisons, and before a server that refused gets one more; doubles
_LONGEST_CALM = 300.0
_LOSS = 0.95  # of the speed that fewer connections have to keep up with


class Rate:
    """A number of bytes a second for all who read, in equal shares.

    Who has read pays, by waiting until his bytes are due: so a reader that is slow for other reasons costs
    the others nothing, and no more than a quarter of a second's worth comes in one go.
    """

    def __init__(self, limit: int = 0) -> None:
        """`limit` in bytes a second; 0 is none."""
        self.limit = limit
        self._lock = threading.Lock()
        self._readers = 0
        self._due = 0.0

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """Somebody reads from now on."""
        with self._lock:
            self._readers += 1
            if self._readers == 1:  # nobody saves up what was not used before
                self._due = max(self._due, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1

    def portion(self, most: int) -> int:
        """How much to read at a time, at most `most`."""
        if not self.limit:
            return most
        return max(min(most, int(self.limit * _SPREAD / max(self._readers, 1))), 1)

    def pay(self, count: int) -> float:
        """Seconds to wait before reading more, now that `count` bytes were read."""
        if not self.limit:
            return 0
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - _CREDIT) + count / self.limit
            return max(self._due - now, 0)

    @property
    def reached(self) -> bool:
        """Whether it is this limit that readers wait for."""
        return bool(self.limit) and self._due > time.monotonic() - _SPREAD


class Host:
    """How many connections one server gets, over all files.

    Many while each of them is slow; later, now and then, a comparison with half or twice as many. When it
    refuses one of several, it gets no more than it serves, or half where it asks for a pause, and one more
    each time that it was calm for a while.
    """

    def __init__(self, most: int) -> None:
        self.open = self.serving = self.waiting = 0
        self._peak = 0  # of those served at once, since it refused one
        self._lock = threading.Lock()
        self._most = self._bound = most  # what it bears
        self._target = 1  # what makes it faster
        self._received = 0
        self._calm, self._refused, self._probing = _CALM, 0.0, False
        self._rests_until, self._rests, self._slowed = 0.0, False, False
        self._enough = 0.0
        self._steps = self._steer()
        self._watch(time.monotonic(), next(self._steps))

    def enter(self, *, extra: bool = False) -> bool:
        """Whether there is room for one more connection; `extra` is one of a file that has some already."""
        with self._lock:
            if self.open >= (self._room() if extra else self._bound):
                return False
            self.open += 1
            return True

    def _room(self) -> int:
        """For the connections of files that have several."""
        return 0 if self._rests else min(self._bound - self.waiting, self._target)

    def leave(self) -> None:
        with self._lock:
            self.open -= 1

    @contextlib.contextmanager
    def queue(self) -> Iterator[None]:
        """A file without any connection waits for its turn: it goes before the extras of others."""
        with self._lock:
            self.waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self.waiting -= 1

    def spares(self) -> bool:
        """Whether there is one too many, which a file with several had better give up."""
        return self.open > self._room()

    @contextlib.contextmanager
    def serves(self) -> Iterator[None]:
        """It has answered a connection, which goes on to ask for more."""
        with self._lock:
            self.serving += 1
            self._peak = max(self._peak, self.serving)
            if self.serving > self._bound and not self._slowed:  # it refused others of the same bunch only
                self._bound = self._target = self.serving
        try:
            yield
        finally:
            with self._lock:
                self.serving -= 1

    def count(self, size: int) -> None:
        with self._lock:
            self._received += size

    def refused(self, asked: float, now: float, pause: float) -> bool:
        """It did not take the connection asked for at some time, and wants a pause of so many seconds.

        True if it serves others meanwhile, so that there is room for this one later.
        """
        with self._lock:
            self._rests_until = max(self._rests_until, now + pause)
            self._rests = self._rests or pause > 0
            if asked >= self._refused:
                self._reduce(now, pause > 0)
            return self.serving > 0

    def _reduce(self, now: float, pause: bool) -> None:
        used = min(self._bound, self.open)
        if self._probing:
            self._bound, self._calm = self._bound - 1, min(self._calm * 2, _LONGEST_CALM)
        else:
            self._bound = min(-(-used // 2) if pause else used, self._peak)
        self._bound, self._peak, self._slowed = max(self._bound, 1), self.serving, pause
        self._target = min(self._target, self._bound)
        self._probing, self._refused = False, now

    def look(self, now: float, enough: float) -> None:
        """Think about the numbers anew; `enough` bytes a second of one connection make more pointless."""
        with self._lock:
            self._rests = now < self._rests_until
            self._recover(now)
            if not self.serving or 4 * self.serving < 3 * self.open:  # nobody knows yet how fast these are
                self._watch(now, self._until - self._since)
            elif now >= self._until:
                speed = (self._received - self._counted) / (now - self._since)
                self._enough = enough
                self._watch(now, self._steps.send(speed))

    def _watch(self, now: float, seconds: float) -> None:
        self._since, self._until, self._counted = now, now + seconds, self._received

    def _recover(self, now: float) -> None:
        if self._bound == self._most or self.open < self._bound or now < self._refused + self._calm:
            return
        if self._probing:  # the last one was welcome
            self._calm = max(self._calm / 2, _CALM)
        self._target += self._target == self._bound
        self._bound += 1
        self._probing, self._refused = True, now

    def _steer(self) -> Generator[float, float, None]:
        """Yields the seconds to watch, gets the bytes a second that came in them."""
        while self._target < self._bound:
            speed = yield _FIRST
            if self.open >= self._target and speed < self._enough * self.serving:
                self._target = min(max(self._target, self.open) * 4, self._bound)
        calm, fewer = _CALM, True
        while True:
            yield calm
            better = yield from self._compare(fewer)
            if not better:
                calm, fewer = min(calm * 2, _LONGEST_CALM), not fewer

    def _compare(self, fewer: bool) -> Generator[float, float, bool]:
        number = min(self.open, self._target)
        other = -(-number // 2) if fewer else min(number * 2, self._bound)
        before = yield _WINDOW
        self._target = other
        yield _WINDOW  # the ones too many finish what they are at, and new ones start slowly
        after = yield _WINDOW
        good = after >= before * _LOSS if fewer else after * _LOSS > before
        if not good:
            self._target = min(number, self._bound)
        return good and other != number


class Traffic:
    """The rate and the hosts. Safe to use from several threads, as they are."""

    def __init__(self, limit_rate: int = 0) -> None:
        self.rate = Rate(limit_rate)
        self._lock = threading.Lock()
        self._hosts: dict[str, Host] = {}
        self._not_before: dict[str, float] = {}

    def host(self, name: str, most: int) -> Host:
        with self._lock:
            return self._hosts.setdefault(name, Host(most))

    def hold(self, name: str, seconds: float) -> bool:
        """Nobody asks this server for so long. Whether that is news."""
        until = time.monotonic() + seconds
        with self._lock:
            news = until > self._not_before.get(name, 0) + 1
            self._not_before[name] = max(until, self._not_before.get(name, 0))
        return news

    def held(self, name: str) -> float:
        """Seconds until this server may be asked; a little later for each, so that not all come at once."""
        wait = self._not_before.get(name, 0) - time.monotonic()
        return wait + random.uniform(0, 0.1 * min(wait, 5)) if wait > 0 else 0
