"""What it costs to keep each part of a model in fewer bits: measured, one part at a time, the others as they are.

A part is what readers fuse and must find in one form: the matrices of a block that are fed the same tensor (query, key and value;
gate and up). Its KL is measured at one number of bits, on codes as GPTQ chooses them; to the others it is carried over by the
error of the part's outputs, to whose square a small KL is proportional (both are quadratic in the change of the weights).

Shapes: O outputs, I inputs of a matrix; N scored positions, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llmos_cli.events import Emit, Progress
from llmos_cli.methods.grid import Codes, Grid, Scales, nearest, usable_group, widest
from llmos_cli.methods.hessian import damped
from llmos_cli.methods.quantize import gptq
from llmos_cli.models.calibrate import sequential
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.statistics import Statistics
from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Batch, Scored, Task

PROBE_BITS = 3
"""Few enough that the KL stands clear of rounding, enough that it is still quadratic in the change."""
DAMPING = 0.01
CLIPS = (1.0, 0.85, 0.7)
"""Shares of a group's range that the grid is laid over, to compare bits: few bits want a smaller one."""


@dataclass(frozen=True)
class Part:
    """`names`: its matrices; `bits_bytes`, `bits_kl`: what they weigh and what they cost in KL (nats per position) by bits;
    `bits_seconds`: how long they take where a latency is asked for (`pace`)."""

    names: tuple[str, ...]
    bits_bytes: Mapping[int, int]
    bits_kl: Mapping[int, float]
    bits_seconds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Probe:
    """A part quantized to `PROBE_BITS`, the `bits` it may be kept in, and the squared error of its outputs by bits."""

    bits: Sequence[int]
    codes: Mapping[str, Codes]
    errors: Mapping[int, float]


def sensitivities(
    model: nn.Module,
    task: Task,
    matrices: Mapping[str, Matrix],
    batches: Sequence[Batch],
    probes: Sequence[Batch],
    *,
    bits: Sequence[int],
    group_size: int,
    emit: Emit,
) -> list[Part]:
    """Measure every part of `model` for each of `bits`; the model is as it was afterwards.

    `batches` are calibrated on (without labels), KL is measured on `probes` (with labels, which say the positions that count).
    Matrices of convolutions and LSTMs have one form only, 8 bits for each output channel.
    """
    found: dict[tuple[str, ...], _Probe] = {}

    def visit(statistics: Mapping[str, Statistics]) -> None:
        reached = {name: seen for name, seen in statistics.items() if seen.count}
        if reached:
            found[tuple(reached)] = _probe(matrices, reached, _forms(matrices, reached, bits), group_size)

    chosen = {matrix.layer_name: matrix.layer for matrix in matrices.values()}
    advance = _telling("measure layers", emit)
    sequential(model, batches, visit, layers=chosen, needs={"hessian"}, advance=advance)
    kls = _measured_kl(model, task, matrices, found, probes, emit)
    return [
        Part(
            names,
            {width: sum(weight_bytes(matrices[name], width, group_size) for name in names) for width in probe.bits},
            {width: kls[names] * _share(probe.errors[width], probe.errors[PROBE_BITS]) for width in probe.bits},
        )
        for names, probe in found.items()
    ]


ENTRY = 3 * 160
"""Bytes at most that three tensors take in a file's header, where one stood before."""


def weight_bytes(matrix: Matrix, bits: int, group_size: int, scale_bytes: int = 2) -> int:
    """Of a matrix stored as packed codes, at most: whole words in each row, a scale for each group, the shape."""
    outputs = matrix.parameter.numel() // matrix.inputs
    words = -(-matrix.inputs * bits // 32)
    groups = matrix.inputs // usable_group(matrix.inputs, group_size)
    return outputs * (4 * words + scale_bytes * groups) + 16 + ENTRY


def _forms(matrices: Mapping[str, Matrix], names: Iterable[str], bits: Sequence[int]) -> Sequence[int]:
    return bits if all(isinstance(matrices[name].layer, nn.Linear) for name in names) else (8,)


def _probe(
    matrices: Mapping[str, Matrix], statistics: Mapping[str, Statistics], bits: Sequence[int], group_size: int
) -> _Probe:
    codes: dict[str, Codes] = {}
    errors = dict.fromkeys({*bits, PROBE_BITS}, 0.0)
    for name, seen in statistics.items():
        matrix = matrices[name]
        weight_OI, hessian_II = matrix.read(), damped(seen.hessian_II, DAMPING)
        group = usable_group(matrix.inputs, group_size)
        for width in errors:
            grid = Grid(width, group)
            whole_OG = widest(weight_OI, grid).scale_OG
            errors[width] += min(_error(weight_OI, clip * whole_OG, grid, hessian_II) for clip in CLIPS)
        codes[name] = gptq.quantize(weight_OI, seen, Grid(PROBE_BITS, group), gptq.Options(passes=0))
    return _Probe(bits, codes, errors)


def _error(weight_OI: Tensor, scale_OG: Tensor, grid: Grid, hessian_II: Tensor) -> float:
    """Squared error of the outputs where each weight goes to its nearest code."""
    change_OI = nearest(weight_OI, Scales(scale_OG), grid).dequantized() - weight_OI
    return float((change_OI @ hessian_II * change_OI).sum())


def _measured_kl(
    model: nn.Module,
    task: Task,
    matrices: Mapping[str, Matrix],
    found: Mapping[tuple[str, ...], _Probe],
    probes: Sequence[Batch],
    emit: Emit,
) -> dict[tuple[str, ...], float]:
    advance = _telling("measure sensitivities", emit)
    dense = [scored(model, task, batch) for batch in probes]
    kls: dict[tuple[str, ...], float] = {}
    for done, (names, probe) in enumerate(found.items(), 1):
        before = {name: matrices[name].read() for name in names}
        for name in names:
            matrices[name].write(probe.codes[name].dequantized())
        kls[names] = mean_kl(model, task, probes, dense)
        for name, weight_OI in before.items():
            matrices[name].write(weight_OI)
        advance(done, len(found))
    return kls


def mean_kl(model: nn.Module, task: Task, probes: Sequence[Batch], dense: Sequence[Scored]) -> float:
    """KL of what was scored before, nats a position, to what the model says now."""
    total = positions = 0.0
    for batch, before in zip(probes, dense, strict=True):
        kl_N: Tensor = scoring.kl(before, scored(model, task, batch))
        total, positions = total + float(kl_N.double().sum()), positions + len(kl_N)
    return max(total / positions, 0.0)


def scored(model: nn.Module, task: Task, batch: Batch) -> Scored:
    with torch.inference_mode():
        return task.scored(scoring.forward(model, batch), batch)


def _share(error: float, of: float) -> float:
    return error / of if of > 0 else 0.0


def _telling(stage: str, emit: Emit):  # type: ignore[no-untyped-def]
    started = time.monotonic()

    def advance(done: int, total: int) -> None:
        elapsed = time.monotonic() - started
        emit(Progress(stage, done, total, "part", elapsed=elapsed, eta=elapsed / done * (total - done)))

    return advance
