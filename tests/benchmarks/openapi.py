"""Schemathesis over the whole OpenAPI document for minutes: whether any request gets a 5xx, or an answer that
is not as described.

    python tests/benchmarks/openapi.py [SECONDS]

In turns with the document as clients get it, of which most requests are refused for one reason or another,
and with it narrowed to what the demo can answer. Each run asks other things.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from schemathesis import GenerationMode
from serving import Server
from test_openapi import narrowed

MINUTES = 10
EXAMPLES = 60  # for each operation, in each round
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Where the body has more than there may be of something, it may be too large as well.
REFUSALS = "[checks.negative_data_rejection]\nexpected-statuses = [400, 401, 403, 404, 405, 413, 422]\n"


def run(folder: Path, document: str, server: Server, seconds: float, phase: str, checks: str) -> bool:
    """Whether nothing was found. What was is told on the terminal."""
    (folder / "schemathesis.toml").write_text(REFUSALS)
    limits = (
        "--max-time",
        str(max(1, int(seconds))),
        "--max-examples",
        str(EXAMPLES),
        "--continue-on-failure",
    )
    asked = ("--checks", checks, "--phases", phase, "--no-color", "--warnings", "off")
    command = ["schemathesis", "run", document, "--url", server.url, *asked, *limits]
    report = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if report.returncode:
        print("\n".join(line[:300] for line in report.stdout.splitlines()), report.stderr[-2000:])
    return report.returncode == 0


def rounds(folder: Path, server: Server, seconds: float) -> bool:
    """First what is at the edges of the document, then at random, with another seed each time."""
    end = time.monotonic() + seconds
    published = f"{server.url}/openapi.json"
    document = server.ask("GET", "/openapi.json")[1]
    (folder / "narrow.json").write_text(json.dumps(narrowed(document, GenerationMode.POSITIVE)))
    refusing = f"{CHECKS},negative_data_rejection"
    fine = run(folder, published, server, seconds / 3, "coverage", refusing)
    while time.monotonic() < end:
        fine &= run(folder, published, server, end - time.monotonic(), "fuzzing", refusing)
        fine &= run(folder, "narrow.json", server, end - time.monotonic(), "fuzzing", CHECKS)
    return fine


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(
            folder / "home", models=["demo"], engine={"context": 128}, settings={"offline": True}
        ) as server:
            fine = rounds(folder, server, seconds)
            log = server.log.read_text()
    found = Counter(re.findall(r"mdl\.server INFO .* (\d\d\d|gone) \d", log))
    failed = sum(count for status, count in found.items() if status >= "500")
    print(f"{found.total():,} requests, {failed:,} of 5xx or gone, Tracebacks: {log.count('Traceback')}")
    print(", ".join(f"{status}: {count:,}" for status, count in sorted(found.items())))
    return 0 if fine and not failed else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES * 60))
