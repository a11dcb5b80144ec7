"""Blocks read by the gguf package's own code; exact codes stay exact, searched ones beat plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_cli.models import gguf_blocks
from llmos_cli.models.quantized import Quantized
from tests.models.conftest import nearest


def read(blocks: gguf_blocks.Blocks, kind: str) -> Tensor:
    return torch.from_numpy(quants.dequantize(blocks.bytes_OB.numpy(), GGMLQuantizationType[kind]))


def weights(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, inputs, generator=generator) * 0.03 + 0.01 * torch.randn(1, inputs, generator=generator)


@pytest.mark.parametrize(
    ("bits", "group_size", "kind"),
    [
        (4, 32, "Q4_0"),
        (4, 64, "Q4_0"),
        (3, 32, "Q4_0"),
        (2, -1, "Q4_0"),
        (8, 32, "Q8_0"),
        (8, -1, "Q8_0"),
        (5, 128, "Q8_0"),
    ],
)
def test_a_checkpoints_codes_are_kept_to_the_last_bit(bits: int, group_size: int, kind: str) -> None:
    quantized = nearest(weights(6, 128), bits, group_size, dtype=torch.bfloat16)
    assert gguf_blocks.smallest(quantized) == kind
    blocks = gguf_blocks.of_codes(quantized, kind)
    assert blocks is not None and blocks.kept
    wide = Quantized(quantized.codes, quantized.scales_OG.float(), bits, group_size)
    assert torch.equal(read(blocks, kind), wide.dense())


def test_codes_of_four_bits_fit_wider_blocks_and_not_the_other_way() -> None:
    four, eight = nearest(weights(2, 64), 4, 32), nearest(weights(2, 64), 8, 32)
    wider = gguf_blocks.of_codes(four, "Q8_0")
    assert wider is not None
    torch.testing.assert_close(read(wider, "Q8_0"), four.dense(), rtol=1e-3, atol=0)
    assert gguf_blocks.of_codes(eight, "Q4_0") is None
    assert gguf_blocks.smallest(nearest(weights(2, 64), 4, 16)) is None


def test_zero_points_become_minima() -> None:
    quantized = nearest(weights(4, 64), 4, 32, asymmetric=True)
    assert gguf_blocks.smallest(quantized) == "Q4_1"
    blocks = gguf_blocks.of_codes(quantized, "Q4_1")
    assert blocks is not None
    torch.testing.assert_close(read(blocks, "Q4_1"), quantized.dense(), rtol=0, atol=1e-4)


def test_a_block_by_hand() -> None:
    """-8 to 7 in steps of a quarter, twice: the grid itself, kept whatever the search tries."""
    steps = torch.cat([torch.arange(-8, 8), torch.arange(-8, 8)])[None] * 0.25
    found = gguf_blocks.of_dense(steps, "Q4_0").bytes_OB[0]
    assert found[:2].tolist() == list(np.float16(0.25).tobytes())
    assert [int(byte) & 15 for byte in found[2:]] == list(range(16))
    assert [int(byte) >> 4 for byte in found[2:]] == list(range(16))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_no_block_is_worse_than_plain_rounding(kind: str) -> None:
    weight = weights(32, 256)
    plain = torch.from_numpy(
        quants.dequantize(quants.quantize(weight.numpy(), GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
    )
    ours = read(gguf_blocks.of_dense(weight, kind), kind)
    errors = [(found - weight).square().unflatten(1, (-1, 32)).sum(2) for found in (ours, plain)]
    assert float((errors[0] / errors[1]).quantile(0.98)) <= 1.0 + 1e-3
    assert errors[0].sum() <= {"Q8_0": 1.001, "Q4_0": 0.9, "Q4_1": 0.9}[kind] * errors[1].sum()


def test_q4_k_errs_less_than_q4_0_for_the_same_bits() -> None:
    weight = weights(16, 512)
    found = {kind: gguf_blocks.of_dense(weight, kind) for kind in ("Q4_0", "Q4_K")}
    errors = {kind: float((read(blocks, kind) - weight).square().sum()) for kind, blocks in found.items()}
    assert errors["Q4_K"] < 0.9 * errors["Q4_0"]
    assert found["Q4_K"].bytes_OB.shape == found["Q4_0"].bytes_OB.shape == (16, 512 * 9 // 16)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K"])
def test_hostile_blocks(kind: str) -> None:
    """All zero, one weight alone, constants, all of one sign, sizes at the ends of what fp16 scales."""
    weight = torch.zeros(6, 256)
    weight[1, 7] = 0.5
    weight[2] = -0.25
    weight[3] = torch.rand(256) + 1
    weight[4] = torch.randn(256) * 3e-5
    weight[5] = torch.randn(256) * 1e3
    found = read(gguf_blocks.of_dense(weight, kind), kind)
    assert torch.isfinite(found).all()
    assert (found[0] == 0).all()
    error = (found - weight).abs().amax(1)
    assert (error[[1, 2, 3, 5]] <= 0.15 * weight.abs().amax(1)[[1, 2, 3, 5]]).all()


@example(seed=0, scale=0.001, kind="Q4_K")
@example(seed=0, scale=2**-8, kind="Q8_0")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 10), kind=st.sampled_from(["Q4_0", "Q4_1", "Q4_K", "Q8_0"]))
def test_an_error_is_about_half_a_step(seed: int, scale: float, kind: str) -> None:
    weight = weights(2, 256, seed) * scale
    found = read(gguf_blocks.of_dense(weight, kind), kind)
    step = weight.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / (127 if kind == "Q8_0" else 7)
    # Scales are half-precision numbers, which end at 2^-24: half of that, times the largest code (and in Q4_K the scale's own, of 6 bits).
    half = 2**-25 * {"Q4_0": 8, "Q4_1": 16, "Q4_K": 63 * 15, "Q8_0": 127}[kind]
    assert ((found - weight).unflatten(1, (-1, 32)).abs() <= 1.6 * step + 1e-4 * scale + half).all()
