"""What a machine has: this one for real, others as trees of files and programs that stand in for them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdl import machine
from mdl.machine import Gpu

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"


def test_this_machine_has_what_its_system_says():
    found = machine.look()
    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < found.memory_available <= found.memory_total <= int(said["MemTotal"].split()[0]) << 10
    assert found.cores == len(os.sched_getaffinity(0))
    assert machine.look() is found


def test_llama_cpp_is_asked_and_its_process_knows_the_same_gpus():
    from mdl.engine.devices import devices, gpus

    assert [gpu.name for gpu in machine._usable_gpus()] == [gpu["name"] for gpu in gpus()]
    assert len(gpus()) < len(devices())  # which has the processor, too


def test_the_limit_of_a_process_is_its_machine():
    code = f"""if True:
        import json, resource
        resource.setrlimit(resource.RLIMIT_AS, ({2 * GIB}, {2 * GIB}))
        from mdl.machine import look
        print(json.dumps(look()))"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    total, available, *_ = json.loads(done.stdout)
    assert total == available == 2 * GIB


def test_without_llama_cpp_there_are_no_gpus_to_use(tmp_path):
    code = "import sys; sys.path[:] = sys.argv[1:]; from mdl.machine import look; print(look().usable_gpus)"
    library = Path(json.__file__).parents[1]
    paths = [str(path) for path in (Path(machine.__file__).parents[1], library, library / "lib-dynload")]
    command = [sys.executable, "-P", "-S", "-c", code, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "()\n", "")


# Control groups


def tree(root: Path, group: str, files: dict[str, str]) -> Path:
    """A system: `files` lie below sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "12:cpu,cpuacct:/\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("", {}, (16, 8)),
        ("0::/app\n", {"app/memory.max": "max", "app/memory.current": "123"}, (16, 8)),
        ("0::/app\n", {"app/memory.max": str(4 * GIB), "app/memory.current": str(GIB)}, (4, 3)),
        (  # the cache of files is given back
            "0::/app\n",
            {
                "app/memory.max": str(4 * GIB),
                "app/memory.current": str(3 * GIB),
                "app/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
            },
            (4, 3),
        ),
        (  # the group above is smaller, the one above that is full
            "0::/a/b/c\n",
            {
                "a/b/c/memory.max": str(8 * GIB),
                "a/b/c/memory.current": "0",
                "a/b/memory.max": str(2 * GIB),
                "a/b/memory.current": str(GIB),
                "a/memory.max": str(6 * GIB),
                "a/memory.current": str(6 * GIB),
            },
            (2, 0),
        ),
        (  # in a container the group is at the top
            "0::/../../elsewhere\n",
            {"memory.max": str(4 * GIB), "memory.current": str(GIB)},
            (4, 3),
        ),
        (
            V1,
            {"memory/memory.limit_in_bytes": str(0x7FFFFFFFFFFFF000), "memory/memory.usage_in_bytes": "0"},
            (16, 8),
        ),
        (
            V1,
            {
                "memory/docker/abc/memory.limit_in_bytes": str(3 * GIB),
                "memory/docker/abc/memory.usage_in_bytes": str(2 * GIB),
                "memory/docker/abc/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
            },
            (3, 2),
        ),
        (V1, {"memory/memory.limit_in_bytes": str(GIB), "memory/memory.usage_in_bytes": "0"}, (1, 1)),
        ("0::/app\n", {"app/memory.max": "-1", "app/memory.current": "x", "app/memory.stat": "\0"}, (16, 8)),
        ("nonsense\n::\n0::\n", {}, (16, 8)),
    ],
)  # fmt: skip
def test_a_control_group_bounds_memory(tmp_path, group, files, expected):
    total, available = machine._linux_memory(tree(tmp_path, group, files))
    assert (total / GIB, available / GIB) == expected


def test_an_old_kernel_tells_only_what_is_free(tmp_path):
    root = tree(tmp_path, "", {})
    (root / "proc/meminfo").write_text("MemTotal: 2097152 kB\nMemFree: 1048576 kB\n")
    assert machine._linux_memory(root) == (2 * GIB, GIB)


@pytest.mark.parametrize("text", ["", "MemTotal: many kB\n", "\xff\xfe", "MemFree: 5 kB\n"])
def test_what_the_system_does_not_say_is_not_made_up(tmp_path, text):
    root = tree(tmp_path, "", {})
    (root / "proc/meminfo").write_text(text)
    with pytest.raises((ValueError, LookupError)):
        machine._linux_memory(root)


def test_on_macos_what_is_given_back_counts_as_free():
    vm_stat = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            370000.
Pages inactive:                          360000.
Pages speculative:                         2000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           8000.
"Translation faults":                1234567890.
"""
    assert machine._given_back(vm_stat) == 380_000 * 16384


# GPUs that the installed llama.cpp does not know


def stand_in(folder: Path, script: str) -> str:
    """A PATH with a program that is called like NVIDIA's."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_gpus_of_nvidia_are_told_but_not_usable(tmp_path, monkeypatch):
    answer = "echo 'NVIDIA H200, 143771, 143000'; echo 'NVIDIA RTX A2000, 12GB, 12282, 11'"
    monkeypatch.setenv("PATH", stand_in(tmp_path, answer))
    assert machine._nvidia() == [
        Gpu("NVIDIA H200", 143771 << 20, 143000 << 20, False),
        Gpu("NVIDIA RTX A2000, 12GB", 12282 << 20, 11 << 20, False),
    ]


@pytest.mark.parametrize(
    "script",
    [
        "exit 9",
        "echo 'No devices were found'",
        "echo 'GPU, [N/A], [N/A]'",
        "head -c 100000 /dev/urandom",
        "kill -9 $$",
    ],
)
def test_a_driver_that_fails_has_no_gpus(tmp_path, monkeypatch, script):
    monkeypatch.setenv("PATH", stand_in(tmp_path, script))
    assert machine._nvidia() == []


def test_a_driver_that_hangs_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", stand_in(tmp_path, "exec sleep 60"))
    start = time.monotonic()
    assert machine._nvidia(seconds=0.5) == []
    assert time.monotonic() - start < 5


def test_the_name_of_a_gpu_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", stand_in(tmp_path, r"printf '\033[31mGPU\t %0300d, 5, 5\n' 7"))
    (gpu,) = machine._nvidia()
    assert gpu.name.startswith("[31mGPU 000") and len(gpu.name) == 100


def test_cards_of_amd_are_told_by_their_driver(tmp_path):
    for card, files in {
        "card0": {"mem_info_vram_total": "17163091968\n", "mem_info_vram_used": "163091968\n"},
        "card1": {"vendor": "0x8086\n"},
        "card2": {
            "mem_info_vram_total": "10",
            "mem_info_vram_used": "20",
            "product_name": "Radeon PRO W7900\n",
        },
        "card0-DP-1": {},
    }.items():
        for name, text in files.items():
            path = tmp_path / card / "device" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert machine._amd(tmp_path) == [
        Gpu("AMD GPU", 17163091968, 17_000_000_000, False),
        Gpu("Radeon PRO W7900", 10, 0, False),
    ]
    assert machine._amd(tmp_path / "nothing") == []
