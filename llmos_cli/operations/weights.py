"""Two checkpoints' weights compared, one tensor in memory of each at a time: change, norm, sparsity, bits, bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos_cli.core.workspace import Checkpoint
from llmos_cli.events import Emit, Progress
from llmos_cli.models import headers
from llmos_cli.models.dequantize import bits_by_layer, dense_weights


@dataclass(frozen=True)
class Side:
    """One checkpoint's copy of a weight: share of zeros, bits of each stored weight, stored bytes (scales included), the norm
    (Frobenius) of what they stand for."""

    sparsity: float
    bits: int
    bytes: int
    norm: float


@dataclass(frozen=True)
class WeightDiff:
    """`change`: norm of the difference over the norm of the first; None where only one checkpoint has the weight, or in
    another shape."""

    name: str
    change: float | None
    before: Side | None
    after: Side | None


def compare(before: Checkpoint, after: Checkpoint, *, emit: Emit) -> list[WeightDiff]:
    """Every tensor that either checkpoint has, in the order of its name."""
    one, other = _Stored(before.path), _Stored(after.path)
    names = sorted({*one.shapes, *other.shapes})
    same = _equal_files(before, after)
    found = []
    with (
        dense_weights(before.path, one.config, torch.float32) as left,
        dense_weights(after.path, other.config, torch.float32) as right,
    ):
        for done, name in enumerate(names, 1):
            found.append(_compare(name, one, other, left, right, same=same))
            emit(Progress("compare", done, len(names), unit="tensor"))
    return found


class _Stored:
    """What the headers of a checkpoint's files say."""

    def __init__(self, path: Path) -> None:
        self.config: Mapping[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        self.entries = headers.of_directory(path)
        self.shapes = headers.dense_shapes(self.entries)
        self.codes = bits_by_layer(self.config, self.entries)

    def files(self, name: str) -> set[str]:
        return {entry.file.name for entry in self._parts(name)}

    def side(self, name: str, weight: Tensor) -> Side:
        entry = self.entries.get(name) or self.entries[f"{name}_packed"]
        bits = self.codes.get(name, headers.BITS[entry.dtype])
        return Side(
            int((weight == 0).sum()) / max(1, weight.numel()),
            bits,
            sum(part.bytes for part in self._parts(name)),
            float(weight.float().norm()),
        )

    def _parts(self, name: str) -> list[headers.Entry]:
        """A quantized weight is stored as codes, scales and zero points."""
        parts = (name, *(f"{name}{suffix}" for suffix in ("_packed", "_scale", "_zero_point", "_shape")))
        return [self.entries[part] for part in parts if part in self.entries]


def _equal_files(before: Checkpoint, after: Checkpoint) -> set[str]:
    """Shards that both share: what stands in them is equal unread."""
    return {name for name, entry in before.manifest.tree.items() if after.manifest.tree.get(name) == entry}


def _compare(
    name: str, one: _Stored, other: _Stored, left: Mapping[str, Tensor], right: Mapping[str, Tensor], *, same: set[str]
) -> WeightDiff:
    before = left[name] if name in one.shapes else None
    after = right[name] if name in other.shapes else None
    sides = (
        one.side(name, before) if before is not None else None,
        other.side(name, after) if after is not None else None,
    )
    if before is None or after is None or before.shape != after.shape:
        return WeightDiff(name, None, *sides)
    unread = one.files(name) == other.files(name) and one.files(name) <= same
    return WeightDiff(name, 0.0 if unread else _relative(before, after), *sides)


def _relative(before: Tensor, after: Tensor) -> float:
    difference, whole = float((after.float() - before.float()).norm()), float(before.float().norm())
    return difference / whole if whole else math.inf if difference else 0.0
