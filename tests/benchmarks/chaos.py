"""Random commands of several processes on one cache, which are killed at random: what came of them.

    python tests/benchmarks/chaos.py [--seconds 600] [--processes 8] [--seed 20261121]

To reach: no failure. `tests/chaos.py` says what is done and what must hold.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from chaos import Report, chaos


def show(report: Report) -> None:
    print(f"{'operation':20}{'ended with':24}{'times':>8}")
    for (name, outcome), count in sorted(report.outcomes.items()):
        print(f"{name:20}{outcome:24}{count:8,}")
    print(
        f"\n{report.operations:,} operations in {report.seconds:.0f} s by {report.processes} processes, "
        f"{report.kills} of which were killed; {report.versions} new versions; seed {report.seed}"
    )
    if not report.failures:
        print(f"no failure: a true rate below {3 / report.operations:.4%} at 95 %")
    for failure in report.failures:
        print(f"FAILED {failure}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=20261121)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = chaos(Path(folder), wanted.seconds, wanted.processes, wanted.seed)
    show(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
