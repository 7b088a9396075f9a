"""An engine that answers slowly, so that there is time to stop it: its process runs a little at a time."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def workers(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def slowly(pid: int, running: float = 0.004, resting: float = 0.03) -> Iterator[Callable[[], None]]:
    """The workers of a process run and rest by turns, until the block ends or calls what it is given."""
    over = threading.Event()

    def brake() -> None:
        while not over.is_set():
            children = workers(pid)
            _send(children, signal.SIGSTOP)
            over.wait(resting)
            _send(children, signal.SIGCONT)
            over.wait(running)

    thread = threading.Thread(target=brake)
    thread.start()

    def release() -> None:
        over.set()
        thread.join()

    try:
        yield release
    finally:
        release()


def _send(children: list[int], what: signal.Signals) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, what)
