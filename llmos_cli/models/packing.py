"""Codes of quantized weights as bits: dense packing into 32-bit words, and back to numbers.

compressed-tensors' `pack-quantized` layout: a signed code q of b bits is stored as q + 2^(b-1); code i of a row occupies bits
[i*b, (i+1)*b) of that row, least significant first, with no gaps, so that 3-bit codes straddle words.

Shapes: O outputs, I inputs, G groups of inputs that share a scale, W words.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def pack(codes_OI: Tensor, bits: int) -> Tensor:
    """Signed codes [O, I] as int32 words [O, ceil(I * bits / 32)]."""
    inputs = codes_OI.shape[1]
    unsigned_OI = codes_OI.to(torch.int64) + 2 ** (bits - 1)
    padded_OI = torch.nn.functional.pad(unsigned_OI, (0, -inputs % WORD))
    # 32 codes fill exactly `bits` words, so every run of 32 is laid out the same way.
    runs_OR32 = padded_OI.unflatten(1, (-1, WORD))
    words_ORb = runs_OR32.new_zeros(*runs_OR32.shape[:2], bits)
    for i in range(WORD):
        word, offset = divmod(i * bits, WORD)
        shifted_OR = runs_OR32[..., i] << offset
        words_ORb[..., word] |= shifted_OR & 0xFFFFFFFF
        if offset + bits > WORD:
            words_ORb[..., word + 1] |= shifted_OR >> WORD
    words_OW = words_ORb.flatten(1)[:, : -(-inputs * bits // WORD)]
    signed_OW: Tensor = torch.where(words_OW >= 2**31, words_OW - 2**32, words_OW)
    return signed_OW.to(torch.int32).contiguous()


def unpack(words_OW: Tensor, bits: int, inputs: int) -> Tensor:
    """The inverse of `pack`: signed int8 codes [O, inputs]."""
    unsigned_OW = words_OW.to(torch.int64) & 0xFFFFFFFF
    words_ORb = torch.nn.functional.pad(unsigned_OW, (0, -words_OW.shape[1] % bits)).unflatten(1, (-1, bits))
    codes_OR32 = words_ORb.new_empty(*words_ORb.shape[:2], WORD)
    for i in range(WORD):
        word, offset = divmod(i * bits, WORD)
        value_OR = words_ORb[..., word] >> offset
        if offset + bits > WORD:
            value_OR = value_OR | (words_ORb[..., word + 1] << (WORD - offset))
        codes_OR32[..., i] = value_OR & (2**bits - 1)
    signed_OI: Tensor = codes_OR32.flatten(1)[:, :inputs] - 2 ** (bits - 1)
    return signed_OI.to(torch.int8)


def dequantize(codes: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None = None) -> Tensor:
    """(code - zero) * scale in the scales' dtype. `codes` [O, ...] of any rank; its inputs divide into G equal groups."""
    codes_OI = codes.flatten(1)
    codes_OGg = codes_OI.unflatten(1, (scales_OG.shape[1], -1)).to(scales_OG.dtype)
    if zeros_OG is not None:
        codes_OGg = codes_OGg - zeros_OG[..., None].to(scales_OG.dtype)
    dense: Tensor = (codes_OGg * scales_OG[..., None]).reshape(codes.shape)
    return dense
