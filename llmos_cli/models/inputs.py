"""What reaches a weight matrix in a forward pass, as rows: tokens of a linear layer, patches under a kernel, steps of an LSTM.

Shapes: N rows, I inputs of the matrix, B samples, L positions, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 16384
"""Rows cut out of images at once: bounds the memory of convolutions on large ones."""


@dataclass(frozen=True)
class Inputs:
    """What one call gave one weight matrix; `layer` is set where rows must be cut out of an image first."""

    source: Tensor
    layer: nn.Conv2d | None = None

    def same_as(self, other: Inputs) -> bool:
        return self.source is other.source and _geometry(self.layer) == _geometry(other.layer)

    def rows(self, keep_BL: Tensor | None) -> Iterator[Tensor]:
        """[N, I] in parts; positions that are padding left out."""
        if self.layer is not None:
            yield from _patches(self.source, self.layer)
        elif keep_BL is not None and self.source.shape[:-1] == keep_BL.shape:
            yield self.source[keep_BL.bool()]
        else:
            yield self.source.reshape(-1, self.source.shape[-1])


def inputs_of(layer: nn.Module, given: Tensor, state: Sequence[Any], output: Any) -> dict[str, Inputs]:
    """The inputs of each matrix of a layer by its name in it."""
    if isinstance(layer, nn.Conv2d):
        return {"weight": Inputs(given, layer)}
    if not isinstance(layer, nn.LSTM):
        return {"weight": Inputs(given)}
    if not isinstance(given, Tensor) or layer.num_layers > 1 or layer.bidirectional or layer.proj_size:
        # Torch keeps the states between stacked steps to itself: such matrices have no statistics.
        return {"weight_ih_l0": Inputs(given)} if isinstance(given, Tensor) else {}
    return {"weight_ih_l0": Inputs(given), "weight_hh_l0": Inputs(_earlier_states(layer, state, output[0]))}


def _earlier_states(lstm: nn.LSTM, state: Sequence[Any], states: Tensor) -> Tensor:
    """The state that each step was given: that of the step before, of the caller or zero for the first."""
    time = states.dim() - 2 if lstm.batch_first else 0
    first = torch.zeros_like(states.narrow(time, 0, 1))
    if state and state[0] is not None:
        first = state[0][0].movedim(0, time).reshape(first.shape)
    return torch.cat([first, states.narrow(time, 0, states.shape[time] - 1)], time)


def _patches(images_BCHW: Tensor, conv: nn.Conv2d) -> Iterator[Tensor]:
    """[N, in / groups * height * width] rows that the kernel sees, a few images at a time; groups add their rows up."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded_BCHW = F.pad(images_BCHW, conv._reversed_padding_repeated_twice, mode=mode)
    height, width = padded_BCHW.shape[2:]
    for part_BCHW in padded_BCHW.split(max(1, ROWS // (height * width))):
        columns_BKP = F.unfold(part_BCHW, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        yield columns_BKP.unflatten(1, (conv.groups, -1)).transpose(2, 3).flatten(0, 2)


def _geometry(conv: nn.Conv2d | None) -> tuple[Any, ...]:
    if conv is None:
        return ()
    return (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)


def leaders(seen: Mapping[str, list[Inputs]]) -> dict[str, str]:
    """For each matrix the first one that was given the very same tensors."""
    first: dict[str, str] = {}
    for name, calls in seen.items():
        first[name] = next((other for other in first if _alike(seen[other], calls)), name)
    return first


def _alike(one: list[Inputs], other: list[Inputs]) -> bool:
    return len(one) == len(other) and all(mine.same_as(theirs) for mine, theirs in zip(one, other, strict=True))
