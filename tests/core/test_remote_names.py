"""Names of branches and tags on remotes: one that went is in nobody's way, whatever is called alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.branch import branch, delete_branch
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.push import delete, push
from llmos_cli.operations.tag import delete_tag, tag
from tests.core.conftest import Commit

MAKE = {"branch": (branch, delete_branch), "tag": (tag, delete_tag)}


@pytest.fixture(params=["plain", "encrypted"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The file with the remote's key; empty where it has none."""
    return str(tmp_path / "key") if request.param == "encrypted" else ""


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("old", "new"), [("try", "try/one"), ("try/one", "Try"), ("RC1", "rc1")])
def test_a_name_that_was_deleted_there_is_in_nobodys_way(
    ws: Workspace, commit: Commit, tmp_path: Path, key: str, kind: str, old: str, new: str
) -> None:
    """Neither for whoever comes new, nor for who saw the old one."""
    checkpoint, (make, unmake) = commit(a="1"), MAKE[kind]
    remotes.add(ws, "origin", str(tmp_path / "far"), key_file=key)
    make(ws, old)
    push(ws, everything=True)
    clone(str(tmp_path / "far"), tmp_path / "saw", key_file=key)
    delete(ws, [old])
    unmake(ws, old)
    make(ws, new)
    push(ws, everything=True)
    fetch(saw := Workspace.find(tmp_path / "saw"))
    clone(str(tmp_path / "far"), tmp_path / "new", key_file=key)
    for each in (ws, saw, Workspace.find(tmp_path / "new")):
        seen = each.refs.under("refs/remotes/origin/")
        assert seen == {"heads/main": checkpoint.id, f"{'heads' if kind == 'branch' else 'tags'}/{new}": checkpoint.id}
