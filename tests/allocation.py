"""What llama.cpp says that it allocates, for models and contexts: JSON in, JSON out.

To be run as a process. Unless a case is `real`, nothing is allocated: llama.cpp can plan its buffers as if it
did. Cases of the same model are best put one after the other.
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

from mdl.engine.llama import context_params
from mdl.engine.native import C
from mdl.engine.request import EngineSettings

CACHE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
LINES: list[str] = []
MIB = 1 << 20


@C.llama_log_callback
def hear(_level: int, line: bytes, _data: Any) -> None:
    LINES.append(line.decode("utf-8", "replace"))


def allocate(cases: Iterable[dict[str, Any]]) -> Iterator[dict[str, int]]:
    """The bytes of weights, cache and compute for each case."""
    for (path, real), same in groupby(cases, key=lambda case: (case["path"], case.get("real", False))):
        model = _load(path, real)
        for case in same:
            LINES.clear()
            context = C.llama_init_from_model(model, _params(case))
            assert context, LINES[-5:]
            yield {"weights": C.llama_model_size(model), **_said()}
            C.llama_free(context)
        C.llama_model_free(model)


def _load(path: str, real: bool) -> Any:
    params = C.llama_model_default_params()
    params.n_gpu_layers = 0
    if not real:
        params.no_alloc, params.load_mode = True, C.LLAMA_LOAD_MODE_NONE
    model = C.llama_model_load_from_file(os.fsencode(path), params)
    assert model, LINES[-5:]
    return model


def _params(case: dict[str, Any]) -> Any:
    """As the engine asks, but for what the case has of its own."""
    settings = EngineSettings(parallel=case.get("slots", 1), batch=case.get("micro_batch", 512))
    params = context_params(case["context"], settings)
    params.n_seq_max = settings.parallel
    params.n_batch = params.n_ubatch = settings.batch
    params.kv_unified = case.get("unified", params.kv_unified)
    params.swa_full = case.get("swa_full", params.swa_full)
    if "cache_types" in case:
        params.type_k, params.type_v = (CACHE_TYPES[name] for name in case["cache_types"])
    if not case.get("flash_attention", True):
        params.flash_attn_type = 0
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
