"""Masks: which weights stay, by hand and for any scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmos_cli.errors import UsageError
from llmos_cli.methods.patterns import Target, keep, keep_n_of_m, target

SCORES = torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 5.0]])


def test_rows_compete_with_themselves() -> None:
    assert keep(SCORES, Target(0.5), per="row").tolist() == [[True, False, True, False], [True, True, False, False]]


def test_a_layer_competes_as_a_whole() -> None:
    assert keep(SCORES, Target(0.5), per="layer").tolist() == [[False] * 4, [True] * 4]


def test_two_of_four() -> None:
    assert keep(SCORES, Target(0.5, 2, 4), per="layer").tolist() == [
        [True, False, True, False],
        [True, True, False, False],
    ]


def test_of_equal_scores_the_first_go() -> None:
    assert keep(torch.ones(1, 4), Target(0.5), per="row").tolist() == [[False, False, True, True]]


@given(
    arrays("float32", st.tuples(st.integers(1, 5), st.sampled_from([8, 16])), elements=st.floats(0, 1, width=32)),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8), (4, 8)]),
)
def test_n_of_each_m_stay_exactly(scores, pattern) -> None:  # type: ignore[no-untyped-def]
    n, m = pattern
    mask_OI = keep_n_of_m(torch.from_numpy(scores), n, m)
    assert (mask_OI.unflatten(1, (-1, m)).sum(2) == n).all()


@given(st.integers(1, 40), st.floats(0, 0.99))
def test_each_row_loses_the_rounded_share(inputs: int, sparsity: float) -> None:
    mask_OI = keep(torch.rand(3, inputs), Target(sparsity), per="row")
    assert ((~mask_OI).sum(1) == int(inputs * sparsity + 0.5)).all()


def test_a_pattern_says_its_sparsity() -> None:
    assert target("1:4", None) == Target(0.75, 1, 4)
    assert target("unstructured", None) == Target(0.5)
    assert [str(target("2:4", None)), str(Target(0.6))] == ["2:4", "60% unstructured"]


@pytest.mark.parametrize(("pattern", "sparsity"), [("4:2", None), ("2:2", None), ("half", None), ("2:4", 0.6)])
def test_contradictions_are_usage_errors(pattern: str, sparsity: float | None) -> None:
    with pytest.raises(UsageError):
        target(pattern, sparsity)
