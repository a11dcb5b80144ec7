"""How much memory a compression may take: what is measured to be free decides what lies on disk and how the result is proven."""

from __future__ import annotations

import math
from pathlib import Path

from llmos_cli import device
from llmos_cli.core.view import size
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.models import headers
from llmos_cli.models.activations import Spill
from llmos_cli.models.blocks import shard_of
from llmos_cli.operations.proof import Memory
from llmos_cli.options.verbs import Compressing

ACTIVATIONS = 0.25
"""Share of the budget that calibration's activations may take before they go to disk."""
OUTPUTS = 1 / 32
"""Share that one layer's outputs may take; of the widest there are several at a time."""
FP32_BYTES = 4
CUTTING, HEALING, HEALING_CODES = 3, 5, 9
"""Times a model's weights in fp32 that are in memory: parent, result and what replaces it; healed, its gradients and the optimizer's
two moments; with `heal.codes`, a place of each code and its moments too."""


def whole(options: Compressing, directory: Path, copies: int, doing: str, *, emit: Emit = ignore) -> str:
    """Before anything is loaded for what holds whole models in memory: UsageError where they cannot be had, or are more than the
    config allows; a warning where they are most of what is free. Returns what is held, in words."""
    needed, free = copies * FP32_BYTES * headers.parameters(directory), device.memory_free()
    allowed = budget(options) if options.memory_budget else free
    told = f"{doing} holds whole models in memory, about {size(needed)}"
    if needed > min(allowed, free):
        bound = f"memory_budget allows {size(allowed)}" if allowed < free else f"{size(free)} are free"
        raise UsageError(f"{told}, and {bound}", hint=SMALLER)
    if needed > free // 2:
        emit(Note(f"{told} of the {size(free)} that are free", level="warning"))
    return f"{told} of the {size(free)} that are free"


def streaming(options: Compressing, directory: Path) -> str:
    """What a compression holds that has one block in memory at a time, in words, from the headers alone."""
    sizes: dict[str, int] = {}
    for name, shape in headers.dense_shapes(headers.of_directory(directory)).items():
        if block := shard_of(name):
            sizes[block] = sizes.get(block, 0) + FP32_BYTES * math.prod(shape)
    outside = "" if getattr(options, "embeddings", False) else ", embeddings and heads in their files"
    return (
        f"one block in memory at a time, {size(max(sizes.values(), default=0))}{outside}; "
        f"of activations at most {size(ACTIVATIONS * budget(options))}, the rest on disk"
    )


SMALLER = "prune to zeros and quantize hold one block at a time when they do not heal; healing and cutting want a larger machine"


def budget(options: Compressing) -> int:
    """Bytes beside one block: as the config says, else half of what the process can have."""
    return int(options.memory_budget * 1e9) if options.memory_budget else device.memory_free() // 2


def spill(options: Compressing, folder: Path) -> Spill:
    """Where activations are kept: past their share of the budget in `folder`."""
    return Spill(int(ACTIVATIONS * budget(options)), folder)


def room(options: Compressing) -> int | None:
    """Bytes that one layer's outputs may take in calibration; None without a budget, for what happens to be free must not decide
    what the result is."""
    return int(OUTPUTS * budget(options)) if options.memory_budget else None


def proving(options: Compressing, directory: Path, models: int, folder: Path) -> Memory | None:
    """How `models` of the size of `directory`'s are proven: None where they fit into memory side by side."""
    one, allowed = FP32_BYTES * headers.parameters(directory), budget(options)
    if models * one <= allowed:
        return None
    return Memory(Spill(int(ACTIVATIONS * allowed), folder), one <= allowed, models * one, allowed)
