"""Draws the README's picture: real commands in a real terminal (tmux), against the tests' stand-in hub.

python .github/picture.py      writes .github/terminal.svg
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hub import Hub  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

COLUMNS, ROWS = 96, 30
STEPS = (  # what is typed, and the seconds that it takes
    ("mdl download org/demo-GGUF:q8_0", 4.0),
    ("mdl list", 1.0),
    ('mdl chat demo-GGUF "What is the capital of France?"', 2.0),
    ("mdl chat --model demo-GGUF", 2.0),
    ("My name is Ada.", 1.5),
    ("What is my name?", 1.5),
    ("/bye", 1.0),
    ('echo "What is 7 plus 5?" | mdl chat demo-GGUF --stats', 2.0),
)


def tmux(*arguments: str) -> str:
    return subprocess.run(
        ["tmux", "-L", "mdl-picture", *arguments], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    demo = (ROOT / "mdl/models/mdl-demo-Q8_0.gguf").read_bytes()
    with Hub() as hub, tempfile.TemporaryDirectory() as home:
        hub.add(
            "org/demo-GGUF",
            {"demo-Q8_0.gguf": demo, "demo-Q4_K_M.gguf": demo[:1024], "LICENSE": b"MIT License\n"},
        )
        variables = {"PS1": "$ ", "MDL_HOME": f"{home}/mdl", "MDL_DATA_HOME": home, "HF_ENDPOINT": hub.url}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = [
            "env",
            f"PATH={path}",
            *(f"{name}={value}" for name, value in variables.items()),
            "bash",
            "--norc",
        ]
        tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), *shell)
        try:
            time.sleep(1)
            for text, seconds in STEPS:
                tmux("send-keys", "-l", text)
                tmux("send-keys", "Enter")
                time.sleep(seconds)
            drawn = tmux("capture-pane", "-p", "-e").replace(f"{home}/mdl", "~/.cache/mdl").rstrip()
        finally:
            tmux("kill-server")
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text.from_ansi(drawn.removesuffix("$").rstrip()))
        console.save_svg(str(ROOT / ".github/terminal.svg"), title="mdl")


if __name__ == "__main__":
    main()
