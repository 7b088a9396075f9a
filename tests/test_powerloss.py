"""The power fails at every moment of a command: what is visible then is whole, and the next run gets there.

`powerloss` says what may be left. Each such state is laid out as a real cache, in which mdl then lists, reads
and goes on. The states are thinned by a seed; MDL_FULL_FAULTS=1 goes through all of them.
"""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import ggufmaker
import pytest
from faults import Files, Place, digest, promised
from hub import Hub
from powerloss import (
    EXTREMES,
    PAGE,
    Call,
    Image,
    Syncs,
    Way,
    fingerprint,
    image_of,
    lay_out,
    record,
    replayed,
)
from test_faults import FULL, SEED

from mdl.errors import NotFound
from mdl.garbage import collect, find
from mdl.partial import PIECE
from mdl.reference import Reference
from mdl.verification import Verification, everything

BOOT = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
RESTARTED = {BOOT: b"00000000-0000-4000-8000-000000000000"}
WAYS = [*EXTREMES, *(Way(names, "any", SEED + seed) for names in (0.3, 0.7, 1) for seed in range(4))]
NOISE = random.Random(SEED).randbytes(3 * PAGE)
README = b"# Shared by both"
OLD = {"README.md": README, "model-Q8_0.gguf": ggufmaker.model({"general.name": "old"})}
NEW = {"README.md": README, "model-Q8_0.gguf": ggufmaker.model({"general.name": "new"}) + NOISE}
OTHER = {"README.md": README, "other-F16.gguf": ggufmaker.model({"general.name": "other"})}
NAME, OTHER_NAME = "huggingface.co/org/model:Q8_0", "huggingface.co/org/other:F16"
ADDRESS = "ADDRESS/plain.gguf"  # of a file whose digest nobody knows before it is here; see `Stage`
ROTTEN = {"README.md": README, "model-Q8_0.gguf": NEW["model-Q8_0.gguf"][:-1] + b"\0"}
PLAIN = {"plain.gguf": ggufmaker.model({}) + random.Random(SEED).randbytes(PIECE)}
HERE = {OTHER_NAME: OTHER}
Models = Mapping[str, Files]


class State(NamedTuple):
    """What may be left, and whether the command had said that it was done."""

    image: Image
    done: bool


@dataclass(frozen=True)
class Scene:
    """A recorded command, the cache before it, and which models are there then and after it."""

    place: Place
    start: Image
    calls: Sequence[Call]
    before: Models
    after: Models
    again: Callable[[Place], object]

    def states(self, most: int, syncs: Syncs = lambda _: True) -> Iterator[State]:
        """What may be left of it at each of its calls, each once. Of those before its end at most so many."""
        first: dict[tuple[str, bool], tuple[int, Way]] = {}
        for index, way, state in self._every(syncs, lambda _: WAYS):
            first.setdefault((fingerprint(state.image), state.done), (index, way))
        chosen = [found for (_, done), found in first.items() if done]
        amid = [found for (_, done), found in first.items() if not done]
        chosen += amid if FULL or len(amid) <= most else random.Random(SEED).sample(amid, most)
        for _, _, state in self._every(syncs, lambda index: [way for at, way in chosen if at == index]):
            yield state

    def _every(self, syncs: Syncs, ways: Callable[[int], Iterable[Way]]) -> Iterator[tuple[int, Way, State]]:
        for index, disk in enumerate(replayed(self.place.cache, self.start, self.calls, syncs)):
            for way in ways(index):
                dice = replace(way, seed=way.seed * len(self.calls) + index)  # others at each call
                yield index, way, State(disk.left(dice), index == len(self.calls))


def survive(scene: Scene, state: State, boots: Mapping[bytes, bytes]) -> None:
    """P1, P2: after the power failure all that is visible is whole, and running it again gets there.

    `boots` is how the machine calls this boot, and how it is called in what is left: an earlier one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = replace(scene.place, root=Path(scratch))
        lay_out(
            {path: leaf and (leaf[0], _renamed(leaf[1], boots)) for path, leaf in state.image.items()},
            place.cache,
        )
        _all_whole(place, [scene.after] if state.done else [scene.before, scene.after])
        scene.again(place)
        _all_whole(place, [scene.after])


def _renamed(content: bytes, names: Mapping[bytes, bytes]) -> bytes:
    for old, new in names.items():
        content = content.replace(old, new)
    return content


def _all_whole(place: Place, right: Sequence[Models]) -> None:
    left = place.contents()
    assert left in [promised(models) for models in right], left
    blobs = place.cache / "blobs" / "sha256"
    damaged = [blob.name for blob in blobs.glob("*") if digest(blob.read_bytes()) != blob.name]
    assert not damaged, "a blob has a wrong content"


def survivors(
    scene: Scene, most: int, syncs: Syncs = lambda _: True, boots: Mapping[bytes, bytes] = RESTARTED
) -> int:
    """How many states there were; all of them have survived. (They wait more than they work.)"""
    count, states = 0, scene.states(most, syncs)
    with ThreadPoolExecutor(12) as pool:
        while some := list(islice(states, 24)):  # so that the first that does not is soon known
            count += len(list(pool.map(lambda state: survive(scene, state, boots), some)))
    return count


# Scenes


class Stage:
    """A hub, and what is recorded against it; each scene once."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self.hub, self.root = hub, root
        self._recorded: dict[str, Scene] = {}
        self._other = hub.add("org/other", OTHER)
        self._model = hub.add("org/model", NEW)
        self._address = hub.put("/plain.gguf", PLAIN["plain.gguf"])

    def scene(self, name: str) -> Scene:
        if name not in self._recorded:
            before, after, arguments, prepare = SCENES[name]
            after = {model.replace(ADDRESS, self._address): files for model, files in after.items()}
            arguments = arguments.replace(ADDRESS, self._address)
            place = self._place(self.root / name, before)
            prepare(place)
            self._recorded[name] = _played(place, before, after, arguments.split())
        return self._recorded[name]

    def _place(self, folder: Path, models: Models) -> Place:
        """A cache with these models, the next versions of which are at the hub."""
        place = Place(folder, self.hub.url)
        place.cache.mkdir(parents=True)
        for name, files in models.items():
            (self._model if name == NAME else self._other).commit(files)
            download(name, place)
        self._model.commit(NEW)
        return place


