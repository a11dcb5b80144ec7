"""Quantizing methods against literal references, and what must hold for any weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_cli.errors import LlmosError
from llmos_cli.methods.grid import CLIPS, Codes, Grid, Scales, nearest, searched, usable_group, widest
from llmos_cli.methods.hessian import damped, factored, moved_target
from llmos_cli.methods.quantize import gptq, rtn, w8a8
from llmos_cli.models.statistics import Statistics


def inputs(count: int, size: int, seed: int = 0) -> Tensor:
    """Correlated inputs of very different sizes, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixed_NI = torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return mixed_NI * torch.logspace(-1, 1, size)


def weights(outputs: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(outputs, size, generator=torch.Generator().manual_seed(seed))


def seen(rows_NI: Tensor, reference_NI: Tensor | None = None) -> Statistics:
    statistics = Statistics()
    statistics.add(rows_NI, reference_NI, {"hessian", "drift"})
    return statistics


def test_round_to_nearest_by_hand() -> None:
    grid = Grid(bits=3, group=2)  # codes -4..3
    weight_OI = torch.tensor([[3.5, -1.0, 0.0, 0.0], [0.7, -0.7, 0.14, 7.0]])
    codes = nearest(weight_OI, widest(weight_OI, grid), grid)
    assert codes.codes_OI.tolist() == [[3, -1, 0, 0], [3, -4, 0, 3]]
    torch.testing.assert_close(codes.scale_OG, torch.tensor([[1.0, 1.0], [0.2, 2.0]]))
    torch.testing.assert_close(codes.dequantized(), torch.tensor([[3.0, -1, 0, 0], [0.6, -0.8, 0, 6]]))


def test_values_are_those_of_the_scale_as_stored() -> None:
    weight_OI, grid = weights(4, 8), Grid(bits=4, group=4, dtype=torch.bfloat16)
    codes = rtn.quantize(weight_OI, Statistics(), grid, rtn.Options())
    assert codes.scale_OG.dtype == torch.bfloat16
    assert torch.equal(codes.dequantized(), codes.codes_OI * codes.scale_OG.float().repeat_interleave(4, 1))


@pytest.mark.parametrize(
    ("size", "group", "usable"), [(256, 128, 128), (576, 128, 96), (97, 128, 97), (97, 32, 1), (8, -1, 8)]
)
def test_a_group_divides_the_inputs(size: int, group: int, usable: int) -> None:
    assert usable_group(size, group) == usable


def test_the_search_uses_the_extra_code_for_the_longer_side() -> None:
    weight_OI, grid = torch.tensor([[4.0, 3.0, -1.0, 2.0]]), Grid(bits=3, group=4)
    found = nearest(weight_OI, searched(weight_OI, grid, torch.ones(4)), grid)
    assert found.scale_OG.tolist() == [[-1.0]] and found.dequantized().tolist() == weight_OI.tolist()


def test_an_asymmetric_grid_spends_no_code_where_no_weight_is() -> None:
    weight_OI, grid = torch.tensor([[0.0, 1.0, 2.0, 7.0], [-3.0, -1.0, 0.0, 4.0]]), Grid(3, 4, symmetric=False)
    codes = nearest(weight_OI, widest(weight_OI, grid), grid)
    assert codes.scale_OG.tolist() == [[1.0], [1.0]] and codes.zero_OG is not None
    assert codes.zero_OG.tolist() == [[-4], [-1]] and codes.codes_OI.tolist() == [[-4, -3, -2, 3], [-4, -2, -1, 3]]
    assert torch.equal(codes.dequantized(), weight_OI)


def test_the_search_is_the_best_of_all_it_tries() -> None:
    """Against a loop over every candidate, weight by weight."""
    weight_OI, importance_I = weights(6, 8), torch.rand(8, generator=torch.Generator().manual_seed(3))
    for symmetric in (True, False):
        grid = Grid(3, 4, torch.bfloat16, symmetric)
        found = searched(weight_OI, grid, importance_I)
        codes = nearest(weight_OI, found, grid)
        error_OG = ((codes.dequantized() - weight_OI).square() * importance_I).unflatten(1, (2, 4)).sum(2)
        for clip in CLIPS:
            for sign in (1, -1) if symmetric else (1,):
                tried = clipped(weight_OI, grid, clip * sign)
                values_OI = nearest(weight_OI, tried, grid).dequantized()
                tried_OG = ((values_OI - weight_OI).square() * importance_I).unflatten(1, (2, 4)).sum(2)
                assert (error_OG <= tried_OG * (1 + 1e-5)).all()


def clipped(weight_OI: Tensor, grid: Grid, clip: float) -> Scales:
    weight_OGg = weight_OI.unflatten(1, (-1, grid.group))
    if grid.symmetric:
        return Scales((weight_OGg.abs().amax(2) * clip / -grid.low).to(grid.dtype))
    low_OG, high_OG = weight_OGg.amin(2).clamp_max(0) * clip, weight_OGg.amax(2).clamp_min(0) * clip
    scale_OG = ((high_OG - low_OG) / (2**grid.bits - 1)).to(grid.dtype)
    zero_OG = (grid.low - low_OG / scale_OG.float()).round().clamp(grid.low, grid.high)
    return Scales(scale_OG, zero_OG.to(torch.int8))


def test_gptq_is_the_literal_algorithm() -> None:
    """Column by column with the inverse Hessian recomputed of what remains: no factorisation, no blocks."""
    rows_NI, weight_OI, grid = inputs(64, 12), weights(5, 12), Grid(bits=3, group=4)
    hessian_II = damped(seen(rows_NI).hessian_II, 0.01).double()
    scales = searched(weight_OI, grid, torch.ones(12))
    wanted_OI, left_OI = torch.zeros(5, 12), weight_OI.double()
    for column in range(12):
        inverse = torch.linalg.inv(hessian_II[column:, column:])
        scale_O = scales.scale_OG[:, column // 4].double()
        value_O = (left_OI[:, column] / scale_O).round().clamp(grid.low, grid.high) * scale_O
        error_O = (left_OI[:, column] - value_O) / inverse[0, 0]
        left_OI[:, column:] -= error_O[:, None] * inverse[0]
        wanted_OI[:, column] = value_O.float()
    with factored(seen(rows_NI), 0.01) as factor:
        ours = gptq.column_by_column(weight_OI, torch.ones(5, 12, dtype=torch.bool), scales, grid, factor, block=5)
    torch.testing.assert_close(ours.dequantized(), wanted_OI)


def test_what_an_error_costs_is_the_factor_s_diagonal() -> None:
    """The sum of D_jj (w_j - q_j)^2 that the columns are walked by is the objective itself, and H damped only meanwhile."""
    rows_NI, weight_OI, grid, statistics = inputs(64, 12), weights(5, 12), Grid(3, 4), seen(inputs(64, 12))
    hessian_II = statistics.hessian_II
    before_II = hessian_II.clone()
    codes = nearest(weight_OI, widest(weight_OI, grid), grid)
    error_OI = weight_OI - codes.dequantized()
    with factored(statistics, 0.01, by_size=True) as factor:
        lower_II, cost_I, order_I = factor.carry_II, factor.cost_I, factor.columns_I
        assert (hessian_II.diagonal()[order_I].diff() <= 0).all()
        torch.testing.assert_close(hessian_II, damped(before_II, 0.01))
        torch.testing.assert_close((lower_II.T * cost_I) @ lower_II, hessian_II[order_I][:, order_I])
        assert (lower_II.triu() == torch.eye(12)).all()
        walked_O = ((error_OI[:, order_I] @ lower_II.T).square() * cost_I).sum(1)
        torch.testing.assert_close(walked_O, gptq.objective(codes, weight_OI, hessian_II))
        torch.testing.assert_close(factor.solve(hessian_II @ weight_OI.T), weight_OI.T, rtol=1e-3, atol=1e-3)
    assert torch.equal(hessian_II, before_II)
    with factored(statistics, 0.01, by_size=True) as again, factored(seen(rows_NI), 0.01) as other:
        assert again is factor and torch.equal(other.columns_I, torch.arange(12))


def test_order_and_blocks_and_parts_only_change_what_they_should() -> None:
    rows_NI, weight_OI, grid = inputs(64, 16), weights(8, 16), Grid(bits=4, group=8)
    whole = gptq.quantize(weight_OI, seen(rows_NI), grid, gptq.Options(block=16))
    parts = gptq.quantize(weight_OI, seen(rows_NI), grid, gptq.Options(block=3))
    torch.testing.assert_close(whole.dequantized(), parts.dequantized())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq, "AT_ONCE", 3 * 16)
        patch.setattr(gptq, "LEAST_ROWS", 1)
        rows = gptq.quantize(weight_OI, seen(rows_NI), grid, gptq.Options(block=16))
    torch.testing.assert_close(whole.dequantized(), rows.dequantized())


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 8),
    st.sampled_from([1, 4, 8, 16]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)
