"""Killed before any call by which a search tells its study what came of a trial: it goes on, and no trial is lost or counts twice.

That SQLite syncs what it writes is not looked at here. What a power cut takes of it is what a kill does: the study does not know
the end of a trial, and it is tried again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.tuning import study as studies
from tests.core.killing import torn
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

MODULES = [
    *("llmos_cli.app", "llmos_cli.operations.tuning.trial", "llmos_cli.methods.tune.random"),
    *(f"llmos_cli.{kind}.tune" for kind in ("operations", "commands")),
]
TELLS = "llmos_cli.operations.tuning.search:_Search._tell"


def words(trials: int) -> tuple[str, ...]:
    space = "tune.space={train.learning_rate: {low: 0.001, high: 0.01}}"
    options = ("-s", "tune.sampler=random", "-s", "tune.pruner=none", "-s", "tune.max_steps=1", "-s", space)
    return ("tune", "-q", "--study", "killed", "--trials", str(trials), *options)


def told(root: Path) -> list[dict[str, Any]]:
    """All that the study says of its trials."""
    storage = studies.open_storage(studies.storage_url(None, root / ".llmos"))
    try:
        study = optuna.load_study(study_name="killed", storage=storage)
        trials, counted = study.trials, {each.number for each in studies.finished(study)}
    finally:
        storage.remove_session()
        storage.engine.dispose()
    return [
        {
            "number": each.number,
            "state": each.state.name,
            "values": each.values,
            "params": each.params,
            "told": each.user_attrs,
            "counts": each.number in counted,
        }
        for each in trials
    ]


def found(trials: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Of what counts: settings and values."""
    return [(each["params"], each["values"]) for each in trials if each["counts"]]


def test_the_telling_of_a_trial_is_killed_at_every_call(
    forks: Forks, scratch: Path, new_workspace: Callable[..., Workspace], home: None
) -> None:
    root = new_workspace(scratch / "w", "image-classification").root
    assert forks.run(words(1), root) == 0, forks.said
    (first,) = told(root)
    left: dict[str, Path] = {}
    with forks.until(TELLS, words(2), root):
        begun = copied(root, scratch / "begun")
        assert forks.run(words(2), root) == 0, forks.said
        copied(begun, root)
        calls = [call for call in forks.calls(words(2), root, root) if "/index.sqlite" not in str(call)]
        after = told(root)
        assert [each["state"] for each in after] == ["COMPLETE"] * 2 and len(calls) > 20
        for call in calls:
            copied(begun, root)
            assert forks.killed(words(2), root, call) or call.aside, f"{call} never came: {forks.said}"
            assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
            assert torn(root) == [], f"killed before {call}"
            now = told(root)
            assert now[0] == first and len(now) == 2, f"killed before {call}"
            assert now[1]["state"] == "RUNNING" or now == after, f"killed before {call}"
            if (state := json.dumps(now)) not in left:
                left[state] = copied(root, scratch / f"left-{len(left)}")
    assert 2 <= len(left) < 10
    for state, folder in left.items():
        copied(folder, root)
        assert forks.run(words(2), root) == 0, f"{state}: {forks.said}"
        now = told(root)
        assert found(now) == found(after), state
        runs = {each["told"]["run"]: each["told"]["checkpoint"] for each in now if each["counts"]}
        assert len(runs) == 2 and torn(root) == [], state
        ws = Workspace.find(root)
        assert {run: ws.runs.find(run).checkpoint for run in runs} == runs, state
