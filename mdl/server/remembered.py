"""What was found out a moment ago, so that not each request looks for it again. Knows no requests."""

import asyncio
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Generic, TypeVar

MOST = 256  # of what clients may ask for by any name

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """What is taken for true for so many `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._found: dict[K, tuple[float, V]] = {}

    async def get(self, at: K, find_out: Callable[[], V]) -> V:
        """What `find_out` says, in a thread. What it raises is not remembered."""
        known = self._found.get(at)
        if known is not None and monotonic() - known[0] <= self._seconds:
            return known[1]
        value = await asyncio.to_thread(find_out)
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[at] = monotonic(), value
        return value

    def forget(self) -> None:
        self._found.clear()
