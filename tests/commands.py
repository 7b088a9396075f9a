"""mdl as a command, with nothing of the user's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Mdl = Callable[..., "subprocess.CompletedProcess[str]"]


def command(folder: Path, **usual: str) -> Mdl:
    """Runs it in a folder where all that it keeps lies, too, in this environment."""

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "MDL_HOME": str(folder / "home"),
            "MDL_CONFIG": str(folder / "config.toml"),
            "MDL_DATA_HOME": str(folder / "data"),
            **usual,
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", "mdl", *arguments],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
