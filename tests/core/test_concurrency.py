"""Thirty-two processes in one workspace at once: no update is lost, nobody waits for ever, nobody reads half of anything."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos_cli.core.locks import lock
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, NotFound, UsageError
from llmos_cli.operations.branch import branch, delete_branch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.log import log
from llmos_cli.operations.rm import rm
from llmos_cli.operations.status import status
from llmos_cli.operations.tag import delete_tag, tag
from tests.core.conftest import commit_to

PROCESSES = 32
SECONDS = {"a moment": 3.0, "a minute": 60.0}


def commits(ws: Workspace, me: int, number: int) -> str:
    """On the branch that all share: whoever comes second hears of it, and what it made is still there."""
    return commit_to(ws, {"same": "s" * 1000, "own": f"{me} {number}"}).id


def names(ws: Workspace, me: int, number: int) -> str:
    """A tag and a branch of one's own, moved and deleted again, in a folder that others take away meanwhile."""
    head = ws.resolve()
    tag(ws, f"tag/{me}", head, force=True)
    branch(ws, f"branch/{me}", head, force=True)
    assert ws.refs.read(f"{TAGS}tag/{me}") == head
    if number % 3 == 2:
        delete_tag(ws, f"tag/{me}")
        delete_branch(ws, f"branch/{me}")
    return ""


def shares(ws: Workspace, me: int, number: int) -> str:
    """One tag that everybody moves: it is where the last who succeeded put it."""
    return tag(ws, "everybody", ws.resolve(), force=True).checkpoint


def removes(ws: Workspace, me: int, number: int) -> str:
    checkpoint = commit_to(ws, {"own": f"{me} {number}"}, move=False).id
    rm(ws, [checkpoint])
    return ""


def collects(ws: Workspace, me: int, number: int) -> str:
    gc(ws, expire="now")
    return ""


def looks(ws: Workspace, me: int, number: int) -> str:
    """Whatever HEAD says is whole, and all that its line says is there."""
    ws.checkpoint()
    status(ws)
    assert all(summary.operation != "?" for summary in log(ws).checkpoints)
    return ""


WORK: tuple[Callable[[Workspace, int, int], str], ...] = (
    commits,
    commits,
    names,
    names,
    shares,
    removes,
    collects,
    looks,
)
EXPECTED = (Conflict, NotFound, UsageError)
"""What is said where somebody else was first; anything else is a failure."""


def worker(root: Path, me: int, until: float, told: Path) -> None:
    """What it managed, a line each, in a file of its own."""
    chance = random.Random(me)
    work = WORK[me % len(WORK)]
    with told.open("w") as file:
        try:
            number = 0
            while time.time() < until:
                try:
                    file.write(f"{work.__name__} {work(Workspace.find(root), me, number)}\n")
                except EXPECTED as error:
                    file.write(f"refused {work.__name__}: {error.message}\n")
                number += 1
                time.sleep(chance.uniform(0, 0.02))
        except BaseException:
            file.write(f"failed {work.__name__}: {traceback.format_exc()}")
            raise
    os._exit(0)


@pytest.mark.parametrize("how_long", ["a moment", pytest.param("a minute", marks=pytest.mark.slow)])
def test_nothing_is_lost(ws: Workspace, tmp_path: Path, how_long: str) -> None:
    first = commit_to(ws, {"same": "s" * 1000}).id
    pids = {}
    for me in range(PROCESSES):
        pid = os.fork()
        if not pid:
            try:
                worker(ws.root, me, time.time() + SECONDS[how_long], tmp_path / f"told-{me}")
            finally:
                os._exit(1)
        pids[pid] = me
    ended = {me: wait(pid, SECONDS[how_long] + 120) for pid, me in pids.items()}
    told = [line for me in pids.values() for line in (tmp_path / f"told-{me}").read_text().splitlines()]
    assert set(ended.values()) == {0}, [line for line in told if line.startswith(("failed", "  "))]
    after = Workspace.find(ws.root)
    assert fsck(after).problems == ()
    count = Counter(line.split()[0] for line in told)
    assert all(count[work.__name__] for work in WORK), count
    made = [line.split()[1] for line in told if line.startswith("commits ")]
    line = [summary.id for summary in log(after, limit=None).checkpoints]
    assert sorted(line) == sorted([first, *made]), "every commit that succeeded is on the branch, once"
    moves = [operation for operation in after.oplog.operations() if operation.name == "train on main"]
    assert len(moves) == len(line)
    assert [change.before for operation in moves[1:] for change in operation.changes] == [
        change.after for operation in moves[:-1] for change in operation.changes
    ]
    assert after.refs.read(f"{TAGS}everybody") in {line.split()[1] for line in told if line.startswith("shares ")}
    assert {name for name in after.refs.under(HEADS) if name != "main"} == {
        name.replace("tag", "branch") for name in after.refs.under(TAGS) if name != "everybody"
    }


def wait(pid: int, seconds: float) -> int:
    """Its exit code; a process that is still waiting for a lock long after the others is a deadlock."""
    end = time.time() + seconds
    while time.time() < end:
        ended, status_ = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status_)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end")


def test_two_names_that_some_disks_take_for_one_are_not_both_made(ws: Workspace) -> None:
    """Two processes that have both seen that there is none, and wait for the lock together: one of them is told of the other's."""
    commit_to(ws, {"a": "1"})
    told, say = os.pipe()
    with lock(ws.dot / "locks" / "refs"):
        pids = [forked(name, ws.root, say) for name in ("V1", "v1")]
        assert {os.read(told, 1), os.read(told, 1)} == {b"w"}, "both wait: whatever they asked before, they have asked"
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert codes == [0, Conflict.exit_code]
    assert len(ws.refs.under(TAGS)) == 1


def forked(name: str, root: Path, say: int) -> int:
    """A process that makes a tag; it writes a letter once it waits for the lock."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            own = Workspace.find(root)
            own.emit = lambda _: os.write(say, b"w")
            tag(own, name)
            code = 0
        except Conflict as error:
            code = error.exit_code if "which some disks take for it" in error.message else 1
        finally:
            os._exit(code)
    return pid
