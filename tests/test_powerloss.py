"""The power fails at every moment of a real command: what is visible then is whole, and the next run gets there.

`powerloss` says what may be left. Each such state is laid out as a real cache, in which mdl then lists, reads
and goes on. The states are thinned by a seed; MDL_FULL_FAULTS=1 goes through all of them.
"""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import ggufmaker
import pytest
from faults import Files, Place, digest, promised
from hub import Hub
from powerloss import EXTREMES, Call, Image, Syncs, Way, fingerprint, image_of, lay_out, record, replayed
from test_faults import FULL, SEED

from mdl.errors import NotFound
from mdl.partial import PIECE

BOOT = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
NEXT_BOOT = b"00000000-0000-4000-8000-000000000000"
WAYS = [*EXTREMES, *(Way(names, "some", seed) for names in (0.3, 0.7, 1) for seed in (SEED, SEED + 1))]
NOISE = random.Random(SEED).randbytes(PIECE + 12345)
README = b"# Shared by both"
OLD = {"README.md": README, "model-Q8_0.gguf": ggufmaker.model({"general.name": "old"})}
NEW = {"README.md": README, "model-Q8_0.gguf": ggufmaker.model({"general.name": "new"}) + NOISE}
OTHER = {"README.md": README, "other-F16.gguf": ggufmaker.model({"general.name": "other"})}
NAME, OTHER_NAME = "huggingface.co/org/model:Q8_0", "huggingface.co/org/other:F16"
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
        """What may be left of it at each of its calls, each once; at most so many, chosen by a seed."""
        first: dict[tuple[str, bool], tuple[int, Way]] = {}
        for index, way, state in self._every(syncs, lambda _: WAYS):
            first.setdefault((fingerprint(state.image), state.done), (index, way))
        chosen = [*first.values()]
        if not FULL and len(chosen) > most:
            chosen = random.Random(SEED).sample(chosen, most)
        for _, _, state in self._every(syncs, lambda index: [way for at, way in chosen if at == index]):
            yield state

    def _every(self, syncs: Syncs, ways: Callable[[int], Iterable[Way]]) -> Iterator[tuple[int, Way, State]]:
        for index, disk in enumerate(replayed(self.place.cache, self.start, self.calls, syncs)):
            for way in ways(index):
                yield index, way, State(disk.left(way), index == len(self.calls))


def survive(scene: Scene, state: State) -> None:
    """P1, P2: after the power failure all that is visible is whole, and running it again gets there."""
    with tempfile.TemporaryDirectory() as scratch:
        place = replace(scene.place, root=Path(scratch))
        lay_out({path: _restarted(leaf) for path, leaf in state.image.items()}, place.cache)
        right = [scene.after] if state.done else [scene.before, scene.after]
        _all_whole(place, right)
        scene.again(place)
        _all_whole(place, [scene.after])


def _restarted(leaf: tuple[int, bytes] | None) -> tuple[int, bytes] | None:
    """A file after the machine has started again: what names this boot names an earlier one."""
    return leaf and (leaf[0], leaf[1].replace(BOOT, NEXT_BOOT))


def _all_whole(place: Place, right: Sequence[Models]) -> None:
    left = place.contents()
    assert left in [promised(models) for models in right], left
    blobs = place.cache / "blobs" / "sha256"
    damaged = [blob.name for blob in blobs.glob("*") if digest(blob.read_bytes()) != blob.name]
    assert not damaged, "a blob has a wrong content"


def survivors(scene: Scene, most: int, syncs: Syncs = lambda _: True) -> int:
    """How many states there were; all of them have survived."""
    count = 0
    for count, state in enumerate(scene.states(most, syncs), 1):
        survive(scene, state)
    return count


# Scenes


class Stage:
    """A hub, and what is recorded against it; each scene once."""

    def __init__(self, hub: Hub, root: Path) -> None:
        self.hub, self.root = hub, root
        self._recorded: dict[str, Scene] = {}
        self._other = hub.add("org/other", OTHER)
        self._model = hub.add("org/model", NEW)

    def scene(self, name: str) -> Scene:
        if name not in self._recorded:
            before, after, *arguments = SCENES[name]
            self._recorded[name] = self._record(self.root / name, before, after, arguments)
        return self._recorded[name]

    def _record(self, folder: Path, before: Models, after: Models, arguments: Sequence[str]) -> Scene:
        place = Place(folder, self.hub.url)
        place.cache.mkdir(parents=True)
        for name, files in before.items():
            (self._model if name == NAME else self._other).commit(files)
            place.library.download(name)
        self._model.commit(NEW)
        start = image_of(place.cache)
        ran, calls = record(place, *arguments)
        assert ran.code == 0, ran
        *_, end = replayed(place.cache, start, calls)
        assert end.seen() == image_of(place.cache), "not all was recorded"
        return Scene(place, start, calls, before, after, AGAIN[arguments[0]])


def download(place: Place) -> None:
    place.library.download(NAME)


def remove(place: Place) -> None:
    with contextlib.suppress(NotFound):
        place.library.store.remove(place.library.removable(NAME))


AGAIN = {"download": download, "rm": remove}
SCENES = {
    "a first download": ({}, {NAME: NEW}, "download", "-q", NAME),
    "a download beside another model": (HERE, {**HERE, NAME: NEW}, "download", "-q", NAME),
    "an update": ({**HERE, NAME: OLD}, {**HERE, NAME: NEW}, "download", "-q", NAME),
    "a download by force": ({**HERE, NAME: NEW}, {**HERE, NAME: NEW}, "download", "-q", "--force", NAME),
    "a removal": ({**HERE, NAME: NEW}, HERE, "rm", "-y", NAME),
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
    print(
        f"\n{name}: {len(scene.calls)} calls, {survivors(scene, 100)} states after a power failure survived"
    )


# The check can fail

LIES: dict[str, Syncs] = {
    "nothing is synced": lambda _: False,
    "contents are not": lambda path: not path.endswith(".partial"),
    "records are not": lambda path: not path.endswith(".metadata"),
    "new folders are not": lambda path: not path.endswith(".version"),
    "the tree is not": lambda path: "/models" not in path,
    "the first folder is not": lambda path: not path.endswith("/cache"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_sync_that_is_left_out_is_noticed(stage: Stage, lie: str) -> None:
    with pytest.raises(AssertionError):
        survivors(stage.scene("a first download"), 1000, LIES[lie])
