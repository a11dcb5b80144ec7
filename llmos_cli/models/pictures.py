"""Pictures of the shape that an image model takes, as its configuration says; noise, for trying what it answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ANY_SIDE = 64
"""Pixels, where the configuration does not say: a stack of convolutions (ResNet, ConvNeXt) takes any."""


def noise(config: Any, rows: int, generator: torch.Generator | None = None) -> Tensor:
    """[rows, channels, height, width], of values in 0 to 1."""
    side = getattr(config, "image_size", None) or ANY_SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return torch.rand(rows, config.num_channels, height, width, generator=generator)
