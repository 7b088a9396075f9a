"""`python -m mdl` and the `mdl` script."""

import contextlib
import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. What a shell asks for completion is answered without starting the rest."""
    _open_closed_streams()
    gc.set_threshold(100_000)  # starting up makes many objects and no garbage: a tenth of the time saved
    try:
        _leave(_run())
    except KeyboardInterrupt:  # while it was still being imported
        _leave(130)


def _run() -> int:
    if sys.argv[1:2] == ["__complete"]:
        from mdl.complete import complete

        return complete(sys.argv[2:])
    from mdl.cli import run

    return run()


def _leave(code: int) -> NoReturn:
    """End at once. All is closed and written by now; taking the interpreter apart costs 10 ms more."""
    with contextlib.suppress(OSError, ValueError):  # closed meanwhile
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _open_closed_streams() -> None:
    """What was closed (`2>&-`) leads nowhere from now on. Otherwise the next file that is opened would get
    its number, and what an allocator or llama.cpp says there would be written into a model."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            # Standard output as one that refuses: data that nobody gets are an error.
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            setattr(sys, name, os.fdopen(_at(number, os.open(os.devnull, flags)), mode, closefd=False))


def _at(number: int, descriptor: int) -> int:
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    return number


if __name__ == "__main__":
    main()
