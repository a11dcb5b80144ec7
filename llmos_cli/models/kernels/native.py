"""Our own CPU kernels for products with codes, `native.cpp`.

They need Linux on x86-64, AVX-512 with VNNI (weight-only codes: bf16 too) and a C++ compiler; elsewhere torch's kernels are left.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from llmos_cli import device
from llmos_cli.models.kernels.building import Source, complaint
from llmos_cli.models.kernels.codes import Codes

BLOCK = 64
"""Outputs that stand together in memory."""
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma")
WISHED = "avx512bf16"
SOURCE = Source(Path(__file__).with_name("native.cpp"), NEEDED, (WISHED,), uses_torch=True)


@functools.cache
def obstacle() -> str:
    """Why the kernels cannot be used here, empty when they are compiled and loaded."""
    return unsuited() or _unloadable()


def unsuited() -> str:
    return SOURCE.unsuited() if sys.platform == "linux" else "they are written for Linux on x86-64"


def version() -> str:
    """All that the kernels depend on."""
    return SOURCE.version()


def _unloadable() -> str:
    try:
        torch.ops.load_library(str(SOURCE.compiled()))
    except subprocess.CalledProcessError as problem:
        return complaint(problem)
    except OSError as problem:
        return f"they do not load: {problem}"
    _describe()
    return ""


def has_w8a8() -> bool:
    return not obstacle()


def has_weights() -> bool:
    return not obstacle() and WISHED in device.instructions()


def w8a8(x: Tensor, codes: Tensor, scales: Tensor, shifts: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """x [..., I] rounded to int8 per token, times int8 codes. Exact sums; differs from the definition by fp32's rounding."""
    answer: Tensor = torch.ops.llmos.w8a8(x, codes, scales, shifts, bias, outputs)
    return answer


def weights(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, bits: int, outputs: int) -> Tensor:
    """x [..., I] (fp32 is rounded to bf16) times codes of 4 or 8 bits, with fp32 sums. Up to four rows use the codes as they
    are; more rows round code * scale to bf16, as a dense bf16 model has it."""
    answer: Tensor = torch.ops.llmos.weights(x, codes, scales, bias, bits, outputs)
    return answer


def pack_w8a8(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N/64, K/4, 64, 4], scales [N up to 64], and 128 times each output's sum of codes: activations come as code + 128."""
    padded = _padded(codes.codes_OI, 4)
    shifts = 128 * padded.sum(1, dtype=torch.int32)
    return _blocks(padded, 4).contiguous(), _scales(codes)[0], shifts


def pack_weights(codes: Codes) -> tuple[Tensor, Tensor, int]:
    """Codes [N/64, registers, 256] of bytes, scales [G, N up to 64], bits as stored. The file's opening says what lies where."""
    if codes.bits > 4:
        blocks = _blocks(_padded(codes.codes_OI, 4), 4)[..., [0, 2, 1, 3]]
        return blocks.contiguous().view(torch.uint8).flatten(2), _scales(codes), 8
    nibbles = _blocks(_padded(codes.codes_OI, 8), 8).add(8).to(torch.uint8).unflatten(-1, (2, 2, 2))
    low, high = nibbles.unbind(-2)  # [..., byte, half]
    return (low | (high << 4)).transpose(-1, -2).contiguous().flatten(2), _scales(codes), 4


def fits_weights(codes: Codes) -> bool:
    """Whether groups fill whole registers."""
    _, inputs, groups = codes.shape
    return groups == 1 or (inputs // groups) % (8 if codes.bits <= 4 else 4) == 0


def _padded(codes_OI: Tensor, inputs: int) -> Tensor:
    return F.pad(codes_OI, (0, -codes_OI.shape[1] % inputs, 0, -codes_OI.shape[0] % BLOCK))


def _blocks(codes_OI: Tensor, inputs: int) -> Tensor:
    """[N, K] as [N/64, K/inputs, 64, inputs]."""
    blocks: Tensor = codes_OI.unflatten(1, (-1, inputs)).unflatten(0, (-1, BLOCK)).transpose(1, 2)
    return blocks


def _scales(codes: Codes) -> Tensor:
    return F.pad(codes.scales_OG.float().t(), (0, -codes.shape[0] % BLOCK)).contiguous()


def _describe() -> None:
    """Shapes of the results, for torch.compile."""

    def like(x: Tensor, codes: Tensor, scales: Tensor, *others: object) -> Tensor:
        outputs = others[-1]
        assert isinstance(outputs, int)
        return x.new_empty([*x.shape[:-1], outputs])

    torch.library.register_fake("llmos::w8a8")(like)
    if WISHED in device.instructions():
        torch.library.register_fake("llmos::weights")(like)
