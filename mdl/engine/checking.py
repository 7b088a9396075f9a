"""Grammars are tried in a process of their own first, which may hang, bloat or die of them. Knows no model.

llguidance has limits, but not for all: a list of 100,000 required names ends a process, and there are schemas
of 200 KB that take ten seconds. What has passed here does so elsewhere, as nothing depends much on the model.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from mdl.engine.request import Format
from mdl.errors import EngineError, UsageError

SECONDS = 3.0
SHORT_SECONDS = 0.3  # of the first try: few take as long
IDLE_SECONDS = 60.0

_START = "import sys; sys.path[:] = sys.argv[1:]; from mdl.engine.trial import main; main()"


class Checker:
    """Tries grammars for models of so many tokens, with these control tokens. Used from any thread.

    Its process starts with it, unless it is `lazy`, and again when it is needed after it ended, or was idle
    for a minute.
    """

    def __init__(
        self, size: int, controls: Mapping[str, int], ends: Collection[int], *, lazy: bool = False
    ) -> None:
        self._vocabulary = line([size, dict(controls), sorted(ends)])
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._idle: threading.Timer | None = None
        with suppress(EngineError):
            self._process = None if lazy else self._start()

    def check(self, format: Format, seconds: float = SECONDS) -> None:
        """Takes a moment. Raises UsageError for what cannot be used, or takes too much memory, TimeoutError
        for what takes more than so many seconds; EngineError where no process can be started."""
        with self._lock:
            if self._idle:
                self._idle.cancel()
            if self._process and self._process.poll() is not None:
                self._end()
            process = self._process = self._process or self._start()
            self._await(process)
            wrong = self._ask(process, line([format.kind, format.text]), seconds)
            self._idle = threading.Timer(IDLE_SECONDS, self.close)
            self._idle.daemon = True
            self._idle.start()
        if wrong:
            raise UsageError(wrong)

    def close(self) -> None:
        """Ends its process. A later check starts another one."""
        with self._lock:
            self._end()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Until it is there: how long that takes says nothing about a grammar."""
        if not self._ready and not _pipe(process.stdout).readline():
            self._end()
            raise EngineError("a grammar cannot be tried: the process for it has ended")
        self._ready = True

    def _ask(self, process: subprocess.Popen[bytes], question: bytes, seconds: float) -> str:
        late = threading.Timer(seconds, process.kill)
        late.start()
        try:
            _pipe(process.stdin).write(question)
            _pipe(process.stdin).flush()
            answer = _pipe(process.stdout).readline()
        except OSError:
            answer = b""
        in_time = late.is_alive()
        late.cancel()
        if answer:
            return str(json.loads(answer))
        self._end()
        if not in_time:
            raise TimeoutError
        return "the grammar takes too much memory"

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [*(str(Path(entry).absolute()) for entry in sys.path), str(Path(__file__).parents[2])]
        command = [sys.executable, "-P", "-S", "-c", _START, *paths]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere)
            _pipe(process.stdin).write(self._vocabulary)
            _pipe(process.stdin).flush()
        except OSError as error:
            raise EngineError(f"a grammar cannot be tried: {error.strerror}") from None
        return process

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            _pipe(self._process.stdout).close()
            with suppress(OSError):  # what it has not read cannot be written any more
                _pipe(self._process.stdin).close()
        self._process = None
        self._ready = False


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "opened with PIPE"
    return pipe
