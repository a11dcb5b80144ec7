"""Training with rounded weights (QAT): what is learnt is a quantized checkpoint, `train.quantize`.

In every forward pass a weight is what its file will hold: the nearest code times the scale of its group, that scale rounded as it is
stored. Gradients pass the rounding straight through, and reach the scales too (LSQ, Esser et al. 2020, arXiv:1902.08153): each is a
factor, 1 at first, of the scale that it begins with, which is that of the codes it is given (`training/beginning.py`) or makes the squared
error of the weights least. The loop is the usual one, and knows nothing of it.

Shapes: O outputs, I inputs, g inputs in a group, G groups, N scales of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.methods.grid import Codes, Grid, Scales, searched, usable, usable_group
from llmos_cli.models.load import load
from llmos_cli.models.matrices import Matrix, matrices
from llmos_cli.models.quantized import Quantized, why_not, write_quantized
from llmos_cli.models.save import save
from llmos_cli.options.verbs import RoundedOptions

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

OTHER_BITS = 8
"""Of convolutions, one scale for each output channel: the only format there is for them."""
ORIGINAL = "parametrizations.weight.original"


class Fake(nn.Module):
    """The parametrization of one weight: what it will be once it is stored."""

    scale_OG: Tensor
    zero_OG: Tensor | None

    def __init__(self, matrix: Matrix, grid: Grid, codes: Codes | None = None) -> None:
        """`codes`: what it is at first; the nearest ones of the scales with the least error when None."""
        super().__init__()
        self.matrix, self.grid = matrix, grid
        weight_OI = matrix.read()
        if codes is None:
            found = searched(weight_OI, grid, torch.ones_like(weight_OI[0]))
        else:
            found = Scales(codes.scale_OG, codes.zero_OG)
            matrix.write(placed(weight_OI, codes, grid))
        # In the state that a run is resumed from: the weights that they were made for are not there any more.
        self.register_buffer("scale_OG", found.scale_OG.float())
        self.register_buffer("zero_OG", found.zero_OG)
        # A vector, as norms and biases are: Muon makes matrices orthogonal, and these are none.
        self.factor_N = nn.Parameter(torch.ones(found.scale_OG.numel(), device=weight_OI.device))
        self.pace = (grid.group * grid.high) ** -0.5

    def forward(self, weight: Tensor) -> Tensor:
        scale_OG = self._scale()
        steps_OGg = self._steps(weight, scale_OG)
        return self.matrix.shaped((steps_OGg * scale_OG[:, :, None]).flatten(1))

    def learnt(self, weight: Tensor) -> Codes:
        """The codes and scales that the forward pass computes with."""
        with torch.no_grad():
            scale_OG = self._scale()
            steps_OI = self._steps(weight, scale_OG).flatten(1)
            return Codes.of_steps(steps_OI, Scales(scale_OG.to(self.grid.dtype), self.zero_OG))

    def _scale(self) -> Tensor:
        # LSQ's step size for scales: the value is the same, the gradient smaller.
        factor_N = self.factor_N * self.pace + (self.factor_N * (1 - self.pace)).detach()
        exact_OG = self.scale_OG * factor_N.view_as(self.scale_OG)
        return straight(exact_OG, usable(exact_OG.detach(), self.grid).float())

    def _steps(self, weight: Tensor, scale_OG: Tensor) -> Tensor:
        """[O, G, g] code - zero, whole numbers in fp32."""
        weight_OI = weight.T if self.matrix.transposed else weight.flatten(1)
        low, high = self.grid.ends(None if self.zero_OG is None else self.zero_OG[:, :, None])
        exact_OGg = (weight_OI.unflatten(1, (-1, self.grid.group)) / scale_OG[:, :, None]).clamp(low, high)
        return straight(exact_OGg, exact_OGg.detach().round())


PLACE = 0.45
"""How far from its code, in steps, a weight begins at most: the next code is half a step away."""


def placed(weight_OI: Tensor, codes: Codes, grid: Grid) -> Tensor:
    """The weights, moved to where their nearest codes are these: towards what they were, which says how near the next code is."""
    scale_OI = codes.scale_OG.float().repeat_interleave(grid.group, 1)
    steps_OI = codes.steps()
    off_OI = (weight_OI / scale_OI - steps_OI).clamp(-PLACE, PLACE)
    # Beyond the grid's ends no gradient reaches a weight: there it begins on its code.
    low, high = grid.ends(None if codes.zero_OG is None else codes.zero_OG.repeat_interleave(grid.group, 1))
    exact_OI: Tensor = (steps_OI + off_OI).clamp(low, high) * scale_OI
    return exact_OI


def straight(exact: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, the gradient of `exact`. The difference of a number and one it was rounded to is exact."""
    return exact + (rounded - exact).detach()


