"""The least that a generation can be: decode, take the likeliest token, again. Nothing of mdl's.

As a process: `bare.py MODEL THREADS CONTEXT PROMPT LENGTH`; each line of its input gets the tokens per second
after the first one.
"""

import ctypes
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self


class Bare:
    def __init__(self, model: Path, threads: int, context: int, prompt: str, length: int) -> None:
        command = [sys.executable, __file__, str(model), str(threads), str(context), prompt, str(length)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def rate(self) -> float:
        assert self._process.stdin and self._process.stdout
        print(file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def load(path: str, threads: int, cells: int) -> tuple[Any, Any]:
    """The context, and the model's vocabulary."""
    import llama_cpp as c

    c.llama_backend_init()
    settings = c.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = c.llama_model_load_from_file(path.encode(), settings)
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = cells, 512, 512
    params.n_threads = params.n_threads_batch = threads
    return c.llama_init_from_model(model, params), c.llama_model_get_vocab(model)


def rate(context: Any, tokens: Any, length: int) -> float:
    import llama_cpp as c

    c.llama_memory_clear(c.llama_get_memory(context), True)
    sampler = c.llama_sampler_init_greedy()
    c.llama_decode(context, c.llama_batch_get_one(tokens, len(tokens)))
    one = (c.llama_token * 1)(c.llama_sampler_sample(sampler, context, -1))
    start = time.perf_counter()
    for _ in range(length - 1):
        c.llama_decode(context, c.llama_batch_get_one(one, 1))
        one[0] = c.llama_sampler_sample(sampler, context, -1)
    seconds = time.perf_counter() - start
    c.llama_sampler_free(sampler)
    return (length - 1) / seconds


def main(path: str, threads: int, cells: int, prompt: str, length: int) -> None:
    import llama_cpp as c

    context, vocabulary = load(path, threads, cells)
    text = prompt.encode()
    room = (c.llama_token * (len(text) + 8))()
    count = c.llama_tokenize(vocabulary, text, len(text), room, len(room), True, True)
    tokens = (c.llama_token * count)(*room[:count])
    assert ctypes.sizeof(tokens) < cells * 4
    for _ in sys.stdin:
        print(rate(context, tokens, length), flush=True)


if __name__ == "__main__":
    _, first, second, third, text, last = sys.argv
    main(first, int(second), int(third), text, int(last))
