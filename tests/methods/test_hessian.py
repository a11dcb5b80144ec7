"""What a layer's Hessian is used for, against the plain formulas."""

import pytest
import torch

from llmos_cli.methods.hessian import quadratic


@pytest.mark.parametrize("width", [1, 2, 5, 8, 33])
def test_quadratic_of_each_row(width: int) -> None:
    rows_NI = torch.randn(60, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian_II, weight_OI = rows_NI.T @ rows_NI, rows_NI[:7]
    torch.testing.assert_close(quadratic(weight_OI, hessian_II), (weight_OI @ rows_NI.T).square().sum(1))
