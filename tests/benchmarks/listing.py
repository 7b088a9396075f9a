"""What a large cache costs: `mdl list` and `mdl resolve` with 10 and with 10,000 versions.

    python tests/benchmarks/listing.py [VERSIONS]

Processes of their own, taking turns; medians of wall time in milliseconds, and ratios. To reach: a full
reference is resolved as fast in the large cache as in the small one, and the list takes at most 2 s.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import mdl
from mdl.config import Settings
from mdl.library import Library
from mdl.model import METADATA_NAME

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
VERSIONS = 5  # of each model
ROUNDS = 7
FULL, SHORT = "huggingface.co/org0/model0-GGUF:v0", "model0-GGUF:v0"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "mdl list, first": ["-m", "mdl", "list"],
    "mdl list": ["-m", "mdl", "list"],
    "mdl list --versions --json": ["-m", "mdl", "list", "--versions", "--json"],
    "mdl resolve, full name": ["-m", "mdl", "resolve", FULL],
    "mdl resolve, short name": ["-m", "mdl", "resolve", SHORT],
}


def fill(home: Path, count: int) -> None:
    """A cache of so many versions that share one content, as downloads leave it."""
    made = Library(Settings(home)).download(f"file://{DEMO}")
    record = (made.folder / METADATA_NAME).read_text()
    for number in range(count):
        model, version = divmod(number, VERSIONS)
        reference = f"huggingface.co/org{model % 50}/model{model}-GGUF:v{version}"
        folder = home / "models" / reference.replace(":", "/")
        folder.mkdir(parents=True)
        (folder / METADATA_NAME).write_text(record.replace(str(made.reference), reference, 1))
        os.link(made.folder / DEMO.name, folder / DEMO.name)
    Library(Settings(home)).store.remove(made)


def took(command: Sequence[str], home: Path) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    environment = {**os.environ, "MDL_HOME": str(home)}
    subprocess.run([sys.executable, *command], env=environment, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    return 1000 * (time.perf_counter() - start)


def measure(homes: dict[int, Path]) -> dict[tuple[str, int], float]:
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            for count, home in homes.items():
                if name.endswith("first"):
                    (home / "index.json").unlink(missing_ok=True)
                times.setdefault((name, count), []).append(took(command, home))
    return {key: statistics.median(found) for key, found in times.items()}


def main() -> None:
    large = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        homes = {count: Path(folder) / str(count) for count in (10, large)}
        for count, home in homes.items():
            fill(home, count)
        medians = measure(homes)
    print(f"{'wall ms':28}{'10':>8}{large:>9,}{'ratio':>8}{'to python':>11}")
    for name in COMMANDS:
        small, big = medians[name, 10], medians[name, large]
        print(
            f"{name:28}{small:8.0f}{big:9.0f}{big / small:8.2f}{big / medians['python -c pass', large]:11.1f}"
        )


if __name__ == "__main__":
    main()
