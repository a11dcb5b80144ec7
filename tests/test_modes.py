"""Every file and folder that any command makes has the mode that the umask says: libraries make some for their user alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from tests.conftest import Llmos

pytestmark = pytest.mark.slow

UMASK = 0o027
STORY = (
    ("train", "-q"),
    ("tag", "base"),
    ("prune", "-q", "--method", "wanda", "--sparsity", "0.5", "--heal", "2"),
    ("tag", "pruned"),
    ("quantize", "base", "-q", "--method", "gptq"),
    ("compress", "base", "-q", "--target-ratio", "0.9"),
    ("eval", "-q", "HEAD", "base"),
    ("tune", "-q", "-s", "tune.trials=2", "-s", "tune.space={train.batch_size: [2, 4]}"),
    ("train", "-q", "-s", "train.teacher=base", "-s", "train.max_steps=1"),
    ("export", "-o", "../hf", "--dtype", "float32"),
    ("export", "pruned", "-o", "../small", "--format", "sparse"),
    ("export", "base", "-o", "../m.gguf", "--format", "gguf"),
    ("import", "../hf"),
    ("remote", "add", "origin", "../far"),
    ("push", "--all"),
    ("clone", "../far", "../copy"),
    ("backup",),
    ("restore", "../far", "../back"),
    ("checkout", "base"),
    ("undo",),
    ("gc",),
    ("fsck",),
)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(UMASK)
    yield
    os.umask(before)


def test_the_whole_story(workspace: Workspace, llmos: Llmos, umask: None) -> None:
    there = set(workspace.root.parent.rglob("*"))
    for words in STORY:
        ran = llmos(*words)
        assert ran.code in (0, 3), f"{words}: {ran.err}"
    made = {path for path in workspace.root.parent.rglob("*") if path not in there}
    assert len(made) > 300
    assert [f"{path}: {mode(path):o}" for path in sorted(made) if mode(path) not in as_wanted(path)] == []


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def as_wanted(path: Path) -> tuple[int, ...]:
    """A file may be one that nobody may write."""
    return (0o777 & ~UMASK,) if path.is_dir() else (0o666 & ~UMASK, 0o444 & ~UMASK)
