"""How fast a model comes from a registry, beside skopeo and oras-py, from Debian's docker-registry on this
machine; and what the same content from a second source costs. Run by hand:

    python tests/benchmarks/pull.py [--size 1000] [--layers 4] [--rounds 5]

Needs docker-registry and skopeo. mdl and skopeo verify every digest, oras-py none; mdl alone syncs what it
keeps. `curl` with sha256sum beside it, all layers at once, is what a shell can do. They take turns, so that
what else the machine does hits all; ratios are of pairs.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
import ggufmaker
from registry import MANIFEST, Front, Registry, titled

ORAS = """
import sys
from oras.client import OrasClient
OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])
"""
CURL = "for url in {urls}; do curl -s $url | tee {folder}/${url##*:} | sha256sum >/dev/null & done; wait"
MDL = [sys.executable, "-m", "mdl", "download", "-q"]


class Run(NamedTuple):
    """Seconds of wall and of processor, and the most memory of one process in MB."""

    wall: float
    processor: float
    peak: float


def main() -> None:
    options = _options()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        Registry(Path(name) / "registry") as registry,
    ):
        filling = multiprocessing.get_context("fork").Process(
            target=fill, args=(registry, options.size * 1_000_000, options.layers)
        )  # in a process of its own: what this one has had in memory counts as that of its children
        filling.start()
        filling.join()
        compare(commands(registry), Path(name) / "got", options.rounds)
        second_source(registry, Path(name) / "twice")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1000, help="megabytes of all layers")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the files go (default: the system's temporary folder)")
    return parser.parse_args()


def fill(registry: Registry, size: int, count: int) -> None:
    """Push a split model of random weights, to two places."""
    header = ggufmaker.model()
    layers = [
        titled(f"model-{number:05}-of-{count:05}.gguf", header + os.urandom(size // count - len(header)))
        for number in range(1, count + 1)
    ]
    registry.push("bench/model", "v1", layers)
    registry.push("other/name", "v2", layers)


def commands(registry: Registry) -> dict[str, list[str]]:
    reference = f"{registry.host}/bench/model:v1"
    manifest = registry.request("GET", "/v2/bench/model/manifests/v1", headers={"Accept": MANIFEST})[2]
    digests = [layer["digest"] for layer in json.loads(manifest)["layers"]]
    urls = " ".join(f"{registry.url}/v2/bench/model/blobs/{digest}" for digest in digests)
    found = {
        "mdl": [*MDL, f"oci://{reference}"],
        "skopeo": [
            "skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", "dir:{folder}/dir",
        ],
        "curl": ["bash", "-c", CURL.replace("{urls}", urls)],
    }  # fmt: skip
    if importlib.util.find_spec("oras"):
        found["oras-py"] = [sys.executable, "-c", ORAS, reference, "{folder}"]
    return found


def compare(tools: dict[str, list[str]], folder: Path, rounds: int) -> None:
    runs: dict[str, list[Run]] = {name: [] for name in tools}
    for _ in range(rounds + 1):  # the first is for the caches and not counted
        for name, command in tools.items():
            runs[name].append(run(command, folder))
    print(f"{'':10}{'seconds':>9}{'least':>8}{'CPU s':>8}{'peak MB':>9}   mdl is … times as fast")
    for name, found in runs.items():
        walls = [one.wall for one in found[1:]]
        ratio = statistics.median(
            other.wall / own.wall for other, own in zip(found[1:], runs["mdl"][1:], strict=True)
        )
        processor, peak = (
            statistics.median(one.processor for one in found[1:]),
            max(one.peak for one in found),
        )
        wall = statistics.median(walls)
        print(f"{name:10}{wall:9.2f}{min(walls):8.2f}{processor:8.2f}{peak:9.0f}   {ratio:.2f}")


def run(command: list[str], folder: Path, home: Path | None = None) -> Run:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()  # what the last tool left to the system is not this one's to wait for
    started = time.perf_counter()
    child = subprocess.Popen(
        [part.replace("{folder}", str(folder)) for part in command],
        env={**os.environ, "MDL_HOME": str(home or folder / "home")},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command[0]} failed")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)  # kilobytes on Linux


def second_source(registry: Registry, folder: Path) -> None:
    """Get the model, then what has the same content elsewhere, past a front that sees every request."""
    home = folder.with_name("home")
    run([*MDL, f"oci://{registry.host}/bench/model:v1"], folder, home)
    with listening(registry) as front:
        took = run([*MDL, f"oci://{front.host}/other/name:v2"], folder, home)
        asked = front.requests("/blobs/")
    used = sum(path.stat().st_size for path in (home / "blobs").rglob("*") if path.is_file())
    print(f"\nthe same content from a second registry: {len(asked)} requests for contents, 0 bytes of them;")
    print(f"{took.wall:.2f} s; {used / 1e6:.0f} MB in the cache for both")
    if asked:
        raise SystemExit(f"contents were asked for: {[seen.path for seen in asked]}")


@contextlib.contextmanager
def listening(registry: Registry) -> Iterator[Front]:
    with Front(registry) as front:
        front.now.private = False
        yield front


if __name__ == "__main__":
    main()
