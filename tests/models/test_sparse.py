"""Sparse storage comes back to the last bit, and takes the bytes that counting on paper says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_cli.models import sparse
from llmos_cli.models.sparse import Encoding

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8]


def same(one: Tensor, other: Tensor) -> bool:
    number = sparse.INTEGERS[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(number), other.view(number))


def round_trip(value_OI: Tensor, encoding: Encoding) -> Tensor:
    return sparse.decode(sparse.encode(value_OI, encoding), tuple(value_OI.shape), encoding)  # type: ignore[arg-type]


def kept(value_OI: Tensor, n: int, m: int, generator: torch.Generator) -> Tensor:
    """At most n of m, at random."""
    order = torch.rand(value_OI.shape, generator=generator).unflatten(1, (-1, m)).argsort(2).argsort(2)
    return torch.where((order < n).flatten(1), value_OI, torch.zeros_like(value_OI))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 5),
    inputs=st.integers(1, 40),
    density=st.floats(0, 1),
    seed=st.integers(0, 9999),
)
def test_anything_comes_back(dtype: torch.dtype, rows: int, inputs: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = (torch.randn(rows, inputs, generator=generator) * 9).to(dtype)
    value = torch.where(torch.rand(rows, inputs, generator=generator) < density, value, torch.zeros_like(value))
    assert same(round_trip(value, Encoding()), value)
    chosen = sparse.best(value)
    if chosen is not None:
        assert same(round_trip(value, chosen), value)


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (2, 8), (1, 16), (2, 16)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9999),
)
def test_patterns_come_back(pattern: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    value = kept((torch.randn(3, 4 * m, generator=generator) * 9).to(dtype), n, m, generator)
    assert same(round_trip(value, Encoding(n, m)), value)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), pattern=st.sampled_from([(0, 0), (2, 4), (4, 8)]), seed=st.integers(0, 9999))
def test_codes_come_back(bits: int, pattern: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 48), generator=generator).to(torch.int8)
    n, m = pattern
    codes = kept(codes, n or 1, m or 2, generator)
    assert same(round_trip(codes, Encoding(n, m, bits)), codes)


def test_minus_zero_nan_and_infinity_are_kept() -> None:
    value = torch.tensor([[0.0, -0.0, math.nan, math.inf, 0.0, 0.0, 1e-40, 0.0]])
    assert same(round_trip(value, Encoding()), value)
    assert len(sparse.encode(value, Encoding())["values"]) == 4


def test_a_mask_by_hand() -> None:
    parts = sparse.encode(torch.tensor([[0, 5, 0, 0, 0, 0, 0, 7, 9]], dtype=torch.int8), Encoding())
    assert parts["places"].tolist() == [0b10000010, 1]
    assert parts["values"].tolist() == [5, 7, 9]


def test_two_of_four_by_hand() -> None:
    """Masks, lowest bit first: 0011 -> 3, 0101 -> 5, 0110, 1001, 1010, 1100; a pattern of one takes in the first zero."""
    value = torch.tensor([[1, 2, 0, 0, 0, 0, 3, 4, 0, 0, 5, 0]], dtype=torch.int8)
    encoding = Encoding(2, 4)
    parts = sparse.encode(value, encoding)
    assert encoding.place_bits == 3
    assert parts["places"].tolist() == [0 | 5 << 3 | 1 << 6]
    assert parts["values"].tolist() == [1, 2, 3, 4, 0, 5]


@pytest.mark.parametrize(
    ("n", "m", "bits_each"), [(2, 4, 3 / 4 + 8), (4, 8, 7 / 8 + 8), (1, 4, 2 / 4 + 4), (1, 2, 1 / 2 + 8)]
)
def test_the_bytes_are_those_on_paper(n: int, m: int, bits_each: float) -> None:
    value = kept(torch.randn(64, 256).to(torch.bfloat16) + 9, n, m, torch.Generator().manual_seed(0))
    encoding = sparse.best(value)
    assert encoding == Encoding(n, m)
    assert sum(part.nbytes for part in sparse.encode(value, encoding).values()) == value.numel() * bits_each / 8


def test_the_smallest_is_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(32, 64, generator=generator)
    assert sparse.best(value) is None
    half = torch.where(torch.rand(32, 64, generator=generator) < 0.5, value, torch.zeros_like(value))
    assert sparse.best(half) == Encoding()
    assert sparse.best(torch.zeros(4, 8)) == Encoding()
    assert sparse.best(torch.zeros(0, 8)) is None


def test_every_pattern_has_a_place_of_its_own() -> None:
    for m in sparse.PERIODS:
        for n in range(1, m):
            if math.comb(m, n) <= sparse.MOST_PATTERNS:
                _, masks = sparse._patterns(n, m)
                assert {tuple(mask.nonzero().flatten().tolist()) for mask in masks} == set(
                    itertools.combinations(range(m), n)
                )


@pytest.mark.parametrize("part", ["places", "values"])
def test_parts_that_do_not_fit_are_refused(part: str) -> None:
    value = kept(torch.randn(4, 64) + 9, 2, 4, torch.Generator().manual_seed(0))
    for encoding in (Encoding(), Encoding(2, 4)):
        parts = sparse.encode(value, encoding)
        with pytest.raises(ValueError):
            sparse.decode(parts | {part: parts[part][:-1]}, (4, 64), encoding)
