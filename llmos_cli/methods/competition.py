"""Weights of a whole model compete for staying: one threshold through all of their scores, whatever the scores are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from llmos_cli.methods.patterns import pruned_count


def shares(scores: Mapping[str, Tensor], sparsity: float, *, keep_at_least: float) -> dict[str, float]:
    """Each layer's sparsity where the lowest scores (>= 0) of all layers go: together exactly `sparsity`.

    `keep_at_least`: share of each layer's weights that stay whatever the others score. Layers are looked up one at a time, several
    times over, and none is kept: they may be more than fits into memory. Of scores that are equal to the threshold, those of
    earlier layers go.
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    left = pruned_count(sum(sizes.values()), sparsity)
    threshold = _smallest(lambda: (_candidates(score, keep_at_least) for score in scores.values()), left)
    below, equal = {}, {}
    for name, score in scores.items():
        candidates = _candidates(score, keep_at_least)
        below[name], equal[name] = int((candidates < threshold).sum()), int((candidates == threshold).sum())
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


def _candidates(score_OI: Tensor, keep_at_least: float) -> Tensor:
    """A layer's scores, flat; its highest ones stand at infinity. A zero has one sign only: the bits of -0 are out of order."""
    score = score_OI.abs().float().flatten()
    protected = score.sort(descending=True, stable=True).indices[: int(len(score) * keep_at_least)]
    score[protected] = torch.inf
    return score
