"""Pruning by cutting: a structured method takes units or blocks out of a parent that is in memory as a whole, and a plain smaller
model of the same architecture is healed, written, proven and committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmos_cli import device
from llmos_cli.core.section import Section
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, ignore
from llmos_cli.models.matrices import matrices
from llmos_cli.models.rewrite import write_resized
from llmos_cli.operations.compression import memory
from llmos_cli.operations.compression.finish import Outcome, conclude, round_to_stored
from llmos_cli.operations.compression.healing import heal_pruned
from llmos_cli.operations.compression.memory import CUTTING, HEALING
from llmos_cli.operations.compression.narrow import Cut, size_of
from llmos_cli.operations.compression.reshape import reshape
from llmos_cli.operations.compression.result import CompressResult
from llmos_cli.operations.compression.resuming import calibrated
from llmos_cli.operations.compression.shorten import shorten
from llmos_cli.operations.compression.sound import check_finite
from llmos_cli.operations.compression.subject import Subject, subject
from llmos_cli.operations.compression.thin import narrower
from llmos_cli.operations.heal import HEAL, Healing
from llmos_cli.options.verbs import PruneConfig, PruneOptions
from llmos_cli.tasks import scoring

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace


def is_structured(module: ModuleType) -> bool:
    """Whether a method cuts, and says how in `rank` or `influence`, or zeroes single weights."""
    return hasattr(module, "rank") or hasattr(module, "influence")


def check(options: PruneOptions) -> None:
    """UsageError for what a structured method cannot do."""
    if options.pattern != "unstructured":
        raise UsageError(
            f"--pattern {options.pattern} says which single weights are zero, and {options.method} cuts whole units out",
            hint="leave --pattern out, or take --method sparsegpt",
        )
    if options.allocation != "uniform":
        raise UsageError(
            f"{options.method} cuts whole units out, and prune.allocation={options.allocation} shares out zeros",
            hint="unset prune.allocation, or take --method sparsegpt",
        )


def cut_out(
    ws: Workspace, run: Run, parent: Checkpoint, resolved: Resolved, module: ModuleType, own: Section
) -> CompressResult:
    """All that happens within a run of a structured method; one that was cut off cuts again, which gives the
    same bits, and goes on healing where it was."""
    config: PruneConfig = resolved.config
    options = config.prune
    with ws.stage() as staged:
        held(options, parent.path, emit=run.emit)
        whole = subject(ws, parent, resolved, options.ignore, emit=run.emit)
        check_finite(parent.path, whole.compressible)  # no method reads all of them
        samples = calibrated(ws, run, whole, resolved, module.NEEDS)
        before = size_of(whole.model)
        cut = cutting(module)(
            whole,
            module,
            own,
            sparsity=options.sparsity,
            ignore=options.ignore,
            batches=samples.batches,
            emit=run.emit,
        )
        smaller = replace(whole, model=cut.model, matrices=matrices(cut.model, options.ignore))
        after = size_of(cut.model)
        if options.heal:
            heal_pruned(smaller, Healing(options.heal, config.heal, config.seed, run.state / HEAL), run.emit)
        round_to_stored(cut.model, parent.path)
        write_resized(cut.model, parent.path, staged)
        skipped = [name for name, change in cut.changes.items() if change.skipped]
        outcome = Outcome(
            staged,
            answers(smaller),
            {"parameters": after},
            method=options.method,
            reached=f"{1 - after / before:.1%} of {before:,} parameters gone ({', '.join(cut.told)})",
            changed=len(cut.changes) - len(skipped),
            left_alone={**whole.left_alone, **cut.left_alone},
        )
        return conclude(ws, run, smaller, resolved, outcome, samples.record)


def held(options: PruneOptions, directory: Path, *, emit: Emit = ignore) -> str:
    """What a structured method holds in memory; UsageError where that cannot be had."""
    return memory.whole(options, directory, HEALING if options.heal else CUTTING, options.method, emit=emit)


def cutting(module: ModuleType) -> Callable[..., Cut]:
    """How a method cuts: units, whole blocks, or both."""
    if hasattr(module, "depths"):
        return reshape
    return narrower if hasattr(module, "rank") else shorten


def answers(subject: Subject) -> Tensor:
    """What the result in memory answers, for its files to be compared with."""
    inputs = device.move(subject.asked, subject.model.device)
    with torch.inference_mode():
        return scoring.forward(subject.model.eval(), inputs).float().cpu()