def _played(place: Place, before: Models, after: Models, arguments: Sequence[str]) -> Scene:
    start = image_of(place.cache)
    ran, calls = record(place, *arguments)
    assert ran.code == 0, ran
    *_, end = replayed(place.cache, start, calls)
    assert end.seen() == image_of(place.cache), "not all was recorded"
    return Scene(place, start, calls, before, after, partial(AGAIN[arguments[0]], arguments[-1]))


def download(name: str, place: Place) -> None:
    place.library.download(name)


def remove(name: str, place: Place) -> None:
    with contextlib.suppress(NotFound):
        place.library.store.remove(place.library.removable(name))


def prune(_: str, place: Place) -> None:
    store = place.library.store
    collect(store, find(store, partials=True))
    assert find(store, partials=True) == []


AGAIN = {"download": download, "rm": remove, "prune": prune}


def nothing(place: Place) -> None:
    pass


def damage(place: Place) -> None:
    """A bit of a file rots, and is found."""
    download(NAME, place)
    path = place.library.store.find(Reference.parse(NAME)).folder / "model-Q8_0.gguf"
    path.chmod(0o644)
    path.write_bytes(ROTTEN["model-Q8_0.gguf"])
    store = place.library.store
    assert Verification(store, everything(store), everything=True).run().damage


def litter(place: Place) -> None:
    """Contents that nothing uses, a partial download, and what killed commands left."""
    download(NAME, place)
    store = place.library.store
    shutil.rmtree(store.folder(Reference.parse(NAME)))
    for name in ("1" * 64 + ".partial", "1" * 64 + ".partial.parts"):
        (store.incoming / name).write_bytes(NOISE)
    (store.incoming / "2.removed").mkdir()
    (store.incoming / "2.removed" / "README.md").hardlink_to(store.blob(digest(README)))


DOWNLOAD = f"download -q {NAME}"
OLD_HERE, NEW_HERE, ROTTEN_HERE = ({**HERE, NAME: files} for files in (OLD, NEW, ROTTEN))
SCENES: dict[str, tuple[Models, Models, str, Callable[[Place], None]]] = {
    "a first download": ({}, {NAME: NEW}, DOWNLOAD, nothing),
    "a download beside another model": (HERE, NEW_HERE, DOWNLOAD, nothing),
    "an update": (OLD_HERE, NEW_HERE, DOWNLOAD, nothing),
    "a download by force": (NEW_HERE, NEW_HERE, f"download -q --force {NAME}", nothing),
    "a mending": (ROTTEN_HERE, NEW_HERE, DOWNLOAD, damage),
    "a file of an unknown digest": (HERE, {**HERE, ADDRESS: PLAIN}, f"download -q {ADDRESS}", nothing),
    "a removal": (NEW_HERE, HERE, f"rm -y {NAME}", nothing),
    "a cleaning": (HERE, HERE, "prune -y --partials", litter),
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Hub() as hub:
        yield Stage(hub, tmp_path_factory.mktemp("stage"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCENES)
def test_when_the_power_fails_what_is_visible_is_whole_and_the_next_run_gets_there(
    stage: Stage, name: str
) -> None:
    scene = stage.scene(name)
    survived = survivors(scene, 60)
    print(f"\n{name}: {len(scene.calls)} calls, {survived} states after a power failure survived")


# The check can fail

ARRIVES, GOES = "a first download", "a removal"
LIES: list[tuple[str, str, Syncs]] = [
    (ARRIVES, "nothing is synced", lambda _: False),
    (ARRIVES, "contents are not", lambda path: not path.endswith(".partial")),
    (ARRIVES, "records are not", lambda path: not path.endswith(".metadata")),
    (ARRIVES, "new folders are not", lambda path: not path.endswith(".version")),
    (ARRIVES, "the tree is not", lambda path: "/models" not in path),
    (ARRIVES, "the first folder is not", lambda path: not path.endswith("/cache")),
    (GOES, "the tree is not", lambda path: "/models" not in path),
]


@pytest.mark.parametrize(
    ("name", "lie", "syncs"), LIES, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_sync_that_is_left_out_is_noticed(stage: Stage, name: str, lie: str, syncs: Syncs) -> None:
    with pytest.raises(AssertionError):
        survivors(stage.scene(name), 150, syncs)


def test_a_power_failure_that_goes_unnoticed_is_noticed(stage: Stage) -> None:
    """What a note counts was lost, and the note says that it is of this boot."""
    with pytest.raises(AssertionError):
        survivors(stage.scene("a file of an unknown digest"), 150, boots={})
