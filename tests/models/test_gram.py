"""Products summed over rows in bf16, against fp64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_cli.models.kernels import calls, gram
from llmos_cli.models.statistics import Statistics, add_product


@pytest.fixture
def here(compiled: None) -> None:
    if reason := calls.obstacle(gram.SOURCE):
        pytest.skip(f"needs the tool: {reason}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("here")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 700), columns=st.integers(1, 200), apart=st.booleans(), seed=st.integers(0, 1000))
def test_sums_are_those_of_the_rounded_factors(rows: int, columns: int, apart: bool, seed: int) -> None:
    one, other = normal(rows, columns, seed=seed), normal(rows, columns, seed=seed + 1)
    sum_II = normal(columns, columns, seed=seed + 2)
    sum_II = sum_II if apart else sum_II + sum_II.T
    exact_II = sum_II.double() + one.bfloat16().double().T @ (other if apart else one).bfloat16().double()
    gram.add_gram(sum_II, one, other if apart else None)
    torch.testing.assert_close(sum_II.double(), exact_II, rtol=1e-5, atol=1e-5 * rows)
    assert apart or torch.equal(sum_II, sum_II.T)


@pytest.mark.usefixtures("here")
def test_the_number_of_threads_changes_no_bit() -> None:
    rows_NI, sums, before = normal(900, 150), [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sums.append(torch.zeros(150, 150))
        gram.add_gram(sums[-1], rows_NI)
    torch.set_num_threads(before)
    assert torch.equal(*sums)


@pytest.mark.parametrize("native", [True, False])
def test_statistics_in_bf16_are_those_of_what_the_layer_is_given(native: bool, request: pytest.FixtureRequest) -> None:
    if native:
        request.getfixturevalue("here")
    assert gram.usable(torch.zeros(2, 2)) == native
    rows_NI, reference_NI = normal(300, 40), normal(300, 40, seed=1)
    seen = Statistics(torch.bfloat16)
    seen.add(rows_NI, reference_NI, {"hessian", "drift", "norms"})
    given_NI, drift_NI = rows_NI.bfloat16().double(), (reference_NI - rows_NI).bfloat16().double()
    assert seen.drift_II is not None and seen.hessian_II.dtype == torch.float32
    torch.testing.assert_close(seen.hessian_II.double(), given_NI.T @ given_NI, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(seen.drift_II.double(), given_NI.T @ drift_NI, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(seen.square_I, rows_NI.square().sum(0))


def test_in_fp32_nothing_is_rounded() -> None:
    rows_NI, sum_II = normal(50, 8), torch.zeros(8, 8)
    add_product(sum_II, rows_NI, dtype=torch.float32)
    torch.testing.assert_close(sum_II, rows_NI.T @ rows_NI)
