"""Matrix products as the decoder wants them: layers that read the same input are one product.

This is where a product over packed int4 or int8 weights belongs: another class that answers `__call__`, chosen in `matmul`
by the type of the layers it is given. Quantized checkpoints are loaded dequantized, as plain `nn.Linear`.
"""

from __future__ import annotations

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


def matmul(*layers: nn.Linear) -> Matmul:
    """One product that gives the layers' outputs side by side."""
    if len(layers) == 1:
        return Dense(layers[0].weight.detach(), None if layers[0].bias is None else layers[0].bias.detach())
    weight_OI = torch.cat([layer.weight.detach() for layer in layers])
    if all(layer.bias is None for layer in layers):
        return Dense(weight_OI, None)
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return Dense(weight_OI, torch.cat([bias.detach() for bias in biases]))
