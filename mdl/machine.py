"""What this machine has for models: memory, cores, GPUs. Knows no model and no llama.cpp in this process."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU with its own memory, in bytes. `usable` tells whether the installed llama.cpp computes on it."""

    name: str
    total: int
    free: int
    usable: bool = True


class Machine(NamedTuple):
    """Memory in bytes: what there is, within the limits that this process was given, and what is free."""

    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    cores: int = 1

    @property
    def usable_gpus(self) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.usable)


def look() -> Machine:
    """This machine, now. Never raises: what cannot be found out is 0, or not there."""
    values = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            values = {
                key: int(rest.split()[0]) << 10 for key, _, rest in (line.partition(":") for line in file)
            }
    except (OSError, ValueError):
        pass
    return Machine(values.get("MemTotal", 0), values.get("MemAvailable", 0))
