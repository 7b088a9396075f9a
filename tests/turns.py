"""Whose turn it is where tests run side by side, as pyproject.toml says.

The tests of a file share fixtures, so that one process runs them. Those that are marked `alone` look at the
clock: they come last, and while one of them runs, no other test does.
"""

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

FRONT, ROOM = Path(__file__), Path(__file__).parent  # what is locked; nothing is written
_SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not _SIDE_BY_SIDE:
        return
    items.sort(key=_is_alone)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("alone" if _is_alone(item) else item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Here it waits for its turn, since what a fixture waits for counts as time of the test."""
    if not _SIDE_BY_SIDE:
        return (yield)
    with contextlib.ExitStack() as turn:
        with _locked(FRONT, fcntl.LOCK_EX):  # whoever comes later stays behind one that wants to be alone
            turn.enter_context(_locked(ROOM, fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH))
        return (yield)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child may have the descriptor, too
        os.close(descriptor)
