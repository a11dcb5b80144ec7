"""Killed at any moment: the workspace is as it was or has the whole checkpoint, and nobody else notices."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core import storing
from llmos_cli.core.manifest import Made
from llmos_cli.core.operation import Change
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.log import log
from llmos_cli.operations.tag import tag


def commit(ws: Workspace, files: dict[str, str]) -> str:
    with ws.begin("train", config={}, argv=[]) as run, ws.stage() as staged:
        head = run.started.base_checkpoint
        made = Made("train", (head,) if head else (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
        for name, text in files.items():
            (staged / name).write_text(text)
        return run.commit(staged, made).id


def test_a_run_begun_after_a_kill_in_the_middle_of_a_move_starts_where_the_move_ends(ws: Workspace) -> None:
    first = commit(ws, {"a": "1"})
    second = commit(ws, {"a": "2"})
    # As a kill leaves it between writing the operation down and moving the branch.
    operations = ws.oplog.path.read_text().splitlines(keepends=True)
    (ws.dot / "pending.json").write_text(operations.pop())
    ws.oplog.path.write_text("".join(operations))
    ws.refs.write(HEADS + "main", first)
    third = commit(ws, {"a": "3"})
    assert ws.parents(third) == (second,)
    assert ws.resolve() == third


def test_killed_at_random(ws: Workspace) -> None:
    chance = random.Random(0)
    for _ in range(8):
        pid = os.fork()
        if not pid:
            for number in range(1000):
                commit(Workspace(ws.root), {"a": "x" * 10_000, "b": f"{os.getpid()} {number}"})
            os._exit(0)
        time.sleep(chance.uniform(0.02, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert fsck(Workspace(ws.root)).problems == ()
    new = Workspace.find(ws.root)
    last = new.head().checkpoint
    assert new.parents(commit(new, {"a": "y"})) == ((last,) if last else ())
    gc(new, expire="now")
    assert list((ws.dot / "tmp").iterdir()) == []
    assert fsck(new).problems == ()


def test_commit_while_gc_collects_all_the_time(ws: Workspace) -> None:
    pid = os.fork()
    if not pid:
        while True:
            gc(Workspace(ws.root), expire="now")
            time.sleep(0.05)
    try:
        for number in range(8):
            commit(ws, {"same": "x", "own": str(number % 3)})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    new = Workspace(ws.root)
    assert fsck(new).problems == ()
    assert len(log(new).checkpoints) == 8


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_gc_frees_a_disk_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        ws = Workspace.create(disk / "w")
        commit(ws, {"a": "1"})
        with ws.begin("train", config={}, argv=[]) as run, ws.stage() as staged:
            (staged / "big").write_bytes(os.urandom(500_000))
            unnamed = run.commit(staged, Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z"), move=False)
        with pytest.raises(OSError, match="No space left"), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(1000))
        with pytest.raises(LlmosError, match="the disk is full"):
            tag(ws, "x")
        assert [each.name for each in gc(ws, expire="now").garbage] == [unnamed.id]
        assert shutil.disk_usage(disk).free > 400_000
        assert tag(ws, "x").name == "x"
        assert fsck(Workspace(ws.root)).problems == ()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def grown(disk: Path, before: int, *, less_than: int) -> bool:
    """Whether that is so in the end: XFS gives a removed file's blocks back a while later."""
    for _ in range(100):
        os.sync()
        if shutil.disk_usage(disk).used - before < less_than:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_reflinks_where_the_file_system_has_them(tmp_path: Path, kind: str) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs the tool mkfs.{kind}")
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        ws = Workspace.create(disk / "w")
        commit(ws, {"big": "x" * 5_000_000, "b": "1"})
        os.sync()  # XFS counts blocks when they are written out
        before = shutil.disk_usage(disk).used
        commit(ws, {"big": "x" * 5_000_000, "b": "2"})
        assert ws.storage == "reflink"
        assert grown(disk, before, less_than=2_000_000)
        assert fsck(ws).problems == ()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_two_names_at_once_or_none(ws: Workspace) -> None:
    """A change of several refs that is killed anywhere is finished by the next operation, or never began."""
    a, b = "a" * 64, "b" * 64
    for after in range(40):
        pid = os.fork()
        if not pid:
            left = after

            def fsync(descriptor: int, call: Any = os.fsync) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                call(descriptor)

            os.fsync = fsync  # type: ignore[assignment]
            names = [f"{TAGS}{after}-x", f"{TAGS}{after}-y"]
            Workspace(ws.root).oplog.apply("two", [Change(name, None, a) for name in names])
            os._exit(0)
        done = os.waitpid(pid, 0)[1] == 0
        new = Workspace(ws.root)
        new.oplog.apply("next", [Change(f"{TAGS}{after}-z", None, b)])
        assert len([name for name in new.refs.under(TAGS) if name.startswith(f"{after}-")]) in (1, 3)
        if done:
            return
    raise AssertionError("never got to the end")


def test_storing_twice_at_once_gives_one_checkpoint(ws: Workspace) -> None:
    made = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
    pids = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            mine = Workspace(ws.root)
            for _ in range(5):
                with mine.stage() as staged:
                    (staged / "a").write_text("x" * 1000)
                    storing.publish(mine, storing.prepare(mine, staged, made))
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert len(list(ws.checkpoints.iterdir())) == 1
    assert fsck(ws).problems == ()
