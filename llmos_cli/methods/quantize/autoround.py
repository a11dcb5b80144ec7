"""AutoRound: GPTQ's codes and scales moved together by gradient steps until the whole block answers as it did (Cheng et al. 2023, arXiv:2309.05516).

Each weight has a place between codes, and takes the code nearest to it; each group's scale has a factor. Places start near GPTQ's codes,
on the side where the weight lies: what is learnt begins at the best answer that is known for each layer alone (the paper begins at
plain rounding). The gradient passes the rounding straight through. Steps are Adam's: the paper's signs move every place alike, also
those whose gradient is noise, which only undoes what GPTQ found. So many free places fit a small calibration set better than they
should: where there are batches enough, every fourth is left out of learning, and a block that answers no better on those keeps what it
had.

Shapes: O outputs, I inputs, G groups of g inputs; B samples, L positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Codes, Grid, Rounding, Scales, usable
from llmos_cli.methods.quantize import gptq
from llmos_cli.models.calibrate import Turn, answered
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = gptq.NEEDS
ACTIVATIONS: int | None = None


class Options(Section):
    iterations: int = Field(200, ge=0)
    """Steps in each block."""
    learning_rate: float = Field(5e-3, gt=0)
    """Of a code's width, and of a scale: how far the first step moves each; falls linearly to 0."""
    batch_size: int = Field(8, ge=1)
    """Calibration samples in a step."""


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    """Where learning starts from."""
    return gptq.quantize(weight_OI, statistics, grid, gptq.Options())


def refine(turn: Turn, roundings: Mapping[str, Rounding], options: Options, *, seed: int) -> dict[str, Codes]:
    """Better codes for the matrices of a block that gradients reach; none where the block answers no better for them."""
    moving = {name: Moving.of(rounding, _parameter(turn, name)) for name, rounding in roundings.items()}
    if not moving or not options.iterations:
        return {}
    learning, judging = shares(turn.batches)
    with torch.enable_grad():
        reached = _learn(turn, moving, learning, options, seed=seed)
    learnt = {name: entry.codes() for name, entry in reached.items()}
    shaped = {name: codes.dequantized().view(moving[name].shape) for name, codes in learnt.items()}
    return learnt if _loss(turn, judging, shaped) < _loss(turn, judging, {}) else {}


def shares(batches: int) -> tuple[list[int], list[int]]:
    """The batches to learn from, and those to judge by: every fourth; of three or fewer all of them for both."""
    judging = list(range(3, batches, 4))
    learning = [number for number in range(batches) if number not in judging]
    return learning, judging or learning


@dataclass(frozen=True)
class Moving:
    """A matrix whose codes may move. `place_OGg`: where each weight lies, in codes less the zero; `factor_OG1`: of the scales."""

    place_OGg: Tensor
    factor_OG1: Tensor
    keep_OGg: Tensor
    scales: Scales
    grid: Grid
    shape: torch.Size

    @classmethod
    def of(cls, rounding: Rounding, parameter: Tensor) -> Moving:
        codes, grid = rounding.codes, rounding.grid
        steps_OGg = codes.steps().unflatten(1, (-1, grid.group))
        weight_OGg = rounding.weight_OI.unflatten(1, (-1, grid.group))
        off_OGg = weight_OGg / codes.scale_OG.float()[:, :, None] - steps_OGg
        place_OGg = steps_OGg + off_OGg.clamp_(-MARGIN, MARGIN)
        factor_OG1 = torch.ones_like(place_OGg[:, :, :1])
        scales = Scales(codes.scale_OG, codes.zero_OG)
        return cls(place_OGg, factor_OG1, weight_OGg != 0, scales, grid, parameter.shape)

    @property
    def learnt(self) -> tuple[Tensor, Tensor]:
        return self.place_OGg, self.factor_OG1

    def steps(self) -> Tensor:
        """[O, G, g]; the gradient of a step is that of its place, except beyond the grid's ends."""
        low, high = self.grid.ends(None if self.scales.zero_OG is None else self.scales.zero_OG[:, :, None])
        rounded_OGg = self.place_OGg + (self.place_OGg.round() - self.place_OGg).detach()
        steps_OGg: Tensor = rounded_OGg.clamp(low, high) * self.keep_OGg
        return steps_OGg

    def values(self) -> Tensor:
        """The weight, in its own shape."""
        return (self.steps() * self.scales.scale_OG.float()[:, :, None] * self.factor_OG1).view(self.shape)

    def codes(self) -> Codes:
        """With the scales as they will be stored."""
        with torch.no_grad():
            scale_OG = usable(self.scales.scale_OG.float() * self.factor_OG1[:, :, 0], self.grid)
            return Codes.of_steps(self.steps().flatten(1), Scales(scale_OG, self.scales.zero_OG))


