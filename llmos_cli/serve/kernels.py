"""Matrix products as the decoder wants them: layers that read the same input are one product.

A layer that holds codes (`models.kernels`) is multiplied by the kernel that was measured to be best; a dense one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmos_cli.models.kernels.choice import choose
from llmos_cli.models.kernels.coded import CodedLinear
from llmos_cli.models.kernels.codes import side_by_side


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


class Beside:
    """Several products, their outputs side by side: layers whose codes are of different kinds."""

    def __init__(self, products: Sequence[Matmul]) -> None:
        self.products = products

    def __call__(self, x_I: Tensor, /) -> Tensor:
        return torch.cat([product(x_I) for product in self.products], dim=-1)


def matmul(*layers: nn.Linear | CodedLinear, dtype: torch.dtype) -> Matmul:
    """One product that gives the layers' outputs side by side; `dtype`: of their input."""
    coded = [layer for layer in layers if isinstance(layer, CodedLinear)]
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if coded and dense:
        return Beside([matmul(layer, dtype=dtype) for layer in layers])
    if coded:
        codes = [layer.read() for layer in coded]
        joined = side_by_side(codes)
        return Beside([choose(each, dtype) for each in codes]) if joined is None else choose(joined, dtype)
    weight_OI, bias_O = joined_weights(dense)
    outputs, inputs = weight_OI.shape
    wide = weight_OI.device.type == "cpu" and outputs > 2 * inputs
    return Wide(weight_OI, bias_O) if wide else Dense(weight_OI, bias_O)


def joined_weights(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of several layers as one layer's; a single layer's own, not copied."""
    weights = [layer.weight.detach() for layer in layers]
    weight_OI = weights[0] if len(layers) == 1 else torch.cat(weights)
    if all(layer.bias is None for layer in layers):
        return weight_OI, None
    biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return weight_OI, torch.cat([bias.detach() for bias in biases])
