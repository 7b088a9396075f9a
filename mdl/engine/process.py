"""A worker as its parent sees it: started, written to, read, and its end explained. Knows no requests.

Nothing here blocks the caller: one thread writes, one reads messages, one keeps the last lines of stderr.
"""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from mdl.engine import wire
from mdl.errors import EngineError

# Where it was and with what, as faulthandler writes it.
_TELLS_NOTHING = re.compile(r'\s*($|File "|(Current t|T)hread 0x|Extension modules: )')
_START = "import sys; sys.path[:] = sys.argv[1:]; from mdl.engine.worker import main; main()"

# Ctrl-C in a terminal goes to the group in its foreground: the worker is in one of its own.
_OWN_GROUP: dict[str, Any] = {"process_group": 0}
if sys.platform == "win32":
    _OWN_GROUP = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}


class Process:
    """`heard` is called with each message and `ended` once, with the exit status, both from the reader
    thread."""

    def __init__(self, heard: Callable[[wire.Wire], None], ended: Callable[["Process", int], None]) -> None:
        # -P and -S: the worker finds modules where its parent does, so the current folder and `site` are not
        # asked.
        command = [sys.executable, "-P", "-S", "-c", _START, *_search_path()]
        pipe = subprocess.PIPE
        try:
            self._popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **_OWN_GROUP)
        except OSError as error:
            raise EngineError(f"the engine cannot be started: {error.strerror}") from None
        self.pid = self._popen.pid
        self._heard = heard
        self._ended = ended
        self._outbox: SimpleQueue[wire.Wire | None] = SimpleQueue()
        self._last_words = ""
        self._listener = self._thread(self._listen)
        self._reader = self._thread(self._read)
        self._thread(self._write)

    def send(self, message: wire.Wire) -> None:
        """Written soon, in order; dropped when the worker is dead, which `ended` tells."""
        self._outbox.put(message)

    def close(self, patience: float = 1.0) -> None:
        """The end of its input ends a worker at once; one that does not see it is terminated, then killed."""
        self._outbox.put(None)
        for last_resort in (self._popen.terminate, self._popen.kill, lambda: None):
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(patience)
                break
            last_resort()
        if threading.current_thread() is not self._reader:
            self._reader.join(patience)

    def death(self, status: int) -> str:
        """How it ended, in a line, with the last thing that it said."""
        words = " ".join(self._last_words.split())
        said = re.sub(r"\S*/(?=[^/\s]+:\d+:)", "", words)  # without the folders of a build
        return f"{_how(status)}: {said[:300]}" if said else _how(status)

    def _thread(self, task: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=task, name=f"mdl-engine-{self.pid}{task.__name__}", daemon=True)
        thread.start()
        return thread

    def _write(self) -> None:
        stdin = _pipe(self._popen.stdin)
        with suppress(OSError), stdin:
            while (message := self._outbox.get()) is not None:
                stdin.write(wire.line(message))
                stdin.flush()

    def _read(self) -> None:
        with _pipe(self._popen.stdout) as stdout:
            try:
                for line in stdout:
                    self._heard(wire.parse(line))
            except Exception as error:  # noqa: BLE001 - not to be understood is the end of a worker, not of this
                self._last_words = f"not understood: {error!r}"
        try:
            status = self._popen.wait(1.0)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        self._listener.join(1.0)
        self._outbox.put(None)
        self._ended(self, status)

    def _listen(self) -> None:
        with _pipe(self._popen.stderr) as stderr:
            while line := stderr.readline(4096):
                words = line.decode("utf-8", "replace")
                if not _TELLS_NOTHING.match(words):
                    self._last_words = words


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "opened with PIPE"
    return pipe


def _search_path() -> list[str]:
    """The parent's, with its own place last, for installations that are found by import hooks."""
    paths = [str(Path(entry).absolute()) for entry in sys.path]
    return [*paths, str(Path(__file__).parents[2])]


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
