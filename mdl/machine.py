"""What this machine has for models: memory, cores and GPUs. Knows no model.

llama.cpp is asked about GPUs in a process of its own, which a broken driver may end.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

SMI_SECONDS = 5.0
LLAMA_SECONDS = 20.0  # to start CUDA on a machine with many GPUs takes seconds
UNKNOWN_MEMORY = 8 << 30  # where the system does not say
MOST_GPUS = 64
_LONGEST_NAME = 100
_GONE = 1 << 60  # limits from here on are none


class Gpu(NamedTuple):
    """A GPU; its memory in bytes. `usable` tells whether the installed llama.cpp computes on it, and `shared`
    that its memory is the machine's own, as with Apple's and integrated ones."""

    name: str
    total: int
    free: int
    usable: bool = True
    shared: bool = False


class Machine(NamedTuple):
    """Memory in bytes: what there is within the limits of this process, and what is free of it."""

    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    cores: int = 1

    @property
    def usable_gpus(self) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.usable)


@cache
def look() -> Machine:
    """This machine, as it was when it was first asked for. Never raises."""
    total, available = _memory()
    return Machine(total, min(total, available), _usable_gpus() or _other_gpus(), _cores())


def now(gpus: Iterable[Mapping[str, Any]] = ()) -> Machine:
    """This machine at this moment, with the GPUs that an engine tells of. Never raises."""
    total, available = _memory()
    return Machine(total, min(total, available), _gpus(gpus), _cores())


def may_compute_on_gpus() -> bool:
    """Whether the installed llama.cpp was built for any GPU: each kind is a library of its own beside the
    others. Without starting it, which takes a moment."""
    spec = find_spec("llama_cpp")
    folders = spec.submodule_search_locations if spec else None
    names = [path.name for folder in folders or () for path in Path(folder).glob("lib/*ggml-*")]
    return any(kind in name for name in names for kind in _GPU_KINDS)


_GPU_KINDS = ("cuda", "metal", "hip", "vulkan", "sycl", "musa", "cann", "opencl")


def _cores() -> int:
    """Those that this process may use. Elsewhere than on Linux: all."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


# Memory


def _memory() -> tuple[int, int]:
    """All, and what is free, both within the limits."""
    system = {"linux": _linux_memory, "darwin": _apple_memory, "win32": _windows_memory}
    try:
        total, available = system[sys.platform]()
    except (LookupError, OSError, ValueError, AttributeError, subprocess.SubprocessError):
        total, available = UNKNOWN_MEMORY, UNKNOWN_MEMORY
    limit = _address_space()
    return min(total, limit), min(available, limit)


def _linux_memory(root: Path = Path("/")) -> tuple[int, int]:
    """`root` is where proc and sys are. Raises OSError, ValueError."""
    lines = (root / "proc/meminfo").read_text("ascii").splitlines()
    values = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
    total = values.get("MemTotal", 0)
    available = values.get("MemAvailable", values.get("MemFree", 0))
    if not total:
        raise ValueError("no MemTotal")
    for limit, left in _limits(root):
        total, available = min(total, limit), min(available, left)
    return total, available


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """What each control group that this process is in may have, and what is left of it."""
    for folder, names in _groups(root):
        limit, used = _number(folder / names[0]), _number(folder / names[1])
        if limit is not None and used is not None:
            cached = _field(folder / "memory.stat", names[2])  # of files, given back when it is needed
            yield limit, max(0, limit - used + min(cached, used))


_NAMES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the group and those above it. In a container they may lie at the top instead."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        place = top / path.strip("/")
        for folder in (place, *place.parents):
            yield folder, _NAMES["v1" if controllers else "v2"]
            if folder == top:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _field(path: Path, name: str) -> int:
    words = (line.split() for line in _text(path).splitlines())
    return next(
        (int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == name and pair[1].isdigit()), 0
    )


