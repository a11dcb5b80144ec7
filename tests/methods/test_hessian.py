"""What a layer's Hessian is used for, against the plain formulas."""

import pytest
import torch

from llmos_cli.methods.hessian import quadratic
from llmos_cli.models.matrices import finite
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression.sweep import TOLD_BY, relative_error


@pytest.mark.parametrize("width", [1, 2, 5, 8, 33])
def test_quadratic_of_each_row(width: int) -> None:
    rows_NI = torch.randn(60, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian_II, weight_OI = rows_NI.T @ rows_NI, rows_NI[:7]
    torch.testing.assert_close(quadratic(weight_OI, hessian_II), (weight_OI @ rows_NI.T).square().sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_finite_is_what_isfinite_says(dtype: torch.dtype) -> None:
    assert finite(torch.empty(0, dtype=dtype)) and finite(torch.ones(3, 2, dtype=dtype))
    for bad in (torch.nan, torch.inf, -torch.inf) if dtype.is_floating_point else ():
        for place in range(3):
            value = torch.ones(3, dtype=dtype)
            value[place] = bad
            assert not finite(value)


def test_the_error_of_a_wide_layer_is_told_by_some_outputs_and_never_by_dead_ones_alone() -> None:
    before_OI = torch.zeros(4 * TOLD_BY, 3)
    before_OI[1] = 1.0  # not one of those that are looked at
    assert relative_error(before_OI, before_OI * 1.5, Statistics()) == pytest.approx(0.5)
    before_OI = torch.randn(4 * TOLD_BY, 3)
    assert relative_error(before_OI, before_OI * 1.5, Statistics()) == pytest.approx(0.5)
