"""Ranking units and refitting what reads them, against slow obvious references."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_cli.methods.prune import width
from llmos_cli.methods.structure import Ranking, Reader
from llmos_cli.models.statistics import Statistics

UNDAMPED = width.Options(damping=1e-9, asymmetry=0)


def case(seed: int, *, inputs: int = 12, outputs: int = 5, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Correlated inputs [N, I] and a matrix [O, I]."""
    generator = torch.Generator().manual_seed(seed)
    mixed_II = torch.eye(inputs) + 0.2 * torch.randn(inputs, inputs, generator=generator)
    rows_NI = torch.randn(rows, inputs, generator=generator) @ mixed_II
    return rows_NI, torch.randn(outputs, inputs, generator=generator)


def reader(rows_NI: Tensor, weight_OI: Tensor, each: int = 1) -> Reader:
    return Reader(weight_OI, rows_NI.T @ rows_NI, torch.arange(weight_OI.shape[1]).view(-1, each))


def least_squares(rows_NI: Tensor, weight_OI: Tensor, kept_I: Tensor) -> tuple[Tensor, float]:
    """The matrix on the kept inputs that answers most nearly as `weight_OI`, and its squared error."""
    wanted_NO = (rows_NI @ weight_OI.T).double()
    found_KO = torch.linalg.lstsq(rows_NI[:, kept_I].double(), wanted_NO).solution
    return found_KO.T, float((wanted_NO - rows_NI[:, kept_I].double() @ found_KO).square().sum())


@pytest.mark.parametrize("seed", range(3))
def test_a_refit_is_the_least_squares_one(seed: int) -> None:
    rows_NI, weight_OI = case(seed)
    kept_I = torch.randperm(12, generator=torch.Generator().manual_seed(seed)) < 7
    refitted_OI = width.refit(weight_OI, kept_I, Statistics(hessian_II=rows_NI.T @ rows_NI), UNDAMPED)
    expected_OK, _ = least_squares(rows_NI, weight_OI, kept_I)
    torch.testing.assert_close(refitted_OI[:, kept_I].double(), expected_OK, rtol=1e-2, atol=1e-2)
    assert not refitted_OI[:, ~kept_I].any()


def test_a_refit_to_moved_inputs_answers_as_the_original_did() -> None:
    rows_NI, weight_OI = case(4)
    moved_NI = rows_NI + 0.3 * torch.randn(rows_NI.shape, generator=torch.Generator().manual_seed(9))
    kept_I = torch.arange(12) < 8
    seen = Statistics(hessian_II=moved_NI.T @ moved_NI, drift_II=moved_NI.T @ (rows_NI - moved_NI))
    refitted_OI = width.refit(weight_OI, kept_I, seen, width.Options(damping=1e-9, asymmetry=1))
    wanted_NO = rows_NI @ weight_OI.T
    found_KO = torch.linalg.lstsq(moved_NI[:, kept_I], wanted_NO).solution
    torch.testing.assert_close(refitted_OI[:, kept_I], found_KO.T, rtol=1e-2, atol=1e-2)


