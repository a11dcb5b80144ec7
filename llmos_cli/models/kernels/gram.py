"""X^T Y of bf16 values with fp32 sums, by our own kernel (`gram.cpp`): twice as fast as in fp32 where the processor multiplies bf16.

Shapes: N rows, I columns.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from llmos_cli.models.kernels import calls
from llmos_cli.models.kernels.building import Source

SOURCE = Source(Path(__file__).with_name("gram.cpp"), needed=("avx512f", "avx512bw", "avx512vl", "avx512bf16"))


def usable(sum_II: Tensor) -> bool:
    return calls.readable(sum_II) and not calls.obstacle(SOURCE)


def add_gram(sum_II: Tensor, rows_NI: Tensor, others_NI: Tensor | None = None) -> None:
    """sum_II (fp32, contiguous) += X^T Y, both rounded to bf16; X^T X where Y is absent."""
    rows, others = (None if given is None else given.bfloat16().contiguous() for given in (rows_NI, others_NI))
    calls.call(SOURCE, "llmos_gram", rows, others, sum_II, *rows_NI.shape)
