"""How long it takes to read headers: python tests/benchmarks/header.py [FILE.gguf ...]

To reach: a vocabulary of 150,000 tokens in 0.1 s, a small model in 1 ms.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ggufmaker import F16, MODEL, make, model, vocabulary

import mdl
from mdl import gguf

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"


def best(work: Callable[[], object], rounds: int = 7) -> float:
    """The shortest time in milliseconds: what the work costs when nothing else runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def sizes(folder: Path) -> list[Path]:
    many = [(f"blk.{number}.weight", (32, 2), F16) for number in range(1000)]
    made = {
        "tiny": model(),
        "1000 tensors": make(MODEL, many),
        "32k tokens": make({**MODEL, **vocabulary(32_000, 0)}),
        "150k tokens and merges": make({**MODEL, **vocabulary(150_000, 150_000)}),
        "260k tokens, 500k merges": make({**MODEL, **vocabulary(260_000, 500_000)}),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in made]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'file':34} {'MB':>7} {'read ms':>8} {'facts ms':>8}")
        for path in [DEMO, *sizes(Path(folder)), *map(Path, sys.argv[1:])]:
            header = gguf.read(path)
            took = best(lambda path=path: gguf.read(path)), best(lambda header=header: gguf.facts(header))
            print(f"{path.name:34} {path.stat().st_size / 1e6:7.2f} {took[0]:8.2f} {took[1]:8.2f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