def test_nothing_gone_changes_nothing() -> None:
    rows_NI, weight_OI = case(5)
    seen = Statistics(hessian_II=rows_NI.T @ rows_NI)
    refitted_OI = width.refit(weight_OI, torch.ones(12, dtype=torch.bool), seen, width.Options())
    torch.testing.assert_close(refitted_OI, weight_OI, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("each", [1, 2, 3])
def test_the_cost_of_a_ranking_is_the_error_that_is_left(each: int) -> None:
    rows_NI, weight_OI = case(6)
    ranking = width.rank([reader(rows_NI, weight_OI, each)], UNDAMPED)
    assert sorted(ranking.order_N.tolist()) == list(range(12 // each))
    assert ranking.cost_N1[0] == 0 and (ranking.cost_N1.diff() >= -1e-3).all()
    for count in range(1, 12 // each):
        kept_I = ranking.kept(count).repeat_interleave(each)
        _, error = least_squares(rows_NI, weight_OI, kept_I)
        assert float(ranking.cost_N1[12 // each - count]) == pytest.approx(error, rel=0.02, abs=0.5)


def test_the_first_unit_to_go_is_the_one_of_the_smallest_error() -> None:
    rows_NI, weight_OI = case(7)
    errors = [least_squares(rows_NI, weight_OI, torch.arange(12) != unit)[1] for unit in range(12)]
    ranking = width.rank([reader(rows_NI, weight_OI)], UNDAMPED)
    assert ranking.order_N[0] == torch.tensor(errors).argmin()


def test_two_readers_decide_together() -> None:
    """One reader hardly uses unit 0, the other hardly unit 1: together they spare unit 2."""
    one = Reader(torch.tensor([[0.1, 3.0, 1.0]]), torch.eye(3), torch.arange(3)[:, None])
    other = Reader(torch.tensor([[3.0, 0.1, 1.0]]), torch.eye(3), torch.arange(3)[:, None])
    assert width.rank([one], UNDAMPED).order_N[0] == 0
    assert width.rank([one, other], UNDAMPED).order_N[0] == 2


def test_dead_units_and_copies_go_first_and_cost_nothing() -> None:
    rows_NI, weight_OI = case(8)
    rows_NI[:, 3] = 0
    rows_NI[:, 7] = rows_NI[:, 2]
    ranking = width.rank([reader(rows_NI, weight_OI)], width.Options())
    assert ranking.order_N[0] == 3 and int(ranking.order_N[1]) in (2, 7)
    whole = float((rows_NI @ weight_OI.T).square().sum())
    assert float(ranking.cost_N1[2]) < 0.01 * whole


def test_no_pair_does_much_better_than_the_greedy_one() -> None:
    rows_NI, weight_OI = case(9, inputs=8)
    pairs = [
        least_squares(rows_NI, weight_OI, ~torch.isin(torch.arange(8), torch.tensor(pair)))[1]
        for pair in combinations(range(8), 2)
    ]
    ranking = width.rank([reader(rows_NI, weight_OI)], UNDAMPED)
    assert float(ranking.cost_N1[2]) <= 1.5 * min(pairs)


def test_the_units_kept_are_the_last_of_the_order() -> None:
    assert Ranking(torch.tensor([2, 0, 1]), torch.zeros(4)).kept(1).tolist() == [False, True, False]


@settings(deadline=None, max_examples=50)
@given(units=st.integers(1, 20000), multiple=st.integers(1, 256))
def test_widths_are_multiples_and_leave_room_to_choose(units: int, multiple: int) -> None:
    found = width.counts(units, width.Options(multiple=multiple))
    step = found[0]
    assert found[-1] == units and found == sorted(set(found))
    assert step <= max(multiple, 1) and all(each % step == 0 for each in found[:-1])
    assert units < 32 or len(found) >= 16


def test_by_activation_a_unit_counts_by_what_it_adds() -> None:
    """Of inputs that have nothing to do with each other that is the very error without it; copies it does not see."""
    options = width.Options(damping=1e-9, importance="activation")
    apart = Reader(torch.tensor([[1.0, 3.0, 2.0]]), torch.diag(torch.tensor([9.0, 4.0, 1.0])), torch.arange(3)[:, None])
    found = width.rank([apart], options)
    assert found.order_N.tolist() == width.rank([apart], UNDAMPED).order_N.tolist() == [2, 0, 1]
    assert found.cost_N1.tolist() == pytest.approx([0.0, 4.0, 13.0, 49.0], rel=1e-3)
    rows_NI, weight_OI = case(8)
    rows_NI[:, 7], weight_OI[:, 7] = rows_NI[:, 2], 10.0
    assert width.rank([reader(rows_NI, weight_OI)], options).order_N[0] != 7


def test_by_taylor_moves_of_a_unit_add_up_before_they_are_squared() -> None:
    moves_SI = torch.tensor([[1.0, -1.0, 0.5, 0.2], [2.0, -2.0, 0.5, 0.1]])
    pairs = Reader(torch.ones(1, 4), torch.eye(4), torch.arange(4).view(2, 2), moves_SI)
    options = width.Options(importance="taylor")
    assert width.gradients(options) and not width.gradients(width.Options())
    assert width.rank([pairs], options).order_N.tolist() == [0, 1]
    against = Reader(
        torch.ones(1, 4), torch.eye(4), torch.arange(4).view(2, 2), torch.tensor([[3.0, 3.0, -0.5, -0.2]] * 2)
    )
    assert width.rank([pairs, against], options).order_N.tolist() == [1, 0]
