"""The order of samples: every one once an epoch, whatever was asked before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.operations.training.order import Order


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
def test_an_epoch_is_a_permutation(rows: int, seed: int, epochs: int) -> None:
    order = Order(rows, seed=seed)
    for epoch in range(epochs):
        assert sorted(order.take(epoch * rows, rows)) == list(range(rows))


@given(rows=st.integers(1, 40), first=st.integers(0, 200), size=st.integers(1, 60))
def test_a_batch_does_not_depend_on_what_was_taken_before(rows: int, first: int, size: int) -> None:
    walked, fresh = Order(rows, seed=1), Order(rows, seed=1)
    one_by_one = [walked.take(number, 1)[0] for number in range(first + size)]
    assert fresh.take(first, size) == one_by_one[first:]


def test_epochs_and_seeds_differ() -> None:
    order = Order(50, seed=0)
    assert order.take(0, 50) != order.take(50, 50)
    assert order.take(0, 50) != Order(50, seed=1).take(0, 50)
