"""The search over a world whose truth is known: predictions err by a factor, and what is built says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.operations.compression.frontier import (
    SECONDS,
    Built,
    Candidate,
    Rest,
    Stock,
    Unreachable,
    best_of_latency,
    best_of_size,
    proven_of_kl,
    smallest_of_kl,
    thinned,
)
from llmos_cli.operations.compression.sensitivity import Part


def stock(cut: float = 0.0, kl: float = 0.0, parts: int = 6) -> Stock:
    weights = int(1000 * (1 - cut))
    found = [
        Part(
            (f"layer.{i}",),
            {b: weights * b for b in (2, 3, 4, 8)},
            {b: (i + 1) * 4.0**-b for b in (2, 3, 4, 8)},
            {b: weights * (4 if b <= 4 else 8) / 8000 / parts for b in (2, 3, 4, 8)},
        )
        for i in range(parts)
    ]
    return Stock(cut, kl, lambda: Rest(found, weights * parts, fixed=500))


class World:
    """Where quantizing costs `factor` times what was predicted."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.built: list[Candidate] = []

    def build(self, candidate: Candidate) -> Built[str]:
        self.built.append(candidate)
        return Built(candidate, self.truth(candidate), "model")

    def truth(self, candidate: Candidate) -> float:
        return candidate.stock.kl + self.factor * candidate.loss


def test_a_size_is_kept_by_the_least_loss() -> None:
    found = best_of_size([stock()], 22_500, World(1).build)
    assert found.candidate.size <= 22_500
    assert found.candidate.bits()["layer.5"] >= found.candidate.bits()["layer.0"]


def test_a_cut_is_taken_where_bits_alone_cost_more() -> None:
    world = World(1)
    found = best_of_size([stock(), stock(0.3, 0.01), stock(0.5, 5.0)], 13_000, world.build)
    assert found.candidate.stock.cut == 0.3
    assert len(world.built) == 1


def test_no_stock_is_made_once_its_cut_must_cost_more() -> None:
    def stocks() -> Iterator[Stock]:
        yield stock()
        yield Stock(0.1, 10.0, lambda: pytest.fail("a stock that cannot be better was measured"))
        pytest.fail("a third stock was asked for")

    assert best_of_size(stocks(), 40_000, World(1).build).candidate.stock.cut == 0


def test_a_size_below_the_smallest_says_which_is_nearest() -> None:
    with pytest.raises(Unreachable) as raised:
        best_of_size([stock(), stock(0.3, 0.01)], 3_000, World(1).build)
    assert raised.value.nearest.size == 500 + 6 * 700 * 2


@pytest.mark.parametrize("factor", [0.3, 0.65, 1.0, 2.5])
def test_a_kl_is_kept_and_nearly_used_whatever_the_prediction(factor: float) -> None:
    world = World(factor)
    found = smallest_of_kl([stock(parts=40)], 0.5, world.build)
    assert found.kl <= 0.5
    possible = [c.size for c in stock(parts=40).candidates() if world.truth(c) <= 0.5]
    assert found.candidate.size <= 1.02 * min(possible)


def test_a_kl_that_only_predictions_miss_is_kept() -> None:
    least = stock().candidates()[-1].kl
    world = World(0.5)
    found = smallest_of_kl([stock()], 0.7 * least, world.build)
    assert found.kl <= 0.7 * least < least
    assert found.candidate.size == min(c.size for c in stock().candidates() if world.truth(c) <= 0.7 * least)


def test_a_kl_that_nothing_keeps_says_which_is_nearest() -> None:
    with pytest.raises(Unreachable) as raised:
        smallest_of_kl([stock()], 1e-9, World(1).build)
    assert set(raised.value.nearest.bits().values()) == {8}


class Watch:
    """What the layers do not take is .4 of the parent; a cut saves its share of all. A mixture of bits takes `more` than its seconds
    say."""

    def __init__(self, more: float = 0.0) -> None:
        self.more, self.timed = more, list[Stock | Candidate]()

    def __call__(self, of: Stock | Candidate) -> float:
        self.timed.append(of)
        if isinstance(of, Stock):
            return (1 - of.cut) * 0.7
        mixed = self.more if len(set(of.bits().values())) > 1 else 0.0
        return (1 - of.stock.cut) * 0.4 + 0.6 * of.spends(SECONDS) + mixed


@pytest.mark.parametrize("more", [0.0, 0.06])
def test_fewer_bits_go_where_they_cost_least_until_it_is_fast_enough(more: float) -> None:
    watch, world = Watch(more), World(1)
    found = best_of_latency([stock(), stock(0.3, 50.0)], 0.86, watch, world.build).candidate
    assert watch(found) <= 0.86 and found.stock.cut == 0
    # 3 and 2 bits take as long as 4, which lose less; the layers that lose most keep 8.
    kept = [found.bits()[f"layer.{i}"] for i in range(6)]
    assert kept == sorted(kept) and set(kept) == {4, 8}
    assert len(world.built) == 1


def test_the_most_bits_are_kept_where_they_are_fast_enough_and_nothing_else_is_tried() -> None:
    watch = Watch()
    found = best_of_latency([stock(), stock(0.3, 0.01)], 0.999999, watch, World(1).build).candidate
    assert set(found.bits().values()) != {8}, "they take as long as the parent's"
    watch = Watch()
    found = best_of_latency([stock(0.1, 0.01)], 0.95, watch, World(1).build).candidate
    assert set(found.bits().values()) == {8} and len(watch.timed) == 2


