"""Tests that run side by side: beside one that is marked `alone` no other runs."""

import json
import os
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import turns

TESTS = """
import json, time
from pathlib import Path
import pytest

@pytest.fixture(autouse=True)
def times(request):
    began = time.monotonic()
    yield
    Path(request.node.nodeid.replace("::", "-") + ".json").write_text(json.dumps([began, time.monotonic()]))

@pytest.mark.parametrize("number", range(6))
def test_beside(number):
    time.sleep(0.3)

@pytest.mark.alone
@pytest.mark.parametrize("number", range(2))
def test_alone(number):
    time.sleep(0.3)
"""


def test_no_test_runs_beside_one_that_wants_to_be_alone_and_others_do(tmp_path: Path) -> None:
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = -p no:cacheprovider -p no:schemathesis\nmarkers = alone\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "turns", "-n2", "--dist", "loadgroup"]
    shutil.copy(turns.__file__, tmp_path)  # it takes turns by where it lies, and this test has its turn
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout
    times = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(times) == 16
    at_once = [
        (one, other)
        for one, other in combinations(times, 2)
        if times[one][0] < times[other][1] and times[other][0] < times[one][1]
    ]
    assert at_once, "none ran side by side"
    assert max(times, key=lambda name: times[name]).count("alone") == 1, "they come last"
    assert not [pair for pair in at_once if any("alone" in name for name in pair)]
