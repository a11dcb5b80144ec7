"""A run whose folder was taken away: what shows its checkpoint says so, and it comes back from a remote that it was sent to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import push
from tests.conftest import Llmos
from tests.core.conftest import Commit


@pytest.fixture
def gone(ws: Workspace, commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkpoint, str]:
    """The second of three checkpoints, and the run that made it, which was pushed and is not here any more."""
    monkeypatch.chdir(ws.root)
    commit(a="1")
    made = commit(a="2")
    commit(a="3")
    ((run, _),) = ws.index.makers(made.id)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    shutil.rmtree(ws.root / "runs" / run)
    return made, run


def test_what_shows_its_checkpoint_says_so(gone: tuple[Checkpoint, str], llmos: Llmos) -> None:
    made, run = gone
    warning = f"warning: run {run}, which made {made.id[:12]}, is gone by no command, and what it measured with it; `llmos fsck` tells more\n"
    for words in (("log",), ("show", "HEAD~1"), ("diff", "HEAD~1", "--no-tensors")):
        assert llmos(*words).err == warning, words
    assert warning in llmos("log", "--metric", "loss").err
    assert llmos("show", "HEAD").err == llmos("log", "-n", "1").err == ""
    assert llmos("fsck").code == 5


def test_it_comes_back_from_a_remote(ws: Workspace, gone: tuple[Checkpoint, str], llmos: Llmos) -> None:
    _, run = gone
    repaired = fsck(ws, repair=True)
    assert repaired.problems == () and [each.told for each in repaired.repaired] == [f"repaired runs/{run} from origin"]
    assert ws.runs.find(run).status == "done" and llmos("log").err == ""


def test_its_name_stays_while_a_remote_may_have_it(
    ws: Workspace, gone: tuple[Checkpoint, str], tmp_path: Path, llmos: Llmos
) -> None:
    made, run = gone
    (tmp_path / "far").rename(tmp_path / "away")
    left = llmos("fsck", "--repair")
    assert left.code == 5 and "origin was not asked" in left.err and ws.refs.read(f"refs/runs/{run}") == made.id
    (tmp_path / "away").rename(tmp_path / "far")
    assert llmos("fsck", "--repair").code == 0


def test_without_a_remote_its_name_goes(ws: Workspace, gone: tuple[Checkpoint, str], llmos: Llmos) -> None:
    _, run = gone
    remotes.remove(ws, "origin")
    assert "this one is not, and its ref was removed" in llmos("fsck", "--repair").out
    assert llmos("log").err == "" and ws.refs.read(f"refs/runs/{run}") is None
