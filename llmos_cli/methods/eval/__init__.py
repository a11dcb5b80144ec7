"""Measurements of a checkpoint beside its task's own metrics: one file each, run on the reloaded model.

A file has `UNITS` (the metrics it gives and the unit of each), `TIMED` (whether its numbers belong to this machine and
moment) and `measure(subject)`; one that is timed has `compare(subjects)` too, for models that are measured in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.tasks.base import Batch, Split


class Decoder(Protocol):
    """What appends tokens to rows of a cache and says what comes next (`serve/decoder.py`)."""

    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, first: int, *, every: bool) -> Tensor: ...


@dataclass(frozen=True)
class Subject:
    """The checkpoint in `path`, loaded, and the samples it is measured on.

    `base_parameters`: of its nearest uncompressed ancestor, or its own; what ratios refer to, at two bytes each. `decoding` makes
    what a language model is decoded by, with a slot for each of `rows`.
    """

    model: PreTrainedModel
    split: Split
    path: Path
    batch_size: int
    base_parameters: int
    decoding: Callable[[], Decoder] | None = None

    @property
    def rows(self) -> range:
        """The samples of the first batch."""
        return range(min(self.batch_size, len(self.split)))

    def batch(self, rows: Sequence[int]) -> Batch:
        """On the model's device."""
        return device.move(self.split.batch(rows), self.model.device)
