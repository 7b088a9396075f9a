"""Forms of answers that nobody asked for before, on their way to be known. Knows no grammars and no pipes.

Each is given a short try, in the order in which they came. Those that need more time are tried beside that,
one after the other, and hold up nobody but each other. Those that nobody waits for any more are dropped.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from mdl.engine.request import Format
from mdl.errors import Busy

MOST_NEW, MOST_SLOW = 32, 8  # forms that wait

Then = Callable[[Busy | None], None]


class Preparing:
    """`find_out` takes a form, and whether to be patient; False: the form is still unknown. It is called from
    two threads, and so is `then` of a request, once, with an error where too many wait already. `is_wanted`
    says whether a request has not been cancelled.
    """

    def __init__(self, find_out: Callable[[Format, bool], bool], is_wanted: Callable[[int], bool]) -> None:
        self._find_out = find_out
        self._is_wanted = is_wanted
        self._lock = threading.Lock()
        self._waiting: dict[Format, list[tuple[int, Then]]] = {}
        self._new: SimpleQueue[Format] = SimpleQueue()
        self._slow: SimpleQueue[Format] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def add(self, request: int, form: Format, then: Then) -> None:
        """Finds out about a form, and calls `then`."""
        with self._lock:
            if form in self._waiting:
                self._waiting[form].append((request, then))
                return
            self._waiting[form] = [(request, then)]
            self._threads = self._threads or [_thread(self._try_new), _thread(self._try_slow)]
            full = self._new.qsize() >= MOST_NEW
        if full:
            self._end(form, Busy("many new forms of answers wait to be tried", "try again in a while"))
        else:
            self._new.put(form)

    def _try_new(self) -> None:
        while True:
            form = self._new.get()
            if not self._is_needed(form):
                continue
            if self._find_out(form, False):
                self._end(form)
            elif self._slow.qsize() < MOST_SLOW:
                self._slow.put(form)
            else:
                self._end(form, Busy("many forms that take long wait to be tried", "try again in a while"))

    def _try_slow(self) -> None:
        while True:
            form = self._slow.get()
            if self._is_needed(form):
                self._find_out(form, True)
                self._end(form)

    def _is_needed(self, form: Format) -> bool:
        """Whether anybody waits for it. If not, it is forgotten."""
        with self._lock:
            needed = any(self._is_wanted(request) for request, _ in self._waiting[form])
            if not needed:
                del self._waiting[form]
        return needed

    def _end(self, form: Format, error: Busy | None = None) -> None:
        with self._lock:
            waiting = self._waiting.pop(form)
        for _, then in waiting:
            then(error)


def _thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
