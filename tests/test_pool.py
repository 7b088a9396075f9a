"""The pool alone, with real engines and a disk that is slow."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import DEMO

from mdl.config import Settings
from mdl.engine.request import EngineFiles, EngineSettings
from mdl.errors import Busy, DiskError, UnsupportedModel
from mdl.library import Library
from mdl.model import Model
from mdl.profiles import Profile
from mdl.reference import Reference
from mdl.server.names import Held
from mdl.server.pool import Bounds, Pool
from mdl.weights import Weights, identify

WEIGHTS = identify(DEMO)
assert isinstance(WEIGHTS, Weights)

ROOM = 80_000_000  # for two of them


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    """The same one by several names."""
    demo = Library(Settings(tmp_path)).resolve("demo").model
    assert demo is not None
    return [replace(demo, place=tmp_path / name, reference=Reference("short", "", name)) for name in "abcdef"]


@contextmanager
def slow_disk(*_: object) -> Iterator[Held]:
    time.sleep(0.3)
    yield Held(EngineFiles(DEMO), Profile(), WEIGHTS)


@contextmanager
def broken_disk(*_: object) -> Iterator[Held]:
    raise DiskError("it cannot be read")
    yield


def run(
    test: Callable[[Pool], Awaitable[Any]], hold: Any = slow_disk, settings: Any = None, **bounds: Any
) -> Any:
    async def all_of_it() -> Any:
        pool = Pool(hold, settings or EngineSettings(), Bounds(**bounds))
        try:
            async with asyncio.timeout(20):
                return await test(pool)
        finally:
            await pool.close()

    return asyncio.run(all_of_it())


async def leave_soon(pool: Pool, model: Model, **how: Any) -> None:
    """A client that does not wait until it is loaded."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1), pool.borrow(model, **how):
            raise AssertionError("too fast")


def names(pool: Pool) -> str:
    return "".join(entry.model.reference.path for entry in pool.entries)


@asynccontextmanager
async def borrowed(pool: Pool, *models: Model) -> AsyncIterator[None]:
    for model in models:
        async with pool.borrow(model):
            pass
    yield


@pytest.mark.parametrize("force", [False, True])
def test_what_nobody_waits_for_any_more_can_be_stopped(models: list[Model], force: bool) -> None:
    async def test(pool: Pool) -> None:
        await leave_soon(pool, models[0])
        assert await pool.stop(models[0], force)
        assert not pool.entries
        async with pool.borrow(models[0]) as lent:  # to be stopped is no failure of a load
            assert lent.engine.pid

    run(test, idle_seconds=None)


def test_who_waits_for_a_model_that_is_stopped_while_it_loads_is_told_to_come_back(
    models: list[Model],
) -> None:
    async def waits(pool: Pool) -> None:
        async with pool.borrow(models[0]):
            raise AssertionError("it was stopped")

    async def test(pool: Pool) -> None:
        waiting = asyncio.create_task(waits(pool))
        await asyncio.sleep(0.1)
        assert await pool.stop(models[0], force=True)
        with pytest.raises(Busy, match="stopped while it loaded"):
            await waiting
        waiting = asyncio.create_task(waits(pool))
        await asyncio.sleep(0.1)
        await pool.close()
        with pytest.raises(Busy, match="the server is ending"):
            await waiting

    run(test)


@pytest.mark.parametrize("how", [{"bounds": 0.0}, {"keep_alive": 0.0}])
def test_what_is_not_to_stay_goes_when_it_has_been_loaded(models: list[Model], how: dict[str, float]) -> None:
    async def test(pool: Pool) -> None:
        await leave_soon(pool, models[0], keep_alive=how.get("keep_alive"))
        used = time.process_time()
        while pool.entries:
            await asyncio.sleep(0.02)
        assert time.process_time() - used < 0.5 * 20  # it is waited for, not asked all the time
        assert asyncio.get_running_loop().time()

    run(test, idle_seconds=how.get("bounds", 300.0))


@pytest.mark.alone
def test_a_load_that_nobody_waits_for_takes_no_time_of_the_loop(models: list[Model]) -> None:
    async def test(pool: Pool) -> float:
        await leave_soon(pool, models[0], keep_alive=0.0)
        used = time.process_time()
        await asyncio.sleep(0.15)
        return time.process_time() - used

    assert run(test) < 0.1


def test_stopping_what_is_not_there_says_so(models: list[Model]) -> None:
    assert run(lambda pool: pool.stop(models[0])) is False


def test_all_who_want_a_model_wait_for_one_load(models: list[Model]) -> None:
    async def test(pool: Pool) -> set[int | None]:
        async def pid() -> int | None:
            async with pool.borrow(models[0]) as lent:
                return lent.engine.pid

        return set(await asyncio.gather(*(pid() for _ in range(20))))

    assert len(run(test)) == 1


def test_a_load_that_failed_is_not_tried_again_at_once(models: list[Model]) -> None:
    tried = []

    @contextmanager
    def counted(model: Model, _: object) -> Iterator[Held]:
        tried.append(model)
        with broken_disk(model) as held:
            yield held

    async def test(pool: Pool) -> None:
        for _ in range(5):
            with pytest.raises(DiskError, match="cannot be read"):
                async with pool.borrow(models[0]):
                    pass
        assert not pool.entries

    run(test, counted)
    assert len(tried) == 1


def test_the_least_recently_used_makes_room_and_no_more_than_is_needed(models: list[Model]) -> None:
    a, b, c, *_ = models

    async def test(pool: Pool) -> None:
        async with borrowed(pool, a, b, a, c):
            assert names(pool) == "ac"

    run(test, memory=ROOM)


def test_who_came_first_is_given_room_first_all_get_it_and_busy_ones_finish(models: list[Model]) -> None:
    a, b, *others = models
    order = []

    async def test(pool: Pool) -> None:
        async def use(model: Model) -> None:
            async with pool.borrow(model) as lent:
                order.append(model.reference.path)
                await asyncio.sleep(0.05)
                assert lent.engine.pid

        async with pool.borrow(a) as first, pool.borrow(b) as second:
            waiting = []
            for model in others:
                waiting.append(asyncio.create_task(use(model)))
                await asyncio.sleep(0.4)
            assert order == [] and first.engine.pid and second.engine.pid
        await asyncio.gather(*waiting)

    run(test, memory=ROOM)
    assert order[0] == "c" and sorted(order) == ["c", "d", "e", "f"]


def test_who_waits_too_long_for_room_is_told_to_come_back(models: list[Model]) -> None:
    async def test(pool: Pool) -> None:
        async with pool.borrow(models[0]), pool.borrow(models[1]):
            with pytest.raises(Busy, match="no room"):
                async with pool.borrow(models[2]):
                    pass
        async with pool.borrow(models[2]):  # being busy is no failure that is remembered
            pass

    run(test, memory=ROOM, wait_seconds=0.5)


def test_a_model_that_never_fits_is_refused_and_sends_nobody_away(models: list[Model]) -> None:
    async def test(pool: Pool) -> None:
        async with pool.borrow(models[0]):
            pass
        pool._memory = 1_000_000  # what others than mdl have taken since
        with pytest.raises(UnsupportedModel, match="needs"):
            async with pool.borrow(models[1]):
                pass
        assert names(pool) == "a"

    run(test, memory=ROOM)
