"""GGUF's blocks of quantized weights: a checkpoint's own codes as they are where a block can hold them, otherwise scales
searched for the least error.

A row of inputs is cut into blocks of 32 (Q4_K: eight of them together, 256). What a block says of a weight (ggml-quants.c):

    Q8_0  d q         q in [-128, 127], d fp16
    Q4_0  d (q - 8)   q in [0, 15], d fp16, of either sign
    Q4_1  d q + m     q in [0, 15], d and m fp16
    Q4_K  d s q - e t  q in [0, 15]; of each 32: s, t in [0, 63]; of all 256: d and e fp16

llama.cpp places the ends of a block on its extreme weights and rounds. Here several narrower grids are tried, and each one's codes
get the scale (and minimum) of least squares (as `make_qkx2_quants` does for Q4_K); the best is kept, after rounding to fp16.

Shapes: O outputs, I inputs, N blocks of 32, K blocks of 256, B bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_cli.models.quantized import Quantized

BLOCK, SUPER = 32, 256
SHRUNK = tuple(1.0 - 0.03 * step for step in range(14))
"""Shares of a block's range that its grid is tried at."""
CHUNK = 1 << 15
"""Blocks of 32 searched at once: the search holds a few copies of them."""
SIX_BITS = 63


@dataclass(frozen=True)
class Blocks:
    """`bytes_OB` uint8, as GGUF stores the rows; `kept`: the codes are the checkpoint's own."""

    bytes_OB: Tensor
    kept: bool


def fits(kind: str, inputs: int) -> bool:
    """Whether rows of `inputs` weights divide into the blocks of a kind."""
    return inputs % (SUPER if kind == "Q4_K" else BLOCK) == 0


def smallest(quantized: Quantized) -> str | None:
    """The kind of the fewest bits whose blocks hold these codes as they are; None where no kind does."""
    inputs = quantized.codes.shape[1]
    group = inputs if quantized.group_size == -1 else quantized.group_size
    if group % BLOCK or inputs % BLOCK:
        return None
    if quantized.zeros_OG is not None:
        return "Q4_1" if quantized.bits <= 4 else None
    return "Q4_0" if quantized.bits <= 4 else "Q8_0"


def of_codes(quantized: Quantized, kind: str) -> Blocks | None:
    """The blocks of a quantized weight, its codes unchanged and their scales rounded to fp16 (which changes none that is bf16 and
    above 6e-5); None where the kind cannot hold them."""
    if smallest(quantized) not in (kind, "Q4_0" if kind == "Q8_0" else kind):
        return None
    codes_N32 = quantized.codes.reshape(-1, BLOCK).float()
    repeats = quantized.codes.shape[1] // BLOCK // quantized.scales_OG.shape[1]
    scale_N1 = quantized.scales_OG.float().repeat_interleave(repeats, 1).reshape(-1, 1)
    rows = len(quantized.codes)
    if kind == "Q8_0":
        return Blocks(_q8_0(codes_N32, _half(scale_N1)).reshape(rows, -1), kept=True)
    if kind == "Q4_0":
        return Blocks(_q4_0(codes_N32 + 8, _half(scale_N1)).reshape(rows, -1), kept=True)
    assert quantized.zeros_OG is not None
    zero_N1 = quantized.zeros_OG.float().repeat_interleave(repeats, 1).reshape(-1, 1)
    lowest_N1 = _half(-(zero_N1 + 8) * scale_N1)
    return Blocks(_q4_1(codes_N32 + 8, _half(scale_N1), lowest_N1).reshape(rows, -1), kept=True)


