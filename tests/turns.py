"""For `pytest -n 4 --dist loadfile`: while a test runs that is marked `alone`, since it looks at the clock,
no other does."""

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

FRONT, ROOM = Path(__file__), Path(__file__).parent  # what is locked; nothing is written


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Here it waits for its turn, since what a fixture waits for counts as time of the test."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with contextlib.ExitStack() as turn:
        with _locked(FRONT, fcntl.LOCK_EX):  # whoever comes later stays behind one that wants to be alone
            turn.enter_context(_locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child may have the descriptor, too
        os.close(descriptor)
