"""Downloads that clients have asked for: so many at once, told of while they run, kept for a while after.
Knows no HTTP.

    Jobs    all of them: who asks for what is under way joins it
    └── Job one download, in a thread of its own; `Tally` counts what arrives there, `Stop` ends it

What is fetched, from where and how is the library's business, as it is for `mdl download`.
"""

import asyncio
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Literal, TypeVar

from mdl.errors import Busy, MdlError, NotFound
from mdl.library import Library, Watch
from mdl.model import Model
from mdl.reference import HUGGING_FACE, OLLAMA, Reference, show
from mdl.resolution import Resolution
from mdl.server.failure import Refused
from mdl.server.names import PATHS
from mdl.server.options import Limits

if TYPE_CHECKING:
    from mdl.config import Settings
    from mdl.fetch import Plan

T = TypeVar("T")
State = Literal["queued", "downloading", "cancelling", "done", "cancelled", "error"]

SAMPLE_SECONDS = 0.25  # between two of the moments that the speed is told from
SAMPLES = 40
STOP_SECONDS = 2.0  # for which a download that was cancelled may go on with what cannot be interrupted

log = logging.getLogger("mdl.server")


class Tally:
    """What of a model is here, in bytes. Told by the threads of a download, asked by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        self._here = self._came = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._trouble: str | None = None
        self._said: str | None = None
        self.total: int | None = None

    @property
    def bytes(self) -> int:
        with self._lock:
            return self._here + sum(self._files.values())

    @property
    def speed(self) -> float | None:
        """Bytes a second over the last while; None where that cannot be told yet."""
        with self._lock:
            samples = list(self._samples)
            came = self._came
        if not samples or monotonic() - samples[0][0] < SAMPLE_SECONDS:
            return None
        since, before = samples[0]
        return (came - before) / (monotonic() - since)

    def planned(self, plan: "Plan") -> None:
        """What is about to be fetched: a content counts once, however many files have it."""
        sizes = {file.sha256 or file.git_id or file.name: file.size for file in plan.manifest.files}
        missing = {file.sha256 or file.git_id or file.name for file in plan.missing}
        known = [size for size in sizes.values() if size is not None]
        with self._lock:
            self._here = sum(size or 0 for content, size in sizes.items() if content not in missing)
            self.total = sum(known) if len(known) == len(sizes) else None

    @property
    def note(self) -> str | None:
        """What goes wrong at the moment, else what was chosen."""
        return self._trouble or self._said

    def finish(self, size: int) -> None:
        """All of it is here: so many bytes, if nobody knew that before."""
        self.total, self._trouble = self.total or size, None
        with self._lock:
            self._files, self._here = {}, self.total

    def say(self, note: str) -> None:
        self._said = note

    def started(self, name: str, size: int | None, resumed: int) -> None:  # noqa: ARG002 - as the others do
        with self._lock:
            self._files[name] = resumed
            if not self._samples:
                self._samples.append((monotonic(), self._came))

    def advanced(self, name: str, count: int) -> None:
        with self._lock:
            self._trouble = None
            self._files[name] = self._files.get(name, 0) + count
            self._came += count
            if monotonic() - self._samples[-1][0] >= SAMPLE_SECONDS:
                self._samples.append((monotonic(), self._came))

    def retrying(self, name: str, reason: str, seconds: float) -> None:
        self._trouble = f"{name}: {reason}; again in {seconds:.0f} s"

    def finished(self, name: str) -> None:  # noqa: ARG002 - as the others do
        self._trouble = None


class Stop:
    """Ends what says how it can be ended, before or after that is said. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []
        self.pulled = False

    def ends(self, call: Callable[[], None]) -> None:
        with self._lock:
            self._calls.append(call)
            pulled = self.pulled
        if pulled:
            call()

    def pull(self) -> None:
        with self._lock:
            self.pulled = True
            calls = list(self._calls)
        for call in calls:
            call()


@dataclass(eq=False, slots=True)
class Job:
    """A download. `reference` is what is fetched, in the end with its version."""

    reference: Reference
    id: str = field(default_factory=lambda: f"job-{secrets.token_hex(12)}")
    state: State = "queued"
    tally: Tally = field(default_factory=Tally)
    error: MdlError | None = None
    created: float = field(default_factory=time)
    ended: float | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    stop: Stop = field(default_factory=Stop)
    task: "asyncio.Task[None] | None" = None

    @property
    def active(self) -> bool:
        return not self.over.is_set()

    @property
    def eta(self) -> float | None:
        """Seconds until it is done, if it goes on as it does."""
        speed, total = self.tally.speed, self.tally.total
        if self.state != "downloading" or not speed or total is None:
            return None
        return max(0, total - self.tally.bytes) / speed

    def end(self, state: State, error: MdlError | None = None) -> None:
        self.state, self.error, self.ended = state, error, time()
        self.over.set()


