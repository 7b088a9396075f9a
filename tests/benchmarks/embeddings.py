"""Embeddings of 256 short texts by mdl serve and by llama-server: same model, threads, and client.

    python tests/benchmarks/embeddings.py [--models 15M,30M] [--rounds 7] [--threads N] [--slots 4,32]
        [--xllamacpp PYTHON | --llama-server BINARY]

The models are llama's architecture with random weights, pooled at the last token. All servers run at once and
are asked in turns, the first one changing from round to round, for the same new texts of 5 to 20 words: in
one request, with numbers and with base64 in the answer, and in 32 requests at once. llama-server computes as
many texts together as it has slots. The tables have medians in milliseconds, and of each round's ratios to
mdl: above 1, mdl takes less time. The vectors are compared, too: what differs would be no race.
"""

import argparse
import json
import random
import statistics
import struct
import tempfile
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.request import Request, urlopen

import models
import numpy as np
import peers
from platformdirs import user_cache_path

LAST = 3  # enum llama_pooling_type
COUNT, TOGETHER, CONTEXT = 256, 32, 512
WORDS = models.words()
SIZES = {"30M": models.Size(10, 512, 8, 8, 1408, 2048, "Q8_0")}

Vectors = list[Any]


def pooled(name: str, folder: Path) -> Path:
    """The model, which says in its header how it is to be pooled."""
    source = models.make(name, folder)
    path = source.with_stem(f"{source.stem}-last")
    if not path.exists():
        data = source.read_bytes()
        (keys,) = struct.unpack_from("<Q", data, 16)
        added = _key("llama.pooling_type") + struct.pack("<II", 4, LAST)
        room = -(len(added) + len(_key("general.note")) + 12) % 32  # so that the weights stay aligned
        added += _key("general.note") + struct.pack("<IQ", 8, room) + b"." * room
        path.write_bytes(data[:16] + struct.pack("<Q", keys + 2) + added + data[24:])
    return path


def _key(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()


def ask(port: int, texts: list[str], encoding: str = "float") -> Vectors:
    body = {"model": "", "input": texts, "encoding_format": encoding}
    headers = {"Content-Type": "application/json"}
    request = Request(f"http://127.0.0.1:{port}/v1/embeddings", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=peers.PATIENCE) as answer:
        found = sorted(json.loads(answer.read())["data"], key=lambda item: item["index"])
    return [item["embedding"] for item in found]


def at_once(port: int, texts: list[str]) -> Vectors:
    size = len(texts) // TOGETHER
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    with ThreadPoolExecutor(TOGETHER) as threads:
        return [vector for part in threads.map(lambda part: ask(port, part), parts) for vector in part]


WAYS: dict[str, Callable[[int, list[str]], Vectors]] = {
    "one request": ask,
    "one, base64": lambda port, texts: ask(port, texts, "base64"),
    f"{TOGETHER} requests": at_once,
}


def commands(options: argparse.Namespace) -> dict[str, tuple[peers.Command, int]]:
    """How each server is started, and with how many slots."""
    if options.llama_server:
        command = _binary(peers.llama_server(options.llama_server))
    else:
        command = _package(
            peers.xllamacpp(peers.python_with("xllamacpp", peers.XLLAMACPP, options.xllamacpp))
        )
    others = {f"{slots} slots": (command, int(slots)) for slots in options.slots.split(",")}
    return {"mdl": (peers.mdl, 4), **others}


def _binary(command: peers.Command) -> peers.Command:
    return lambda terms, port: [*command(terms, port), "--embeddings", "--kv-unified"]


def _package(command: peers.Command) -> peers.Command:
    start = "server = xllamacpp.Server("
    more = f"params.embedding = params.kv_unified = True\n{start}"
    return lambda terms, port: [part.replace(start, more) for part in command(terms, port)]


def measure(model: Path, threads: int, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by way and server."""
    found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    log = Path(tempfile.mkstemp(suffix=".log", prefix="servers-")[1])
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                peers.running(name, command, peers.Terms(model, threads, CONTEXT, slots), log)
            )
            for name, (command, slots) in commands(options).items()
        ]
        for number in range(options.rounds + 1):
            servers = servers[1:] + servers[:1]
            for way, run in WAYS.items():
                texts = _texts(number)
                vectors = {}
                for server in servers:
                    begin = perf_counter()
                    vectors[server.name] = run(server.port, texts)
                    if number:
                        found[way].setdefault(server.name, []).append(perf_counter() - begin)
                _compare(vectors)
    return found


def _texts(seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(5, 20))) for _ in range(COUNT)]


def _compare(vectors: dict[str, Vectors]) -> None:
    rows = {name: np.array([_numbers(vector) for vector in given]) for name, given in vectors.items()}
    for name, given in rows.items():
        worst = float((given * rows["mdl"]).sum(axis=1).min())
        if worst < 0.999:
            raise SystemExit(f"the vectors of {name} are others: the cosine to mdl's is {worst:.4f}")


def _numbers(vector: Any) -> Any:
    return np.frombuffer(b64decode(vector), "<f4") if isinstance(vector, str) else np.array(vector)


def show(found: dict[str, dict[str, list[float]]]) -> None:
    names = ["mdl", *(name for name in next(iter(found.values())) if name != "mdl")]
    print(f"{'ms':<14}" + "".join(f"{way:>16}" for way in found))
    for name in names:
        print(
            f"{name:<14}" + "".join(f"{statistics.median(found[way][name]) * 1e3:>16,.1f}" for way in found)
        )
    for name in names[1:]:
        ratios = [
            statistics.median(
                theirs / ours for ours, theirs in zip(found[way]["mdl"], found[way][name], strict=True)
            )
            for way in found
        ]
        print(f"{name + '/mdl':<14}" + "".join(f"{ratio:>16.2f}" for ratio in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description="embeddings by mdl serve and by llama-server")
    parser.add_argument("--models", default="15M,30M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", default="4,32")
    parser.add_argument("--xllamacpp", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-server", type=Path, metavar="BINARY")
    parser.add_argument("--folder", type=Path, default=user_cache_path("mdl-benchmarks", appauthor=False))
    options = parser.parse_args()
    models.SIZES |= SIZES
    for name in options.models.split(","):
        model = pooled(name, options.folder)
        print(f"\n# {model.stem}, {options.threads} thread(s)\n")
        show(measure(model, options.threads, options))


if __name__ == "__main__":
    main()
