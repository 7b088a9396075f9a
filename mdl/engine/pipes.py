"""The pipes of a process that holds a model: lines from its parent, and to it. Knows not what they say.

The process ends when its standard input does, by the hand of the thread that reads it, even in the middle of
a step.
"""

import os
import threading
import traceback
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from mdl.engine import wire

BUG = 70  # exit code; 1 is what the watchdog of templates ends with


class Pipes:
    """Lines from the parent, and to it. What libraries print goes to stderr, so that it breaks no message."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[wire.Wire] = SimpleQueue()
        self._out = os.dup(1)
        os.dup2(2, 1)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            with os.fdopen(0, "rb", closefd=False) as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # the parent was killed in the middle of a message
                    self.inbox.put(wire.parse(line))
        except Exception:  # noqa: BLE001 - nobody would hear the parent any more
            with suppress(OSError):  # nor may there be anybody who reads this
                traceback.print_exc()
            os._exit(BUG)
        os._exit(0)  # the parent has closed the pipe, or is no more

    def send(self, **message: Any) -> None:
        data = memoryview(wire.line(message))
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            os._exit(0)  # nobody is there to read