def test_a_cut_is_taken_where_it_costs_less_than_the_bits_that_are_fast_enough() -> None:
    stocks = [stock(), stock(0.1, 0.01), stock(0.3, 0.0101), stock(0.5, 9.0)]
    found = best_of_latency(stocks, 0.72, Watch(), World(1).build).candidate
    assert found.stock.cut == 0.3 and set(found.bits().values()) == {8}


def test_a_stock_that_is_too_slow_is_timed_once_and_never_healed() -> None:
    watch = Watch()
    slow = Stock(0.0, 0.0, lambda: pytest.fail("measured"), lambda: pytest.fail("healed"))
    found = best_of_latency([slow, stock(0.5, 1.0)], 0.36, watch, World(1).build).candidate
    assert [of for of in watch.timed if isinstance(of, Stock)] == [slow, found.stock]
    assert set(found.bits().values()) == {4}


def test_a_latency_that_nothing_reaches_says_what_was_nearest() -> None:
    with pytest.raises(Unreachable) as raised:
        best_of_latency([stock(), stock(0.5, 1.0)], 0.2, Watch(), World(1).build)
    assert (raised.value.told, raised.value.cut) == ("0.35 of the parent's latency", 0.5)


PARTS = st.lists(
    st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.floats(1e-3, 9)), min_size=1, max_size=5
)  # seconds of 4 bits and more for 8, and what a bit less loses


@given(PARTS, st.floats(0, 100))
def test_no_bits_for_all_alike_that_are_as_fast_lose_less(
    sizes: list[tuple[float, float, float]], budget: float
) -> None:
    parts = [
        Part(
            (f"layer.{i}",),
            {b: b for b in (2, 3, 4, 8)},
            {b: loss * 4.0**-b for b in (2, 3, 4, 8)},
            {b: base + (more if b > 4 else 0) for b in (2, 3, 4, 8)},
        )
        for i, (base, more, loss) in enumerate(sizes)
    ]
    whole = Stock(0.0, 0.0, lambda: Rest(parts, 1, 0))
    found = whole.within(budget, SECONDS)
    alike = [one for one in map(whole.uniform, (2, 3, 4, 8)) if one.spends(SECONDS) <= budget]
    assert (found is None) == (not alike)
    if found is not None:
        assert found.spends(SECONDS) <= budget and found.loss <= min(one.loss for one in alike)
        assert set(found.bits().values()) <= {4, 8}, "2 and 3 bits are no faster"


def test_what_cannot_be_worth_its_cut_is_not_healed() -> None:
    """Healing leaves a tenth of a cut's KL at the very best."""

    def hopeless() -> float:
        pytest.fail("healed")

    def least() -> float:
        return stock().within(12_500).kl  # type: ignore[union-attr]

    stocks = [stock(), Stock(0.1, 10.1 * least(), lambda: pytest.fail("measured"), hopeless)]
    assert best_of_size(stocks, 13_000, World(1).build).candidate.stock.cut == 0
    assert smallest_of_kl([stock(), Stock(0.1, 5.1, stock().look, hopeless)], 0.5, World(1).build)


def test_nothing_is_cut_where_the_most_bits_fit() -> None:
    def stocks() -> Iterator[Stock]:
        yield stock()
        pytest.fail("a cut was made")

    assert best_of_size(stocks(), 10**6, World(1).build).candidate.finest


def test_thinned_keeps_both_ends() -> None:
    whole = stock(parts=40)
    candidates = whole.candidates()
    some = thinned(candidates, 8)
    assert (some[0], some[-1]) == (candidates[0], candidates[-1])
    assert len(some) <= 10


def test_a_model_that_its_proof_shows_to_miss_is_left_for_one_that_keeps_the_kl() -> None:
    """Other samples cost more, and how much more is not the same for each model."""
    world, whole, proofs = World(1), stock(parts=40), list[float]()

    def prove(built: Built[str]) -> float:
        proofs.append((1.2 + 0.1 * len(proofs)) * built.kl)
        return proofs[-1]

    found = proven_of_kl(lambda: [whole], 0.5, world.build, prove)
    assert proofs[0] > 0.5 >= proofs[-1] and found.kl < world.truth(world.built[0])
    possible = [c.size for c in whole.candidates() if 1.5 * world.truth(c) <= 0.5]
    assert found.candidate.size <= min(possible)
    assert len(world.built) == len({candidate.chosen for candidate in world.built}), "nothing is built twice"


def test_where_every_proof_misses_the_nearest_of_them_is_told() -> None:
    missed = iter([0.7, 0.6])
    with pytest.raises(Unreachable) as raised:
        proven_of_kl(lambda: [stock()], 0.5, World(1).build, lambda built: next(missed, 0.9))
    assert raised.value.proven == 0.6 and raised.value.nearest


def test_where_the_samples_see_no_loss_at_all_and_the_proof_does_the_search_ends() -> None:
    with pytest.raises(Unreachable) as raised:
        proven_of_kl(lambda: [stock()], 1e-7, lambda candidate: Built(candidate, 0.0, "made"), lambda built: 2e-7)
    assert raised.value.proven == 2e-7 and raised.value.nearest
