"""How long a command takes to start, beside the bare interpreter and the same command of other tools.

    python tests/benchmarks/startup.py [--peers FOLDER] [--rounds N]

All of them take turns in one run; the table has the median wall time and its ratio to `python -c pass`. The
others are installed from PyPI into environments of their own in FOLDER, unless they are there already.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEMO = Path(__file__).parents[2] / "mdl" / "models" / "mdl-demo-Q8_0.gguf"
MODELS = 100
PEERS = {  # package: its command that lists models
    "huggingface_hub": ["hf", "cache", "ls"],
    "ramalama": ["ramalama", "ls"],
    "llm": ["llm", "models"],
}


def fill(home: Path) -> None:
    """A cache with 100 models, as downloads leave it."""
    import hashlib

    from mdl.describing import describe
    from mdl.model import File, Model
    from mdl.reference import Reference
    from mdl.store import Store

    store = Store(home, describe)
    content = DEMO.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    partial = store.partial(sha256)
    partial.write_bytes(content)
    store.keep(partial, sha256)
    file = File("model.gguf", len(content), sha256, role="weights")
    for number in range(MODELS):
        store.commit(Model(Reference.parse(f"org/model-{number}:Q8_0"), Path(), (file,), source="benchmark"))


def peers(folder: Path) -> dict[str, list[str]]:
    """The commands of other tools, installed where they are not yet."""
    commands = {}
    for package, (name, *arguments) in PEERS.items():
        place = folder / package
        if not (place / "bin" / name).exists():
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
            subprocess.run([place / "bin" / "pip", "install", "-q", package], check=True)
        commands[" ".join([name, *arguments])] = [str(place / "bin" / name), *arguments]
    return commands


def measure(command: list[str], environment: dict[str, str]) -> float:
    """Milliseconds of wall time."""
    began = time.perf_counter()
    subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    mdl = str(Path(sys.executable).with_name("mdl"))
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "mdl --version": [mdl, "--version"],
        f"mdl list ({MODELS} models)": [mdl, "list"],
        "mdl resolve": [mdl, "resolve", "huggingface.co/org/model-50:Q8_0"],
        'mdl chat demo "…"': [mdl, "chat", "demo", "What is the capital of France?", "--temperature", "0"],
    }
    if arguments.peers:
        commands |= peers(arguments.peers)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        fill(home)
        environment = {
            **os.environ,
            "MDL_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(Path(folder) / "hf"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(arguments.rounds + 1):
            for name, command in commands.items():
                took = measure(command, environment)
                if turn:  # the first one fills the disk's cache
                    times[name].append(took)
    bare = statistics.median(times["python -c pass"])
    print(f"{'command':<24} {'median ms':>10} {'min ms':>8} {'ratio':>7}")
    for name, took in times.items():
        median = statistics.median(took)
        print(f"{name:<24} {median:>10.0f} {min(took):>8.0f} {median / bare:>7.1f}")


if __name__ == "__main__":
    main()