def test_gptq_is_never_above_rtn_in_its_objective(
    bits: int, group: int, seed: int, pruned: float, symmetric: bool
) -> None:
    weight_OI, rows_NI = weights(6, 16, seed), inputs(10 + seed % 30, 16, seed)
    weight_OI[torch.rand(6, 16, generator=torch.Generator().manual_seed(seed)) < pruned] = 0
    statistics, grid = seen(rows_NI), Grid(bits, group, symmetric=symmetric)
    hessian_II = damped(statistics.hessian_II, 0.01)
    ours = gptq.quantize(weight_OI, statistics, grid, gptq.Options())
    plain = rtn.quantize(weight_OI, statistics, grid, rtn.Options())
    ours_O, plain_O = (gptq.objective(codes, weight_OI, hessian_II) for codes in (ours, plain))
    assert (ours_O <= plain_O).all()
    for codes in (ours, plain):
        assert (codes.dequantized()[weight_OI == 0] == 0).all()
        assert (codes.zero_OG is None) == symmetric
    assert ours.codes_OI.min() >= grid.low and ours.codes_OI.max() <= grid.high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_settling_only_goes_down(dtype: torch.dtype, symmetric: bool) -> None:
    rows_NI, weight_OI, grid = inputs(100, 32), weights(16, 32), Grid(3, 8, dtype, symmetric)
    hessian_II = damped(seen(rows_NI).hessian_II, 0.01)
    codes = nearest(weight_OI, widest(weight_OI, grid), grid)
    before_O = gptq.objective(codes, weight_OI, hessian_II)
    at_first_O = before_O
    for _ in range(4):
        codes = gptq.settled(codes, weight_OI, weight_OI != 0, hessian_II, grid, gptq.Options(passes=1))
        after_O = gptq.objective(codes, weight_OI, hessian_II)
        assert (after_O <= before_O * (1 + 1e-5)).all()
        before_O = after_O
    assert (before_O < 0.9 * at_first_O).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_code_and_scale_is_the_best_one_once_settled(symmetric: bool) -> None:
    rows_NI, weight_OI, grid = inputs(100, 8), weights(3, 8), Grid(3, 4, symmetric=symmetric)
    hessian_II = damped(seen(rows_NI).hessian_II, 0.01)
    start = nearest(weight_OI, widest(weight_OI, grid), grid)
    codes = gptq.settled(start, weight_OI, weight_OI != 0, hessian_II, grid, gptq.Options(passes=30, block=3))
    settled_O = gptq.objective(codes, weight_OI, hessian_II)
    for column in range(8):
        for step in (-1, 1):
            moved_OI = codes.codes_OI.clone()
            moved_OI[:, column] = (moved_OI[:, column] + step).clamp(grid.low, grid.high)
            moved_O = gptq.objective(Codes(moved_OI, codes.scale_OG, codes.zero_OG), weight_OI, hessian_II)
            assert (moved_O >= settled_O * (1 - 1e-5)).all()
    for share in (0.99, 1.01):
        moved_O = gptq.objective(Codes(codes.codes_OI, codes.scale_OG * share, codes.zero_OG), weight_OI, hessian_II)
        assert (moved_O >= settled_O * (1 - 1e-5)).all()


