"""The resume state: all that the next step depends on, written whole or not at all.

Weights, optimizer, random generators, the position in the run and the best weights so far. With these a run that was cut
off goes on to the same bits as one that was not (given a budget in steps; one in seconds depends on the clock).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmos_cli.core import atomic
from llmos_cli.errors import Corrupt
from llmos_cli.operations.training.random import random_states, restore_random
from llmos_cli.operations.training.validation import Best

FILE = "training.pt"


@dataclass(frozen=True)
class Position:
    """Where in the run: optimizer steps done, seconds spent, seconds before the first step was done, validations done."""

    step: int
    elapsed: float
    lead: float
    validations: int
    compiled: bool


def save(
    directory: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, best: Best, position: Position
) -> None:
    """Replace the state in `directory` by the present one."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": vars(best),
        "position": vars(position),
        "random": random_states(),
    }
    atomic.make_directory(directory)
    unfinished = directory / f".{FILE}.{os.getpid()}"
    with atomic.refusals(directory):
        torch.save(content, unfinished)
        atomic.sync_file(unfinished)
        unfinished.replace(directory / FILE)
        atomic.sync_directory(directory)


def exists(directory: Path) -> bool:
    return (directory / FILE).is_file()


def load(directory: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Best, Position]:
    """Put everything back in place; Corrupt when the file cannot be read."""
    content = _read(directory / FILE)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    restore_random(content["random"])
    return Best(**content["best"]), Position(**content["position"])


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError) as problem:
        raise Corrupt(f"the state in {file} cannot be read", hint="start again without --resume") from problem
    return content
