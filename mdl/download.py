"""Bytes from a URL into a verified file: several ranges and files at once, resumed, hashed, paced.

Knows no models, references or cache. `remote` asks the servers, `partial` keeps what arrived; here they meet.

    fetch_all     one runner thread for each file at a time; the caller's thread only waits, so Ctrl-C works
    └── _Transfer one file: begin or resume, verify; start over where the object changed
        └── Crew  the connections that gather it (`gather`)
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mdl.address import Remote, origin_of, shown
from mdl.connection import SYSTEM, Trust
from mdl.errors import IntegrityError, MdlError, NetworkError
from mdl.gather import TICK, Crew, StartOver, join, spawn
from mdl.partial import Partial, discard, git_id_of, held, require_space, sha256_of, sync_along
from mdl.remote import DEFAULTS, Client, Limits
from mdl.response import Answer
from mdl.traffic import Traffic
from mdl.trouble import Stopped, Transient

_SYNC_FROM = 128 << 20  # bytes; larger files are brought to the disk while they arrive


@dataclass(frozen=True, slots=True)
class Expected:
    """What was promised of the bytes; None is unknown.

    `sha256` is 64 hex digits, `git_id` the sha1 that git gives a blob (Hugging Face has it for small files).
    """

    size: int | None = None
    sha256: str | None = None
    git_id: str | None = None

    @property
    def verifiable(self) -> bool:
        return bool(self.sha256 or self.git_id)


@dataclass(frozen=True, slots=True)
class Received:
    """What is on disk now, and how many bytes came over the network for it this time.

    `inode` tells the file that was verified from one that another process may have put in its place.
    """

    size: int
    sha256: str
    transferred: int
    inode: int


@dataclass(frozen=True, slots=True)
class Job:
    """One file to get. `partial` is where it grows; its folder exists. `name` is what people are shown."""

    name: str
    remote: Remote
    expected: Expected
    partial: Path


class Progress(Protocol):
    """What is told while files arrive, from several threads. A file that starts over is `started` again."""

    def started(self, name: str, size: int | None, resumed: int) -> None: ...
    def advanced(self, name: str, count: int) -> None: ...
    def retrying(self, name: str, reason: str, seconds: float) -> None: ...
    def finished(self, name: str) -> None: ...


class Silent:
    """Tells nobody."""

    def started(self, name: str, size: int | None, resumed: int) -> None:
        pass

    def advanced(self, name: str, count: int) -> None:
        pass

    def retrying(self, name: str, reason: str, seconds: float) -> None:
        pass

    def finished(self, name: str) -> None:
        pass


class Downloader:
    """Gets files. Safe to use from several threads."""

    def __init__(
        self,
        limits: Limits = DEFAULTS,
        progress: Progress | None = None,
        proxies: Mapping[str, str] | None = None,
        trust: Trust = SYSTEM,
        traffic: Traffic | None = None,
    ) -> None:
        """`traffic` is what it shares with other downloaders."""
        self._traffic = traffic or Traffic()
        self._limits, self._progress = limits.within(self._traffic.rate.limit), progress or Silent()
        self._proxies, self._trust = proxies, trust
        self._clients: set[Client] = set()
        self._cancelled = False

    def fetch(self, name: str, remote: Remote, expected: Expected, partial: Path) -> Received:
        """One file; see `fetch_all`."""
        return self.fetch_all([Job(name, remote, expected, partial)])[0]

    def fetch_all(self, jobs: Sequence[Job]) -> list[Received]:
        """Get every file; afterwards each is whole, verified and synced at its `partial`.

        `partial.publish` takes it to its place. No two jobs may have the same `partial`.
        The first failure ends the others; what has arrived stays and the next call goes on from it.
        Raises NetworkError, AuthError, NotFound, IntegrityError, DiskError.
        """
        _require_room(jobs)
        client = Client(self._limits, self._proxies, self._trust, self._traffic)
        self._clients.add(client)
        if self._cancelled:
            client.stop()
        try:
            return _Runners(jobs, client, self._progress).run()
        except Stopped:
            raise MdlError("the download was stopped", hint="run it again: it goes on from here") from None
        finally:
            self._clients.discard(client)
            client.close()

    def cancel(self) -> None:
        """End every `fetch_all` that is under way or to come, from another thread; each raises MdlError."""
        self._cancelled = True
        for client in list(self._clients):
            client.stop()


class _Runners:
    """The threads that work through the jobs, and the caller that waits for them."""

    def __init__(self, jobs: Sequence[Job], client: Client, progress: Progress) -> None:
        self._waiting = deque((index, _Transfer(job, client, progress)) for index, job in enumerate(jobs))
        self._results: dict[int, Received] = {}
        self._client = client
        self._error: BaseException | None = None

    def run(self) -> list[Received]:
        count = min(self._client.limits.files, len(self._waiting))
        threads = [spawn(self._run_jobs, "download") for _ in range(count)]
        try:
            while any(thread.is_alive() for thread in threads) and not self._error:
                for thread in threads:
                    thread.join(TICK)
        finally:
            self._client.stop()
            join(threads)
        if self._error:
            raise self._error
        return [self._results[index] for index in sorted(self._results)]

    def _run_jobs(self) -> None:
        try:
            while self._waiting and not self._error:
                index, transfer = self._waiting.popleft()
                self._results[index] = transfer.run()
        except IndexError:
            pass  # another runner took the last one
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            self._error = self._error or error


class _Transfer:
    """One file on its way."""

    def __init__(self, job: Job, client: Client, progress: Progress) -> None:
        self.job, self.client, self.progress = job, client, progress
        scheme, host, port = origin_of(job.remote.url)  # it answers for where its redirects lead
        self._host = client.traffic.host(f"{scheme}://{host}:{port}", client.limits.per_host)
        self._inside = False  # whether one of the host's connections is ours
        self.transferred = 0
        self._direct: Remote | None = None  # where the redirects led: so a hub is asked once for a file
        self._single = False
        self._changes = self._restarts = 0

    def run(self) -> Received:
        try:
            while True:
                try:
                    self._await_turn()
                    return self._once()
                except StartOver as reason:
                    self._start_over(reason)
        finally:
            self._step_out()

    def _await_turn(self) -> None:
        with self._host.queue():
            while not self._inside:
                self._inside = self._host.enter()
                self.client.sleep(0 if self._inside else TICK)

    def _step_out(self) -> None:
        if self._inside:
            self._host.leave()
        self._inside = False

    def stand_back(self, trouble: Transient) -> None:
        self._step_out()
        self.client.pause(1, trouble, self.retrying)
        self._await_turn()

    def _once(self) -> Received:
        partial, answer, splits = self._begin()
        try:
            self.progress.started(self.job.name, partial.total, partial.received)
            received = self._gather(partial, answer, splits)
        except IntegrityError:
            discard(self.job.partial)
            raise
        finally:
            partial.close()
        self.progress.finished(self.job.name)
        return received

    def _gather(self, partial: Partial, answer: Answer | None, splits: bool) -> Received:
        digest = _Aside(lambda: sha256_of(partial))
        syncing = _Aside(lambda: sync_along(partial)) if (partial.total or 0) >= _SYNC_FROM else None
        try:
            self._crew(partial, splits, answer)
            received = self._verified(partial, digest.result(self.client))
            if syncing:
                syncing.result(self.client)  # an error of the disk is told only once, perhaps to this one
            partial.finish()
            return received
        finally:
            partial.close()
            join([digest.thread, *([syncing.thread] if syncing else [])])

    def _crew(self, partial: Partial, splits: bool, answer: Answer | None) -> None:
        crew = Crew(self, partial, self.client, self._host, splits)
        try:
            crew.run(answer)
        finally:
            self.transferred += crew.transferred

    def _begin(self) -> tuple[Partial, Answer | None, bool]:
        """What an earlier run left, or the answer to a first request and an empty file for it."""
        expected, path = self.job.expected, self.job.partial
        partial = None if self._single else Partial.resume(path, expected.verifiable)
        if partial and expected.size in (None, partial.total):
            require_space(path, (partial.total or 0) - partial.received)
            return partial, None, True
        if partial:
            partial.close()
        answer = self.client.patiently(self._first_in_turn, self.retrying)
        try:
            total = expected.size if answer.length is None else answer.length
            ranges = "bytes" in answer.headers.get("accept-ranges", "").lower()
            goes_on = total is not None and bool(answer.validator or expected.verifiable)
            created = Partial.create(path, total, answer.validator)
        except BaseException:
            answer.close()
            raise
        return created, answer, ranges and goes_on and not self._single

    def _first_in_turn(self) -> Answer:
        while True:
            try:
                return self._first()
            except Transient as trouble:
                if not trouble.crowded:
                    raise
                self.stand_back(trouble)

    def _first(self) -> Answer:
        answer = self.ask({})
        try:
            if answer.status != 200:
                raise NetworkError(
                    f"{shown(answer.url)} sent a part where the whole file was asked for",
                    hint="try another source",
                )
            answer.refuse_coding()
            _refuse_other_size(self.job, answer)
        except BaseException:
            answer.close()
            raise
        return answer

    def ask(self, headers: Mapping[str, str]) -> Answer:
        """One answer for the file, from where the redirects led last time if that still works."""
        direct, asked = self._direct, time.monotonic()
        try:
            answer = self.client.open(direct or self.job.remote, headers)
        except MdlError as error:
            if isinstance(error, Transient) and error.refusal:
                error.crowded = self._host.refused(asked, time.monotonic(), error.wait or 0)
                self._direct = direct if error.crowded else None
                raise
            if direct is None:
                raise
            self._direct = None  # it may have expired; the address that was given leads to a new one
            raise Transient(error.message, wait=getattr(error, "wait", None)) from None
        if answer.redirected:
            self._direct = answer.remote
        _refuse_page(self.job, answer)
        return answer

    @property
    def verifiable(self) -> bool:
        return self.job.expected.verifiable

    def advanced(self, count: int) -> None:
        self.progress.advanced(self.job.name, count)

    def retrying(self, reason: str, seconds: float) -> None:
        self.progress.retrying(self.job.name, reason, seconds)

    def _verified(self, partial: Partial, sha256: str) -> Received:
        """What arrived, if it is what was promised. Raises StartOver for a resumed file, IntegrityError."""
        expected, size = self.job.expected, partial.prefix()
        for kind, promised, got in (
            ("size", expected.size, size),
            ("sha256", expected.sha256 and expected.sha256.lower(), sha256),
            ("git id", expected.git_id, expected.git_id and git_id_of(partial)),
        ):
            if promised is not None and promised != got:
                self._mismatch(partial, f"{kind} {promised} was promised, {got} came")
        return Received(size, sha256, self.transferred, partial.inode)

    def _mismatch(self, partial: Partial, reason: str) -> None:
        if partial.resumed:
            raise StartOver(f"what an earlier run left is damaged: {reason}", changed=True)
        raise IntegrityError(
            f"{self.job.name} is not what was promised: {reason}",
            hint="run it again; if it stays so, the source or something on the way is damaged",
        )

    def _start_over(self, reason: StartOver) -> None:
        self._changes += reason.changed
        self._restarts += 1
        self._single = True
        discard(self.job.partial)
        if self._changes > 1:
            raise IntegrityError(f"{self.job.name}: {reason.reason}, twice", hint="try again later") from None
        if self._restarts > self.client.limits.retries:
            raise NetworkError(f"{self.job.name}: {reason.reason}", hint="try again later") from None
        self.retrying(f"{reason.reason}; starting over", 0)


class _Aside:
    """A function at work in a thread of its own."""

    def __init__(self, work: Callable[[], str | None]) -> None:
        self._work = work
        self._done = threading.Event()
        self._value: str | None = None
        self._error: BaseException | None = None
        self.thread = spawn(self._run, "aside")

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001  raised again by `result`
            self._error = error
        self._done.set()

    def result(self, client: Client) -> str:
        """What it returned, or raises what it raised; Stopped if the client is stopped meanwhile."""
        while not self._done.wait(TICK):
            client.sleep(0)
        if self._error:
            raise self._error
        return self._value or ""


def _refuse_other_size(job: Job, answer: Answer) -> None:
    if None not in (job.expected.size, answer.length) and job.expected.size != answer.length:
        raise IntegrityError(
            f"{job.name} is not what was promised: {job.expected.size} bytes were promised, "
            f"the server has {answer.length}",
            hint="check whether it was replaced at its source",
        )


def _refuse_page(job: Job, answer: Answer) -> None:
    """A captive portal answers everything with its own page."""
    page = answer.headers.get("content-type", "").lower().startswith("text/html")
    wanted = shown(job.remote.url).lower().endswith((".html", ".htm"))
    promised = job.expected.size is not None and job.expected.size == answer.length
    if answer.status == 200 and page and not wanted and not promised:
        answer.close()
        raise NetworkError(
            f"{shown(answer.url)} answered with a web page instead of the file",
            hint="check the address, and whether this network wants you to log in first",
        )


def _require_room(jobs: Sequence[Job]) -> None:
    """Raise DiskError if the files together do not fit, before the first byte is asked for."""
    needed: dict[Path, int] = {}
    for job in jobs:
        missing = (job.expected.size or 0) - held(job.partial)
        needed[job.partial.parent] = needed.get(job.partial.parent, 0) + max(missing, 0)
    for folder, size in needed.items():
        require_space(folder / "partial", size)
