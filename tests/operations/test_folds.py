"""Cross-validation: every sample is judged once, by a model that did not see it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.operations.folds import folds


@given(st.integers(2, 200), st.integers(2, 10), st.booleans())
def test_every_sample_is_in_one_fold(samples, count, contiguous):
    if samples < count:
        with pytest.raises(UsageError, match="cannot be cut"):
            folds(samples, count, seed=0, contiguous=contiguous)
        return
    parts = folds(samples, count, seed=0, contiguous=contiguous)
    assert sorted(row for part in parts for row in part) == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if contiguous:
        assert all(part == list(range(part[0], part[-1] + 1)) for part in parts)


@pytest.mark.parametrize("task", ["line", "digits"])
def test_mean_and_deviation_over_trainings(request, llmos, task):
    ws: Workspace = request.getfixturevalue(task)
    ran = llmos("eval", "HEAD", "--folds", 2, "--json", "-q", "--require", "loss < 100")
    assert ran.code == 0, ran.err
    (evaluation,) = ran.json["evaluations"]
    loss = evaluation["metrics"]["loss"]
    assert ran.json["folds"] == 2 and loss["sd"] >= 0 and loss["low"] is None
    events = (ws.runs.find(evaluation["run"]).path / "events.jsonl").read_text()
    assert '"fold 1"' in events and '"fold 2"' in events
    table = llmos("eval", "HEAD", "--folds", 2, "-q").out
    assert "±" in table and f"over 2 folds of the {evaluation['samples']:,} samples" in table