MARGIN = 0.25
"""How far from its code a place starts at most: half of the way to the next code, so that the noise of single steps does not move it
there."""


def _learn(
    turn: Turn, moving: Mapping[str, Moving], learning: Sequence[int], options: Options, *, seed: int
) -> dict[str, Moving]:
    """Move places and factors towards less error; returns the matrices that a gradient reached."""
    parts = [part.requires_grad_() for entry in moving.values() for part in entry.learnt]
    optimizer = torch.optim.Adam(parts, lr=options.learning_rate, betas=(0.9, 0.95), eps=TINY)
    batches = _minibatches(turn, learning, options.batch_size, seed=seed)
    for iteration, (args, kwargs, target_BLD, mask_BL) in zip(range(options.iterations), batches, strict=False):
        weights = {name: entry.values() for name, entry in moving.items()}
        loss = distance(answered(turn.module, turn.name, args, kwargs, weights), target_BLD, mask_BL)
        optimizer.zero_grad()
        loss.backward(inputs=parts)  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = options.learning_rate * (1 - iteration / options.iterations)
        optimizer.step()
    return {name: entry for name, entry in moving.items() if entry.place_OGg.grad is not None}


def distance(answer: Tensor, target: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Squared error of each position as a share of its size, the mean over those that are not padding: most blocks are followed by
    a norm, and a few positions are hundreds of times larger than the rest. Of images, the plain squared error."""
    if target.ndim != 3:
        return (answer - target).square().mean()
    off_BL = (answer - target).float().square().mean(-1) / target.float().square().mean(-1).clamp_min(TINY)
    if mask_BL is None or mask_BL.shape != off_BL.shape:
        return off_BL.mean()
    return (off_BL * mask_BL).sum() / mask_BL.sum().clamp_min(1)


TINY = 1e-12


def _loss(turn: Turn, numbers: Sequence[int], weights: Mapping[str, Tensor]) -> float:
    with torch.no_grad():
        return sum(
            float(distance(turn.answer(number, weights), turn.target(number), turn.mask(number))) for number in numbers
        )


Minibatch = tuple[tuple[Any, ...], dict[str, Any], Tensor, Tensor | None]
"""Positional and keyword arguments of the block, its target, its mask."""


def _minibatches(turn: Turn, learning: Sequence[int], size: int, *, seed: int) -> Iterator[Minibatch]:
    """For ever: the batches in an order that `seed` draws, each cut into minibatches of samples drawn likewise."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for drawn in torch.randperm(len(learning), generator=generator).tolist():
            number = learning[drawn]
            (args, kwargs), target, mask_BL = turn.given(number), turn.target(number), turn.mask(number)
            samples = len(target)
            for rows in torch.randperm(samples, generator=generator).split(size):
                given = _rows((args, kwargs), rows.to(target.device), samples)
                yield *given, target[rows], None if mask_BL is None else mask_BL[rows]


def _rows(given: Any, rows_B: Tensor, samples: int) -> Any:
    """The tensors that have one entry for each sample, cut down to `rows_B`; what all samples share stays."""

    def cut(value: Any) -> Any:
        by_sample = isinstance(value, Tensor) and value.ndim > 1 and len(value) == samples
        return value[rows_B] if by_sample else value

    return tree_map(cut, given)


def _parameter(turn: Turn, name: str) -> nn.Parameter:
    layer, _, own = name.rpartition(".")
    parameter: nn.Parameter = getattr(turn.layers[layer], own)
    return parameter