@dataclass(frozen=True)
class Rounded:
    """`fakes`: by the matrices' names while they are trained; `codes`: what was learnt, afterwards. Both empty where nothing is rounded."""

    fakes: dict[str, Fake] = field(default_factory=dict)
    codes: dict[str, Quantized] = field(default_factory=dict)

    def told(self, model: nn.Module) -> str:
        """In words, for who trains: what has codes, and what has none though it is no embedding and no head."""
        bits = sorted({fake.grid.bits for fake in self.fakes.values()})
        dense = [name for name in matrices(model) if name not in self.fakes]
        rest = f"; {len(dense)} stay dense ({dense[0]}{', ...' if dense[1:] else ''})" if dense else ""
        return f"{len(self.fakes)} matrices are trained as codes of {' or '.join(map(str, bits))} bits{rest}"

    def masks(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the names that the parameters have now."""
        return {
            f"{name.removesuffix('weight')}{ORIGINAL}" if name in self.fakes else name: mask
            for name, mask in masks.items()
        }


@contextmanager
def rounding(
    model: PreTrainedModel,
    options: RoundedOptions,
    dtype: torch.dtype,
    begun: Mapping[str, Codes] = MappingProxyType({}),
) -> Iterator[Rounded]:
    """While open, the model's compressible weights are what `options` will store of them, scales as `dtype`; afterwards plain
    modules hold just that. Nothing happens without `options.bits`. `begun`: the codes that a matrix has at first, by its name.

    Raises UsageError for a model none of whose weights can be trained so.
    """
    if options.bits is None:
        yield Rounded()
        return
    rounded = Rounded(
        {matrix.name: Fake(matrix, grid, begun.get(matrix.name)) for matrix, grid in chosen(model, options, dtype)}
    )
    for fake in rounded.fakes.values():
        parametrize.register_parametrization(fake.matrix.layer, "weight", fake, unsafe=True)
    try:
        yield rounded
    finally:
        for name, fake in rounded.fakes.items():
            weight: Any = fake.matrix.layer.parametrizations.weight.original  # type: ignore[union-attr]
            learnt = fake.learnt(weight.detach())
            parametrize.remove_parametrizations(fake.matrix.layer, "weight", leave_parametrized=False)
            fake.matrix.write(learnt.dequantized())
            rounded.codes[name] = _quantized(fake, learnt)


def chosen(model: PreTrainedModel, options: RoundedOptions, dtype: torch.dtype) -> list[tuple[Matrix, Grid]]:
    """The matrices that are trained as codes, and their grids."""
    assert options.bits is not None
    found = []
    for matrix in matrices(model).values():
        linear = isinstance(matrix.layer, nn.Linear)
        if why_not(model, matrix.layer) or not (linear or isinstance(matrix.layer, nn.Conv2d)):
            continue
        bits, group = (options.bits, options.group_size) if linear else (OTHER_BITS, -1)
        symmetric = options.symmetric or not linear
        found.append((matrix, Grid(bits, usable_group(matrix.inputs, group), dtype, symmetric)))
    if not found:
        raise UsageError(
            f"no weight of a {model.config.model_type} can be trained as codes: it has neither linear layers nor convolutions "
            "that a format holds",
            hint="unset train.quantize, and use `llmos quantize` afterwards",
        )
    return found


def _quantized(fake: Fake, learnt: Codes) -> Quantized:
    whole = fake.grid.group == fake.matrix.inputs
    codes = fake.matrix.shaped(learnt.codes_OI)
    return Quantized(codes, learnt.scale_OG, fake.grid.bits, -1 if whole else fake.grid.group, learnt.zero_OG)


def write(
    ws: Workspace,
    model: PreTrainedModel,
    rounded: Rounded,
    folder: Path,
    *,
    dtype: torch.dtype,
    processor: Any,
    parent: Path | None = None,
) -> None:
    """The trained checkpoint; one of codes is read back, and must hold the very weights that were trained. What was frozen is
    the `parent`'s own."""
    if not rounded.codes:
        save(model, folder, dtype=dtype, processor=processor, like=parent)
        return
    with ws.stage() as dense:
        save(model, dense, dtype=dtype, processor=processor)
        write_quantized(folder, dense, rounded.codes)
    again = matrices(load(folder))
    for name in rounded.codes:
        if not torch.equal(again[name].read(), rounded.fakes[name].matrix.read().cpu()):
            raise LlmosError(f"{name} reads back as other weights than were trained", hint="nothing was committed")
