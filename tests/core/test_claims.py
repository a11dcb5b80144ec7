"""Where `flock` is refused or heeded by one machine alone: strace refuses it, and two mounts of one folder are two machines."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos_cli.core import claims
from llmos_cli.core.locks import lock
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LockTimeout
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.log import log
from tests.core.conftest import commit_to
from tests.core.tracing import Forks

MODULES = ["llmos_cli.app", "llmos_cli.operations.tag", "llmos_cli.commands.tag", "llmos_cli.core.oplog"]
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")


def claimed_by(ws: Workspace, **who: object) -> Path:
    """As somebody left it that holds the lock."""
    path = claims.path_of(ws.dot / "locks" / "refs")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"pid": 1, "started": 1.0, "host": "elsewhere", "since": time.time(), **who}))
    return path


@traced
@pytest.mark.parametrize("errno", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_without_flock_a_claim_decides(ws: Workspace, forks: Forks, errno: str) -> None:
    commit_to(ws, {"a": "1"})
    refused = f"flock:error={errno}"
    assert forks.run(("tag", "x"), ws.root, inject=refused) == 0, forks.said
    path = claimed_by(ws)
    assert forks.run(("--wait", "0.2", "tag", "y"), ws.root, inject=refused) == 6
    assert "gave up after 0.2 s on the lock refs, held for" in forks.said and "on elsewhere" in forks.said
    assert f"if its machine went down, nobody else can know: `rm {path}`" in forks.said
    path.unlink()
    assert forks.run(("tag", "y"), ws.root, inject=refused) == 0, forks.said
    assert [each.name for each in path.parent.iterdir()] == ["refs"]


def test_no_claim_is_made_where_only_this_machine_is(tmp_path: Path) -> None:
    with lock(tmp_path / "refs"):
        assert [path.name for path in tmp_path.iterdir()] == ["refs"]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """One folder as two machines have it mounted."""
    if shutil.which("bindfs") is None:
        pytest.skip("needs the tool bindfs")
    (folder := tmp_path / "folder").mkdir()
    mounts = tmp_path / "one", tmp_path / "other"
    for mount in mounts:
        mount.mkdir()
        # Without its caches of a second: what the other one wrote is seen at once, as NFS has it after a lock was taken.
        subprocess.run(["bindfs", "-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0", folder, mount], check=True)
    try:
        yield mounts
    finally:
        for mount in mounts:
            subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_two_machines_exclude_each_other_though_flock_does_not(machines: tuple[Path, Path]) -> None:
    one, other = machines
    (one / "plain").write_text("")
    with (one / "plain").open() as here, (other / "plain").open() as there:
        fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)  # both have it: that is what is not to be trusted
    told = f"held for 0 s by process {os.getpid()}"
    with lock(one / "refs"), pytest.raises(LockTimeout, match=told), lock(other / "refs", wait=0.3):
        pass
    with lock(other / "refs", wait=0):
        pass


def commits(root: Path, me: int) -> None:
    ws = Workspace.find(root)
    for number in range(4):
        with lock(ws.dot / "locks" / "turn"):  # so that each begins where the last one ended
            commit_to(ws, {"a": f"{me} {number}"})


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_commits_from_two_machines_all_arrive(machines: tuple[Path, Path]) -> None:
    Workspace.create(machines[0] / "w")
    pids = []
    for me in range(8):
        pid = os.fork()
        if not pid:
            try:
                commits(machines[me % 2] / "w", me)
                os._exit(0)
            except BaseException:  # noqa: BLE001
                (machines[0].parent / f"failed-{me}").write_text(traceback.format_exc())
            finally:
                os._exit(1)
        pids.append(pid)
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    assert [path.read_text() for path in machines[0].parent.glob("failed-*")] == []
    assert ended == [0] * 8
    ws = Workspace.find(machines[1] / "w")
    assert len(log(ws, limit=None).checkpoints) == 32
    assert fsck(ws).problems == ()


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_claim_of_a_dead_process_of_this_machine_is_taken_over(machines: tuple[Path, Path]) -> None:
    pid = os.fork()
    if not pid:
        try:
            with lock(machines[0] / "refs"):
                os._exit(0)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    assert claims.path_of(machines[0] / "refs").exists()
    with lock(machines[0] / "refs", wait=5):
        pass
    assert not claims.path_of(machines[0] / "refs").exists()
