"""What .ci/run adds to `pytest`: a skipped test is a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parent.parent / ".ci"
PASSES = "def test_passes(): pass\n"
SKIPS = {
    "a test": "import pytest\n@pytest.mark.skip(reason='why')\ndef test_skipped(): pass\n",
    "in a test": "import pytest\ndef test_skipped(): pytest.skip('why')\n",
    "a module": "import pytest\npytest.skip('why', allow_module_level=True)\n",
    "a module for want of a package": "import pytest\npytest.importorskip('no_such_package')\n",
}


@pytest.fixture(params=["-n0", "-n2"], ids=["alone", "side by side"])
def processes(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def outcome(tmp_path: Path, processes: str, **modules: str) -> int:
    """How pytest ends over test modules, as .ci/run calls it."""
    for name, text in modules.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -p no:schemathesis\n")
    environment = {**os.environ, "PYTHONPATH": str(CI), "PYTEST_ADDOPTS": "-p no_skips"}
    command = [sys.executable, "-m", "pytest", "-q", processes]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60).returncode


def test_tests_that_pass_pass(tmp_path: Path, processes: str) -> None:
    assert outcome(tmp_path, processes, passes=PASSES) == 0


@pytest.mark.parametrize("what", SKIPS)
def test_a_skip_fails(what: str, tmp_path: Path, processes: str) -> None:
    assert outcome(tmp_path, processes, passes=PASSES, skips=SKIPS[what]) == 1


def test_the_script_is_one_that_bash_reads_and_may_run() -> None:
    assert os.access(CI / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", CI / "run"], timeout=30).returncode == 0
