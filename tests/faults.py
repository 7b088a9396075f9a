"""Tools to break the real command: run it, make its system calls fail or kill it there, look what is left."""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mdl import garbage, leftovers
from mdl.config import Settings
from mdl.library import Library

MDL = (sys.executable, "-m", "mdl")
DOCUMENTED = {*range(11), 130, 141, 143}
KILLED = "KILL"
Files = Mapping[str, bytes]

# What the disk may answer to each call. The interpreter makes some of these for itself: see `Tracer.points`.
ERRORS = {
    "openat": ("EACCES", "EIO", "ENOSPC"),
    "write": ("ENOSPC", "EIO"),
    "pwrite64": ("ENOSPC", "EIO"),
    "preadv": ("EIO",),
    "fsync": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO", "ENOSPC"),
    "ftruncate": ("ENOSPC", "EIO"),
    "chmod": ("EACCES", "EIO"),
    "rename": ("EIO", "ENOSPC", "EACCES"),
    "renameat": ("EIO", "ENOSPC", "EACCES"),
    "renameat2": ("EIO", "ENOSPC", "EACCES"),
    "link": ("EIO", "ENOSPC", "EACCES"),
    "linkat": ("EIO", "ENOSPC", "EACCES"),
    "unlink": ("EIO", "EACCES"),
    "unlinkat": ("EIO", "EACCES"),
    "rmdir": ("EIO", "EACCES"),
    "mkdir": ("ENOSPC", "EIO", "EACCES"),
    "flock": ("ENOLCK", "EIO"),
}


@dataclass(frozen=True)
class Place:
    """A home folder with things of the user's, and in it a cache."""

    root: Path
    endpoint: str = "http://127.0.0.1:9"
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def environment(self) -> dict[str, str]:
        own = {"HOME": str(self.root), "MDL_HOME": str(self.cache), "HF_HOME": str(self.root / "hf")}
        kept = {
            name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ
        }
        return {**kept, **own, "HF_ENDPOINT": self.endpoint, "LANG": "C.UTF-8", **self.extra}

    @property
    def library(self) -> Library:
        return Library(Settings(self.cache, hf_endpoint=self.endpoint))

    def start(self, *arguments: str | Path, before: Sequence[str] = (), **options) -> "subprocess.Popen[str]":
        """A command under way; `before` is what starts it, a tracer or a shell."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        options = {**streams, "env": self.environment, "cwd": self.root, **options}
        return subprocess.Popen([*before, *MDL, *map(str, arguments)], errors="backslashreplace", **options)

    def run(self, *arguments: str | Path, before: Sequence[str] = (), **options) -> "Ran":
        return ended(self.start(*arguments, before=before, **options))

    def copy(self, root: Path) -> "Place":
        """The same elsewhere, with its hard links."""
        subprocess.run(["cp", "-a", self.root, root], check=True)
        return replace(self, root=root)

    def contents(self) -> dict[str, str]:
        """What every model in the list has, by digest; each of its files is read."""
        found = {}
        for model in self.library.list():
            assert model.damaged or not model.problem, model
            for file in model.files:
                path = model.folder / file.name
                found[f"{model.reference} {file.name}"] = digest(path.read_bytes()) if path.exists() else ""
        return found

    def around(self) -> dict[str, str]:
        """Everything that is not the cache, by digest."""
        paths = (path for path in self.root.rglob("*") if not path.is_relative_to(self.cache))
        return {str(path): digest(path.read_bytes()) if path.is_file() else "folder" for path in paths}


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> list[str]:
        """The lines of its failure: the cause, and what to do."""
        lines = self.err.splitlines()
        first = next((number for number, line in enumerate(lines) if line.startswith("mdl: ")), len(lines))
        return lines[first:]


def ended(process: "subprocess.Popen[str]", timeout: float = 90) -> Ran:
    """How a command ends that is under way."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ran(process.returncode, out or "", err or "")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def promised(models: Mapping[str, Files]) -> dict[str, str]:
    """`Place.contents` of models that are whole and right."""
    return {
        f"{reference} {name}": digest(content)
        for reference, files in models.items()
        for name, content in files.items()
    }