def of_dense(weight_OI: Tensor, kind: str) -> Blocks:
    """The blocks of least squared error that the search finds. `weight_OI` in fp32."""
    size = SUPER if kind == "Q4_K" else BLOCK
    blocks = weight_OI.float().reshape(-1, size)
    chunks = blocks.split(CHUNK * BLOCK // size)
    return Blocks(torch.cat([SEARCHES[kind](chunk) for chunk in chunks]).reshape(len(weight_OI), -1), kept=False)


def _search_q8_0(weight_N32: Tensor) -> Tensor:
    scale_N1 = _half(weight_N32.abs().amax(1, keepdim=True) / 127)
    return _q8_0(_codes(weight_N32, scale_N1, -127, 127), scale_N1)


def _search_q4_0(weight_N32: Tensor) -> Tensor:
    """Both signs of the scale: the eighth step is at one end only."""
    largest_N1 = weight_N32.abs().amax(1, keepdim=True)
    best = _Best(weight_N32)
    for share in SHRUNK:
        for sign in (1, -1):
            codes_N32 = _codes(weight_N32, sign * share * largest_N1 / 8, -8, 7)
            scale_N1 = _half(_ratio((codes_N32 * weight_N32).sum(1, True), codes_N32.square().sum(1, True)))
            codes_N32 = _codes(weight_N32, scale_N1, -8, 7)
            best.offer(codes_N32 * scale_N1, codes_N32, scale_N1)
    codes_N32, scale_N1 = best.parts
    return _q4_0(codes_N32 + 8, scale_N1)


def _search_q4_1(weight_N32: Tensor) -> Tensor:
    best = _Best(weight_N32)
    for scale_N1, lowest_N1 in _lines(weight_N32):
        scale_N1, lowest_N1 = _half(scale_N1), _half(lowest_N1)
        codes_N32 = _codes(weight_N32 - lowest_N1, scale_N1, 0, 15)
        best.offer(codes_N32 * scale_N1 + lowest_N1, codes_N32, scale_N1, lowest_N1)
    return _q4_1(*best.parts)


def _search_q4_k(weight_K256: Tensor) -> Tensor:
    """Each 32 on its own first, then the eight scales and minima on grids of six bits, then both grids by least squares."""
    weight_N32 = weight_K256.reshape(-1, BLOCK)
    best = _Best(weight_N32)
    for scale_N1, lowest_N1 in _lines(weight_N32, lowest_positive=False):
        codes_N32 = _codes(weight_N32 - lowest_N1, scale_N1, 0, 15)
        best.offer(codes_N32 * scale_N1 + lowest_N1, scale_N1, lowest_N1)
    scale_K8, lowest_K8 = (part.reshape(-1, SUPER // BLOCK) for part in best.parts)
    weight_K8b = weight_K256.unflatten(1, (-1, BLOCK))
    chosen = _Best(weight_K256)
    d_K1, e_K1 = (_half(grid.amax(1, True) / SIX_BITS) for grid in (scale_K8, -lowest_K8))
    s_K8, t_K8 = _codes(scale_K8, d_K1, 0, SIX_BITS), _codes(-lowest_K8, e_K1, 0, SIX_BITS)
    for _ in range(3):
        codes_K8b = _codes(weight_K8b + (e_K1 * t_K8)[..., None], (d_K1 * s_K8)[..., None], 0, 15)
        values_K256 = ((d_K1 * s_K8)[..., None] * codes_K8b - (e_K1 * t_K8)[..., None]).flatten(1)
        chosen.offer(values_K256, codes_K8b.flatten(1), d_K1, e_K1, s_K8, t_K8)
        d_K1, e_K1 = _plane((s_K8[..., None] * codes_K8b).flatten(1), t_K8.repeat_interleave(BLOCK, 1), weight_K256)
    return _q4_k(*chosen.parts)


SEARCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _search_q8_0,
    "Q4_0": _search_q4_0,
    "Q4_1": _search_q4_1,
    "Q4_K": _search_q4_k,
}


class _Best:
    """Block by block, the offer of least squared error."""

    def __init__(self, wanted_Nb: Tensor) -> None:
        self._wanted_Nb = wanted_Nb
        self._error_N1 = torch.full_like(wanted_Nb[:, :1], torch.inf)
        self.parts: tuple[Tensor, ...] = ()

    def offer(self, values_Nb: Tensor, *parts: Tensor) -> None:
        error_N1 = (values_Nb - self._wanted_Nb).square().sum(1, True)
        better_N1 = error_N1 < self._error_N1
        self.parts = tuple(
            torch.where(better_N1, new, old) for new, old in zip(parts, self.parts or parts, strict=True)
        )
        self._error_N1 = torch.where(better_N1, error_N1, self._error_N1)


def _lines(weight_N32: Tensor, *, lowest_positive: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Scales and minima to try: least squares through the codes of grids between the extremes, and narrower ones.

    `lowest_positive`: whether the minimum may be above zero (Q4_K stores it as what is taken away).
    """
    low_N1, high_N1 = weight_N32.amin(1, True), weight_N32.amax(1, True)
    if not lowest_positive:
        low_N1 = low_N1.clamp(max=0)
    found = [((high_N1 - low_N1) / 15, low_N1)]
    for share in SHRUNK:
        scale_N1 = share * (high_N1 - low_N1) / 15
        middle_N1 = (high_N1 + low_N1) / 2
        codes_N32 = _codes(weight_N32 - middle_N1 + 7.5 * scale_N1, scale_N1, 0, 15)
        mean_N1, value_N1 = codes_N32.mean(1, True), weight_N32.mean(1, True)
        centred_N32 = codes_N32 - mean_N1
        slope_N1 = _ratio((centred_N32 * weight_N32).sum(1, True), centred_N32.square().sum(1, True))
        start_N1 = value_N1 - slope_N1 * mean_N1
        if not lowest_positive:  # through the origin where the line would start above it
            through_N1 = _ratio((codes_N32 * weight_N32).sum(1, True), codes_N32.square().sum(1, True)).clamp(min=0)
            slope_N1 = torch.where(start_N1 > 0, through_N1, slope_N1)
            start_N1 = start_N1.clamp(max=0)
        found.append((slope_N1, start_N1))
    return found


def _plane(first_Kb: Tensor, second_Kb: Tensor, wanted_Kb: Tensor) -> tuple[Tensor, Tensor]:
    """(d, e) of least squares for wanted = d first - e second, both of fp16 and not negative."""
    ff, ss, fs = (
        (a * b).sum(1, True) for a, b in ((first_Kb, first_Kb), (second_Kb, second_Kb), (first_Kb, second_Kb))
    )
    fw, sw = (first_Kb * wanted_Kb).sum(1, True), (second_Kb * wanted_Kb).sum(1, True)
    determinant = ff * ss - fs * fs
    d_K1, e_K1 = _ratio(fw * ss - sw * fs, determinant), _ratio(fw * fs - sw * ff, determinant)
    d_K1 = torch.where(ss == 0, _ratio(fw, ff), d_K1)
    return _half(d_K1.clamp(min=0)), _half(e_K1.clamp(min=0))


def _codes(value: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Steps of `scale` nearest to `value`, as floats; 0 where the scale is."""
    return _ratio(value, scale).round_().clamp_(low, high)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return torch.where(under == 0, 0.0, over / torch.where(under == 0, 1.0, under))


def _half(value: Tensor) -> Tensor:
    """As fp16 will hold it."""
    return value.to(torch.float16).float()


def _q8_0(codes_N32: Tensor, scale_N1: Tensor) -> Tensor:
    return torch.cat([_bytes(scale_N1), codes_N32.to(torch.int8).view(torch.uint8)], 1)


def _q4_0(codes_N32: Tensor, scale_N1: Tensor) -> Tensor:
    return torch.cat([_bytes(scale_N1), _nibbles(codes_N32)], 1)


def _q4_1(codes_N32: Tensor, scale_N1: Tensor, lowest_N1: Tensor) -> Tensor:
    return torch.cat([_bytes(scale_N1), _bytes(lowest_N1), _nibbles(codes_N32)], 1)


def _q4_k(codes_K256: Tensor, d_K1: Tensor, e_K1: Tensor, s_K8: Tensor, t_K8: Tensor) -> Tensor:
    """Two blocks of 32 share 32 bytes; of the last four scales and minima the upper two bits lie over the first four."""
    s, t = s_K8.to(torch.uint8), t_K8.to(torch.uint8)
    upper = [six[:, :4] | (six[:, 4:] >> 4 << 6) for six in (s, t)]
    lower = (s[:, 4:] & 15) | ((t[:, 4:] & 15) << 4)
    pairs_K4 = codes_K256.reshape(-1, 4, 2 * BLOCK)
    return torch.cat([_bytes(d_K1), _bytes(e_K1), *upper, lower, _nibbles(pairs_K4).flatten(1)], 1)


def _nibbles(codes: Tensor) -> Tensor:
    """The first half of the last dimension in the low four bits, the second in the high ones."""
    low, high = codes.to(torch.uint8).chunk(2, -1)
    return low | (high << 4)


def _bytes(value_N1: Tensor) -> Tensor:
    return value_N1.to(torch.float16).view(torch.uint8)
