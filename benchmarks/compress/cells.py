"""A cell is one compression: a process of its own, kept by the hash of all that went into it, and judged once.

Its folder holds `order.json`, `log.txt`, `report.json`, `usage.json` and, when judged, the KL of each held-out position. A folder
without `usage.json` was interrupted: the cell starts again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.compress import venvs
from benchmarks.compress.material import Material

OWN = "llmos"
MODULES = {
    OWN: "benchmarks.compress.ours",
    "llm-compressor": "benchmarks.compress.peers.llm_compressor",
    "auto-round": "benchmarks.compress.peers.auto_round",
    "torch-pruning": "benchmarks.compress.peers.torch_pruning",
}


HEALED = "benchmarks.compress.healed"
JUDGES = {"judged": "benchmarks.compress.judge", "paced": "benchmarks.compress.pace"}
LOOK_EVERY = 0.1
"""Seconds."""


@dataclass(frozen=True)
class Cell:
    """`who` compresses, called `name` in the table, with `options` of its own (the seed comes on top)."""

    who: str
    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """`scores`: `kl_SL` and `nll_SL` of the judge where the cell is judged, `pace_R` where it is paced; `run`: when the times were taken, as times of one run alone are compared;
    `peak`: bytes resident at most in the cell's process and those that it started."""

    cell: Cell
    seed: int
    scores: Mapping[str, NDArray[np.floating[Any]]]
    seconds: float
    cpu_seconds: float
    peak: int
    run: str
    report: Mapping[str, Any]


def measure(cell: Cell, material: Material, seed: int, *, run: str, again: bool) -> Measured:
    """From the cache, or by running what is missing of it."""
    options = _options(cell, material, seed)
    folder = material.folder / "cells" / f"{cell.who}-{_hash(cell.who, options, material, seed)}"
    # One at a time: they share a workspace whose branch each of ours moves, and would slow each other down.
    with (material.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if again or not (folder / "usage.json").exists() or _unjudgeable(folder, material, options):
            _compress(cell, material, seed, options, folder, run)
    report, usage = (json.loads((folder / f"{name}.json").read_text()) for name in ("report", "usage"))
    scores = _judged(material, folder, report, options)
    phases = [name for name in report["seconds"] if name != "proof"]
    return Measured(
        cell, seed, scores,
        sum(report["seconds"][name] for name in phases), sum(report["cpu_seconds"][name] for name in phases),
        usage["peak"], usage["run"], report,
    )  # fmt: skip


def _unjudgeable(folder: Path, material: Material, options: Mapping[str, Any]) -> bool:
    """Whether other tokens are to be judged on than before, and the model is gone since."""
    missing = any(not _scores(folder, kind, material).exists() for kind in _kinds(options))
    model = Path(json.loads((folder / "report.json").read_text())["model"])
    return missing and not (model / "config.json").exists()


def _kinds(options: Mapping[str, Any]) -> list[str]:
    return [kind for kind in JUDGES if options.get(kind, kind == "judged")]


def _scores(folder: Path, kind: str, material: Material) -> Path:
    return folder / f"{kind}-{material.held_out.stem}.npz"


def _options(cell: Cell, material: Material, seed: int) -> dict[str, Any]:
    ours = cell.who == OWN or "heal" in cell.options
    own = {"data": list(material.data), "calibration": material.calibration[seed].sha256} if ours else {}
    return {**cell.options, **own, "seed": seed}


def _hash(who: str, options: Mapping[str, Any], material: Material, seed: int) -> str:
    """Of everything that decides the result: the model stands in the folder's name, code and versions in `_made_by`."""
    tokens = hashlib.sha256(material.calibration[seed].tokens.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([options, tokens, _made_by(who)], sort_keys=True).encode()).hexdigest()[:16]


@cache
def _made_by(who: str) -> str:
    own = venvs.ROOT / "llmos_cli"
    code = sorted(own.rglob("*.py")) if who == OWN else []
    code += [(venvs.ROOT / Path(*MODULES[who].split("."))).with_suffix(".py")]
    whole = hashlib.sha256(b"".join(file.read_bytes() for file in code))
    if who != OWN:
        whole.update(json.dumps(venvs.versions(who), sort_keys=True).encode())
    return whole.hexdigest()


def _compress(cell: Cell, material: Material, seed: int, options: Mapping[str, Any], folder: Path, run: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens = material.calibration[seed].tokens
    order = {"parent": str(material.parent), "tokens": str(tokens), "options": options, "folder": str(folder)}
    (folder / "order.json").write_text(json.dumps(order, indent=1))
    python = sys.executable if cell.who == OWN else str(venvs.python(cell.who))
    usage = watched([python, "-m", MODULES[cell.who], str(folder)], folder / "log.txt")
    if cell.who != OWN and "heal" in options:
        watched([sys.executable, "-m", HEALED, str(folder)], folder / "log.txt")
    (folder / "usage.json").write_text(json.dumps({**usage, "run": run}))


def watched(command: Sequence[str], log: Path) -> dict[str, float]:
    """Run it to its end; its seconds with those of the processes that it waited for, and the most memory that all of them held.

    The memory is looked at ten times a second: the kernel's own maximum begins with what this process held when it forked.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started, peak = time.monotonic(), 0
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=venvs.ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, _resident(process.pid))
            time.sleep(LOOK_EVERY)
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; the end of {log}:\n{_tail(log)}")
    spent = ended[2].ru_utime + ended[2].ru_stime
    return {"seconds": time.monotonic() - started, "cpu_seconds": spent, "peak": peak}


def _resident(pid: int) -> int:
    """Bytes of a process and all below it."""
    try:
        whole = psutil.Process(pid)
        return sum(process.memory_info().rss for process in (whole, *whole.children(recursive=True)))
    except psutil.Error:
        return 0


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _judged(
    material: Material, folder: Path, report: Mapping[str, Any], options: Mapping[str, Any]
) -> Mapping[str, NDArray[np.floating[Any]]]:
    """What the judges say; the model, when a peer wrote it, is of no use after that and goes."""
    scores: dict[str, NDArray[np.floating[Any]]] = {}
    for kind in _kinds(options):
        scores |= _asked(JUDGES[kind], material, folder, report, kind)
    for name in ("native", "model", "healed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return scores


def _asked(
    module: str, material: Material, folder: Path, report: Mapping[str, Any], kind: str
) -> Mapping[str, NDArray[np.floating[Any]]]:
    out = _scores(folder, kind, material)
    if not out.exists():
        half = out.with_suffix(".half.npz")
        paths = [material.parent, report["model"], material.held_out, half]
        watched([sys.executable, "-m", module, *map(str, paths)], folder / "log.txt")
        half.rename(out)
    return dict(np.load(out))
