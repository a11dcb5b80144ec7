"""The disk says no to any call by which a command changes it: one sentence, exit 1, and nothing half-made.

What a full disk, a quota, a limit on the size of files or a file system that turned read-only would answer, the kernel is made
to answer (strace's fault injection), at the first, the second... of all those calls.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from tests.core import test_kills
from tests.core.killing import state
from tests.core.test_kills import COMMANDS, template, told_of
from tests.core.tracing import Forks, copied

__all__ = ["template"]

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")

MODULES = test_kills.MODULES
ANSWERS = {
    "ENOSPC": "the disk is full",
    "EDQUOT": "the disk quota is used up",
    "EFBIG": "the file would be larger than this process may write",
    "EROFS": "the file system is read-only",
    "EIO": "the disk reports an error",
}
GIVES = {
    "EFBIG": ("write", "pwrite64", "ftruncate"),
    "EIO": ("write", "pwrite64", "fsync", "fdatasync"),
}
"""The calls that give such an answer; the others any."""
QUICK = {("tag", "ENOSPC"), ("tag", "EROFS"), ("tag", "EFBIG"), ("commit", "ENOSPC")}


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        pytest.param(name, errno, marks=() if (name, errno) in QUICK else pytest.mark.slow)
        for name in COMMANDS
        for errno in ANSWERS
        if errno == "ENOSPC" or name in ("tag", "commit", "rm")
    ],
)
def test_refused_at_every_call(name: str, errno: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    words, root = COMMANDS[name], scratch / "w"
    before = state(copied(template, root))
    calls = [call for call in forks.calls(words, root, root) if call.name in GIVES.get(errno, (call.name,))]
    after = state(root)
    for call in calls:
        copied(template, root)
        code = forks.refused(words, root, call, errno)
        said, told = forks.said, f"{errno} at {call}"
        assert code in (0, 1), f"{told}: {said}"
        if code:
            assert "error: " in said and "hint: " in said and "unexpectedly" not in said, f"{told}: {said}"
            assert ANSWERS[errno] in said, f"{told}: {said}"
        assert fsck(Workspace.find(root)).problems == (), told
        now = told_of(name, state(root), after)
        if name == "gc":  # what nothing names may go in part
            assert set(map(str, now.runs)) <= set(map(str, before.runs)), told
            now = replace(now, runs=after.runs, removed=after.removed)
        assert now in (before, after), told
        assert now == after or code, f"{told}: done, it says, and it is not"
        if state(root) != after:
            assert forks.run(words, root) == 0, f"{told}: {forks.said}"
            assert state(root) == after, told
