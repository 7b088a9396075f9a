"""Which engines are up: loaded on demand, let go when idle or when their memory is needed. Knows no HTTP.

All of it runs on the event loop; what blocks runs in threads of the pool.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Literal, TypeVar

from mdl import machine, memory, placement
from mdl.engine import Engine
from mdl.engine.request import EngineSettings, Loaded
from mdl.errors import Busy, MdlError, UnsupportedModel
from mdl.gguf import Header
from mdl.machine import Machine
from mdl.model import Model
from mdl.placement import Placement
from mdl.profiles import Profile
from mdl.server.names import Held, Wanted, key
from mdl.weights import Weights

T = TypeVar("T")
Hold = Callable[[Model, Profile | None], AbstractContextManager[Held]]
At = tuple[str, float, str]  # which model, and what tells its engine from others of the same
State = Literal["loading", "ready", "busy", "leaving"]

FAILURE_SECONDS = 10.0  # for which a load that failed is not tried again
THREADS = 32  # that wait for a disk, a load or an end


@dataclass(eq=False, slots=True)
class Entry:
    """An engine that is loading, up, or `leaving`: that takes no more requests, and ends after the last.

    `idle` is for how many seconds it stays when nobody asks for it, None for ever; `until` is when it goes
    then, as time() has it. `loaded` is None until it is.
    """

    engine: Engine
    model: Model
    profile: Profile = field(default_factory=Profile)
    weights: Weights | None = None
    placement: Placement | None = None
    loaded: Loaded | None = None
    held: ExitStack = field(default_factory=ExitStack)
    opening: "asyncio.Task[None] | None" = None
    ending: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    idle: float | None = None
    until: float | None = None
    since: float = field(default_factory=time)
    busy: int = 0
    used: float = field(default_factory=monotonic)
    leaving: bool = False

    @property
    def loading(self) -> bool:
        return self.opening is None or not self.opening.done()

    @property
    def state(self) -> State:
        if self.leaving:
            return "leaving"
        return "loading" if self.loading else "busy" if self.busy else "ready"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all engines together may take: `memory` bytes of the machine's own (0: what is free when the first
    is loaded), and `engines` (0: any number). `idle_seconds` is for how long one stays that nobody asks for
    (None: for ever), and `wait_seconds` how long a request waits for room."""

    memory: int = 0
    engines: int = 0
    idle_seconds: float | None = 300.0
    wait_seconds: float = 60.0


