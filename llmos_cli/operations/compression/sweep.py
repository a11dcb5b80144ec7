"""The pass over the model: every matrix changed in forward order, each calibrated on what the changed ones before it give."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmos_cli import device
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Layer, Progress
from llmos_cli.methods.hessian import quadratic
from llmos_cli.models.activations import Spill
from llmos_cli.models.calibrate import NO_HOOKS, Hooks, Keeper, sequential
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.statistics import Need, Statistics
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.tasks.base import Batch


@dataclass(frozen=True)
class Change:
    """What a method did to one matrix: numbers to report, or the reason why it left it alone."""

    values: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""


Compress = Callable[[Matrix, Statistics], Change]
"""Changes one matrix in place."""


def sweep(
    subject: Subject,
    batches: Sequence[Batch],
    compress: Compress,
    needs: Collection[Need],
    *,
    hooks: Hooks = NO_HOOKS,
    keeper: Keeper | None = None,
    changes: dict[str, Change] | None = None,
    spill: Spill | None = None,
    dtype: torch.dtype = torch.float32,
    stage: str,
    emit: Emit,
) -> dict[str, Change]:
    """`compress` every matrix in forward order, each calibrated on what the compressed ones before it give; `hooks` see whole
    blocks before and after.

    `keeper`: where blocks are before and after their turn; `changes`: filled as they come, for who keeps them; `spill`: where
    activations go that are too many for memory; `dtype`: of the arithmetic.

    LlmosError when every one of them was left alone.
    """
    begun = keeper.finished if keeper else 0
    course = _Course(subject, compress, needs, {} if changes is None else changes, stage, emit, begun)
    sequential(
        subject.model,
        batches,
        course.visit,
        layers={matrix.layer_name: matrix.layer for matrix in subject.matrices.values()},
        needs=needs,
        hooks=hooks,
        keeper=keeper,
        spill=spill,
        dtype=dtype,
        advance=course.advance,
    )
    _check_some(subject, course.changes)
    return course.changes


@dataclass
class _Course:
    """A pass while it lasts: what was done to each matrix, and how far it is. `begun`: blocks that were finished before."""

    subject: Subject
    compress: Compress
    needs: Collection[Need]
    changes: dict[str, Change]
    stage: str
    emit: Emit
    begun: int
    _errors: list[float] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def visit(self, statistics: Mapping[str, Statistics]) -> None:
        for name, seen in statistics.items():
            reached = seen.count > 0 or not self.needs
            change = _alone(self.compress, self.subject.matrices[name], seen) if reached else Change(skipped=UNREACHED)
            self.changes[name] = change
            self._errors += [change.values["error"]] if "error" in change.values else []
            self.emit(Layer(name, change.values, change.skipped))

    def advance(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._started
        eta = elapsed / max(1, done - self.begun) * (total - done)
        error = {"error": sum(self._errors) / len(self._errors)} if self._errors else {}
        self._errors.clear()
        memory = device.memory_used()
        self.emit(Progress(self.stage, done, total, "block", error, elapsed=elapsed, eta=eta, memory=memory))


SMALL = 1 << 21
"""Weights below which a matrix is changed by one thread."""


def _alone(compress: Compress, matrix: Matrix, seen: Statistics) -> Change:
    """Methods walk a matrix column by column: thousands of small steps, at each of which several threads wait for each other.

    On a busy machine that wait is many times the work; below `SMALL` a second thread gains nothing even on a quiet one.
    """
    threads = torch.get_num_threads()
    if matrix.parameter.numel() < SMALL:
        torch.set_num_threads(1)
    try:
        return compress(matrix, seen)
    finally:
        torch.set_num_threads(threads)


UNREACHED = "no calibration input reached it"


def _check_some(subject: Subject, changes: Mapping[str, Change]) -> None:
    if all(change.skipped for change in changes.values()):
        raise nothing_changed([*(change.skipped for change in changes.values()), *subject.left_alone.values()])


def nothing_changed(reasons: Iterable[str]) -> LlmosError:
    """`reasons`: why each matrix is left alone."""
    return LlmosError(
        f"no layer was changed: {'; '.join(sorted(set(reasons))) or 'the model has none that can be compressed'}",
        hint="look at the `ignore` globs, the method and its options",
        final=True,
    )


TOLD_BY = 128
"""Outputs by which a layer's error is told."""


def relative_error(before_OI: Tensor, after_OI: Tensor, statistics: Statistics) -> float:
    """How far the layer's outputs on the calibration inputs are off, as a share of their size; of the weights without a Hessian.

    Of a wide layer it is told from `TOLD_BY` outputs, evenly spread: all of them would cost as much as choosing codes.
    """
    told = torch.linspace(0, len(before_OI) - 1, min(len(before_OI), TOLD_BY), device=before_OI.device).long()
    if before_OI[told].any():  # else others speak for the layer
        before_OI, after_OI = before_OI[told], after_OI[told]
    change_OI = after_OI - before_OI
    if statistics.hessian_II.numel():
        off, whole = (quadratic(w, statistics.hessian_II).sum().clamp_min(0) for w in (change_OI, before_OI))
    else:
        scale_I = statistics.square_I if statistics.square_I.numel() else torch.ones_like(before_OI[0])
        off, whole = ((w.square() * scale_I).sum() for w in (change_OI, before_OI))
    return float((off / whole).sqrt()) if whole > 0 else 0.0
