"""What a model takes of which nothing but its number of parameters is known, roughly. Knows no file.

The bits for each parameter are what llama.cpp's quantizations come to for a Llama of 8 billion parameters
(https://github.com/ggml-org/llama.cpp/tree/master/tools/quantize). Small models take up to a fifth more,
because their vocabulary weighs more; a header tells exactly.
"""

from typing import Literal

from mdl.machine import Machine
from mdl.memory import room

Place = Literal["no", "yes", "on GPU"]

BITS = {
    "IQ1_S": 2.0,
    "IQ1_M": 2.15,
    "IQ2_XXS": 2.38,
    "IQ2_XS": 2.59,
    "IQ2_S": 2.74,
    "IQ2_M": 2.93,
    "Q2_K_S": 2.97,
    "Q2_K": 3.16,
    "IQ3_XXS": 3.25,
    "IQ3_XS": 3.5,
    "IQ3_S": 3.66,
    "IQ3_M": 3.76,
    "Q3_K_S": 3.64,
    "Q3_K_M": 4.0,
    "Q3_K_L": 4.3,
    "IQ4_XS": 4.46,
    "IQ4_NL": 4.68,
    "MXFP4": 4.64,
    "Q4_0": 4.67,
    "Q4_1": 5.13,
    "Q4_K_S": 4.67,
    "Q4_K_M": 4.89,
    "Q5_0": 5.57,
    "Q5_1": 6.03,
    "Q5_K_S": 5.57,
    "Q5_K_M": 5.7,
    "Q6_K": 6.56,
    "Q8_0": 8.5,
    "F16": 16.0,
    "BF16": 16.0,
    "F32": 32.0,
}
_CACHE_SHARE = 10  # one part in so many of the weights, for some 4,000 tokens
_BESIDES = 500_000_000  # bytes of what is computed between the layers


def size(parameters: int, quantization: str | None) -> int | None:
    """Bytes of the weights; None for a quantization that is not known."""
    bits = BITS.get((quantization or "").removeprefix("UD-").removeprefix("I1-"))
    return int(parameters * bits / 8) if bits else None


def memory(size: int) -> int:
    """Bytes that it takes to run weights of this size, with a context of some 4,000 tokens."""
    return size + size // _CACHE_SHARE + _BESIDES


def place(memory: int, machine: Machine, most: int = 0) -> Place:
    """Where on a machine so many bytes find room: on its GPUs alone, with its own memory, or nowhere.

    `most` are the bytes of the machine's own memory that a model may take, if they are bounded.
    """
    gpus = sum(room(gpu.free) for gpu in machine.usable_gpus if not gpu.shared)
    shared = any(gpu.shared for gpu in machine.usable_gpus)
    own = room(machine.memory_available)
    own = min(own, most) if most else own
    if memory <= gpus or (shared and memory <= own):
        return "on GPU"
    return "yes" if memory <= gpus + own else "no"
