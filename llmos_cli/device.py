"""The accelerator and the machine around it: which device, which arithmetic, how many threads, how much memory.

One code path for CUDA, ROCm, XPU, MPS and the CPU: `torch.accelerator` decides, and what can be measured is measured.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, overload

import psutil
import torch
from torch import Tensor, nn

from llmos_cli.core import atomic
from llmos_cli.core.places import cache_home
from llmos_cli.errors import UsageError

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" with a number about this large."""

Module = TypeVar("Module", bound=nn.Module)


def pick(name: str | None = None) -> torch.device:
    """The device called `name` (`cpu`, `cuda:1`...), else `$LLMOS_DEVICE`, else the accelerator torch sees, else the CPU."""
    name = name or os.environ.get("LLMOS_DEVICE")
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device = _parse(name)
    found = torch.accelerator.current_accelerator(check_available=True)
    if device.type != "cpu" and (found is None or found.type != device.type):
        raise UsageError(f"There is no device {name} here.", hint=f"Use {found or 'cpu'}, or leave the device out.")
    return device


def _parse(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"{name} is not a device.", hint="Name one as torch does: cpu, cuda, cuda:1, mps, xpu."
        ) from error


@overload
def move(value: Tensor, device: torch.device) -> Tensor: ...
@overload
def move(value: Module, device: torch.device) -> Module: ...
@overload
def move(value: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]: ...
def move(value: Tensor | nn.Module | dict[str, Tensor], device: torch.device) -> Tensor | nn.Module | dict[str, Tensor]:
    """The one place where tensors change device: a tensor, a batch, or a module (in place)."""
    if isinstance(value, dict):
        return {name: tensor.to(device, non_blocking=True) for name, tensor in value.items()}
    return value.to(device)


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on `device`, before reading a clock."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def compute_dtype(device: torch.device | None = None) -> torch.dtype:
    """bfloat16 where `device` multiplies it faster than float32, which is measured once per machine; else float32.

    Having the instructions is no proof: processors without bf16 units emulate it several times slower.
    """
    return torch.bfloat16 if _bf16_repays(device or pick()) else torch.float32


def asked_dtype(precision: str, device: torch.device | None = None) -> torch.dtype:
    """Of the arithmetic, as an option says it: `auto`, `float32` or `bfloat16`."""
    if precision == "auto":
        return compute_dtype(device)
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@functools.cache
def _bf16_repays(device: torch.device) -> bool:
    key = _hardware(device)
    known = _measurements()
    if key not in known:
        # By CPU seconds: such a product takes no longer than the turn that others may get in between.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        half, full = _seconds((torch.bfloat16, torch.float32), device, clock)
        known[key] = full / half
        _remember(known)
    return known[key] > 1.2


def speed(dtypes: Sequence[torch.dtype], device: torch.device) -> list[float]:
    """FLOP/s of a square product in each of them."""
    return [2 * _size(device) ** 3 / seconds for seconds in _seconds(dtypes, device, time.perf_counter)]


def _seconds(dtypes: Sequence[torch.dtype], device: torch.device, clock: Callable[[], float]) -> list[float]:
    """Of a square product in each, the best of several taken in turns: a busy machine only ever makes one slower."""
    factors = [torch.ones(_size(device), _size(device), dtype=dtype, device=device) for dtype in dtypes]
    least = [torch.inf] * len(factors)
    for _ in range(12):
        for number, factor in enumerate(factors):
            start = clock()
            factor @ factor
            synchronize(device)
            least[number] = min(least[number], max(clock() - start, 1e-9))
    return least


def _size(device: torch.device) -> int:
    return 512 if device.type == "cpu" else 4096


