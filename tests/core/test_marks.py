"""Marks that say that weights were removed: those that no operation made are told, and nothing goes because of one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.push import push
from llmos_cli.operations.rm import rm
from llmos_cli.operations.seal import seal
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from tests.core.conftest import Commit


def by_hand(ws: Workspace, checkpoint: str) -> Path:
    mark = ws.dot / "dropped" / checkpoint
    mark.parent.mkdir(exist_ok=True)
    mark.write_text("")
    return mark


@pytest.mark.parametrize("before", ["nothing", "removed and undone", "sealed"])
def test_a_mark_that_no_operation_made(
    ws: Workspace, commit: Commit, before: str, monkeypatch: pytest.MonkeyPatch, llmos
) -> None:
    monkeypatch.setenv("LLMOS_KEY", "5" * 64)
    monkeypatch.chdir(ws.root)
    first = commit(a="1").id
    tag(ws, "base")
    commit(a="2")
    if before == "removed and undone":
        rm(ws, ["base"], force=True)
        undo(ws)
    if before == "sealed":
        seal(ws, "base", ask=lambda _: "5" * 64)
    files = {path for path in ws.root.rglob("*") if path.is_file() and first in str(path)}
    mark = by_hand(ws, first)
    (problem,) = fsck(ws).problems
    assert (problem.where, problem.hurts) == (f".llmos/dropped/{first}", ("main", "base"))
    assert "which no operation removed" in problem.what and llmos("fsck").code == 5
    with pytest.raises(Corrupt, match="nothing was removed"):
        gc(ws, expire="now", window="now")
    with contextlib.suppress(Corrupt):  # what was removed and undone is kept for as long as undo reaches
        gc(ws, expire="now")
    assert files <= {path for path in ws.root.rglob("*") if path.is_file()}
    assert llmos("fsck", "--repair").code == 0
    assert not mark.exists() and fsck(ws).problems == () and ws.oplog.without_weights() == set()
    gc(ws, expire="now", window="now")
    assert files - {mark} <= {path for path in ws.root.rglob("*") if path.is_file()}


def test_marks_that_are_known(ws: Workspace, commit: Commit, tmp_path: Path) -> None:
    """Of `rm`, of `gc`, and of what came from a remote without its weights, whichever comes after; an undone repair is one too."""
    first = commit(a="1").id
    tag(ws, "base")
    commit(a="2"), commit(a="3")
    rm(ws, ["base"], force=True)
    assert fsck(ws).problems == ()
    gc(ws, keep_last=1, window="now")
    assert len(ws.dropped.all()) == 2 and fsck(ws).problems == ()
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws, everything=True)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    copy = Workspace.find(tmp_path / "copy")
    assert first in copy.dropped and copy.oplog.without_weights() == set() and fsck(copy).problems == ()
    gc(copy, window="now")
    by_hand(copy, copy.resolve())
    assert len(fsck(copy, repair=True).repaired) == 1
    undo(copy)
    assert copy.resolve() in copy.dropped and fsck(copy).problems == ()
    gc(copy)


def test_a_pipe_among_the_marks_is_none(ws: Workspace, commit: Commit) -> None:
    made = commit(a="1")
    pipe = ws.dot / "dropped" / made.id
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    assert ws.checkpoint().path == made.path and made.id not in ws.dropped
    assert [each.where for each in fsck(ws).problems] == [f".llmos/dropped/{made.id}"]
