"""Linear layers whose inputs are rounded to 8-bit floats (e4m3: 4 bits of exponent, 3 of mantissa) as they come: the arithmetic of
FP8 on GPUs, emulated.

Each token has its own scale, largest magnitude / 448, as compressed-tensors computes it. Unlike int8's, the steps of such a code
grow with its value, so outliers in a token cost the others little.

Shapes: T tokens, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmos_cli.models.int8 import QuantizedLinear

TYPE = torch.float8_e4m3fn
LARGEST = 448.0
"""Of this type; it has no infinity, and what lies beyond becomes NaN."""


def coded(value: Tensor) -> Tensor:
    """The nearest codes, what lies beyond the largest to the largest."""
    return value.clamp(-LARGEST, LARGEST).to(TYPE)


def scales_of(hidden_TI: Tensor) -> Tensor:
    """`[T, 1]`."""
    scale_T1 = hidden_TI.abs().amax(-1, keepdim=True) / LARGEST
    return torch.where(scale_T1 == 0, torch.finfo(hidden_TI.dtype).eps, scale_T1)


def round_tokens(hidden_TI: Tensor) -> Tensor:
    """Every row (token) rounded and back, with its own scale. [..., I] -> [..., I]."""
    scale_T1 = scales_of(hidden_TI)
    return coded(hidden_TI / scale_T1).to(hidden_TI.dtype) * scale_T1


class Float8Linear(QuantizedLinear):
    """`weight` holds the dequantized values."""

    round_inputs = staticmethod(round_tokens)
