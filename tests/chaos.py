"""Random commands of several processes on one cache, which are killed at random, while all of it is watched.

The commands run in processes that have imported mdl already, so that there are many of them, and beside them
some in processes of their own. The hub gives new versions meanwhile and cuts connections. What must hold:

- a version that is in the list is whole, and so it stays while somebody holds it
- nothing is ever found to be damaged
- a command ends with one of its exit codes, and never with a traceback
- at the end, `mdl prune` leaves the contents that the versions use, and nothing else
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import threading
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults import Place, untidy
from hub import Hub, sha256

from mdl.cli import run
from mdl.model import METADATA_NAME
from mdl.store import Store

README = b"# What all of them share"
REPOSITORIES = ("org/one", "org/two", "org/three", "other/one")
NAMES = tuple(f"huggingface.co/{name}:Q8_0" for name in REPOSITORIES)
PAUSE = 0.3  # seconds between two kills, on average
IMPORTED = (  # once, and not by each process
    "mdl.cli.keeping",
    "mdl.cli.models",
    "mdl.fetch",
    "mdl.garbage",
    "mdl.listing",
    "mdl.download",
    "mdl.progress",
    "mdl.transports.huggingface",
    "mdl.usage",
    "mdl.verification",
    "portalocker",
    "tomli_w",
)


@dataclass
class Report:
    """How often each operation ended how, and what went wrong."""

    seconds: float
    processes: int
    seed: int
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    kills: int = 0
    versions: int = 0  # that came to the hub

    @property
    def operations(self) -> int:
        return sum(self.outcomes.values())


class Wrong(Exception):
    """Something does not hold."""


# What a process does


@dataclass(frozen=True)
class Actor:
    """A process that does one operation after another, chosen by a seed."""

    place: Place
    dice: random.Random

    def operation(self) -> tuple[str, Callable[[], str]]:
        names = list(OPERATIONS)
        name = self.dice.choices(names, [OPERATIONS[name][0] for name in names])[0]
        return name, lambda: OPERATIONS[name][1](self)

    @property
    def model(self) -> str:
        return self.dice.choice(NAMES)

    def download(self) -> str:
        return self._command("download", "-q", self.model, codes=(0, 8))

    def force(self) -> str:
        return self._command("download", "-q", "--force", self.model, codes=(0, 8))

    def remove(self) -> str:
        return self._command("rm", "-y", self.model, codes=(0, 3, 8))

    def prune(self) -> str:
        options = self.dice.choice([[], ["--partials"]])
        return self._command("prune", "-y", *options, codes=(0, 8))

    def verify(self) -> str:
        options = self.dice.choice([[], ["--quick"], [self.model]])
        return self._command("verify", *options, codes=(0, 3))

    def look(self) -> str:
        arguments = self.dice.choice(
            [["list", "--json"], ["list", "--versions"], ["df"], ["resolve", self.model]]
        )
        return self._command(*arguments, codes=(0,))

    def hold(self) -> str:
        """Use a version as a running engine does."""
        store = self.place.library.store
        here = store.models()
        if not here:
            return "nothing here"
        model = self.dice.choice(here)
        if model.problem:
            raise Wrong(f"{model.reference}: {model.problem}")
        try:
            with store.locks.lease(model.folder):
                return watch(store, model.folder, self.dice.uniform(0, 0.05))
        except BlockingIOError:
            return "being removed"

    def _command(self, *arguments: str, codes: Sequence[int]) -> str:
        """Run a command in this process; its exit code."""
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            code = run(list(arguments))
        if code not in codes:
            raise Wrong(f"{' '.join(arguments)}: exit code {code}: {told.getvalue()}")
        return f"exit code {code}"


OPERATIONS: dict[str, tuple[int, Callable[[Actor], str]]] = {
    "download": (30, Actor.download),
    "download --force": (2, Actor.force),
    "rm": (20, Actor.remove),
    "prune": (10, Actor.prune),
    "verify": (5, Actor.verify),
    "list, df, resolve": (10, Actor.look),
    "hold": (30, Actor.hold),
}


def watch(store: Store, folder: Path, seconds: float) -> str:
    """Look at a version that is held until the time is over: it is whole, and it stays."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return "gone before"
    try:
        until = time.monotonic() + seconds
        while True:
            problem = _problem(opened)
            if not folder.exists():
                raise Wrong(f"{folder} was removed though it is in use")
            if not os.path.samestat(folder.stat(), os.fstat(opened)):
                return "replaced meanwhile"  # by a new version, at the same place
            if problem:
                raise Wrong(f"{folder}: {problem}")
            if time.monotonic() > until:
                return "whole"
    finally:
        os.close(opened)


def _problem(folder: int) -> str:
    """What is not right with the version in an open folder."""
    try:
        files = tomllib.loads(_read(folder, METADATA_NAME).decode())["files"]
        wrong = [file["name"] for file in files if sha256(_read(folder, file["name"])) != file["sha256"]]
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    return f"{wrong} are damaged" if wrong else ""


