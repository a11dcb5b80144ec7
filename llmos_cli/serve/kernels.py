"""Matrix products as the decoder wants them: layers that read the same input are one product.

This is where a product over packed int4 or int8 weights belongs: another class that answers `__call__`, chosen in `matmul`
by the type of the layers it is given. Quantized checkpoints are loaded dequantized, as plain `nn.Linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Matmul(Protocol):
    def __call__(self, x_I: Tensor, /) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        ...


class Dense:
    """`x @ weight.T + bias` with the weights as they are."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.weight_OI, self.bias_O = weight_OI, bias_O

    def __call__(self, x_I: Tensor, /) -> Tensor:
        return F.linear(x_I, self.weight_OI, self.bias_O)


class Wide:
    """The same with the weights transposed in memory, for one row of x and many outputs on a CPU: a vocabulary of 8192 times
    512 takes 0.6 ms instead of 1.5, and 16 rows take what they took (measured, fp32, one core)."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.weight_IO, self.bias_O = weight_OI.t().contiguous(), bias_O

    def __call__(self, x_I: Tensor, /) -> Tensor:
        product_O = x_I @ self.weight_IO
        return product_O if self.bias_O is None else product_O + self.bias_O


def matmul(*layers: nn.Linear) -> Matmul:
    """One product that gives the layers' outputs side by side."""
    weight_OI, bias_O = side_by_side(layers)
    outputs, inputs = weight_OI.shape
    wide = weight_OI.device.type == "cpu" and outputs > 2 * inputs
    return Wide(weight_OI, bias_O) if wide else Dense(weight_OI, bias_O)


def side_by_side(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of several layers as one layer's; a single layer's own, not copied."""
    weights = [layer.weight.detach() for layer in layers]
    weight_OI = weights[0] if len(layers) == 1 else torch.cat(weights)
    if all(layer.bias is None for layer in layers):
        return weight_OI, None
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return weight_OI, torch.cat([bias.detach() for bias in biases])
