"""What llama.cpp says that it allocates, for models and contexts: JSON in, JSON out.

To be run as a process. Nothing is allocated: llama.cpp can plan its buffers as if it did. Cases of the same
model are best put one after the other.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from mdl.engine.llama import C

CACHE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
LINES: list[str] = []
MIB = 1 << 20


@C.llama_log_callback
def hear(_level: int, line: bytes, _data: Any) -> None:
    LINES.append(line.decode("utf-8", "replace"))


def allocate(cases: Iterable[dict[str, Any]]) -> Iterator[dict[str, int]]:
    """The bytes of weights, cache and compute for each case."""
    for path, same in groupby(cases, key=lambda case: case["path"]):
        model = _load(path)
        for case in same:
            LINES.clear()
            context = C.llama_init_from_model(model, _context(case))
            assert context, LINES[-5:]
            yield {"weights": C.llama_model_size(model), **_said()}
            C.llama_free(context)
        C.llama_model_free(model)


def _load(path: str) -> Any:
    params = C.llama_model_default_params()
    params.n_gpu_layers, params.no_alloc, params.load_mode = 0, True, C.LLAMA_LOAD_MODE_NONE
    model = C.llama_model_load_from_file(os.fsencode(path), params)
    assert model, LINES[-5:]
    return model


def _context(case: dict[str, Any]) -> Any:
    params = C.llama_context_default_params()
    params.n_ctx, params.n_seq_max = case["context"], case["slots"]
    params.n_batch = params.n_ubatch = case["micro_batch"]
    params.kv_unified = case["unified"]
    params.type_k, params.type_v = (CACHE_TYPES[name] for name in case["cache_types"])
    params.swa_full = case["swa_full"]
    params.flash_attn_type = 1 if case["flash_attention"] else 0
    return params


def _said() -> dict[str, int]:
    """The cache as its own lines have it: where nothing is allocated, its buffer has no size."""
    log = "".join(LINES)
    return {
        "cache": _sum(r"llama_(?:kv_cache|memory_recurrent): size = +([\d.]+) MiB", log),
        "compute": _sum(r"(?:compute|output) buffer size = +([\d.]+) MiB", log),
    }


def _sum(pattern: str, log: str) -> int:
    return round(sum(float(number) * MIB for number in re.findall(pattern, log)))


def main() -> None:
    C.llama_log_set(hear, None)
    C.llama_backend_init()
    cases = json.load(sys.stdin)
    print(json.dumps(list(allocate(cases))))


if __name__ == "__main__":
    main()
