"""Allocations against all there are, on problems small enough to try them all."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.methods.allocation import Choice, Parts, frontier, hull, total, within

CHOICES = st.lists(st.builds(Choice, st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=4)
PARTS = st.lists(CHOICES, min_size=1, max_size=4)


def all_totals(parts: Parts) -> list[Choice]:
    return [total(parts, chosen) for chosen in product(*(range(len(choices)) for choices in parts))]


def test_a_hull_worked_by_hand() -> None:
    # The second lies above the line from the first to the third; the fourth costs more and saves nothing.
    assert hull([Choice(1, 10), Choice(2, 9), Choice(3, 2), Choice(4, 2)]) == [0, 2]


def test_the_part_that_gains_most_per_byte_grows_first() -> None:
    parts = [[Choice(1, 5), Choice(2, 1)], [Choice(1, 5), Choice(2, 4)]]
    assert list(frontier(parts)) == [(0, 0), (1, 0), (1, 1)]


def test_what_is_left_is_spent() -> None:
    # The best step costs 10 and does not fit; the smaller one does.
    parts = [[Choice(1, 100), Choice(11, 0)], [Choice(1, 3), Choice(2, 2)]]
    assert within(parts, 4) == (0, 1)


def test_no_allocation_fits_a_budget_below_the_cheapest() -> None:
    assert within([[Choice(3, 0)], [Choice(2, 0)]], 4.9) is None


@given(PARTS)
def test_each_point_of_the_frontier_is_the_best_of_its_cost(parts: Parts) -> None:
    for allocation in frontier(parts):
        mine = total(parts, allocation)
        assert mine.loss == min(other.loss for other in all_totals(parts) if other.cost <= mine.cost)


@given(PARTS, st.floats(1, 80))
def test_a_budget_is_kept_and_missed_by_at_most_one_step(parts: Parts, budget: float) -> None:
    chosen = within(parts, budget)
    fitting = [other.loss for other in all_totals(parts) if other.cost <= budget]
    if chosen is None:
        assert not fitting
        return
    mine = total(parts, chosen)
    assert mine.cost <= budget
    widest = max(max(c.loss for c in choices) - min(c.loss for c in choices) for choices in parts)
    assert mine.loss <= min(fitting) + widest


@pytest.mark.parametrize("budget", [2, 3, 5, 8])
def test_a_larger_budget_is_never_worse(budget: float) -> None:
    parts = [[Choice(bits, 4.0**-bits * scale) for bits in (1, 2, 3)] for scale in (1, 7, 30)]
    smaller, larger = within(parts, budget + 1), within(parts, budget + 2)
    assert smaller is not None and larger is not None
    assert total(parts, larger).loss <= total(parts, smaller).loss
