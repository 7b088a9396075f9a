"""Servers side by side, each in a process of its own, under the same terms: mdl serve, llama-server, and
llama-cpp-python's own.

llama-server comes as the package xllamacpp, which runs it in-process, or as a binary: the package's is built
for any x86-64 with AVX2, so that on a machine that knows more a binary that was built there tells more about
servers and less about compilers.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_cache_path

BATCH = 512
PATIENCE = 300.0  # seconds for a server to load its model


class Terms(NamedTuple):
    """What all of them are told. `context` is for one request."""

    model: Path
    threads: int
    context: int
    parallel: int


class Running(NamedTuple):
    name: str
    port: int
    pid: int


Command = Callable[[Terms, int], list[str]]

_MDL = """
import json, sys
from pathlib import Path
from mdl.config import Settings
from mdl.engine.request import EngineSettings
from mdl.library import Library
from mdl.server.options import ServeOptions
from mdl.server.run import serve
model, port, settings = sys.argv[1], int(sys.argv[2]), EngineSettings(**json.loads(sys.argv[3]))
options = ServeOptions(port=port, models=(model,), engine=settings, idle_seconds=None)
serve(Library(Settings(Path(model).parent / "home")), options, lambda url: None)
"""

_XLLAMACPP = """
import json, sys, time
import xllamacpp
model, port, terms = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = model, ["127.0.0.1"], port
params.n_ctx, params.n_parallel = terms["context"] * terms["parallel"], terms["parallel"]
params.n_batch = params.n_ubatch = terms["batch"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = terms["threads"]
params.n_gpu_layers = 0
params.verbosity = 0
server = xllamacpp.Server(params)
time.sleep(1e6)
"""


def mdl(terms: Terms, port: int) -> list[str]:
    settings = {
        "context": terms.context,
        "threads": terms.threads,
        "parallel": terms.parallel,
        "batch": BATCH,
        "gpu_layers": 0,
    }
    return [sys.executable, "-c", _MDL, str(terms.model), str(port), json.dumps(settings)]


def xllamacpp(python: Path) -> Command:
    def command(terms: Terms, port: int) -> list[str]:
        told = terms._asdict() | {"model": "", "batch": BATCH}
        return [str(python), "-c", _XLLAMACPP, str(terms.model), str(port), json.dumps(told)]

    return command


def llama_server(binary: Path) -> Command:
    def command(terms: Terms, port: int) -> list[str]:
        options = {
            "--model": terms.model,
            "--host": "127.0.0.1",
            "--port": port,
            "--ctx-size": terms.context * terms.parallel,
            "--parallel": terms.parallel,
            "--batch-size": BATCH,
            "--ubatch-size": BATCH,
            "--threads": terms.threads,
            "--threads-batch": terms.threads,
            "--gpu-layers": 0,
        }
        return [str(binary), *(str(part) for pair in options.items() for part in pair)]

    return command


def llama_cpp(python: Path) -> Command:
    def command(terms: Terms, port: int) -> list[str]:
        options = {
            "--model": terms.model,
            "--port": port,
            "--n_ctx": terms.context,
            "--n_batch": BATCH,
            "--n_threads": terms.threads,
            "--n_threads_batch": terms.threads,
            "--n_gpu_layers": 0,
            "--logits_all": False,  # logits of the whole prompt, which nobody asks for here
            "--use_mlock": False,
            "--flash_attn": True,  # the others take it by themselves
            "--verbose": False,
            "--interrupt_requests": False,  # or each request ends the one before
        }
        return [
            str(python),
            "-m",
            "llama_cpp.server",
            *(str(part) for pair in options.items() for part in pair),
        ]

    return command


@contextmanager
def running(name: str, command: Command, terms: Terms, log: Path) -> Iterator[Running]:
    """A server that answers."""
    port = _free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(command(terms, port), stdout=output, stderr=output)
    try:
        _wait(process, port, log)
        yield Running(name, port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Until its list of models can be had, which is when the model is loaded."""
    from urllib.error import URLError
    from urllib.request import urlopen

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"it has ended: {process.args!r:.80}\n{log.read_text(errors='replace')[-2000:]}")
        with suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"it did not start in time: {process.args!r:.80}")


# The others' packages, in environments of their own

XLLAMACPP = ("xllamacpp",)
LLAMA_CPP = (
    "llama-cpp-python",
    "uvicorn",
    "fastapi",
    "pydantic-settings",
    "starlette-context",
    "sse-starlette",
    "PyYAML",
)


def python_with(name: str, packages: tuple[str, ...], given: Path | None) -> Path:
    """An interpreter that has the packages: the one that was given, or one that is made once."""
    if given is not None:
        return given
    folder = user_cache_path("mdl-benchmarks", appauthor=False) / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").exists():
        print(f"installing {packages[0]} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "complete").touch()
    return python


# Memory


class Memory(NamedTuple):
    """Bytes of a server and its workers. Pages that several share are counted by parts (PSS)."""

    all: int
    model: int  # pages of the model's file

    @property
    def beyond(self) -> int:
        return self.all - self.model


def memory(pid: int, model: Path) -> Memory:
    processes = [pid, *_descendants(pid)]
    whole = sum(_sum(Path(f"/proc/{each}/smaps_rollup").read_text()) for each in processes)
    mapped = sum(_of_file(Path(f"/proc/{each}/smaps").read_text(), str(model)) for each in processes)
    return Memory(whole, mapped)


def _sum(smaps: str) -> int:
    return sum(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Pss:")) << 10


def _of_file(smaps: str, path: str) -> int:
    """Of the mappings of that file: a line that ends with its path begins each."""
    total, inside = 0, False
    for line in smaps.splitlines():
        if line.split(" ", 1)[0][-1:] != ":":
            inside = line.endswith(path)
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) << 10
    return total


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def say(port: int, body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer, not streamed."""
    from urllib.request import Request, urlopen

    headers = {"Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=PATIENCE) as answer:
        return dict(json.loads(answer.read()))
