"""The decoder's cache of keys and values: as they are computed, or rounded to int8, each head of each token with a scale of its own.

A scale depends on nothing but its own token, so a rounded cache does not depend on how a prompt was cut into chunks or on who shares
the batch; vLLM's FP8 cache has one calibrated scale for a whole layer instead. Attention reads values made of the codes of one
layer at a time: memory is what is gained, not time.

Shapes: S slots, B rows, H key-value heads, T positions of a slot, W of them attended to, L new ones, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST = 127
KINDS = ("keep", "int8")


class KeysValues(NamedTuple):
    """One layer's cache, `[S, H, T + 1, D]` each: a single buffer for all layers made compiled decoding ten times slower.
    Position T is where padding is written; nothing attends to it. `..._scales_SHT` where the two are int8 codes."""

    keys_SHTD: Tensor
    values_SHTD: Tensor
    key_scales_SHT: Tensor | None = None
    value_scales_SHT: Tensor | None = None


def empty(shape: Sequence[int], like: Tensor, kind: str) -> KeysValues:
    """A layer's cache of `shape`, for tensors like `like`."""
    if kind == "keep":
        return KeysValues(like.new_zeros(shape), like.new_zeros(shape))
    codes = [torch.zeros(shape, dtype=torch.int8, device=like.device) for _ in range(2)]
    return KeysValues(*codes, *(like.new_zeros(shape[:-1]) for _ in range(2)))


def write(
    cache: KeysValues, rows: slice, row_B1: Tensor, written_BL: Tensor, key_BLHD: Tensor, value_BLHD: Tensor
) -> None:
    """New tokens of `rows`, at their positions."""
    if cache.key_scales_SHT is not None and cache.value_scales_SHT is not None:
        # Together: of single tokens, what takes time is the number of operations.
        codes_BLHD, scale_BLH = rounded(torch.cat([key_BLHD, value_BLHD], dim=2))
        key_BLHD, value_BLHD = codes_BLHD.chunk(2, dim=2)
        key_scale_BLH, value_scale_BLH = scale_BLH.chunk(2, dim=2)
        cache.key_scales_SHT[rows][row_B1, :, written_BL] = key_scale_BLH
        cache.value_scales_SHT[rows][row_B1, :, written_BL] = value_scale_BLH
    cache.keys_SHTD[rows][row_B1, :, written_BL] = key_BLHD
    cache.values_SHTD[rows][row_B1, :, written_BL] = value_BLHD


def read(cache: KeysValues, rows: slice, window: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, H, W, D]` of the first `window` positions."""
    keys_BHWD, values_BHWD = cache.keys_SHTD[rows, :, :window], cache.values_SHTD[rows, :, :window]
    if cache.key_scales_SHT is None or cache.value_scales_SHT is None:
        return keys_BHWD, values_BHWD
    return (
        values_of(keys_BHWD, cache.key_scales_SHT[rows, :, :window]),
        values_of(values_BHWD, cache.value_scales_SHT[rows, :, :window]),
    )


def rounded(value_BLHD: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes, and the scale of each head of each token in the dtype of what is rounded: codes are chosen for the scale as it
    is kept, in fp32, where a quotient has bits enough for 127 codes."""
    exact_BLHD = value_BLHD.float()
    least = torch.finfo(value_BLHD.dtype).tiny
    scale_BLH = (exact_BLHD.abs().amax(-1) / LARGEST).clamp_min(least).to(value_BLHD.dtype)
    codes_BLHD = (exact_BLHD / scale_BLH.float().unsqueeze(-1)).round().clamp(-LARGEST, LARGEST)
    return codes_BLHD.to(torch.int8), scale_BLH


def values_of(codes_BHWD: Tensor, scale_BHW: Tensor) -> Tensor:
    """In the dtype of the scales."""
    values_BHWD: Tensor = codes_BHWD.to(scale_BHW.dtype) * scale_BHW.unsqueeze(-1)
    return values_BHWD


def bytes_of(config: Any, *, slots: int, context: int, dtype: torch.dtype, kind: str) -> int:
    """Memory of the whole cache, in bytes, before it is allocated."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_head = head_size * dtype.itemsize if kind == "keep" else head_size + dtype.itemsize
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * per_head
    return int(per_position * slots * (context + 1))
