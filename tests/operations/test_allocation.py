"""Sparsity by sensitivity: who has more outliers keeps more, and the whole keeps what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.workspace import Workspace
from llmos_cli.methods.patterns import Target
from llmos_cli.operations.compression.allocation import SPREAD, owl, spread
from llmos_cli.operations.compression.subject import calibration, subject
from llmos_cli.operations.config import resolve


def test_by_hand() -> None:
    """Outliers 1 %, 2 %, 3 %, of blocks alike: scaled to 0, 1, 2, and 8 points of sparsity to either side."""
    found = spread({"a": 0.01, "b": 0.02, "c": 0.03}, dict.fromkeys("abc", 10), 0.5)
    assert found == pytest.approx({"a": 0.58, "b": 0.5, "c": 0.42})


def test_blocks_alike_are_pruned_alike() -> None:
    assert spread({"a": 0.1, "b": 0.1}, {"a": 3, "b": 9}, 0.7) == {"a": 0.7, "b": 0.7}


@given(
    blocks=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=20),
    sparsity=st.floats(0.01, 0.99),
)
def test_the_average_is_what_was_asked_for(blocks: list[tuple[float, int]], sparsity: float) -> None:
    ratios = {str(index): ratio for index, (ratio, _) in enumerate(blocks)}
    sizes = {str(index): size for index, (_, size) in enumerate(blocks)}
    found = spread(ratios, sizes, sparsity)
    zeros = sum(found[name] * sizes[name] for name in sizes)
    assert zeros / sum(sizes.values()) == pytest.approx(sparsity, abs=1e-6)
    assert all(-1e-9 <= each <= 1 + 1e-9 for each in found.values())
    assert max(found.values()) - min(found.values()) <= 2 * SPREAD + 1e-9
    assert all(found[one] >= found[other] - 1e-9 for one in ratios for other in ratios if ratios[one] <= ratios[other])


@pytest.mark.parametrize("streams", [False, True])
def test_a_block_with_outliers_keeps_more(line: Workspace, streams: bool) -> None:
    model = subject(line, line.checkpoint("base"), resolve(line, "prune"), [], streams=streams, emit=lambda event: None)
    batches = calibration(model, 8, {"norms"}, seed=0).batches
    found = owl(model, batches, Target(0.5), lambda event: None)
    assert found.keys() == model.matrices.keys()
    sizes = {name: matrix.shape.numel() for name, matrix in model.matrices.items()}
    assert sum(found[name] * sizes[name] for name in sizes) / sum(sizes.values()) == pytest.approx(0.5)
    by_block = {name.split(".")[2]: value for name, value in found.items()}
    assert len(set(by_block.values())) == 2 and all(by_block[name.split(".")[2]] == found[name] for name in found)


@pytest.mark.parametrize(
    ("command", "said"),
    [(["--pattern", "2:4"], "says how many of each group"), (["--method", "width"], "cuts whole units out")],
)
def test_where_there_is_nothing_to_allocate(line: Workspace, llmos: Any, command: list[str], said: str) -> None:
    ran = llmos("prune", "base", *command, "-s", "prune.allocation=owl")
    assert ran.code == 2 and said in ran.err, ran.err
