"""Pruning methods against hand-worked matrices and slow, obvious references."""

import pytest
import torch
from torch import Tensor

from llmos_cli.errors import LlmosError
from llmos_cli.methods.hessian import damped
from llmos_cli.methods.patterns import Target
from llmos_cli.methods.prune import magnitude, sparsegpt, wanda
from llmos_cli.models.statistics import Statistics

HALF, TWO_OF_FOUR = Target(0.5), Target(0.5, 2, 4)


def seen(rows_NI: Tensor) -> Statistics:
    statistics = Statistics()
    statistics.add(rows_NI, None, {"norms", "hessian"})
    return statistics


def loss(weight_OI: Tensor, pruned_OI: Tensor, rows_NI: Tensor) -> float:
    return float((rows_NI @ (weight_OI - pruned_OI).T).square().sum())


def test_magnitude_drops_the_smallest() -> None:
    weight_OI = torch.tensor([[1.0, -4.0], [-2.0, 3.0]])
    pruned_OI = magnitude.prune(weight_OI, Statistics(), HALF, magnitude.Options())
    assert pruned_OI.tolist() == [[0.0, -4.0], [0.0, 3.0]]
    assert not pruned_OI.signbit()[1, 0], "a pruned weight is +0, so that equal results are equal bytes"


def test_global_magnitude_divides_the_zeros_by_size() -> None:
    weights = {"small": torch.full((2, 4), 0.1), "large": torch.full((2, 4), 5.0)}
    assert magnitude.allot(weights, Target(0.25), magnitude.Options(keep_at_least=0)) == {"small": 0.5, "large": 0.0}


def test_global_magnitude_cuts_no_layer_through() -> None:
    weights = {"small": torch.full((2, 4), 0.1), "large": torch.full((2, 4), 5.0)}
    assert magnitude.allot(weights, HALF, magnitude.Options(keep_at_least=0.25)) == {"small": 0.75, "large": 0.25}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("steps", [3, 1000])
def test_global_magnitude_is_a_sort_of_all_weights(sparsity: float, steps: int) -> None:
    """With many ties (3 different sizes) and few."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randint(-steps, steps + 1, (rows, 7), generator=generator) / 16
        for name, rows in [("a", 5), ("b", 40), ("c", 9)]
    }
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    layers = torch.cat([torch.full((weight.numel(),), index) for index, weight in enumerate(weights.values())])
    gone = layers[sizes.sort(stable=True).indices[: int(len(sizes) * sparsity + 0.5)]]
    expected = {name: int((gone == index).sum()) / weights[name].numel() for index, name in enumerate(weights)}
    assert magnitude.allot(weights, Target(sparsity), magnitude.Options(keep_at_least=0)) == expected


def test_wanda_weighs_by_the_inputs() -> None:
    statistics = seen(torch.tensor([[3.0, 0.1, 0.0, 1.0], [4.0, 0.0, 0.0, 1.0]]))  # norms 5, 0.1, 0, 1.41
    pruned_OI = wanda.prune(torch.tensor([[1.0, 9.0, 99.0, 2.0]]), statistics, HALF, wanda.Options())
    assert pruned_OI.tolist() == [[1.0, 0.0, 0.0, 2.0]]


def test_sparsegpt_is_the_literal_algorithm() -> None:
    """Column by column with the inverse Hessian recomputed of what remains: no factorisation, no blocks."""
    torch.manual_seed(0)
    rows_NI, weight_OI = torch.randn(50, 8) @ torch.randn(8, 8), torch.randn(3, 8)
    hessian_II = damped(seen(rows_NI).hessian_II, 0.01).double()
    left_OI = weight_OI.double()
    for start in range(0, 8, 4):
        inverses = [torch.linalg.inv(hessian_II[column:, column:]) for column in range(start, start + 4)]
        cost_O4 = left_OI[:, start : start + 4].square() / torch.stack([inverse[0, 0] for inverse in inverses])
        cheapest = cost_O4.argsort(dim=1)[:, :2]
        for offset, inverse in enumerate(inverses):
            column = start + offset
            error_O = left_OI[:, column] * (cheapest == offset).any(1) / inverse[0, 0]
            left_OI[:, column:] -= error_O[:, None] * inverse[0]
    ours_OI = sparsegpt.prune(weight_OI, seen(rows_NI), TWO_OF_FOUR, sparsegpt.Options(block=4))
    assert ((ours_OI == 0).sum(1) == 4).all()
    torch.testing.assert_close(ours_OI, left_OI.float(), rtol=1e-3, atol=1e-4)


def test_sparsegpt_updates_the_last_columns_exactly() -> None:
    """With every zero in the first column, what remains is the least-squares solution over the other columns."""
    torch.manual_seed(1)
    rows_NI = torch.randn(60, 3) @ torch.randn(3, 3)
    weight_OI = torch.tensor([[1e-3, 2.0, -1.5]])
    pruned_OI = sparsegpt.prune(weight_OI, seen(rows_NI), Target(1 / 3), sparsegpt.Options(damping=1e-7))
    wanted_1 = torch.linalg.lstsq(rows_NI[:, 1:], rows_NI @ weight_OI[0]).solution
    assert pruned_OI[0, 0] == 0
    torch.testing.assert_close(pruned_OI[0, 1:], wanted_1, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("target", [HALF, TWO_OF_FOUR], ids=str)
def test_sparsegpt_beats_wanda_beats_magnitude_on_correlated_inputs(target: Target) -> None:
    torch.manual_seed(2)
    rows_NI = torch.randn(400, 32) @ torch.randn(32, 32) * torch.logspace(-1, 1, 32)[torch.randperm(32)]
    weight_OI, statistics = torch.randn(24, 32), seen(rows_NI)
    by_size = magnitude.prune(weight_OI, statistics, target, magnitude.Options())
    by_input = wanda.prune(weight_OI, statistics, target, wanda.Options())
    made_up = sparsegpt.prune(weight_OI, statistics, target, sparsegpt.Options(block=32))
    assert loss(weight_OI, made_up, rows_NI) < 0.8 * loss(weight_OI, by_input, rows_NI)
    assert loss(weight_OI, by_input, rows_NI) < loss(weight_OI, by_size, rows_NI)
    assert abs(float((made_up == 0).float().mean()) - 0.5) < 0.01


def test_zeros_stay_zero_and_dead_inputs_go_first() -> None:
    torch.manual_seed(3)
    weight_OI, rows_NI = torch.randn(6, 8), torch.randn(40, 8)
    weight_OI[:, 3], rows_NI[:, 5] = 0, 0
    for method in (magnitude, wanda, sparsegpt):
        pruned_OI = method.prune(weight_OI, seen(rows_NI), Target(0.25), method.Options())
        assert torch.isfinite(pruned_OI).all() and (pruned_OI[:, 3] == 0).all(), method.__name__
    assert (sparsegpt.prune(weight_OI, seen(rows_NI), Target(0.25), sparsegpt.Options())[:, 5] == 0).all()


def test_a_hessian_of_zeros_prunes_without_updates() -> None:
    pruned_OI = sparsegpt.prune(torch.ones(2, 4), seen(torch.zeros(3, 4)), HALF, sparsegpt.Options())
    assert set(pruned_OI.flatten().tolist()) == {0.0, 1.0}


def test_inputs_that_overflow_are_an_error() -> None:
    with pytest.raises(LlmosError, match="not finite"):
        sparsegpt.prune(torch.ones(2, 4), seen(torch.full((3, 4), torch.inf)), HALF, sparsegpt.Options())
