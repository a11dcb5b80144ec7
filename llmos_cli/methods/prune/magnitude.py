"""Magnitude: the smallest weights go, compared over the whole model or within each layer (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.patterns import Target, keep, pruned_count
from llmos_cli.models.calibrate import Need, Statistics

NEEDS: frozenset[Need] = frozenset()


class Options(Section):
    scope: Literal["global", "layer"] = "global"
    """Where weights compete: `global` prunes the layers of small weights harder, `layer` all alike."""
    keep_at_least: float = Field(0.01, ge=0, lt=1)
    """Share of each layer's weights that stay whatever the others' sizes, so that no layer is cut through."""


def prune(weight_OI: Tensor, statistics: Statistics, target: Target, options: Options) -> Tensor:
    return weight_OI.where(keep(weight_OI.abs(), target, per="layer"), 0)


def allot(weights: Mapping[str, Tensor], target: Target, options: Options) -> dict[str, float]:
    """Each layer's sparsity where one threshold is drawn through all of them: together exactly `target.sparsity`.

    Layers are looked up one at a time, several times over, and none is kept: they may be more than fits into memory. Of weights
    that are equal to the threshold, those of earlier layers go.
    """
    if options.scope == "layer" or target.m:
        return dict.fromkeys(weights, target.sparsity)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    left = pruned_count(sum(sizes.values()), target.sparsity)
    threshold = _smallest(lambda: (_candidates(weight, options.keep_at_least) for weight in weights.values()), left)
    below, equal = {}, {}
    for name, weight in weights.items():
        size = _candidates(weight, options.keep_at_least)
        below[name], equal[name] = int((size < threshold).sum()), int((size == threshold).sum())
    left -= sum(below.values())
    pruned = {}
    for name, ties in equal.items():
        pruned[name] = below[name] + min(left, ties)
        left -= min(left, ties)
    return {name: count / sizes[name] for name, count in pruned.items()}


def _smallest(parts: Callable[[], Iterator[Tensor]], count: int) -> float:
    """The `count`-th smallest of all values of fp32 >= 0 in `parts`, in two passes: the bits of such numbers are in their order."""
    if count == 0:
        return 0.0
    high = sum(torch.bincount(part.view(torch.int32) >> 16, minlength=1 << 15) for part in parts()).cumsum(0)  # type: ignore[union-attr]
    upper = int((high < count).sum())
    rest = count - (int(high[upper - 1]) if upper else 0)
    low = torch.zeros(1 << 16, dtype=torch.int64, device=high.device)
    for part in parts():
        bits = part.view(torch.int32)
        low += torch.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=1 << 16)
    lower = int((low.cumsum(0) < rest).sum())
    return float(torch.tensor([(upper << 16) | lower], dtype=torch.int32).view(torch.float32))


def _candidates(weight_OI: Tensor, keep_at_least: float) -> Tensor:
    """Sizes of a layer's weights, flat; its largest ones stand at infinity."""
    size = weight_OI.abs().float().flatten()
    protected = size.sort(descending=True, stable=True).indices[: int(len(size) * keep_at_least)]
    size[protected] = torch.inf
    return size
