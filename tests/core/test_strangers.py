"""What others put into a workspace or a remote: an operating system's files disturb nobody; the rest is told, and nobody reads it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck

ASKED = (["status"], ["log", "--all"], ["ps", "--all"], ["gc", "--dry-run"], ["fsck"], ["data", "list"])


def folders_of_llmos(ws: Workspace) -> list[Path]:
    """But for those of checkpoints, in which every file counts."""
    inner = {path for path in ws.checkpoints.rglob("*") if path.is_dir()}
    return [path for path in (ws.root, *ws.root.rglob("*")) if path.is_dir() and path not in inner]


def test_files_of_an_operating_system_disturb_nobody(used: Workspace, llmos) -> None:
    (used.dot / "sealed" / "waiting").mkdir(exist_ok=True)
    said = [llmos(*each) for each in ASKED]
    for folder in folders_of_llmos(used):
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    for asked, before in zip(ASKED, said, strict=True):
        now = llmos(*asked)
        assert (now.code, now.out, now.err) == (before.code, before.out, before.err), asked
    assert llmos("gc", "--expire", "now", "--window", "now").code == 0
    assert all((folder / ".DS_Store").exists() for folder in folders_of_llmos(used))


def test_nor_those_on_a_remote(used: Workspace, llmos, tmp_path: Path) -> None:
    for folder in [path for path in (tmp_path / "far", *(tmp_path / "far").rglob("*")) if path.is_dir()]:
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert llmos("fetch").code == llmos("push", "--all").code == llmos("backup").code == 0
    assert llmos("clone", tmp_path / "far", tmp_path / "copy").code == 0
    assert llmos("restore", tmp_path / "far", tmp_path / "back").code == 0
    assert fsck(Workspace(tmp_path / "copy")).problems == fsck(Workspace(tmp_path / "back")).problems == ()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    assert llmos("remote", "add", "disk", tmp_path / "new").code == llmos("push", "--remote", "disk").code == 0


STRANGE = (
    "runs/notes.txt",
    "checkpoints/notes.txt",
    ".llmos/refs/heads/pipe|",
    ".llmos/refs/heads/link@",
    ".llmos/objects/notes.txt",
    ".llmos/objects/aa/notes.txt",
    f".llmos/objects/aa/{'b' * 62}|",
    ".llmos/dropped/notes.txt",
    ".llmos/sealed/notes.json",
    f".llmos/sealed/aa/{'b' * 62}@",
    ".llmos/signatures/notes.txt",
    ".llmos/snapshots/notes.txt",
    ".llmos/snapshots/objects/aa/notes.txt",
)
"""`|` a pipe, `@` a link."""


def test_fsck_tells_strangers_and_nobody_else_sees_them(used: Workspace, llmos) -> None:
    said = [llmos(*each) for each in ASKED]
    for name in STRANGE:
        path = used.root / name.rstrip("|@")
        path.parent.mkdir(exist_ok=True)
        if name.endswith("|"):
            os.mkfifo(path)
        elif name.endswith("@"):
            path.symlink_to("/dev/zero")
        else:
            path.write_text("mine")
    for asked, before in zip(ASKED, said, strict=True):
        if asked != ["fsck"]:
            now = llmos(*asked)
            assert (now.code, now.out, now.err) == (before.code, before.out, before.err), asked
    told = {each.where for each in fsck(Workspace(used.root), repair=True).problems if "put it there" in each.what}
    assert told == {name.rstrip("|@") for name in STRANGE}
    assert llmos("tag", "pipe", "refs/heads/pipe").code == 4


def test_a_folder_without_events_is_no_run(used: Workspace, llmos) -> None:
    before = llmos("ps", "--all").out
    (used.root / "runs" / "stray").mkdir()
    assert llmos("ps", "--all").out == before
    assert [(each.where, each.what) for each in fsck(Workspace(used.root)).problems] == [
        ("runs/stray", "has no events.jsonl")
    ]
    lost = next(path for path in (used.root / "runs").iterdir() if (path / "events.jsonl").exists())
    shutil.rmtree(used.root / "runs" / "stray")
    (lost / "events.jsonl").unlink()
    assert "years ago" not in llmos("ps", "--all").out
