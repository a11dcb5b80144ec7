"""The order of samples: every one once an epoch, whatever was asked before; batches of samples of like length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.operations.training.order import GROUP, Order


def taken(order: Order, batches: int) -> list[int]:
    return [row for number in range(batches) for row in order.batch(number)]


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
def test_an_epoch_is_a_permutation(rows: int, seed: int, epochs: int) -> None:
    order = Order(rows, size=1, seed=seed)
    samples = taken(order, epochs * rows)
    for epoch in range(epochs):
        assert sorted(samples[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(size=st.integers(1, 60), number=st.integers(0, 40), differ=st.booleans())
def test_a_batch_does_not_depend_on_what_was_taken_before(size: int, number: int, differ: bool) -> None:
    lengths = [7 * row % 23 for row in range(40)] if differ else None
    walked, fresh = (Order(40, size=size, seed=1, lengths=lengths) for _ in range(2))
    taken(walked, number)
    assert fresh.batch(number) == walked.batch(number)
    assert len(fresh.batch(number)) == size


def test_epochs_and_seeds_differ() -> None:
    order = Order(50, size=50, seed=0)
    assert order.batch(0) != order.batch(1)
    assert order.batch(0) != Order(50, size=50, seed=1).batch(0)


@given(size=st.integers(1, 8), seed=st.integers(0, 9))
def test_grouping_by_length_moves_samples_within_their_group_only(size: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 100, 70)
    grouped, plain = Order(70, size=size, seed=seed, lengths=lengths), Order(70, size=size, seed=seed)
    assert sorted(taken(grouped, GROUP)) == sorted(taken(plain, GROUP))


def test_a_batch_holds_samples_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 3000)

    def padding(order: Order) -> int:
        return sum(int((lengths[rows].max() - lengths[rows]).sum()) for rows in map(order.batch, range(32)))

    grouped, plain = Order(3000, size=32, seed=0, lengths=lengths), Order(3000, size=32, seed=0)
    assert padding(grouped) < 0.1 * padding(plain)
    longest = [int(lengths[grouped.batch(number)].max()) for number in range(GROUP)]
    assert longest != sorted(longest), "short samples do not all come first"
