"""Weights rounded one after another, and the best of the scales tried: what `methods/` computes with torch, without its cost per call.

`rounding.cpp` is for any processor with a C++ compiler that has OpenMP; `usable` says whether it can be had for a tensor. Shapes:
rows and outputs O; G groups of g inputs, C scales tried for each.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llmos_cli.models.kernels import calls
from llmos_cli.models.kernels.building import Source

SOURCE = Source(
    Path(__file__).with_name("rounding.cpp"), wished=("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq")
)
Ends = tuple[float, float] | tuple[Tensor, Tensor]
MOST_ROWS = 128
"""That `in_turn` takes at once: more would leave the processor's first cache."""
LANES = 16


def usable(tensor: Tensor) -> bool:
    """Whether `tensor` is what it reads: fp32 in this machine's memory."""
    return tensor.dtype == torch.float32 and calls.readable(tensor) and not calls.obstacle(SOURCE)


def in_turn(
    wanted_BO: Tensor,
    start_BO: Tensor,
    carry_BB: Tensor,
    keep_BO: Tensor | None,
    scale_GO: Tensor,
    ends: Ends,
    groups_B: Tensor,
    steps_BO: Tensor,
    left_BO: Tensor,
) -> None:
    """Row j to the nearest step to wanted_j + sum over i < j of carry_ji left_i, into `steps_BO`, where left_i = start_i - value_i,
    into `left_BO`. `ends`: the least and the largest step, of all or [G, O]; `groups_B` int64: the group of each row."""
    low, high, least, most = _ends(ends)
    given = (
        wanted_BO,
        start_BO,
        carry_BB,
        keep_BO,
        scale_GO,
        scale_GO.reciprocal(),
        low,
        high,
        groups_B,
        steps_BO,
        left_BO,
    )
    calls.call(SOURCE, "llmos_in_turn", *given, *wanted_BO.shape, carry_BB.stride(0), least, most)


def search(
    weight_OGg: Tensor,
    importance_Gg: Tensor,
    scale_OGC: Tensor,
    ends: Ends,
) -> Tensor:
    """[O, G], int64: of the scales tried the first whose rounding has the least squared error, weighed by `importance_Gg`.
    `ends`: the least and the largest step, of all or [O, G, C]."""
    missing = -scale_OGC.shape[2] % LANES
    low, high, least, most = _ends(ends)
    scale, low, high = (_filled(tried, missing) for tried in (scale_OGC, low, high))
    outputs, groups, size = weight_OGg.shape
    best_OG = torch.empty(outputs, groups, dtype=torch.int32)
    each = outputs * groups, groups, size, scale_OGC.shape[2] + missing
    calls.call(
        SOURCE,
        "llmos_search",
        weight_OGg.contiguous(),
        importance_Gg.contiguous(),
        scale,
        low,
        high,
        best_OG,
        *each,
        least,
        most,
    )
    return best_OG.long()


def _ends(ends: Ends) -> tuple[Tensor | None, Tensor | None, float, float]:
    """As tensors or as numbers, whichever they are."""
    low, high = ends
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return low, high, 0.0, 0.0
    return None, None, float(low), float(high)


def _filled(tried_OGC: Tensor | None, missing: int) -> Tensor | None:
    """The first repeated at the end, where it is never the first of the least."""
    if tried_OGC is None:
        return None
    return torch.cat([tried_OGC, tried_OGC[..., :1].expand(*tried_OGC.shape[:-1], missing)], -1).contiguous()
