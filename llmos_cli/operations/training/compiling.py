"""Whether to compile the forward and backward pass, and doing so.

Compiling makes a step about 1.5 times as fast and takes half a minute to two, so it repays only on a run that would
otherwise last minutes. The first steps run eager and are timed; then the rest of the run is known well enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from llmos_cli import device
from llmos_cli.models.compiling import possible
from llmos_cli.operations.training.random import random_states, restore_random

EAGER_STEPS = 3
COST_SECONDS = 40.0
GAIN = 1.5

F = TypeVar("F", bound=Callable[..., object])


def repays(eager_seconds_left: float, *, lengths_vary: bool = False) -> bool:
    """Whether compiling now ends the run sooner: the time saved is more than the time spent, which is spent twice where
    batches vary in length (for the first one's, then for any)."""
    cost = COST_SECONDS * (2 if lengths_vary else 1)
    return possible() and eager_seconds_left * (1 - 1 / GAIN) > cost


def compiled(function: F) -> F:
    """`function` compiled on its first call; the machine code is kept in the user's cache for the next run."""
    device.keep_compiled()
    return torch.compile(function)  # type: ignore[return-value]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo what a forward and backward pass leave behind: gradients, running statistics, draws of random numbers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    random = random_states()
    try:
        yield
    finally:
        restore_random(random)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        model.zero_grad(set_to_none=True)