def _apple_memory() -> tuple[int, int]:
    total = int(_output(["/usr/sbin/sysctl", "-n", "hw.memsize"], SMI_SECONDS))
    return total, _given_back(_output(["/usr/bin/vm_stat"], SMI_SECONDS))


def _given_back(vm_stat: str) -> int:
    """Bytes of memory that is free, or that macOS frees when it is needed."""
    size = int(vm_stat.partition("page size of ")[2].split()[0])
    pages = dict(line.split(":") for line in vm_stat.splitlines()[1:] if line.count(":") == 1)
    kinds = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    return size * sum(int(pages.get(kind, "0").strip(" .")) for kind in kinds)


def _windows_memory() -> tuple[int, int]:
    import ctypes

    status = (ctypes.c_uint64 * 8)()  # MEMORYSTATUSEX: two numbers of 32 bits, then seven of 64
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    kernel: Any = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined, unused-ignore]
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx")
    return status[1], status[2]


def _address_space() -> int:
    """What `ulimit -v` allows; Windows has none."""
    try:
        import resource
    except ImportError:
        return _GONE
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return _GONE if limit == resource.RLIM_INFINITY else min(limit, _GONE)


# GPUs

_ASK = """
import json, sys
sys.path[:] = sys.argv[1:]
from mdl.engine.devices import gpus
print(json.dumps(gpus()))
"""


def _usable_gpus() -> tuple[Gpu, ...]:
    """Those that llama.cpp knows; none where it cannot be asked."""
    paths = [str(Path(entry).absolute()) for entry in [*sys.path, str(Path(__file__).parents[1])]]
    try:
        said = _output([sys.executable, "-P", "-S", "-c", _ASK, *paths], LLAMA_SECONDS)
        return _gpus(json.loads(said.splitlines()[-1]))
    except (OSError, ValueError, TypeError, LookupError, subprocess.SubprocessError):
        return ()


def _gpus(found: Iterable[Mapping[str, Any]]) -> tuple[Gpu, ...]:
    """As `engine.devices.gpus` tells them. Raises TypeError, LookupError, ValueError for others."""
    return tuple(
        Gpu(_name(gpu["name"]), int(gpu["total"]), int(gpu["free"]), True, bool(gpu["shared"]))
        for gpu in islice(found, MOST_GPUS)
        if gpu["total"] > 0
    )


def _other_gpus() -> tuple[Gpu, ...]:
    """Those that are there, but that the installed llama.cpp does not know."""
    return (*_nvidia(), *_amd())[:MOST_GPUS]


def _nvidia(seconds: float = SMI_SECONDS) -> list[Gpu]:
    """What nvidia-smi lists, in MiB; none where there is no such program, or where it fails or hangs."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        rows = [line.rsplit(",", 2) for line in _output(query, seconds).splitlines()]
        return [Gpu(_name(name), int(total) << 20, int(free) << 20, False) for name, total, free in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _amd(root: Path = Path("/sys/class/drm")) -> list[Gpu]:
    """What the amdgpu driver tells of its cards (Linux only)."""
    found = []
    for device in sorted(root.glob("card*/device")):
        total, used = (_number(device / f"mem_info_vram_{name}") for name in ("total", "used"))
        if total and used is not None:
            name = _text(device / "product_name").strip() or "AMD GPU"
            found.append(Gpu(_name(name), total, max(0, total - used), False))
    return found


def _name(text: object) -> str:
    """One line of bounded length."""
    return " ".join("".join(filter(str.isprintable, str(text)[: 4 * _LONGEST_NAME])).split())[:_LONGEST_NAME]


def _output(command: list[str], seconds: float) -> str:
    """What a program prints. Raises OSError, SubprocessError where it fails or takes longer."""
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    done = subprocess.run(command, stdin=quiet, stdout=pipe, stderr=quiet, timeout=seconds, check=True)
    return done.stdout.decode("utf-8", "replace")
