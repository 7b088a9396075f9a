"""How fast an engine is: its cold start, and its tokens per second beside a bare loop around llama_decode.

    python tests/benchmarks/engine.py [MODEL.gguf]

The bare loop does nothing but decode, sample and look for the end, in a process of its own, with the same
model, threads, prompt tokens and sampler. Both take turns; the table has medians. So that the demo's answers
are long, its token that ends one is made into another, in a copy.
"""

import json
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier, Thread
from typing import Any

import mdl
from mdl.engine import Engine
from mdl.engine.request import Chat, Delta, EngineFiles, EngineSettings, Message, Sampling

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
LENGTH = 400
ROUNDS = 9
CHAT = Chat((Message("user", "Tell me a story."),), Sampling(temperature=0, max_tokens=LENGTH))


def endless(model: Path, folder: Path) -> Path:
    """A copy of the model in which the token that ends its answers is an ordinary one."""
    end = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    data = model.read_bytes().replace(end + struct.pack("<I", 2), end + struct.pack("<I", 0))
    copy = folder / "endless.gguf"
    copy.write_bytes(data.replace(b"<|im_end|>", b"<|im_and|>"))
    return copy


def bare(model: Path, prompt: str, threads: int) -> None:
    """Answers each line of stdin with what an answer took after its first token. In a process of its own."""
    from mdl.engine.llama import Runner
    from mdl.engine.native import C

    runner = Runner(EngineFiles(model), EngineSettings(threads=threads))
    context, vocab = runner._context, runner.vocabulary.handle
    tokens = runner.vocabulary.tokenize([prompt])
    batch = C.llama_batch_init(512, 0, 1)
    for _ in sys.stdin:
        C.llama_memory_clear(C.llama_get_memory(context), True)
        sampler = runner.sampler(CHAT.sampling)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 0
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        batch.logits[len(tokens) - 1] = 1
        position, count = len(tokens), 1
        C.llama_decode(context, batch)
        token = C.llama_sampler_sample(sampler, context, -1)
        start = time.perf_counter()
        while count < LENGTH and not C.llama_vocab_is_eog(vocab, token):
            batch.n_tokens, batch.token[0], batch.pos[0], batch.logits[0] = 1, token, position, 1
            C.llama_decode(context, batch)
            token = C.llama_sampler_sample(sampler, context, -1)
            position, count = position + 1, count + 1
        print(json.dumps({"tokens": count - 1, "seconds": time.perf_counter() - start}), flush=True)
        C.llama_sampler_free(sampler)


class Bare:
    def __init__(self, model: Path, prompt: str, threads: int) -> None:
        command = [sys.executable, __file__, "--bare", str(model), prompt, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rate(self) -> float:
        assert self.process.stdin and self.process.stdout
        print("go", file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return float(answer["tokens"] / answer["seconds"])


def one_stream(engine: Engine) -> tuple[float, float]:
    """Tokens per second after the first piece of text, and with everything from the question on."""
    start = time.perf_counter()
    pieces = engine.chat(CHAT)
    next(pieces)
    first = time.perf_counter()
    last = [*pieces][-1]
    end = time.perf_counter()
    assert last.usage is not None
    return (last.usage.completion_tokens - 1) / (end - first), last.usage.completion_tokens / (end - start)


def streams(engine: Engine, count: int) -> float:
    """Tokens per second of all, with everything."""
    ends: list[Delta] = []
    ready = Barrier(count + 1)

    def ask() -> None:
        ready.wait()
        ends.append([*engine.chat(CHAT)][-1])

    threads = [Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(end.usage.completion_tokens for end in ends if end.usage) / (time.perf_counter() - start)


def cold(model: Path) -> dict[str, float]:
    """Milliseconds from nothing to a first token, in the order in which they pass."""
    chat = Chat((Message("user", "What is the capital of France?"),), Sampling(temperature=0))
    start = time.perf_counter()
    with Engine() as engine:
        spawned = time.perf_counter()
        engine.load(EngineFiles(model))
        loaded = engine.ready()
        ready = time.perf_counter()
        answer = engine.chat(chat)
        next(answer)
        first = time.perf_counter()
        list(answer)
        end = time.perf_counter()
    return {
        "spawn": (spawned - start) * 1e3,
        "Python and llama.cpp": (ready - spawned - loaded.seconds) * 1e3,
        "load": loaded.seconds * 1e3,
        "first token": (first - ready) * 1e3,
        "all to the first token": (first - start) * 1e3,
        "all to the last": (end - start) * 1e3,
    }


def table(rows: list[tuple[Any, ...]]) -> None:
    for name, *values in rows:
        print(f"{name:34}" + "".join(f"{value:>12}" for value in values))


def main(model: Path) -> None:
    colds = [cold(model) for _ in range(ROUNDS)]
    print(f"cold start, ms (median of {ROUNDS})")
    table([(name, f"{statistics.median(cold[name] for cold in colds):.1f}") for name in colds[0]])
    with TemporaryDirectory() as folder, Engine() as engine:
        model = endless(model, Path(folder))
        engine.load(EngineFiles(model))
        threads = engine.ready().threads
        loop = Bare(model, engine.render(CHAT), threads)
        runs = [(loop.rate(), *one_stream(engine), streams(engine, 4)) for _ in range(ROUNDS + 1)][1:]
    base = statistics.median(run[0] for run in runs)
    print(f"\ntokens/s, answers of {LENGTH}, {threads} thread(s) (median of {ROUNDS}, and to the bare loop)")
    names = (
        "bare llama_decode loop",
        "engine, after its first piece",
        "engine, all",
        "engine, 4 streams, all",
    )
    for index, name in enumerate(names):
        rate = statistics.median(run[index] for run in runs)
        ratio = statistics.median(run[index] / run[0] for run in runs)
        table([(name, f"{rate:.0f}", f"{rate / base:.3f}", f"{ratio:.3f}")])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main(Path(sys.argv[1]) if sys.argv[1:] else DEMO)
