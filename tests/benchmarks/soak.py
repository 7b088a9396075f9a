"""Clients of all kinds for minutes or hours: what a server's memory does meanwhile, and what went wrong.

    python tests/benchmarks/soak.py [SECONDS]

They ask in all ways that tests/fire.py knows, of the demo, whose answers are checked. A line each tenth of
the time has the memory of the server and its worker (PSS), their open files and threads.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from fire import Soak
from serving import Server, children

MINUTES = 2


class Growth(NamedTuple):
    """Of a server and its workers; `memory` in bytes."""

    memory: int
    files: int
    threads: int


def growth(pid: int) -> Growth:
    processes = [Path(f"/proc/{each}") for each in (pid, *children(pid))]
    lines = [line for each in processes for line in (each / "smaps_rollup").read_text().splitlines()]
    return Growth(
        sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")),
        sum(len([*(each / "fd").iterdir()]) for each in processes),
        sum(len([*(each / "task").iterdir()]) for each in processes),
    )


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "home") as server:
        soak = Soak(server.port, seed=1)
        start = time.monotonic()
        for part in range(11):
            now = growth(server.process.pid)
            print(
                f"{time.monotonic() - start:6.0f} s  {sum(soak.kinds.values()):8,} requests  "
                f"{now.memory / 1e6:8.1f} MB  {now.files:4} files  {now.threads:4} threads",
                flush=True,
            )
            if part < 10:
                asyncio.run(soak.run(seconds / 10))
        print("asked:", ", ".join(f"{count:,} {kind}" for kind, count in sorted(soak.kinds.items())))
        print(f"wrong: {len(soak.wrong)}", *soak.wrong[:5], sep="\n  ")
        print("tracebacks in the log:", server.log.read_text().count("Traceback"))


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else MINUTES * 60)
