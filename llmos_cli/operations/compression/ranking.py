"""The first pass of a structured cut, over the model as it is: in which order each group's units can be spared, what that costs
the outputs of what reads them, and, of each width by itself, what it does to the model's answers.

An error in what heads give weighs many times what the same error does in what an MLP gives, and a large cut costs more than its
error says. So the KL is measured at two counts of each width, and a power of the error is laid through them.

Shapes: O outputs, I inputs of a matrix, N units of a group, R inputs of a matrix that are one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from llmos_cli.core.section import Section
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit
from llmos_cli.methods.structure import Ranking, Reader
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.narrow import Group, Slice, Width
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression.probe import Probe, divergences
from llmos_cli.operations.compression.saliency import first_order
from llmos_cli.operations.compression.share import Choice
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change, sweep
from llmos_cli.tasks.base import Batch

Reading = dict[str, list[tuple[Group, Slice]]]
"""Who reads what: matrix -> the groups whose units are among its inputs."""


@dataclass(frozen=True)
class Ranked:
    """Every group's ranking, and for each width the counts that it may have with what they cost (nats per position)."""

    rankings: Mapping[Group, Ranking]
    choices: Mapping[Width, Choice]


def ranked(
    readers: Subject, found: Sequence[Width], module: ModuleType, own: Section, *, sparsity: float,
    batches: Sequence[Batch], emit: Emit,
) -> Ranked:  # fmt: skip
    """Rank the groups of the widths `found`; `readers`: the subject with the matrices that read them."""
    may_stay = {width: allowed(width, module, own) for width in found}
    probed = {width: _probed(width, may_stay[width], sparsity) for width in found}
    moves = first_order(readers.model, readers.matrices, batches) if module.gradients(own) else {}
    looking = _Looking(module, own, probed, moves)
    sweep(readers, batches, looking.look, {"hessian"}, stage="rank", emit=emit)
    for group in (group for width in found for group in width.groups if group not in looking.rankings):
        raise LlmosError(f"no calibration input reached what reads {group.name}", hint="use other calibration data")
    measured = divergences(readers.model, readers.matrices, looking.probes, batches)
    choices = {
        width: looking.choice(width, may_stay[width], {count: measured[width, count] for count in probed[width]})
        for width in found
    }
    return Ranked(looking.rankings, choices)


def allowed(width: Width, module: ModuleType, own: Section) -> list[int]:
    """The counts that may be chosen: heads go whole, of the rest the method says how many may stay."""
    found: list[int] = module.counts(width.units, own)
    return list(range(1, width.units + 1)) if width.head_size is not None else found


def _probed(width: Width, allowed: Sequence[int], sparsity: float) -> list[int]:
    """The counts at which the answers are looked at: about what it would be if all widths gave alike, and with twice as much gone."""
    fewer = [count for count in allowed if count < width.units]
    wanted = [(1 - share) * width.units for share in (sparsity, 2 * sparsity)]
    return sorted({min(fewer, key=lambda count: abs(count - each)) for each in wanted if fewer}, reverse=True)


class _Looking:
    """What the pass has seen so far. A group is ranked once all its readers were met, a reader refitted once all its groups were
    ranked, and then its Hessian is let go."""

    def __init__(
        self, module: ModuleType, own: Section, probed: Mapping[Width, Sequence[int]], moves: Mapping[str, Tensor]
    ) -> None:
        self.module, self.own, self.probed, self.moves = module, own, probed, moves
        self.reading = reading_of(group for width in probed for group in width.groups)
        self.rankings: dict[Group, Ranking] = {}
        self.probes: dict[Probe, dict[str, Tensor]] = {
            (width, count): {} for width, counts in probed.items() for count in counts
        }
        self.seen: dict[Group, list[tuple[Reader, float]]] = {}
        self.whole: dict[Group, float] = {}
        self.waiting: dict[str, tuple[Matrix, Reader]] = {}

    def look(self, matrix: Matrix, statistics: Statistics) -> Change:
        weight_OI, hessian_II = matrix.read(), statistics.hessian_II
        size = float((weight_OI @ hessian_II * weight_OI).sum())
        for group, part in self.reading.get(matrix.name, ()):
            reader = Reader(weight_OI, hessian_II, columns(part, matrix), self.moves.get(matrix.name))
            self.waiting[matrix.name] = matrix, reader
            self.seen.setdefault(group, []).append((reader, size))
            if len(self.seen[group]) == len(group.readers):
                self._rank(group)
        self._refit()
        return Change()

    def _rank(self, group: Group) -> None:
        found = self.seen.pop(group)
        self.rankings[group] = self.module.rank([reader for reader, _ in found], self.own)
        self.whole[group] = sum(size for _, size in found)

    def _refit(self) -> None:
        for name in list(self.waiting):
            groups = self.reading[name]
            if all(group in self.rankings for group, _ in groups):
                matrix, reader = self.waiting.pop(name)
                for width, count in self.probes:
                    if kept := {g: self.rankings[g].kept(count) for g, _ in groups if g in width.groups}:
                        kept_I = inputs_kept(matrix, groups, kept).to(reader.weight_OI.device)
                        statistics = Statistics(hessian_II=reader.hessian_II)
                        probe = self.module.refit(reader.weight_OI, kept_I, statistics, self.own)
                        self.probes[width, count][name] = probe

    def choice(self, width: Width, allowed: Sequence[int], measured: Mapping[int, float]) -> Choice:
        """What each count costs: a power of its error, the errors being shares of the outputs' size."""

        def error(count: int) -> float:
            errors = ((self.rankings[g].cost_N1[width.units - count], self.whole[g]) for g in width.groups)
            return sum(float(lost) / whole for lost, whole in errors if whole > 0)

        cost = power_law([(error(count), kl) for count, kl in measured.items()])
        return Choice({count: cost(error(count)) for count in allowed})


STEEPEST = 3.0
"""Two measurements close together say nothing of a power above this."""


def power_law(points: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """KL as a function of the error through one or two measured points, at least proportional to it."""
    sound = sorted((error, kl) for error, kl in points if error > 0 and kl > 0)
    if not sound:
        return lambda error: error
    (error_1, kl_1), (error_2, kl_2) = sound[0], sound[-1]
    power = 1.0
    if error_2 > error_1:
        power = min(STEEPEST, max(1.0, math.log(kl_2 / kl_1) / math.log(error_2 / error_1)))
    return lambda error: float(kl_2 * (error / error_2) ** power)


def reading_of(groups: Iterable[Group]) -> Reading:
    reading: Reading = {}
    for group in groups:
        for part in group.readers:
            reading.setdefault(part.tensor, []).append((group, part))
    return reading


def inputs_kept(matrix: Matrix, groups: Sequence[tuple[Group, Slice]], kept: Mapping[Group, Tensor]) -> Tensor:
    """[I] bool, False where an input is a unit that is not `kept`; of groups that are not mentioned, all are."""
    kept_I = torch.ones(matrix.inputs, dtype=torch.bool)
    for group, part in groups:
        if group in kept:
            kept_I[columns(part, matrix)[~kept[group]].flatten()] = False
    return kept_I


def columns(part: Slice, matrix: Matrix) -> Tensor:
    """[N, R] inputs of the matrix that are each unit: of a kernel, a channel is height x width of them."""
    if not isinstance(matrix.layer, nn.Conv2d):
        return part.index_NR
    each = matrix.inputs // matrix.parameter.shape[1]
    return (part.index_NR[:, :, None] * each + torch.arange(each)).flatten(1)
