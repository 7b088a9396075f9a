"""Tokens per second through `mdl serve`, beside the engine alone and a bare loop around llama_decode.

    python tests/benchmarks/serve.py [MODEL.gguf]

All take turns on the same model, threads, prompt and greedy sampling; the table has medians, and ratios to
the bare loop. The client is a socket that reads server-sent events and looks at nothing but where they end,
so that what is measured is the server. "after the first piece" leaves out the prompt, as the bare loop
does; "all" is what a client waits for. To reach: 0.95 for one stream.
"""

import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread

from engine import CHAT, DEMO, LENGTH, Bare, endless, one_stream, table

from mdl.engine import Engine
from mdl.engine.request import EngineFiles, EngineSettings

ROUNDS = 15
STREAMS = 8
_SERVE = """
import sys
from pathlib import Path
from mdl.config import Settings
from mdl.engine.request import EngineSettings
from mdl.library import Library
from mdl.server.options import ServeOptions
from mdl.server.run import serve
options = ServeOptions(port=0, models=(sys.argv[1],), engine=EngineSettings(parallel=8))
serve(Library(Settings(Path(sys.argv[2]))), options, lambda url: print(url, flush=True))
"""


@contextmanager
def served(model: Path, home: Path) -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, "-c", _SERVE, str(model), str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline().rpartition(":")[2])
        process.send_signal(signal.SIGTERM)


def request() -> bytes:
    message = {"role": "user", "content": CHAT.messages[0].content}
    wanted = {"stream": True, "temperature": 0, "max_tokens": LENGTH, "messages": [message]}
    body = json.dumps(wanted).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def ask(port: int) -> tuple[float, float, float]:
    """When it was asked, when the first piece came, when the last."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.perf_counter()
        connection.sendall(request())
        heard, first = b"", 0.0
        while b"[DONE]" not in heard[-200:]:
            heard += connection.recv(1 << 16)
            first = first or time.perf_counter()
        end = time.perf_counter()
    assert b'"finish_reason":"length"' in heard, heard
    return start, first, end


def one(port: int) -> tuple[float, float]:
    """Tokens per second after the first piece, and of all."""
    start, first, end = ask(port)
    return (LENGTH - 1) / (end - first), LENGTH / (end - start)


def many(port: int) -> float:
    """Tokens per second of all streams together."""
    barrier = Barrier(STREAMS + 1)

    def client() -> None:
        barrier.wait()
        ask(port)

    threads = [Thread(target=client) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return STREAMS * LENGTH / (time.perf_counter() - start)


def main(model: Path) -> None:
    with TemporaryDirectory() as folder, Engine() as engine:
        model = endless(model, Path(folder))
        engine.load(EngineFiles(model), EngineSettings(parallel=8))
        threads = engine.ready().threads
        loop = Bare(model, engine.render(CHAT), threads)
        with served(model, Path(folder)) as port:
            runs = [(loop.rate(), *one_stream(engine), *one(port), many(port)) for _ in range(ROUNDS + 1)][1:]
    print(
        f"tokens/s, answers of {LENGTH}, {threads} thread(s) (median of {ROUNDS}, range, ratio to the loop)"
    )
    names = (
        "bare llama_decode loop",
        "engine, after its first piece",
        "engine, all",
        "mdl serve, after the first piece",
        "mdl serve, all",
        f"mdl serve, {STREAMS} streams, all",
    )
    for index, name in enumerate(names):
        rates = [run[index] for run in runs]
        ratio = statistics.median(run[index] / run[0] for run in runs)
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        table([(name, f"{statistics.median(rates):.0f}", spread, f"{ratio:.3f}")])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else DEMO)
