"""The arithmetic of a forward pass: bfloat16 where that is asked for, or pays; weights and the optimizer stay in fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from llmos_cli import device
from llmos_cli.options.verbs import TrainOptions


def autocast(options: TrainOptions, on: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(on.type, torch.bfloat16, enabled=precision_of(options, on) == torch.bfloat16)


def precision_of(options: TrainOptions, on: torch.device) -> torch.dtype:
    if options.precision == "auto":
        return device.compute_dtype(on)
    return torch.bfloat16 if options.precision == "bfloat16" else torch.float32
