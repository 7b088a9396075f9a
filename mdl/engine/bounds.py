"""What the templates of others may take while this process runs them: time and memory."""

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 3.0
MEMORY = 1 << 30


@contextmanager
def bounded() -> Iterator[None]:
    """Ends the process, exit code 1, when the block takes too long; raises MemoryError for too much of that.

    The time is kept by no signal handler and no thread of Python: 9**(9**9) lets neither run. There is no
    limit of memory on Windows, which has none, and on macOS, which does not keep it; there the length of the
    prompt and the time are what bounds it.
    """
    with _bounded_time(), _bounded_memory():
        yield


@contextmanager
def _bounded_time() -> Iterator[None]:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _bounded_memory() -> Iterator[None]:
    try:
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = size + MEMORY
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
