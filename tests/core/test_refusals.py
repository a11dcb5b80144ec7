"""The disk says no to any call by which a command changes it: one sentence, exit 1, and nothing half-made.

What a full disk, a quota, a limit on the size of files or a file system that turned read-only would answer, the kernel is made
to answer (strace's fault injection), at the first, the second... of all those calls.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core import test_kills
from tests.core.killing import State, state
from tests.core.test_kills import COMMANDS, LOOKED, begun, command_line, damaged, key, template, told_of
from tests.core.tracing import Forks, copied

__all__ = ["key", "template"]

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
QUICK = {("tag", "ENOSPC"), ("tag", "EFBIG")}


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
    root, start = scratch / "w", begun(name, template, scratch)
    words, hurt, looked = command_line(name, start), damaged(copied(start, root)), LOOKED.get(name, state)
    before = told(name, looked(copied(start, root)))
    calls = [call for call in forks.calls(words, root, root) if call.name in GIVES.get(errno, (call.name,))]
    after = told(name, looked(root))
    # The kernel counts each thread's calls: what it refuses of another may be the very sentence.
    threads = any(call.aside for call in calls)
    for call in calls:
        copied(start, root)
        code = forks.refused(words, root, call, errno)
        said, at = forks.said, f"{errno} at {call}"
        assert code in (0, 1), f"{at}: {said}"
        if code and not threads:
            assert "error: " in said and "hint: " in said and "unexpectedly" not in said, f"{at}: {said}"
            assert ANSWERS[errno] in said, f"{at}: {said}"
        assert damaged(root) <= hurt, at
        now = told(name, told_of(name, looked(root), after))
        assert now in [in_part(name, each, now) for each in (before, after)], at
        assert now == in_part(name, after, now) or code, f"{at}: done, it says, and it is not"
        if told(name, looked(root)) != after:
            assert forks.run(words, root) == 0, f"{at}: {forks.said}"
            assert told(name, looked(root)) == after and not damaged(root), at


def told(name: str, of: State) -> State:
    """What gc removed in part it has not said, and what is left is another number of things."""
    if not name.startswith("gc"):
        return of
    return replace(of, operations=[each for each in of.operations if not each.startswith("gc: ")])


def in_part(name: str, whole: State, now: State) -> State:
    """What nothing names may go in part."""
    return replace(whole, runs=now.runs, removed=now.removed) if name.startswith("gc") else whole
