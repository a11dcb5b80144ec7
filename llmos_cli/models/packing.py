"""Codes of quantized weights as bits: dense packing into 32-bit words, and back to numbers.

compressed-tensors' `pack-quantized` layout: a signed code q of b bits is stored as q + 2^(b-1); code i of a row occupies bits
[i*b, (i+1)*b) of that row, least significant first, with no gaps, so that 3-bit codes straddle words.

Shapes: O outputs, I inputs, G groups of inputs that share a scale, W words, R runs of 32 codes.
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
    codes_OR = padded_OI.unflatten(1, (-1, WORD)).unbind(-1)
    words_OR = [torch.zeros_like(codes_OR[0])] * bits
    for i, code_OR in enumerate(codes_OR):
        word, offset = divmod(i * bits, WORD)
        shifted_OR = code_OR << offset
        words_OR[word] = words_OR[word] | (shifted_OR & 0xFFFFFFFF)
        if offset + bits > WORD:
            words_OR[word + 1] = words_OR[word + 1] | (shifted_OR >> WORD)
    words_OW = torch.stack(words_OR, -1).flatten(1).narrow(1, 0, -(-inputs * bits // WORD))
    signed_OW: Tensor = torch.where(words_OW >= 2**31, words_OW - 2**32, words_OW)
    return signed_OW.to(torch.int32).contiguous()


def unpack(words_OW: Tensor, bits: int, inputs: int) -> Tensor:
    """The inverse of `pack`: signed int8 codes [O, inputs]."""
    unsigned_OW = words_OW.to(torch.int64) & 0xFFFFFFFF
    padded_OW = torch.nn.functional.pad(unsigned_OW, (0, -words_OW.shape[1] % bits))
    words_OR = padded_OW.unflatten(1, (-1, bits)).unbind(-1)
    codes_OR = []
    for i in range(WORD):
        word, offset = divmod(i * bits, WORD)
        code_OR = words_OR[word] >> offset
        if offset + bits > WORD:
            code_OR = code_OR | (words_OR[word + 1] << (WORD - offset))
        codes_OR.append(code_OR & (2**bits - 1))
    unsigned_OI: Tensor = torch.stack(codes_OR, -1).flatten(1).narrow(1, 0, inputs)
    codes_OI: Tensor = (unsigned_OI - 2 ** (bits - 1)).to(torch.int8)
    return codes_OI


def dequantize(codes: Tensor, scales_OG: Tensor, zeros_OG: Tensor | None = None) -> Tensor:
    """(code - zero) * scale in the scales' dtype. `codes` [O, ...] of any rank; its inputs divide into G equal groups."""
    codes_OI = codes.flatten(1)
    codes_OGg = codes_OI.unflatten(1, (scales_OG.shape[1], -1)).to(scales_OG.dtype)
    if zeros_OG is not None:
        codes_OGg = codes_OGg - zeros_OG.unsqueeze(-1).to(scales_OG.dtype)
    dense: Tensor = (codes_OGg * scales_OG.unsqueeze(-1)).reshape(codes.shape)
    return dense
