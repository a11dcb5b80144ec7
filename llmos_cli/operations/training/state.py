"""The resume state: all that the next step depends on, written whole or not at all.

Weights, optimizer, random generators, the position in the run and the best weights so far. With these a run that was cut
off goes on to the same bits as one that was not (given a budget in steps; one in seconds depends on the clock).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from llmos_cli.core import atomic
from llmos_cli.errors import Corrupt
from llmos_cli.operations.training.random import random_states, restore_random
from llmos_cli.operations.training.validation import Best

FILE = "training.pt"
GOOD = "good.pt"
"""The latest state that was sound (the same file as `FILE` while that holds): where a run that diverged goes on, for its
weights are often past saving some steps before its loss is infinite."""


@dataclass(frozen=True)
class Position:
    """Where in the run: optimizer steps done, seconds spent, seconds before the first step was done, validations done;
    `first_loss` is that of the first step."""

    step: int
    elapsed: float
    lead: float
    validations: int
    compiled: bool
    first_loss: float


def save(
    directory: Path,
    *,
    model: nn.Module,
    beside: nn.Module | None = None,
    optimizer: torch.optim.Optimizer,
    best: Best,
    position: Position,
    sound: bool,
) -> None:
    """Replace the state in `directory` by the present one, and the good one too if it is `sound`.

    `beside`: what is trained with the model and is no part of it.
    """
    content = {
        "model": model.state_dict(),
        "beside": beside.state_dict() if beside is not None else {},
        "optimizer": optimizer.state_dict(),
        "best": vars(best),
        "position": vars(position),
        "random": random_states(),
    }
    atomic.make_directory(directory)
    unfinished = directory / f".{FILE}.{os.getpid()}"
    with atomic.refusals(directory):
        _write(content, unfinished)
        if sound:
            _keep(unfinished, directory / GOOD)
        unfinished.replace(directory / FILE)
        atomic.sync_directory(directory)


def _write(content: dict[str, Any], unfinished: Path) -> None:
    try:
        # Through a file of Python's: torch alone says of a full disk that a position is unexpected.
        with unfinished.open("wb") as file:
            torch.save(content, file)
        atomic.sync_file(unfinished)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _keep(file: Path, good: Path) -> None:
    """Under a second name: it takes no room until the first moves on. A copy where the file system has no hard links."""
    good.unlink(missing_ok=True)
    try:
        os.link(file, good)
    except OSError:
        shutil.copyfile(file, good)


def go_back(directory: Path, *, failed_after: int) -> int:
    """Make the good state the present one, or have none at all; the step that it is of.

    `failed_after`: the steps done when the loss was no longer finite. A state of just then holds the very weights that failed.
    """
    good, present = directory / GOOD, directory / FILE
    if _step(good) not in (0, failed_after):
        good.replace(present)
    else:
        good.unlink(missing_ok=True)
        present.unlink(missing_ok=True)
    return step(directory)


def step(directory: Path) -> int:
    """The steps done in the state; 0 where there is none."""
    return _step(directory / FILE)


def _step(file: Path) -> int:
    return int(_read(file, mmap=True)["position"]["step"]) if file.is_file() else 0


def exists(directory: Path) -> bool:
    return (directory / FILE).is_file()


def load(
    directory: Path, *, model: nn.Module, beside: nn.Module | None = None, optimizer: torch.optim.Optimizer
) -> tuple[Best, Position]:
    """Put everything back in place; Corrupt when the file cannot be read."""
    content = _read(directory / FILE)
    model.load_state_dict(content["model"])
    if beside is not None:
        beside.load_state_dict(content["beside"])
    _load_optimizer(optimizer, content["optimizer"])
    restore_random(content["random"])
    return Best(**content["best"]), Position(**content["position"])


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """What it has gathered, not what it was told (rates, decay, betas): that is as the config says now."""
    told = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, options in zip(optimizer.param_groups, told, strict=True):
        group.update(options)


def _read(file: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as problem:  # the last: it holds more than tensors
        raise Corrupt(f"the state in {file} cannot be read", hint="start again without --resume") from problem
    return content