def _hardware(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{processor()} / torch {torch.__version__} / CPU seconds"
    return f"{device_name(device)} / torch {torch.__version__}"


def _measurements() -> dict[str, float]:
    try:
        known = json.loads(_measurements_file().read_text())
    except (OSError, ValueError):
        return {}  # absent, or half-written by something else: measured again
    return {str(key): float(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _remember(known: dict[str, float]) -> None:
    try:
        atomic.write_text(_measurements_file(), json.dumps(known, indent=1))
    except OSError:
        return  # a read-only home only costs measuring again


def _measurements_file() -> Path:
    return cache_home() / "bf16-speed.json"


@functools.cache
def processor() -> str:
    """The CPU by name, family, model and what it does for bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    bf16 = sorted(flag for flag in facts.get("flags", "").split() if "bf16" in flag or flag.startswith("amx"))
    named = [facts.get("model name", "CPU"), facts.get("cpu family", ""), facts.get("model", ""), *bf16]
    return " ".join(part for part in named if part)


@functools.cache
def instructions() -> frozenset[str]:
    """The CPU's instruction sets, named as compilers name them (`avx512vnni`); empty where the system does not list them."""
    flags = next((line for line in _read(Path("/proc/cpuinfo")).splitlines() if line.startswith("flags")), "")
    return frozenset(flag.replace("_", "") for flag in flags.partition(":")[2].split())


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor() if device.type == "cpu" else str(device)


def capability(device: torch.device) -> tuple[int, int]:
    """Of an NVIDIA GPU, or what ROCm calls by that name; (0, 0) where there is none."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (0, 0)


@functools.cache
def threads() -> int:
    """How many threads to compute with: the cores this process may use by affinity and cgroup quota, at least one.

    One thread more than the quota is worse than one thread: the kernel stops all of them for the rest of each period.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    limits = [allowed, *_cpu_quotas(), *([int(asked)] if asked.isdigit() and int(asked) > 0 else [])]
    return max(1, min(limits))


def use_threads(count: int | None = None) -> int:
    """Compute with `count` threads, never more than `threads()`; returns how many."""
    count = min(count or threads(), threads())
    torch.set_num_threads(count)
    return count


def _cpu_quotas() -> list[int]:
    """Whole cores allowed by each cgroup around this process, rounded down."""
    quotas = []
    for folder in _cgroups("cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            quotas.append(max(1, quota // period))
    return quotas


def _quota(folder: Path) -> tuple[int, int]:
    if text := _read(folder / "cpu.max"):  # version 2: "200000 100000" or "max 100000"
        quota, _, period = text.partition(" ")
        return (int(quota), int(period)) if quota.isdigit() else (-1, 1)
    return _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it, for `controller`, in versions 1 and 2."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        inside = root / path.lstrip("/")
        yield from (folder for folder in (inside, *inside.parents) if folder == root or root in folder.parents)


def _number(file: Path) -> int:
    text = _read(file)
    return int(text) if text.lstrip("-").isdigit() else -1


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def has_fp64(device: torch.device) -> bool:
    """Whether `device` computes in float64: Metal does not, nor do all of Intel's GPUs."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def memory_used(device: torch.device | None = None) -> int:
    """Bytes: allocated on an accelerator, resident in this process on the CPU."""
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def memory_peak() -> int:
    """Bytes: the most that was resident of this process at any time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def give_back() -> None:
    """Hand memory that was freed back to the system. The C library keeps what it thinks will be needed again: of a model whose
    blocks come and go, in the end as much as all of them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others give back by themselves
    if trim is not None:
        trim(0)


def give_back_at_once() -> None:
    """From now on, for the life of the process, whatever is larger than a megabyte goes back to the system when it is freed, not only when it is asked for: glibc
    would keep arrays of up to 32 MB. Memory that is taken anew has to be cleared anew: an eighth more CPU time."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, 1 << 20)


M_MMAP_THRESHOLD = -3
"""glibc's name in `mallopt` for the size from which memory is the system's own."""


def memory_free(device: torch.device | None = None) -> int:
    """Bytes that can still be had: on the CPU, what the machine and every cgroup around this process have left."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([int(psutil.virtual_memory().available), *_memory_quotas()])


def _memory_quotas() -> list[int]:
    left = []
    for folder in _cgroups("memory"):
        limit = max(_number(folder / "memory.max"), _number(folder / "memory.limit_in_bytes"))
        used = max(_number(folder / "memory.current"), _number(folder / "memory.usage_in_bytes"))
        if 0 < limit < UNLIMITED and used >= 0:
            left.append(max(0, limit - used))
    return left


def keep_compiled() -> None:
    """Have torch.compile keep its machine code in the user's cache folder: torch's own choice, /tmp, forgets it."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "inductor"))


def seed(number: int) -> None:
    """Seed every generator that training draws from."""
    random.seed(number)
    torch.manual_seed(number)
