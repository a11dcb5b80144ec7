"""Linear layers whose inputs are rounded to int8 as they come: the arithmetic of W8A8, emulated in floating point.

Each token has its own scale, largest magnitude / 127.5, as compressed-tensors computes it, so that an evaluation here sees
what a runtime with integer kernels gives: integer products below 2^24 are exact in fp32. (Of inputs that are not [samples, tokens,
features] compressed-tensors takes one scale for many rows: `quantize` leaves those as they are. Rows here never depend on their batch.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Model = TypeVar("Model", bound=nn.Module)


def round_tokens(hidden_TI: Tensor) -> Tensor:
    """Every row (token) rounded to int8 and back, with its own symmetric scale. [..., I] -> [..., I]."""
    scale_T1 = hidden_TI.abs().amax(-1, keepdim=True) / 127.5
    scale_T1 = torch.where(scale_T1 == 0, torch.finfo(hidden_TI.dtype).eps, scale_T1)
    return (hidden_TI / scale_T1).round().clamp(-128, 127) * scale_T1


class QuantizedLinear(nn.Linear):
    """`weight` holds the dequantized values; the gradient passes the rounding straight through (arXiv:1308.3432)."""

    round_inputs: Callable[[Tensor], Tensor] = staticmethod(round_tokens)

    @classmethod
    def of(cls, linear: nn.Linear) -> QuantizedLinear:
        """The same layer, its parameters shared, with rounded inputs."""
        quantized = cls.__new__(cls)
        nn.Module.__init__(quantized)
        quantized.in_features, quantized.out_features = linear.in_features, linear.out_features
        quantized.weight, quantized.bias = linear.weight, linear.bias
        return quantized.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        rounded = input + (self.round_inputs(input) - input).detach()
        return F.linear(rounded, self.weight, self.bias)


def unrounded(model: Model) -> Model:
    """The same model, its inputs as they are: for formats that round weights alone."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return model
