"""Which engines are up: loaded on demand, let go when idle or when room is needed. Knows no HTTP.

All of it runs on the event loop; what blocks runs in threads of the pool.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from mdl.engine import Engine
from mdl.engine.request import EngineFiles, EngineSettings
from mdl.errors import Busy, MdlError
from mdl.model import Model
from mdl.profiles import Profile
from mdl.server.names import Key, key

T = TypeVar("T")
Hold = Callable[[Model], AbstractContextManager[tuple[EngineFiles, Profile]]]

FAILURE_SECONDS = 10.0  # for which a load that failed is not tried again


@dataclass(eq=False, slots=True)
class Entry:
    """An engine that is loading, up, or `leaving`: that takes no more requests, and ends after the last."""

    engine: Engine
    profile: Profile = field(default_factory=Profile)
    held: ExitStack = field(default_factory=ExitStack)
    opening: "asyncio.Task[Engine] | None" = None
    ending: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    busy: int = 0
    used: float = field(default_factory=monotonic)
    leaving: bool = False

    @property
    def loading(self) -> bool:
        return self.opening is None or not self.opening.done()


class Pool:
    """At most `most` engines. `hold` tells what to load of a model and keeps it there; `idle` in seconds."""

    def __init__(
        self, hold: Hold, settings: EngineSettings, most: int = 3, idle: float | None = 300.0
    ) -> None:
        self._hold = hold
        self._settings = settings
        self._most = most
        self._idle = idle
        self._entries: dict[Key, Entry] = {}
        self._failed: dict[Key, tuple[float, MdlError]] = {}
        self._changed = asyncio.Event()
        self._closed = False
        # Each engine may have a thread that waits for its load and one that ends it.
        self._threads = ThreadPoolExecutor(2 * most + 2, "mdl-pool")

    @asynccontextmanager
    async def borrow(self, model: Model) -> AsyncIterator[Entry]:
        """The model's engine, loaded, and its profile. All who ask for one that is loading wait for the same
        load.

        Where there is no room, the least recently used engine goes: at once if it is idle, else after the
        answers that it is giving. Raises what the load failed with.
        """
        entry = await self._entry(model)
        self._begin(entry)
        try:
            assert entry.opening is not None
            await asyncio.shield(entry.opening)  # a client that leaves takes nobody's load with it
            yield entry
        finally:
            self._finish(key(model), entry)

    async def close(self) -> None:
        """Ends all engines, and with them what they are doing."""
        self._closed = True
        self._wake()
        await asyncio.gather(*(self._end(at, entry) for at, entry in self._entries.items()))
        self._threads.shutdown(wait=False)

    async def _entry(self, model: Model) -> Entry:
        at = key(model)
        while not self._closed:
            self._refuse_to_loop(at)
            entry = self._entries.get(at)
            if entry is not None and not entry.leaving:
                return entry
            if entry is None and len(self._entries) < self._most:
                return self._open(at, model)
            if len(self._entries) >= self._most:
                self._make_room()
            await self._changed.wait()
        raise Busy("the server is ending")

    def _refuse_to_loop(self, at: Key) -> None:
        moment, error = self._failed.get(at, (0.0, None))
        if error is not None and monotonic() - moment < FAILURE_SECONDS:
            raise error.with_traceback(None)

    def _open(self, at: Key, model: Model) -> Entry:
        entry = Entry(Engine(_post_to(asyncio.get_running_loop())))
        entry.opening = asyncio.create_task(self._load(at, entry, model))
        entry.opening.add_done_callback(_retrieve)
        self._entries[at] = entry
        return entry

    async def _load(self, at: Key, entry: Entry, model: Model) -> Engine:
        try:
            held = await self._in_thread(lambda: entry.held.enter_context(self._hold(model)))
            files, entry.profile = held
            entry.engine.load(files, entry.profile.engine_settings(self._settings))
            await self._in_thread(entry.engine.ready)
        except Exception as error:
            if isinstance(error, MdlError):
                self._failed[at] = monotonic(), error
            await self._end(at, entry)
            raise
        self._wake()
        return entry.engine

    # Coming and going

    def _begin(self, entry: Entry) -> None:
        entry.busy += 1
        entry.used = monotonic()
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _finish(self, at: Key, entry: Entry) -> None:
        entry.busy -= 1
        entry.used = monotonic()
        if entry.busy:
            return
        if entry.leaving:
            self._end(at, entry)
        else:
            self._wake()
            self._rest(at, entry)

    def _rest(self, at: Key, entry: Entry) -> None:
        """Ends it after the time for which it may be idle. While it loads it is not, whoever has left."""
        if self._idle is not None:
            then = self._rest if entry.loading else self._end
            entry.timer = asyncio.get_running_loop().call_later(self._idle, then, at, entry)

    def _make_room(self) -> None:
        """Sends away the least recently used, the idle ones first. What is loading stays: it came last."""
        candidates = [(at, entry) for at, entry in self._entries.items() if not entry.loading]
        if not candidates or any(entry.leaving for entry in self._entries.values()):
            return
        at, entry = min(candidates, key=lambda item: (item[1].busy > 0, item[1].used))
        entry.leaving = True
        if not entry.busy:
            self._end(at, entry)

    def _end(self, at: Key, entry: Entry) -> "asyncio.Task[None]":
        """Begins to end it, unless that has begun."""
        entry.leaving = True
        if entry.timer is not None:
            entry.timer.cancel()
        if entry.ending is None:
            entry.ending = asyncio.create_task(self._ended(at, entry))
        return entry.ending

    async def _ended(self, at: Key, entry: Entry) -> None:
        await self._in_thread(entry.engine.close)
        await self._in_thread(entry.held.close)
        del self._entries[at]  # its memory is free now, and not before
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _post_to(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], None]], None]:
    def post(call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(call)

    return post


def _retrieve(task: "asyncio.Task[Engine]") -> None:
    """The failure of a load that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