def test_the_moved_target_answers_like_the_original() -> None:
    """Fed by drifted inputs, the least-squares target gives the outputs that the original gave on its own inputs."""
    reference_NI, weight_OI = inputs(80, 6), weights(4, 6)
    drifted_NI = reference_NI @ (torch.eye(6) + 0.1 * weights(6, 6, seed=2))  # invertible: can be made up for wholly
    statistics = seen(drifted_NI, reference_NI)
    for by_size in (False, True):
        with factored(statistics, 1e-6, by_size=by_size) as factor:
            target_OI = moved_target(weight_OI, statistics.drift_II, factor, 1.0)
        torch.testing.assert_close(drifted_NI @ target_OI.T, reference_NI @ weight_OI.T, rtol=1e-2, atol=1e-2)


def test_more_bits_less_error() -> None:
    weight_OI, rows_NI = weights(32, 64), inputs(300, 64)
    for method in (rtn, gptq):
        errors = [
            float(
                (
                    rows_NI
                    @ (
                        method.quantize(weight_OI, seen(rows_NI), Grid(bits, 16), method.Options()).dequantized()
                        - weight_OI
                    ).T
                )
                .square()
                .mean()
            )
            for bits in range(2, 9)
        ]
        assert errors == sorted(errors, reverse=True)


