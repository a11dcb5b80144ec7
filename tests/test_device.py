"""The device: threads by quota, arithmetic by measurement, memory by what is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from llmos_cli import device
from llmos_cli.core.places import cache_home
from llmos_cli.errors import UsageError


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup tree of our own: this process is in its root, as inside a container."""
    monkeypatch.setattr(device, "CGROUPS", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    device.threads.cache_clear()
    yield tmp_path
    device.threads.cache_clear()


def at_each_root(cgroup: Path, controller: str, files: dict[str, str]) -> None:
    for folder in (cgroup, cgroup / controller):
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)


@pytest.mark.parametrize(
    "files", [{"cpu.max": "150000 100000\n"}, {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}]
)
def test_threads_are_the_whole_cores_of_the_quota(cgroup: Path, files: dict[str, str]) -> None:
    at_each_root(cgroup, "cpu", files)
    assert device.threads() == 1


@pytest.mark.parametrize(
    "files", [{"cpu.max": "max 100000"}, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, {}]
)
def test_without_a_quota_all_cores_count(cgroup: Path, files: dict[str, str]) -> None:
    import os

    at_each_root(cgroup, "cpu", files)
    assert device.threads() == len(os.sched_getaffinity(0))


def test_the_environment_can_only_ask_for_fewer(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert device.threads() == 1
    assert device.use_threads(64) == 1 == torch.get_num_threads()


def test_a_memory_limit_bounds_what_is_free(cgroup: Path) -> None:
    at_each_root(cgroup, "memory", {"memory.max": "5000000", "memory.current": "4000000"})
    assert device.memory_free() == 1_000_000


def test_memory_of_this_process_is_what_it_holds() -> None:
    before = device.memory_used()
    ballast = torch.ones(25_000_000)
    assert device.memory_used() - before > 80_000_000
    assert ballast.sum() == 25_000_000


def test_the_arithmetic_is_the_faster_one_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, asked = torch.device("cpu"), []

    def seconds(dtypes: Sequence[torch.dtype], on: torch.device, clock: Callable[[], float]) -> list[float]:
        asked.extend(dtypes)
        return [1.0 if dtype == torch.bfloat16 else 3.0 for dtype in dtypes]

    (cache_home() / "bf16-speed.json").unlink(missing_ok=True)
    device._bf16_repays.cache_clear()
    monkeypatch.setattr(device, "_seconds", seconds)
    assert device.compute_dtype(cpu) == torch.bfloat16
    device._bf16_repays.cache_clear()  # as in a new process
    assert device.compute_dtype(cpu) == torch.bfloat16
    assert sorted(map(str, asked)) == ["torch.bfloat16", "torch.float32"]
    assert list(json.loads((cache_home() / "bf16-speed.json").read_text()).values()) == [3.0]
    device._bf16_repays.cache_clear()
    (cache_home() / "bf16-speed.json").unlink()


def test_a_broken_record_is_measured_again() -> None:
    cache_home().mkdir(parents=True, exist_ok=True)
    (cache_home() / "bf16-speed.json").write_text('{"half')
    device._bf16_repays.cache_clear()
    assert device.compute_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert json.loads((cache_home() / "bf16-speed.json").read_text())
    device._bf16_repays.cache_clear()


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="nonsense is not a device"):
        device.pick("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="There is no device cuda:7 here"):
            device.pick("cuda:7")


def test_move_takes_tensors_batches_and_modules() -> None:
    cpu = torch.device("cpu")
    assert device.move(torch.ones(2), cpu).device == cpu
    assert device.move({"labels": torch.ones(2)}, cpu)["labels"].device == cpu
    layer = nn.Linear(2, 2)
    assert device.move(layer, cpu) is layer


def test_seeding_repeats_the_draws() -> None:
    device.seed(5)
    first = torch.rand(3)
    device.seed(5)
    assert torch.equal(torch.rand(3), first)
