"""Look at the machine: what llmos found to compute with, to store on, and which extras are there."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from llmos_cli import device
from llmos_cli.core import access
from llmos_cli.core.objects import best_mode
from llmos_cli.core.view import Cell, Group, Span, Table, View, size
from llmos_cli.events import Emit, Note

EXTRAS = {
    "tune": ("optuna",),
    "cmaes": ("optuna", "cmaes"),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "gguf": ("gguf",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "images": ("kornia", "PIL"),
    "plot": ("matplotlib",),
    "remotes": ("boto3", "paramiko", "cryptography"),
    "sign": ("model_signing", "OpenSSL"),
}
"""Modules that each extra of the distribution brings."""

_LITTLE_MEMORY, _LITTLE_DISK = 2 * 10**9, 2 * 10**9


@dataclass(frozen=True)
class DoctorResult:
    """Sizes in bytes, speeds in FLOP/s; `warnings` are what will get in the way."""

    python: str
    system: str
    packages: Mapping[str, str]
    processor: str
    cores: int
    cores_of_host: int
    memory_free: int
    device: str
    device_name: str
    speed_float32: float
    speed_bfloat16: float
    computes_in: str
    folder: str
    disk_free: int
    writable: bool
    sharing: str
    extras: Mapping[str, bool]
    warnings: tuple[str, ...]

    def view(self) -> View:
        absent = [name for name, present in self.extras.items() if not present]
        rows: list[tuple[Cell, Cell]] = [
            ("python", f"{self.python} on {self.system}"),
            *(("" if at else "packages", f"{name} {found}") for at, (name, found) in enumerate(self.packages.items())),
            ("cores", f"{self.cores} of {self.cores_of_host}: {self.processor}"),
            ("memory", f"{size(self.memory_free)} free"),
            ("device", self.device if self.device == "cpu" else f"{self.device}: {self.device_name}"),
            ("float32", f"{self.speed_float32 / 1e9:,.0f} GFLOP/s"),
            ("bfloat16", f"{self.speed_bfloat16 / 1e9:,.0f} GFLOP/s: computing in {self.computes_in}"),
            ("disk", f"{size(self.disk_free)} free in {self.folder}"),
            ("sharing", _SHARING[self.sharing]),
            ("extras", ", ".join(name for name, present in self.extras.items() if present) or "none"),
            *([("", f"pip install 'llmos-cli[{','.join(absent)}]' adds {', '.join(absent)}")] if absent else []),
        ]
        verdict = [(Span("warning", "warn"), text) for text in self.warnings] or [
            (Span("ok", "good"), "ready to train")
        ]
        return Group([Table(["", ""], [*rows, *verdict], align="ll")])


_SHARING = {
    "reflink": "equal files share their blocks (reflink)",
    "hardlink": "equal files are stored once (hard link)",
    "copy": "each checkpoint keeps its own copy: this file system has neither reflinks nor hard links",
    "none": "not writable",
}


def doctor(folder: Path, *, emit: Emit) -> DoctorResult:
    """Measure rather than believe: arithmetic is timed and the file system is tried out in `folder`."""
    emit(Note("measuring arithmetic..."))
    chosen = device.pick()
    speeds = device.speed((torch.float32, torch.bfloat16), chosen)
    writable = access.writable(folder)
    found = {
        "memory_free": device.memory_free(torch.device("cpu")),
        "disk_free": shutil.disk_usage(folder).free,
    }
    return DoctorResult(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages={name: _version(name) for name in ("torch", "transformers", "safetensors", "compressed-tensors")},
        processor=device.processor(),
        cores=device.threads(),
        cores_of_host=os.cpu_count() or 1,
        memory_free=found["memory_free"],
        device=str(chosen),
        device_name=device.device_name(chosen),
        speed_float32=speeds[0],
        speed_bfloat16=speeds[1],
        computes_in=str(device.compute_dtype(chosen)).removeprefix("torch."),
        folder=str(folder),
        disk_free=found["disk_free"],
        writable=writable,
        sharing=_sharing(folder) if writable else "none",
        extras={name: all(find_spec(module) for module in modules) for name, modules in EXTRAS.items()},
        warnings=tuple(_warnings(writable, **found)),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _sharing(folder: Path) -> str:
    with tempfile.TemporaryDirectory(prefix=".llmos-doctor-", dir=folder) as scratch:
        (first := Path(scratch) / "first").write_bytes(b"probe")
        return best_mode(first, Path(scratch) / "second")


def _warnings(writable: bool, *, memory_free: int, disk_free: int) -> list[str]:
    told = []
    if not writable:
        told.append("this folder is not writable: `llmos init` needs one that is")
    if memory_free < _LITTLE_MEMORY:
        told.append(f"only {size(memory_free)} of memory are free: torch alone wants about 1 GB")
    if disk_free < _LITTLE_DISK:
        told.append(f"only {size(disk_free)} of disk are free: checkpoints need room")
    return told
