"""llmos.yaml is gone, or of no format: it is said by whoever looks and by whoever would read it, and nothing else is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import push
from llmos_cli.operations.undo import undo


def test_it_is_gone(ws, commit, llmos, monkeypatch, tmp_path):
    checkpoint = commit(a="1")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    (ws.root / "llmos.yaml").unlink()
    monkeypatch.chdir(ws.root / "runs")
    told = llmos("status")
    assert told.code == 0 and "llmos.yaml is missing, and its defaults, remotes and pipeline go unheard" in told.out
    assert json.loads(llmos("status", "--json").out)["lacks_settings"]
    assert "llmos.yaml" in llmos("fsck").out and llmos("fsck").code == 5
    for words in (["push"], ["remote", "list"], ["remote", "add", "b", "/x"], ["run"], ["config", "show", "train"]):
        ran = llmos(*words)
        assert ran.code == 5 and "llmos.yaml is missing" in ran.err and "fsck --repair" in ran.err, words
    assert (
        llmos("log").code == llmos("tag", "x").code == llmos("gc").code == 0 and not (ws.root / "llmos.yaml").exists()
    )
    assert llmos("fsck", "--repair").code == 0 and ws.checkpoint().id == checkpoint.id
    assert [each.name for each in remotes.remotes(ws).remotes] == ["origin"] and push(ws).checkpoints == 1
    assert "missing" not in llmos("status").out
    undo(ws)
    assert [problem.where for problem in fsck(ws).problems] == ["llmos.yaml"]


def test_what_no_operation_wrote_is_what_init_writes(ws):
    (ws.root / "llmos.yaml").unlink()
    assert [each.source for each in fsck(ws, repair=True).repaired] == ["what `llmos init` writes there"]
    assert (ws.root / "llmos.yaml").read_text() == "format: 1\n"


@pytest.mark.parametrize("said", ["x", "0", "-1", "'1.5'", "", "[1]", '"x"  # mine'])
def test_a_format_that_is_none_is_refused(ws, commit, llmos, monkeypatch, said):
    commit(a="1")
    (ws.root / "llmos.yaml").write_text(f"seed: 1\nformat: {said}\n")
    monkeypatch.chdir(ws.root)
    for words in (["status"], ["fsck"], ["log"], ["push"]):
        ran = llmos(*words)
        assert ran.code == 5 and "which no llmos has" in ran.err and "`format: 1`" in ran.err


@pytest.mark.parametrize("text", ["format: 1\n", "format: '1'   # ours\n", 'format:   "1"\n', "defaults: {}\n", ""])
def test_a_format_of_ours_is_none_of_it(ws, text):
    (ws.root / "llmos.yaml").write_text(text)
    assert fsck(Workspace.find(ws.root)).problems == ()


def test_the_workspace_is_found_without_it(tmp_path: Path):
    Workspace.create(tmp_path / "x")
    (tmp_path / "x" / "llmos.yaml").unlink()
    (tmp_path / "x" / "deep" / "below").mkdir(parents=True)
    assert Workspace.find(tmp_path / "x" / "deep" / "below").root == tmp_path / "x"
    with pytest.raises(Corrupt, match="missing"):
        remotes.settings(Workspace.find(tmp_path / "x"))
