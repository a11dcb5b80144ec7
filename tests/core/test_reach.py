"""What a log or `pending.json` of somebody else's says is not carried out beyond what operations do."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.operation import parse
from llmos_cli.core.processes import host
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import NotFound, NotPlain
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from tests.core.conftest import Commit

A = "a" * 64


def changed(what: str, before: str | None, after: str | None) -> dict[str, Any]:
    return {"changes": [{"what": what, "before": before, "after": after}]}


def line(**of: Any) -> bytes:
    value = {"id": "deadbeef", "name": "tag x", "changes": [], "time": 1.0, "run": "", "kind": "do", "of": "", **of}
    return json.dumps(value).encode() + b"\n"


BEYOND: dict[str, dict[str, Any]] = {
    "beside the workspace": changed("../victim", None, "owned"),
    "from the root": changed("/tmp/victim", None, "owned"),
    "out of configs": changed("configs/../../victim.yaml", None, "owned"),
    "a folder of configs": changed("configs/a/b.yaml", None, "owned"),
    "what trusts": changed("configs/trusted.json", None, "{}"),
    "a file of our own": changed(".llmos/audit.jsonl", None, ""),
    "another mark": changed(".llmos/dropped/../storage", None, ""),
    "a checkpoint": changed(f"checkpoints/{A}/model.safetensors", None, "owned"),
    "out of the refs": changed("refs/heads/../../../victim", None, A),
    "the refs of runs": changed("refs/runs/x", None, A),
    "no id": changed("refs/heads/main", None, "owned"),
    "HEAD elsewhere": changed("HEAD", None, "ref: refs/heads/../../victim"),
    "HEAD at no branch": changed("HEAD", None, "ref: refs/tags/v1"),
    "collects": {"collects": ["../../victim"]},
    "drops": {"drops": ["/tmp/victim"]},
    "seals": {"seals": [".."]},
    "unseals": {"unseals": [f"{A}/.."]},
    "a run elsewhere": {**changed("refs/heads/main", None, A), "run": "../../victim"},
}


@pytest.mark.parametrize("of", BEYOND.values(), ids=BEYOND)
def test_what_no_operation_does_is_none(of: dict[str, Any]) -> None:
    assert parse(line(**of)) is None


def test_what_somebody_else_left_pending_is_set_aside(ws: Workspace, commit: Commit, llmos: Any) -> None:
    commit(a="1")
    victim = ws.root.parent / "victim"
    (ws.dot / "pending.json").write_bytes(hostile := line(**changed("../victim", None, "owned")))
    done = llmos("-C", str(ws.root), "tag", "mine")
    assert done.code == 0 and ".llmos/pending.json was no operation that llmos could have begun" in done.err
    assert not victim.exists() and not (ws.dot / "pending.json").exists()
    assert [each.read_bytes() for each in (ws.dot / "aside").iterdir()] == [hostile]
    assert fsck(ws).problems == ()


def test_what_somebody_else_logged_is_not_undone(ws: Workspace, commit: Commit) -> None:
    commit(a="1")
    victim = ws.root.parent / "victim"
    victim.write_text("mine")
    with ws.oplog.path.open("ab") as log:
        log.write(line(**changed("../victim", "owned", "mine")))
    tag(ws, "later")
    assert any("operations.jsonl" in each.where for each in fsck(ws).problems)
    with pytest.raises(NotFound):
        undo(ws, "deadbeef")
    undo(ws)
    assert victim.read_text() == "mine"


def test_configs_that_are_elsewhere_are_not_written(ws: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for each in (ws.root / "configs").iterdir() if (ws.root / "configs").is_dir() else ():
        each.unlink()
    (ws.root / "configs").rmdir() if (ws.root / "configs").is_dir() else None
    (ws.root / "configs").symlink_to(elsewhere)
    operation = parse(line(**changed("configs/train.yaml", None, "owned: 1\n")))
    assert operation is not None
    with pytest.raises(NotPlain, match="configs is a link, or behind one"):
        ws.oplog.apply("tune --apply", operation.changes)
    (ws.dot / "pending.json").write_bytes(line(**changed("configs/train.yaml", None, "owned: 1\n")))
    ws.oplog.settle()
    assert not any(elsewhere.iterdir()) and not ws.oplog.is_pending


LINKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a file of any name": (".llmos/refs/tags", changed("refs/tags/.bashrc", A, None), ".bashrc"),
    "behind a folder of refs": (".llmos/refs/heads/a", changed("refs/heads/a/notes", None, A), "notes"),
    "any JSON": (".llmos/remotes", changed(".llmos/remotes/settings.json", "mine", "owned"), "settings.json"),
    "a mark": (".llmos/lost", changed(f".llmos/lost/{A}", "mine", None), A),
    "checkpoints": ("checkpoints", {"collects": [A]}, f"{A}/manifest.json"),
    "weights": ("checkpoints", {"drops": [A]}, f"{A}/model.safetensors"),
    "what waits": (f".llmos/sealed/waiting/{A}", {"unseals": [A]}, "model.safetensors"),
}


@pytest.mark.parametrize("folder, of, name", LINKED.values(), ids=LINKED)
def test_what_is_behind_a_link_stays_as_it_is(
    ws: Workspace, commit: Commit, tmp_path: Path, folder: str, of: dict[str, Any], name: str, llmos: Any
) -> None:
    commit(a="1")
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    shutil.rmtree(ws.root / folder, ignore_errors=True)
    (ws.root / folder).parent.mkdir(parents=True, exist_ok=True)
    (ws.root / folder).symlink_to(tmp_path / "theirs")
    (ws.dot / "pending.json").write_bytes(line(**of))
    llmos("-C", str(ws.root), "status")
    assert theirs.read_text() == "mine"
    assert [path for path in (tmp_path / "theirs").rglob("*") if path.is_file()] == [theirs]
    assert llmos("-C", str(ws.root), "fsck").code == (5 if (ws.root / folder).is_symlink() else 0)
    assert (ws.root / folder).is_symlink() or "waiting" in folder, "what waits is nobody's, and was tidied up"


def test_a_link_in_the_place_of_a_checkpoint_keeps_what_it_leads_to(
    ws: Workspace, commit: Commit, tmp_path: Path
) -> None:
    commit(a="1")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").write_text("mine")
    (ws.checkpoints / A).symlink_to(theirs)
    for each in ({"drops": [A]}, {"collects": [A]}):
        (ws.dot / "pending.json").write_bytes(line(**each))
        ws.oplog.settle()
        assert (theirs / "precious").read_text() == "mine"
    assert not os.path.lexists(ws.checkpoints / A)


@pytest.mark.parametrize(
    "name", ["object_1_x_ab_{host}", "object_{big}_1.0_ab_{host}", "_____", "object_1_nan_ab_{host}"]
)
def test_a_name_in_tmp_that_says_no_process(ws: Workspace, commit: Commit, name: str) -> None:
    """Somebody else's: nobody stumbles over it, and `gc` leaves it until it is old."""
    stranger = ws.dot / "tmp" / name.format(host=host(), big="9" * 40)
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()
    commit(a="1")
    gc(ws, expire="now", window="now")
    assert stranger.exists() and fsck(ws).problems == ()