class Pool:
    """`hold` tells what to load of a model, for those who use it in some way if that is given, and keeps it
    there. `unsaid` are settings that the profile of a
    model may set, though they have a value."""

    def __init__(
        self,
        hold: Hold,
        settings: EngineSettings,
        bounds: Bounds = Bounds(),
        unsaid: Collection[str] = (),
    ) -> None:
        self._hold = hold
        self._settings = settings
        self._unsaid = unsaid
        self._bounds = bounds
        self._memory = bounds.memory
        self._entries: dict[At, Entry] = {}
        self._failed: dict[At, tuple[float, MdlError]] = {}
        self._changed = asyncio.Event()
        self._line = asyncio.Lock()  # who comes first is given room first
        self._closed = False
        self._died = 0  # of engines that are no more
        self._threads = ThreadPoolExecutor(THREADS, "mdl-pool")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The engines that there are, in the order in which they came."""
        return tuple(self._entries.values())

    @property
    def died(self) -> int:
        """Workers that ended though nobody ended them, so far."""
        return self._died + sum(entry.engine.died for entry in self._entries.values())

    def has(self, model: Model) -> bool:
        """Whether it is up, or on its way. May be asked from any thread."""
        return any(at[:2] == key(model) for at in tuple(self._entries))

    @asynccontextmanager
    async def borrow(
        self, model: Model, keep_alive: float | None = None, wanted: Wanted | None = None
    ) -> AsyncIterator[Entry]:
        """The model's engine, loaded. All who ask for one that is loading wait for the same load; who wants
        the model loaded in another way has another engine. `keep_alive` is how many seconds it stays when
        nobody asks for it any more: a negative number for ever, None as the bounds say.

        Where there is no room, the least recently used engines go: at once those that are idle, else one
        after the answers that it is giving. Raises what the load failed with, UnsupportedModel for what does
        not fit here at all, Busy when there was no room in time.
        """
        at = *key(model), self._apart(wanted) if wanted else ""
        entry = await self._entry(at, model, wanted)
        self._begin(entry)
        try:
            assert entry.opening is not None
            await asyncio.shield(entry.opening)  # a client that leaves takes nobody's load with it
            yield entry
        finally:
            self._finish(at, entry, keep_alive)

    async def stop(self, model: Model, force: bool = False) -> bool:
        """Ends its engines, after the answers that they are giving unless by `force`. False where there was
        none."""
        found = self._of(model)
        for at, entry in found.items():
            entry.leaving = True
            if force or not (entry.busy or entry.loading):
                self._end(at, entry)
        while any(self._entries.get(at) is entry for at, entry in found.items()):
            await self._changed.wait()
        return bool(found)

    def _of(self, model: Model) -> dict[At, Entry]:
        """Its engines: as a rule one."""
        return {at: entry for at, entry in self._entries.items() if at[:2] == key(model)}

    def failure(self, model: Model) -> MdlError | None:
        """Why it could not be loaded a moment ago, if so."""
        failed = [self._lately(at) for at in self._failed if at[:2] == key(model)]
        return next((error for error in failed if error is not None), None)

    def _lately(self, at: At) -> MdlError | None:
        moment, error = self._failed.get(at, (0.0, None))
        return error if monotonic() - moment < FAILURE_SECONDS else None

    async def close(self) -> None:
        """Ends all engines, and with them what they are doing."""
        self._closed = True
        self._wake()
        await asyncio.gather(*(self._end(at, entry) for at, entry in self._entries.items()))
        self._threads.shutdown(wait=False)

    def _apart(self, wanted: Wanted) -> str:
        """What tells an engine that is loaded otherwise than as usual; "" where it is the same."""
        ways = [
            (profile.engine_settings(self._settings, self._unsaid), profile.adapters)
            for profile in (wanted.profile, wanted.usual)
        ]
        return "" if ways[0] == ways[1] else repr(ways[0])

    async def _entry(self, at: At, model: Model, wanted: Wanted | None) -> Entry:
        while not self._closed:
            self._refuse_to_loop(at)
            entry = self._entries.get(at)
            if entry is None:
                return self._open(at, model, wanted)
            if not entry.leaving:
                return entry
            await self._changed.wait()
        raise Busy("the server is ending")

    def _refuse_to_loop(self, at: At) -> None:
        if (error := self._lately(at)) is not None:
            raise error.with_traceback(None)

    # Loading

    def _open(self, at: At, model: Model, wanted: Wanted | None) -> Entry:
        engine = Engine(_post_to(asyncio.get_running_loop()), starts=False)
        entry = Entry(engine, model, idle=self._bounds.idle_seconds)
        entry.opening = asyncio.create_task(self._load(at, entry, wanted))
        entry.opening.add_done_callback(_retrieve)
        self._entries[at] = entry
        return entry

    async def _load(self, at: At, entry: Entry, wanted: Wanted | None) -> None:
        try:
            profile = wanted.profile if wanted is not None and at[-1] else None
            held = await self._in_thread(lambda: entry.held.enter_context(self._hold(entry.model, profile)))
            entry.profile, entry.weights = held.profile, held.weights
            header = await self._in_thread(lambda: placement.read(held.weights.files))
            settings = held.profile.engine_settings(self._settings, self._unsaid)
            entry.placement = await self._placed(entry, header, settings)
            await self._in_thread(lambda: entry.engine.load(held.files, _settings(entry)))
            entry.loaded = await self._in_thread(entry.engine.ready)
        except Exception as error:
            stopped = entry.ending is not None
            if isinstance(error, MdlError) and not (isinstance(error, Busy) or stopped):
                self._failed[at] = monotonic(), error
            await self._end(at, entry)
            if stopped:
                what = "the server is ending" if self._closed else "the model was stopped while it loaded"
                raise Busy(what, "try again in a while") from None
            raise
        self._settle(at, entry)

    async def _placed(self, entry: Entry, header: Header, settings: EngineSettings) -> Placement:
        """Where it goes, once there is room for it."""
        here = machine.now(await self._in_thread(entry.engine.gpus))
        self._memory = self._memory or memory.room(here.memory_available)
        # As it would lie if it were alone: others rather go than that it is loaded smaller.
        alone = placement.place(header, settings, _with_more(here, self._others(entry)), self._memory)
        try:
            async with asyncio.timeout(self._bounds.wait_seconds), self._line:
                while not self._has_room(entry, header, alone, here):
                    here = await self._wait_for_room(entry, here)
                if self._others(entry):
                    return alone
                return placement.place(header, settings, here, self._memory)
        except TimeoutError:
            raise Busy("there is no room for the model: others are at work", "try again in a while") from None

    def _has_room(self, entry: Entry, header: Header, wanted: Placement, here: Machine) -> bool:
        """Whether it can be put there while the others stay. If there are none it has what there is."""
        others = self._others(entry)
        if not others:
            return True
        if self._bounds.engines and len(others) >= self._bounds.engines:
            return False
        try:
            placement.place(header, wanted.settings, here, self._memory - self._taken(others))
        except UnsupportedModel:
            return False
        return True

    def _taken(self, others: list[Entry]) -> int:
        """Bytes of the machine's memory that they take."""
        return sum(other.placement.cpu for other in others if other.placement)

    def _others(self, entry: Entry) -> list[Entry]:
        """Those that have been given room, or had it and are ending."""
        return [other for other in self._entries.values() if other is not entry and other.placement]

    async def _wait_for_room(self, entry: Entry, here: Machine) -> Machine:
        """Sends one away and waits until anything has changed. The machine with what that gave back."""
        before = self._others(entry)
        self._make_room(entry)
        await self._changed.wait()
        after = self._others(entry)
        return _with_more(here, [other for other in before if other not in after])

    def _make_room(self, entry: Entry) -> None:
        """Sends away the least recently used, idle ones first; a busy one ends after its answers. One at a
        time; what is loading stays: it came last."""
        if any(other.leaving for other in self._others(entry)):
            return
        candidates = [(at, e) for at, e in self._entries.items() if e is not entry and not e.loading]
        if candidates:
            at, least = min(candidates, key=lambda item: (item[1].busy > 0, item[1].used))
            least.leaving = True
            if not least.busy:
                self._end(at, least)

    # Coming and going

    def _begin(self, entry: Entry) -> None:
        entry.busy += 1
        entry.used = monotonic()
        self._stay(entry)

    def _stay(self, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = entry.until = None

    def _finish(self, at: At, entry: Entry, keep_alive: float | None) -> None:
        entry.busy -= 1
        entry.used = monotonic()
        entry.idle = self._bounds.idle_seconds
        if keep_alive is not None:
            entry.idle = keep_alive if keep_alive >= 0 else None
        if entry.loaded is not None:  # while it loads it is not idle, whoever has left
            self._settle(at, entry)

    def _settle(self, at: At, entry: Entry) -> None:
        """What becomes of it now that it has been loaded, or has given an answer."""
        self._wake()
        if entry.busy:
            return
        if entry.leaving:
            self._end(at, entry)
        elif entry.idle is not None:
            entry.timer = asyncio.get_running_loop().call_later(entry.idle, self._end, at, entry)
            entry.until = time() + entry.idle

    def _end(self, at: At, entry: Entry) -> "asyncio.Task[None]":
        """Begins to end it, unless that has begun."""
        entry.leaving = True
        self._stay(entry)
        if entry.ending is None:
            entry.ending = asyncio.create_task(self._ended(at, entry))
        return entry.ending

    async def _ended(self, at: At, entry: Entry) -> None:
        await self._in_thread(entry.engine.close)
        await self._in_thread(entry.held.close)
        self._died += entry.engine.died
        del self._entries[at]  # its memory is free now, and not before
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _settings(entry: Entry) -> EngineSettings:
    assert entry.placement is not None
    return entry.placement.settings


def _with_more(here: Machine, gone: list[Entry]) -> Machine:
    """The machine with the memory of its GPUs that these have given back."""
    gpus = here.gpus
    for entry in gone:
        given = entry.placement.gpus if entry.placement else ()
        given = (*given, *[0] * (len(gpus) - len(given)))
        gpus = tuple(
            gpu._replace(free=min(gpu.total, gpu.free + more)) for gpu, more in zip(gpus, given, strict=False)
        )
    return here._replace(gpus=gpus)


def _post_to(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], None]], None]:
    def post(call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(call)

    return post


def _retrieve(task: "asyncio.Task[None]") -> None:
    """The failure of a load that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()