def _read(folder: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:  # noqa: PTH123  below an open folder
        return file.read()


def act(place: Place, seed: str, until: float, log: Path) -> None:
    """What a process does until the time is over. A line for each operation: what, and how it ended."""
    os.environ.update(place.environment)
    actor = Actor(place, random.Random(seed))
    with log.open("a") as lines:
        while time.time() < until:
            name, operate = actor.operation()
            try:
                outcome, wrong = operate(), ""
            except Exception:  # noqa: BLE001  told by the log
                outcome, wrong = "failed", traceback.format_exc()
            lines.write(json.dumps([name, outcome, wrong]) + "\n")
            lines.flush()


# What keeps them going


def chaos(root: Path, seconds: float, processes: int, seed: int) -> Report:
    """Let them act; `root` is an empty folder."""
    report = Report(seconds, processes, seed)
    with Hub() as hub:
        supply = _Supply(hub, random.Random(seed))
        place = Place(root, hub.url)
        place.cache.mkdir(parents=True)
        troupe = _Troupe(place, root / "logs", seed, time.time() + seconds)
        beside = threading.Thread(target=_commands_of_their_own, args=(place, troupe.until, seed, report))
        beside.start()
        troupe.play(processes, supply, report)
        beside.join()
        hub.faults.clear()
        report.failures += [*troupe.failures(report.outcomes), *_at_the_end(place)]
    return report


class _Supply:
    """What the hub has: some models that share contents, of which new versions come now and then."""

    def __init__(self, hub: Hub, dice: random.Random) -> None:
        self.hub, self.dice = hub, dice
        self.contents = [dice.randbytes(dice.choice([3000, 70_000, 300_000])) for _ in range(6)]
        for name in REPOSITORIES:
            hub.add(name, self.files())

    def files(self) -> dict[str, bytes]:
        from ggufmaker import model

        parts = self.dice.choice([1, 2])
        names = ["m-Q8_0.gguf"] if parts == 1 else [f"m-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
        bodies = [
            model({"split.count": parts, "split.no": part} if parts > 1 else {})
            + self.dice.choice(self.contents)
            for part in range(parts)
        ]
        return {"README.md": README, **dict(zip(names, bodies, strict=True))}

    def change(self) -> None:
        self.hub.repositories[self.dice.choice(REPOSITORIES)].commit(self.files())

    def cut(self) -> None:
        if not self.hub.faults:
            self.hub.cut("Signature", self.dice.choice([0, 1000, 60_000]))


class _Troupe:
    """Processes that act, each followed by another when it is killed."""

    def __init__(self, place: Place, logs: Path, seed: int, until: float) -> None:
        self.place, self.logs, self.seed, self.until = place, logs, seed, until
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(IMPORTED))
        logs.mkdir()

    def play(self, count: int, supply: _Supply, report: Report) -> None:
        dice = random.Random(self.seed)
        actors = [self._start(f"{number}.0") for number in range(count)]
        while time.time() < self.until:
            time.sleep(dice.uniform(0, 2 * PAUSE))
            if dice.random() < 0.3:
                supply.change()
                report.versions += 1
            if dice.random() < 0.2:
                supply.cut()
            number = dice.randrange(count)
            report.kills += actors[number].is_alive()
            actors[number].kill()
            actors[number].join()
            actors[number] = self._start(f"{number}.{report.kills}")
        for actor in actors:
            actor.join(60)
            if actor.is_alive():
                report.failures.append("a process came to no end")
                actor.kill()

    def _start(self, name: str) -> multiprocessing.process.BaseProcess:
        arguments = (self.place, f"{self.seed} {name}", self.until, self.logs / name)
        process = self.context.Process(target=act, args=arguments)
        process.start()
        return process

    def failures(self, outcomes: Counter[tuple[str, str]]) -> Iterator[str]:
        """What went wrong; counts everything else."""
        for log in sorted(self.logs.iterdir()):
            for line in log.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    continue  # killed while it was written
                name, outcome, wrong = json.loads(line)
                outcomes[name, outcome] += 1
                if wrong:
                    yield f"{name}: {wrong}"


def _commands_of_their_own(place: Place, until: float, seed: int, report: Report) -> None:
    """The same as a person at a terminal does it."""
    dice = random.Random(seed)
    while time.time() < until:
        name = dice.choice(NAMES)
        arguments, codes = dice.choice(
            [
                (("download", name), (0, 8)),
                (("rm", "-y", name), (0, 3, 8)),
                (("prune", "-y"), (0, 8)),
                (("verify",), (0,)),
                (("list",), (0,)),
            ]
        )
        ran = place.run(*arguments)
        report.outcomes[f"mdl {arguments[0]}", f"exit code {ran.code}"] += 1
        if ran.code not in codes or "Traceback" in ran.err or (ran.code and len(ran.error) != 2):
            report.failures.append(f"mdl {' '.join(arguments)}: {ran}")


def _at_the_end(place: Place) -> Iterator[str]:
    ran = place.run("verify")
    if ran.code:
        yield f"at the end: {ran}"
    if left := untidy(place):
        yield f"at the end: {left}"