class Jobs:
    """All downloads of a server. Of those that are over the last `limits.jobs` are kept, for
    `limits.job_seconds`. Raises Refused for what may not be fetched."""

    def __init__(self, library: Library, limits: Limits) -> None:
        self._library = library.for_clients()
        self._limits = limits
        self._places = asyncio.Semaphore(limits.downloads)
        self._jobs: dict[str, Job] = {}
        self._closed = False

    async def start(self, text: str) -> Job:
        """The download of what `text` names: the one that is under way, or a new one.

        Raises NotFound for what names no source, UsageError for what is no name, and Refused: 403 for paths
        and for hosts from which clients may have nothing fetched, 503 where too many downloads wait.
        """
        if text.startswith(PATHS):
            raise _no_path()
        resolution = await asyncio.to_thread(self._library.resolve, text)
        reference = self._wanted(resolution)
        going_on = (job for job in self.all() if job.state in ("queued", "downloading"))
        if same := [job for job in going_on if job.reference == reference]:
            return same[0]
        if self._closed:
            raise Busy("the server is ending")
        if sum(job.active for job in self._jobs.values()) >= self._limits.jobs:
            raise Refused("too many downloads are waiting", "try again later", status=503, code="overloaded")
        job = Job(reference)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, text))
        job.task.add_done_callback(partial(_never_began, job))
        return job

    def all(self) -> list[Job]:
        """The newest first."""
        self._tidy()
        return list(reversed(self._jobs.values()))

    def find(self, name: str) -> Job:
        """Raises Refused (404)."""
        self._tidy()
        if name not in self._jobs:
            raise Refused(f"there is no job {show(name)}", "GET /v1/jobs lists them", status=404)
        return self._jobs[name]

    def of(self, reference: Reference) -> Job | None:
        """The last download of a model: of this version, or of the model where that is left open."""
        found = (job for job in self.all() if job.reference in (reference, reference.model))
        return next(found, None)

    def cancel(self, job: Job) -> None:
        """What has arrived stays, and the next download of the model goes on from there."""
        if not job.active or job.state == "cancelling":
            return
        waits = job.state == "queued"
        job.state = "cancelling"
        job.stop.pull()
        assert job.task is not None
        if waits:
            job.task.cancel()
        else:
            asyncio.get_running_loop().call_later(STOP_SECONDS, job.task.cancel)

    async def close(self) -> None:
        """Cancels all, and waits for them."""
        self._closed = True
        tasks = [job.task for job in self._jobs.values() if job.active and job.task is not None]
        for job in self._jobs.values():
            self.cancel(job)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wanted(self, resolution: Resolution) -> Reference:
        """What to fetch, if that may be."""
        if resolution.reference is None:
            raise NotFound(
                f"no model is called {show(resolution.name)}", "a remote model has at least org/name"
            )
        if resolution.wanted is None:  # else it is its model.json that says where it comes from
            for place in (resolution.reference, *resolution.others):
                self._check(place)
        return resolution.reference

    def _check(self, place: Reference) -> None:
        if place.scheme == "file":
            raise _no_path()
        hosts = download_hosts(self._library.settings)
        if place.scheme != "short" and "*" not in hosts and place.host not in hosts:
            raise Refused(
                f"clients may have nothing fetched from {show(place.host)}",
                f"only from {', '.join(sorted(hosts))}, unless the setting download_hosts says others",
                status=403,
            )

    async def _run(self, job: Job, text: str) -> None:
        try:
            await self._places.acquire()
            job.state = "downloading"
            work = _in_thread(partial(self._fetch, job, text))
            work.add_done_callback(lambda _: self._places.release())
            model = await asyncio.shield(work)
        except asyncio.CancelledError:
            job.end("cancelled")
        except MdlError as error:
            job.end("cancelled" if job.stop.pulled else "error", None if job.stop.pulled else error)
        except Exception:
            log.exception("a download failed")
            job.end("error", MdlError("the server failed at this download", hint="its log says why"))
        else:
            job.reference = model.reference
            job.tally.finish(model.size)
            job.end("done")

    def _fetch(self, job: Job, text: str) -> Model:
        watch = Watch(
            job.tally,
            job.tally.say,
            place=self._check,  # again: a name may lead elsewhere by now, and an entry to a place of its own
            planned=job.tally.planned,
            stoppable=job.stop.ends,
        )
        return self._library.download(text, watch)

    def _tidy(self) -> None:
        """Forgets what has been over for long, and of the others the oldest."""
        over = [job for job in self._jobs.values() if job.ended is not None]
        late = time() - self._limits.job_seconds
        for index, job in enumerate(over):
            if (job.ended or 0.0) < late or index < len(over) - self._limits.jobs:
                del self._jobs[job.id]


def _never_began(job: Job, _: "asyncio.Task[None]") -> None:
    """A task that is cancelled at once does nothing at all."""
    if job.active:
        job.end("cancelled")


def _no_path() -> Refused:
    return Refused("paths are not fetched for clients", "mdl download does it, on the machine", status=403)


def download_hosts(settings: "Settings") -> frozenset[str]:
    """From where clients may have models fetched, "*" for anywhere: what is set, else the hub, Ollama's
    registry and those where the user has short names looked for."""
    own = {place.partition("/")[0] for place in settings.hosts}
    return frozenset(settings.download_hosts or {HUGGING_FACE, OLLAMA, *own})


def _in_thread(call: Callable[[], T]) -> "asyncio.Future[T]":
    """What `call` returns or raises, in a thread that keeps nobody from ending: what it does can be cut off
    at any moment."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            done = partial(future.set_result, call())
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            done = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(done)

    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # told, even if nobody asks
    threading.Thread(target=work, name="mdl-job", daemon=True).start()
    return future
