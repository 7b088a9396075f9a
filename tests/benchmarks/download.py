"""How fast a large file arrives, beside curl and aria2c, from nginx on this machine. Run by hand:

    python tests/benchmarks/download.py [--size 1000] [--rounds 5]
        [--command "mdl download {url} --destination {folder}"]

Needs nginx, curl and aria2c. mdl and the loop verify a sha256, and mdl syncs the file before it ends; the
others do neither. They take turns, so that what else the machine does hits all; ratios are of medians.
"""

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MDL = """
import sys
from pathlib import Path
from mdl.download import Downloader, Expected, Remote
Downloader().fetch("file", Remote(sys.argv[1]), Expected(sha256=sys.argv[3]), Path(sys.argv[2]) / "file")
"""
LOOP = """
import hashlib, sys, urllib.request
digest = hashlib.sha256()
with urllib.request.urlopen(sys.argv[1]) as answer, open(sys.argv[2] + "/file", "wb") as file:
    while data := answer.read(1 << 20):
        file.write(data)
        digest.update(data)
assert digest.hexdigest() == sys.argv[3]
"""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes auto; user {user};
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; root {folder}/www;
    server {{ listen 127.0.0.1:{fast}; }}
    server {{ listen 127.0.0.1:{limited}; limit_rate {rate}m; }}
}}
"""
TOOLS = {
    "mdl": [sys.executable, "-c", MDL, "{url}", "{folder}", "{sha256}"],
    "curl": ["curl", "-s", "-o", "{folder}/file", "{url}"],
    "aria2c -x16": ["aria2c", "-q", "-x16", "-s16", "-k1M", "--file-allocation=none",
                    "-d", "{folder}", "{url}"],
    "python loop": [sys.executable, "-c", LOOP, "{url}", "{folder}", "{sha256}"],
}  # fmt: skip


def main() -> None:
    options = _options()
    if options.command:
        TOOLS["mdl"] = shlex.split(options.command)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sha256 = make_file(folder / "www", options.size * 1_000_000)
        with nginx(folder, options.rate) as (fast, limited):
            table(
                "unlimited",
                ["mdl", "curl", "aria2c -x16", "python loop"],
                fast,
                folder,
                sha256,
                options.rounds,
            )
            title = f"each connection held to {options.rate} MB/s"
            table(title, ["mdl", "aria2c -x16"], limited, folder, sha256, options.rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1000, help="megabytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=20, help="MB/s of one connection in the limited part")
    parser.add_argument("--command", help="what to run instead of the downloader alone")
    parser.add_argument("--folder", help="where the files go (default: the system's temporary folder)")
    return parser.parse_args()


def make_file(folder: Path, size: int) -> str:
    folder.mkdir()
    folder.parent.chmod(0o755)
    digest = hashlib.sha256()
    with (folder / "file").open("wb") as file:
        for _ in range(size // 1_000_000):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@contextlib.contextmanager
def nginx(folder: Path, rate: int) -> Iterator[tuple[str, str]]:
    """Addresses of the file without and with a limit for each connection."""
    ports = [_free_port() for _ in range(2)]
    user = "root" if os.geteuid() == 0 else "nobody"
    text = NGINX.format(folder=folder, user=user, fast=ports[0], limited=ports[1], rate=rate)
    (folder / "nginx.conf").write_text(text)
    server = subprocess.Popen(
        ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(ports[0])
        yield tuple(f"http://127.0.0.1:{port}/file" for port in ports)
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise SystemExit("nginx did not start")


def table(title: str, names: list[str], url: str, folder: Path, sha256: str, rounds: int) -> None:
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds + 1):  # the first is for the caches and not counted
        for name in names:
            runs[name].append(run(TOOLS[name], url, folder / "got", sha256))
    medians = {name: statistics.median(seconds for seconds, _ in runs[name][1:]) for name in names}
    print(f"\n{title}: {(folder / 'www' / 'file').stat().st_size / 1e6:.0f} MB, median of {rounds}\n")
    print(f"{'':14}{'seconds':>9}{'least':>8}{'MB/s':>8}{'peak MB':>9}   mdl is … times as fast")
    for name in names:
        least = min(seconds for seconds, _ in runs[name][1:])
        peak = max(peak for _, peak in runs[name])
        speed = (folder / "www" / "file").stat().st_size / 1e6 / medians[name]
        ratio = medians[name] / medians["mdl"]
        print(f"{name:14}{medians[name]:9.2f}{least:8.2f}{speed:8.0f}{peak:9.0f}   {ratio:.2f}")


def run(command: list[str], url: str, folder: Path, sha256: str) -> tuple[float, float]:
    """Seconds, and the most memory it had in MB."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.sync()  # what the last tool left to the system is not this one's to wait for
    filled = [part.format(url=url, folder=folder, sha256=sha256) if "{" in part else part for part in command]
    started = time.perf_counter()
    child = subprocess.Popen(filled)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command[0]} failed")
    return seconds, usage.ru_maxrss / 1000  # kilobytes on Linux


if __name__ == "__main__":
    main()
