"""How near estimates of memory come to what llama.cpp allocates: python tests/benchmarks/memory.py [--all]

Models of real sizes, planned by llama.cpp itself; --all shows each case. Then a small model is loaded and
computes a prompt, to show what of that becomes resident. To reach: within 10 %.
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from giants import GIANTS, Giant, dense
from test_memory import CASES, ask

from mdl import gguf, memory
from mdl.memory import Need

COLUMNS = ("weights", "cache", "compute")


def compare(path: Path) -> list[tuple[str, Need, dict[str, int]]]:
    """Each case with the estimate, and what llama.cpp says."""
    shape = memory.shape(gguf.read(path))
    said = ask([{"path": str(path), **case} for case in CASES.values()])
    needed = [memory.need(shape, **case) for case in CASES.values()]
    return list(zip(CASES, needed, said, strict=True))


def error(needed: Need, said: dict[str, int]) -> float:
    return 100 * (needed.total / sum(said.values()) - 1)


def show(name: str, found: list[tuple[str, Need, dict[str, int]]], all_cases: bool) -> None:
    errors = [error(needed, said) for _, needed, said in found]
    _, first, said = found[1]
    sizes = " ".join(f"{getattr(first, column) / 1e6:8,.0f} {said[column] / 1e6:8,.0f}" for column in COLUMNS)
    print(f"{name:38} {sizes} {min(errors):+6.1f} {max(errors):+6.1f}")
    for case, needed, said in found if all_cases else ():
        sizes = " ".join(
            f"{getattr(needed, column) / 1e6:8,.0f} {said[column] / 1e6:8,.0f}" for column in COLUMNS
        )
        print(f"    {case:34} {sizes} {error(needed, said):+6.1f}")


def resident(giant: Giant, folder: Path) -> None:
    """What is in memory after a prompt of 512 tokens, in a process of its own."""
    path = giant.write(folder / "resident.gguf")
    needed = memory.need(memory.shape(gguf.read(path)), 4096)
    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, str(_grown(path)).encode())
        os._exit(0)
    grown = int(os.read(reader, 100))
    print(f"\nreckoned {needed.total / 1e6:,.0f} MB, resident after a prompt {grown / 1e6:,.0f} MB")


def _grown(path: Path) -> int:
    from mdl.engine.llama import context_params
    from mdl.engine.native import C, Log
    from mdl.engine.request import EngineSettings

    log = Log()
    C.llama_log_set(log.callback, None)
    C.llama_backend_init()
    before = _resident()
    params: Any = C.llama_model_default_params()
    params.n_gpu_layers = 0
    model = C.llama_model_load_from_file(os.fsencode(path), params)
    context = C.llama_init_from_model(model, context_params(4096, EngineSettings(parallel=1)))
    tokens = (C.llama_token * 512)(*range(512))
    assert C.llama_decode(context, C.llama_batch_get_one(tokens, 512)) == 0
    return _resident() - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    all_cases = "--all" in sys.argv
    print(f"{'MB, reckoned and said':38} {'weights':>17} {'cache, 4k':>17} {'compute':>17} {'% off':>12}")
    errors: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        for giant in GIANTS:
            found = compare(GIANTS[giant].write(Path(name) / "giant.gguf"))
            show(giant, found, all_cases)
            errors += [error(needed, said) for _, needed, said in found]
        worst = max(errors, key=abs)
        half = median(map(abs, errors))
        print(f"\n{len(errors)} cases: half within {half:.1f} %, the worst {worst:+.1f} %")
        resident(dense("llama", 8, 1024, 16, 8, 64, 4096, 32000), Path(name))


if __name__ == "__main__":
    main()
