"""Grammars are tried in a process of their own first, which may hang, bloat or die of them. Knows no model.

llguidance has limits, but not for all: a list of 100,000 required names ends a process, and there are schemas
of 200 KB that take ten seconds. What has passed here does so elsewhere, as nothing depends much on the model.
"""

import faulthandler
import json
import random
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mdl.engine.request import Format
from mdl.errors import EngineError, MdlError, UsageError

SECONDS = 3.0
SHORT_SECONDS = 0.3  # of the first try: few take as long
MEMORY = 1 << 30
STACK = 1 << 20  # a small one: what fits into it fits everywhere
STEPS = 64
IDLE_SECONDS = 60.0

_START = "import sys; sys.path[:] = sys.argv[1:]; from mdl.engine.checking import main; main()"


class Checker:
    """Tries grammars for models of so many tokens, with these control tokens. Used from any thread.

    Its process starts with it, unless it is `lazy`, and again when it is needed after it ended, or was idle
    for a minute.
    """

    def __init__(
        self, size: int, controls: Mapping[str, int], ends: Collection[int], *, lazy: bool = False
    ) -> None:
        self._vocabulary = _line([size, dict(controls), sorted(ends)])
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
            wrong = self._ask(process, _line([format.kind, format.text]), seconds)
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


def _line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "opened with PIPE"
    return pipe


# In the process


def main() -> None:
    _bound_memory()
    threading.stack_size(STACK)
    thread = threading.Thread(target=_answer, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


def _bound_memory() -> None:
    """Not on Windows, which has no such limit, and not on macOS, which does not keep it."""
    with suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _answer(questions: IO[bytes], answers: IO[bytes]) -> None:
    tokenizer, letters = _vocabulary(*json.loads(questions.readline()))
    answers.write(_line("ready"))
    answers.flush()
    for question in questions:
        # By the hand of the parent if it is there: this is for the case that it is not.
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        wrong = _tried(tokenizer, letters, Format(*json.loads(question)))
        faulthandler.cancel_dump_traceback_later()
        answers.write(_line(wrong))
        answers.flush()


def _vocabulary(size: int, controls: Mapping[str, int], ends: list[int]) -> tuple[Any, dict[int, int]]:
    """Of bytes and the control tokens, which have their own numbers; and the bytes by number."""
    from mdl.engine.grammar import vocabulary

    taken = {*controls.values(), *ends}
    letters = dict(
        zip((token for token in range(size + 256) if token not in taken), range(256), strict=False)
    )
    pieces = [b""] * max(size, *letters, *ends)
    pieces += [b""]
    for token, letter in letters.items():
        pieces[token] = bytes([letter])
    for text, token in controls.items():
        pieces[token] = text.encode()
    numbers = list(letters)
    return vocabulary(pieces, controls, ends, lambda text: [numbers[letter] for letter in text]), letters


def _tried(tokenizer: Any, letters: Iterable[int], format: Format) -> str:
    """What is wrong; nothing if it compiles, and lets itself be followed for some bytes."""
    from mdl.engine.grammar import compiled, complaint

    try:
        matcher = compiled(tokenizer, format)
    except MdlError as error:
        return error.message
    chance = random.Random(0)
    for _ in range(STEPS):
        mask = matcher.compute_bitmask()
        allowed = [token for token in letters if mask[token >> 3] >> (token & 7) & 1]
        if matcher.is_error():
            return complaint(matcher)
        if not allowed:  # the end, or a control token
            break
        matcher.consume_token(chance.choice(allowed))
    return ""