def untidy(place: Place) -> list[str]:
    """What cleaning, an hour after the last command, leaves though it is unused, or takes in error."""
    earlier, store = time.time() - 2 * leftovers.AGE, place.library.store
    for path in store.incoming.glob("*"):
        os.utime(path, (earlier, earlier))
    garbage.collect(store, garbage.find(store, partials=True))
    used = {file.sha256 for model in store.models() if not model.damaged for file in model.files}
    blobs = {path.name for path in store.blobs.glob("*")}
    lost = [f"{sha256} is gone" for sha256 in used - blobs]
    known = {file.sha256 for model in store.models() for file in model.files}
    return lost + [str(path) for path in store.incoming.glob("*")] + sorted(blobs - known)


@dataclass(frozen=True, order=True)
class Point:
    """A system call of a command: which one, the how-manieth of its thread, and among which paths.

    Paths are relative to the cache, so that a point holds for a copy of it.
    """

    call: str
    number: int
    paths: tuple[str, ...] = ()


def points(place: Place, *arguments: str) -> list[Point]:
    """Every call of a command that touches the cache, from a run of it without faults.

    Those of the first thread are told by their number, since the interpreter makes such calls for itself
    first; those of the others by the partial files that they work on.
    """
    log = place.root.with_suffix(".trace")
    ran = place.run(*arguments, before=_strace(log, *ERRORS, fast=True))
    assert ran.code in (0, 6), ran  # 6: it was to find damage
    main, counts, shares = "", Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    found, partials = set(), set()
    for thread, call, rest in _entered(log):
        main = main or thread
        counts[thread, call] += 1
        if str(place.cache) not in rest:
            continue
        if thread == main:
            found.add(Point(call, counts[thread, call]))
        elif partial := re.search(r"(incoming/[^\"/>]+\.partial(\.parts)?)[\">]", rest):
            partials.add(partial[1])
            shares[thread, call] += 1
    for (_, call), count in shares.items():
        found |= {Point(call, number, tuple(sorted(partials))) for number in range(1, count + 1)}
    return sorted(found)


def strike(place: Place, point: Point, fault: str, *arguments: str) -> tuple[Ran, bool]:
    """Run a command with a fault at a point; how it ended, and whether the fault struck it in the cache."""
    log = place.root.with_suffix(".trace")
    killing = fault == KILLED  # strace 6.1 does not deliver signals where it filters with seccomp
    inject = f"inject={point.call}:{'signal' if killing else 'error'}={fault}:when={point.number}"
    paths = [word for path in point.paths for word in ("-P", str(place.cache / path))]
    before = _strace(log, point.call, fast=not killing)
    ran = place.run(*arguments, before=[*before, *paths, "-e", inject])
    text = log.read_text(errors="replace")
    if killing:
        return ran, ran.code == -9 and str(place.cache) in _last_call(text)
    struck = [line for line in text.splitlines() if "(INJECTED)" in line]
    return ran, bool(struck) and all(str(place.cache) in line or "resumed" in line for line in struck)


def _strace(log: Path, *calls: str, fast: bool) -> list[str]:
    filtering = ["--seccomp-bpf"] if fast else []
    return ["strace", "-f", *filtering, "-y", "-o", str(log), "-e", f"trace={','.join(calls)}"]


def _last_call(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if re.match(r"\d+ +\w+\(", line)), "")


def _entered(log: Path) -> Iterator[tuple[str, str, str]]:
    """Thread, call and arguments of each call, in the order in which they began."""
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d+) +(\w+)\((.*)", line):
            yield match[1], match[2], match[3]


LYING = """
int flock(int fd, int operation) { return 0; }
int lockf(int fd, int cmd, long length) { return 0; }
"""


def lying_locks(folder: Path) -> Path:
    """A library that, loaded before all others, says that every lock was taken."""
    source, library = folder / "lying.c", folder / "lying.so"
    source.write_text(LYING)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@contextlib.contextmanager
def mounted(place: Place, command: str) -> Iterator[Sequence[str]]:
    """Mount something at the cache (`command` sees it as $CACHE), where only a few processes see it.

    Yields what makes a command one of them. Look at the cache through `seen_by`.
    """
    place.cache.mkdir(exist_ok=True)
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = f"set -e; {command}; echo ready; exec cat"
    holder = subprocess.Popen(
        ["unshare", *user, "--mount", "sh", "-c", script],
        env={**place.environment, "CACHE": str(place.cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdin
    try:
        assert holder.stdout.readline() == "ready\n"
        yield [
            "nsenter",
            *(["--user", "--preserve-credentials"] if user else []),
            "--mount",
            "-t",
            str(holder.pid),
        ]
    finally:
        holder.stdin.close()
        holder.wait()
