"""Our own kernels of GPTQ and of the scale search against what torch computes step by step."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_cli.methods.grid import Grid, Scales, nearest, searched, widest
from llmos_cli.methods.quantize import gptq
from llmos_cli.models.kernels import calls, rounding
from llmos_cli.models.statistics import Statistics


@pytest.fixture(autouse=True)
def to_be_had(compiled: None) -> None:
    if reason := calls.obstacle(rounding.SOURCE):
        pytest.skip(f"needs the tool: {reason}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch):
    """What is computed within it is computed by torch."""

    def compute(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "usable", lambda _: False)
            return function(*arguments)

    return compute


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 128),
    outputs=st.integers(1, 150),
    bits=st.integers(2, 8),
    groups=st.integers(1, 4),
    symmetric=st.booleans(),
    pruned=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rows_in_turn_are_those_of_torch(
    rows: int, outputs: int, bits: int, groups: int, symmetric: bool, pruned: bool, seed: int
) -> None:
    """The same steps, except where a value lies within rounding of the middle between two; from there on nothing compares."""
    generator = torch.Generator().manual_seed(seed)
    grid = Grid(bits, 4, symmetric=symmetric)
    wanted_BO, start_BO = normal(rows, outputs, seed=seed), normal(rows, outputs, seed=seed + 1)
    carry_BB = normal(rows, rows + 3, seed=seed + 2)[:, :rows] / rows
    keep_BO = (torch.rand(rows, outputs, generator=generator) < 0.7).float() if pruned else None
    scale_GO = (torch.rand(groups, outputs, generator=generator) + 0.5) / (1 << (bits - 1)) * 2
    zero_GO = torch.randint(grid.low, grid.high + 1, (groups, outputs), generator=generator, dtype=torch.int8)
    ends = grid.ends(None if symmetric else zero_GO)
    groups_B = torch.randint(0, groups, (rows,), generator=generator)
    found, known = [], []
    for turn, into in ((rounding.in_turn, found), (gptq.one_by_one, known)):
        into += [torch.full((rows, outputs), torch.nan) for _ in range(2)]
        turn(wanted_BO, start_BO, carry_BB, keep_BO, scale_GO, ends, groups_B, *into)
    torch.testing.assert_close(found[1], start_BO - found[0] * scale_GO[groups_B])
    same_BO = (found[0] == known[0]).cummin(0).values
    assert same_BO.float().mean() > 0.95 or (~same_BO).any(0).sum() <= 2
    torch.testing.assert_close(found[1][same_BO], known[1][same_BO], rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    outputs=st.integers(1, 9),
    groups=st.integers(1, 5),
    size=st.integers(1, 70),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_scales_found_are_as_good_as_those_torch_finds(
    outputs: int, groups: int, size: int, bits: int, symmetric: bool, seed: int
) -> None:
    grid = Grid(bits, size, torch.bfloat16, symmetric)
    weight_OI = normal(outputs, groups * size, seed=seed)
    importance_I = normal(groups * size, seed=seed + 1).square()
    found = searched(weight_OI, grid, importance_I)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "usable", lambda _: False)
        known = searched(weight_OI, grid, importance_I)
    errors = [error(weight_OI, scales, grid, importance_I) for scales in (found, known)]
    torch.testing.assert_close(*errors, rtol=1e-4, atol=1e-6)


def error(weight_OI: Tensor, scales: Scales, grid: Grid, importance_I: Tensor) -> Tensor:
    off_OI = nearest(weight_OI, scales, grid).dequantized() - weight_OI
    return (off_OI.square() * importance_I).unflatten(1, (-1, grid.group)).sum(2)


def test_gptq_reaches_the_same_objective_either_way(by_torch) -> None:
    rows_NI = normal(400, 96, seed=3) @ normal(96, 96, seed=4)
    weight_OI, grid = normal(70, 96, seed=5), Grid(3, 32, torch.bfloat16)
    weight_OI[:, ::5] = 0
    statistics = Statistics()
    statistics.add(rows_NI, rows_NI + 0.1 * normal(400, 96, seed=6), {"hessian", "drift"})
    ours = gptq.quantize(weight_OI, statistics, grid, gptq.Options())
    torchs = by_torch(gptq.quantize, weight_OI, statistics, grid, gptq.Options())
    assert not ours.codes_OI[:, ::5].any()
    one, other = (gptq.objective(codes, weight_OI, statistics.hessian_II).sum() for codes in (ours, torchs))
    assert one == pytest.approx(float(other), rel=0.02)
    assert (ours.codes_OI == torchs.codes_OI).float().mean() > 0.9


def test_the_number_of_threads_changes_no_bit() -> None:
    weight_OI, grid = normal(300, 64), Grid(4, 32)
    statistics, answers = Statistics(), []
    statistics.add(normal(200, 64, seed=1), None, {"hessian"})
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        answers.append(searched(weight_OI, grid, statistics.hessian_II.diagonal()).scale_OG)
        turn = gptq.in_turn(
            weight_OI.T.contiguous(), weight_OI.T.contiguous(), statistics.hessian_II / 1e4, None,
            widest(weight_OI, grid), torch.arange(64) // 32, grid, 64,
        )  # fmt: skip
        answers.append(turn[0])
    torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[3])


def test_what_lies_elsewhere_is_left_to_torch() -> None:
    assert rounding.usable(torch.zeros(2))
    assert not rounding.usable(torch.zeros(2, dtype=torch.float64)) and not rounding.usable(
        torch.zeros(2, device="meta")
    )
