"""Compression: KL to the parent of every method at several sizes, on one checkpoint: run inside a workspace.

    python benchmarks/methods.py [REV] [--only REGEX] [--seeds 3] [--heal 100] [--group-size 128] [--rotation hadamard]

All cells share the parent, the calibration samples of a seed and the evaluation text. An interval is a bootstrap over samples;
the ratio to the row's baseline is paired over the same samples, so noise that both share cancels. Nothing is committed.
Exits 1 when a bound that the README states does not hold with its whole interval.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from llmos_cli import device
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import ignore
from llmos_cli.models.int8 import QuantizedLinear
from llmos_cli.models.load import load
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.coding import coding, whole_blocks
from llmos_cli.operations.compression.finish import round_to_stored
from llmos_cli.operations.compression.form import form_of
from llmos_cli.operations.compression.healing import heal_pruned, heal_quantized
from llmos_cli.operations.compression.rotating import rotated
from llmos_cli.operations.compression.subject import Subject, calibration, method, subject
from llmos_cli.operations.compression.sweep import sweep
from llmos_cli.operations.compression.zeroing import zeroing
from llmos_cli.operations.config import resolve
from llmos_cli.operations.eval import Exam
from llmos_cli.operations.heal import Healing
from llmos_cli.operations.prune import target_of
from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Outcome

TABLE: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("W4", "quantize", "rtn", {"bits": 4}),
    ("W4", "quantize", "awq", {"bits": 4}),
    ("W4", "quantize", "gptq", {"bits": 4}),
    ("W4", "quantize", "autoround", {"bits": 4}),
    ("W3", "quantize", "rtn", {"bits": 3}),
    ("W3", "quantize", "awq", {"bits": 3}),
    ("W3", "quantize", "gptq", {"bits": 3}),
    ("W3", "quantize", "autoround", {"bits": 3}),
    ("W2", "quantize", "rtn", {"bits": 2}),
    ("W2", "quantize", "gptq", {"bits": 2}),
    ("W2", "quantize", "autoround", {"bits": 2}),
    ("W8", "quantize", "rtn", {"bits": 8}),
    ("W8", "quantize", "gptq", {"bits": 8}),
    ("W8A8", "quantize", "w8a8", {"bits": 8}),
    ("W8A8", "quantize", "smoothquant", {"bits": 8}),
    ("50%", "prune", "magnitude", {}),
    ("50%", "prune", "wanda", {}),
    ("50%", "prune", "sparsegpt", {}),
    ("2:4", "prune", "magnitude", {"pattern": "2:4"}),
    ("2:4", "prune", "wanda", {"pattern": "2:4"}),
    ("2:4", "prune", "sparsegpt", {"pattern": "2:4"}),
)
"""Row, verb, method, options; the first method of a row is its baseline."""
BOUNDS = (("W4", "gptq", "rtn", 1 / 3), ("50%", "wanda + heal", "wanda", 1 / 2))
"""Row, method, the one it is held against, and the share of its KL that may be left; held where both ran."""


@dataclass(frozen=True)
class Cell:
    row: str
    name: str
    seed: int
    outcome: Outcome
    seconds: float
    cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", nargs="?", default="HEAD")
    parser.add_argument("--only", default="", help="rows and methods to run, as in 'W4|2:4 wanda'")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--heal", type=int, default=0)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--rotation", default="off", help="quantizing methods also with the model turned first")
    asked = parser.parse_args()
    device.use_threads()
    print(
        "| row | method | seed | KL [95 %] | ratio to the row's first [95 %] | s | CPU s |\n|---|---|---|---|---|---|---|"
    )
    seen: dict[tuple[str, int], list[Cell]] = {}
    held: list[tuple[str, bool]] = []
    for cell, task, facts in cells(asked):
        earlier = seen.setdefault((cell.row, cell.seed), [])
        earlier.append(cell)
        print(told(cell, earlier[0], task, facts), flush=True)
        held += bounds(cell, earlier, task, facts)
    print(*(sentence for sentence, _ in held), sep="\n")
    sys.exit(0 if all(holds for _, holds in held) else 1)


def cells(asked: argparse.Namespace) -> Iterator[tuple[Cell, Any, Any]]:
    ws = Workspace.find()
    for row, verb, name, options in TABLE:
        if not re.search(asked.only, f"{row} {name}"):
            continue
        rotations = {"off": "off", asked.rotation: asked.rotation} if verb == "quantize" else {"": ""}
        for seed, heal, rotation in product(range(asked.seeds), sorted({0, asked.heal}), rotations):
            flags = {f"{verb}.{key}": value for key, value in {"method": name, "heal": heal, **options}.items()}
            if verb == "quantize":
                flags["quantize.group_size"] = -1 if row == "W8A8" else asked.group_size
                flags["quantize.rotation"] = rotation
            resolved = resolve(ws, verb, flags={**flags, "seed": seed})
            with ws.stage() as folder:
                parent = begun(ws, asked.rev, resolved, rotation, folder)
            started = time.monotonic(), time.process_time()
            (pruned if verb == "prune" else quantized)(parent, resolved)
            spent = time.monotonic() - started[0], time.process_time() - started[1]
            told = f"{name} + {rotation}" if rotation not in ("", "off") else name
            cell = Cell(row, f"{told} + heal {heal}" if heal else told, seed, judged(parent), *spent)
            yield cell, parent.exam.task, parent.exam.prepared.facts


def begun(ws: Workspace, rev: str, resolved: Any, rotation: Any, folder: Path) -> Subject:
    def turned(exam: Exam) -> Path:
        return rotated(ws, exam, rotation or "off", folder, seed=resolved.config.seed, emit=ignore)

    return subject(ws, ws.checkpoint(rev), resolved, [], rewritten=turned, emit=ignore)


def pruned(parent: Subject, resolved: Any) -> None:
    options = resolved.config.prune
    module, own = method("prune", options)
    batches = calibration(parent, options.calibration_samples, module.NEEDS, seed=resolved.config.seed).batches
    compress = zeroing(parent, module, own, target_of(resolved))
    sweep(parent, batches, compress, module.NEEDS, stage="prune", emit=ignore)
    if options.heal:
        heal_pruned(parent, Healing(options.heal, resolved.config.heal, resolved.config.seed), ignore)
    round_to_stored(parent.model, parent.checkpoint.path)


def quantized(parent: Subject, resolved: Any) -> None:
    options = resolved.config.quantize
    module, own = method("quantize", options)
    batches = calibration(parent, options.calibration_samples, module.NEEDS, seed=resolved.config.seed).batches
    coded: dict[str, Coded] = {}
    form, seed = form_of(resolved, module), resolved.config.seed
    compress = coding(parent, module, own, form, coded)
    hooks = whole_blocks(parent, module, own, form, coded, seed=seed)
    sweep(parent, batches, compress, module.NEEDS, hooks=hooks, stage="quantize", emit=ignore)
    if options.heal:
        heal_quantized(parent, coded, Healing(options.heal, resolved.config.heal, seed), ignore)
    round_to_stored(parent.model, parent.checkpoint.path, but=set(coded))
    for entry in coded.values() if module.ACTIVATIONS else ():
        if type(entry.matrix.layer) is nn.Linear:
            entry.matrix.layer.__class__ = QuantizedLinear


def judged(parent: Subject) -> Outcome:
    teacher = load(parent.checkpoint.path, device=parent.model.device)
    split = parent.exam.prepared.splits["test"]
    return scoring.evaluate(parent.exam.task, parent.model, split, batch_size=16, teacher=teacher)


def told(cell: Cell, baseline: Cell, task: Any, facts: Any) -> str:
    kl = scoring.intervals(task, cell.outcome, facts, seed=0)["kl"]
    ratio = share(cell, baseline, task, facts)
    numbers = f"{kl.value:.6f} [{kl.low:.6f}, {kl.high:.6f}] | {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"| {cell.row} | {cell.name} | {cell.seed} | {numbers} | {cell.seconds:.1f} | {cell.cpu_seconds:.1f} |"


def share(cell: Cell, baseline: Cell, task: Any, facts: Any) -> scoring.Interval:
    """The cell's KL by the baseline's, resampled together."""
    return scoring.paired(
        task, baseline.outcome, cell.outcome, facts, seed=0, compare=lambda base, other: other / max(base, 1e-12)
    )["kl"]


def bounds(cell: Cell, earlier: list[Cell], task: Any, facts: Any) -> Iterator[tuple[str, bool]]:
    """(sentence, whether it holds) of each bound on this cell."""
    for row, name, against, most in BOUNDS:
        for other in earlier:
            if (cell.row, other.name) == (row, against) and cell.name.startswith(name) and cell is not other:
                holds = share(cell, other, task, facts).high <= most
                yield (
                    f"{'holds' if holds else 'FAILS'}: {row} {cell.name} <= {most:.2f} of {against} (seed {cell.seed})",
                    holds,
                )


if __name__ == "__main__":
    main()