def test_w8a8_is_a_scale_for_each_row() -> None:
    weight_OI = weights(4, 10)
    codes = w8a8.quantize(weight_OI, Statistics(), Grid(8, 10), w8a8.Options())
    assert codes.scale_OG.shape == (4, 1)
    assert (codes.dequantized() - weight_OI).abs().max() <= 0.51 * codes.scale_OG.max()


def test_dead_inputs_and_few_rows_are_no_trouble() -> None:
    weight_OI, rows_NI, grid = weights(4, 8), inputs(1, 8), Grid(4, 8)
    rows_NI[:, 2] = 0
    codes = gptq.quantize(weight_OI, seen(rows_NI), grid, gptq.Options())
    assert (codes.dequantized() - weight_OI)[:, 2].abs().max() <= codes.scale_OG.abs().max()
    silent = gptq.quantize(weight_OI, seen(torch.zeros(5, 8)), grid, gptq.Options())
    assert (silent.dequantized() - weight_OI).abs().max() <= silent.scale_OG.abs().max()


def test_a_group_of_zeros_has_a_harmless_scale() -> None:
    weight_OI = weights(2, 8)
    weight_OI[0, :4] = 0
    for method in (rtn, gptq, w8a8):
        codes = method.quantize(weight_OI, seen(inputs(20, 8)), Grid(8, 4), method.Options())
        assert torch.isfinite(codes.dequantized()).all() and (codes.codes_OI[0, :4] == 0).all()


def test_the_same_inputs_give_the_same_bits() -> None:
    first, second = (gptq.quantize(weights(8, 32), seen(inputs(64, 32)), Grid(4, 8), gptq.Options()) for _ in range(2))
    assert torch.equal(first.codes_OI, second.codes_OI) and torch.equal(first.scale_OG, second.scale_OG)


def test_inputs_that_overflow_are_an_error() -> None:
    with pytest.raises(LlmosError, match="not finite"):
        gptq.quantize(weights(2, 4), seen(torch.full((3, 4), torch.nan)), Grid(4, 4), gptq.Options())
