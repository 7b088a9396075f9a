"""What llama.cpp computes on: GPUs, processor cores, memory."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from mdl.engine.native import C, decoded, function

_GPU, _INTEGRATED = 1, 2  # ggml_backend_dev_type


def devices() -> tuple[str, ...]:
    """The devices that ggml knows, as "CUDA0 (NVIDIA H200)". Empty where its functions cannot be reached."""
    try:
        count = function("ggml_backend_dev_count", ctypes.c_size_t)
        get = function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
        name = function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
        description = function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    except AttributeError:
        return ()
    handles = [get(index) for index in range(count())]
    return tuple(f"{decoded(name(handle))} ({decoded(description(handle))})" for handle in handles)


def usable_gpus() -> list[dict[str, Any]]:
    """None where this llama.cpp computes on none, which is told without a look at them."""
    return gpus() if C.llama_supports_gpu_offload() else []


def gpus() -> list[dict[str, Any]]:
    """The GPUs that models are put on by default, with their memory in bytes. `shared` is the machine's own:
    that of integrated ones, which llama.cpp takes only where there is no other, and of Apple's."""
    C.llama_backend_init()
    try:
        get = function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
        kind = function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
        name = function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
        sizes = ctypes.POINTER(ctypes.c_size_t)
        memory = function("ggml_backend_dev_memory", None, ctypes.c_void_p, sizes, sizes)
    except AttributeError:
        return []
    handles = [get(index) for index in range(function("ggml_backend_dev_count", ctypes.c_size_t)())]
    own = [handle for handle in handles if kind(handle) == _GPU]
    found = []
    for handle in own or [handle for handle in handles if kind(handle) == _INTEGRATED]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(handle, ctypes.byref(free), ctypes.byref(total))
        shared = not own or sys.platform == "darwin"
        found.append(
            {"name": decoded(name(handle)), "total": total.value, "free": free.value, "shared": shared}
        )
    return found


def physical_cores() -> int:
    """Cores that this process may use, those that share hardware counted once. Elsewhere than on Linux:
    half."""
    try:
        allowed = os.sched_getaffinity(0)
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
            for cpu in allowed
        }
    except (AttributeError, OSError):
        return max(1, (os.cpu_count() or 2) // 2)
    return max(1, len(siblings))


def physical_memory() -> int:
    """Bytes; 8 GiB where the system does not say (Windows has no sysconf)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30
