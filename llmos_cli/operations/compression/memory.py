"""How much memory a compression may take: what is measured to be free decides what lies on disk and how the result is proven."""

from __future__ import annotations

from pathlib import Path

from llmos_cli import device
from llmos_cli.models import headers
from llmos_cli.models.activations import Spill
from llmos_cli.operations.proof import Memory
from llmos_cli.options.verbs import PruneOptions, QuantizeOptions

ACTIVATIONS = 0.25
"""Share of the budget that calibration's activations may take before they go to disk."""
FP32_BYTES = 4


def budget(options: PruneOptions | QuantizeOptions) -> int:
    """Bytes beside one block: as the config says, else half of what the process can have."""
    return int(options.memory_budget * 1e9) if options.memory_budget else device.memory_free() // 2


def spill(options: PruneOptions | QuantizeOptions, folder: Path) -> Spill:
    """Where activations are kept: past their share of the budget in `folder`."""
    return Spill(int(ACTIVATIONS * budget(options)), folder)


def proving(options: PruneOptions | QuantizeOptions, directory: Path, models: int, folder: Path) -> Memory | None:
    """How `models` of the size of `directory`'s are proven: None where they fit into memory side by side."""
    one, allowed = FP32_BYTES * headers.parameters(directory), budget(options)
    if models * one <= allowed:
        return None
    return Memory(Spill(int(ACTIVATIONS * allowed), folder), one <= allowed, models * one, allowed)
