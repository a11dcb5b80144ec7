"""Killed just before any call by which a command changes the disk: it never happened, or it is whole, and nothing is damaged.

Of every command all such calls are tried, not some. A kill cannot tell whether bytes would have outlived a power cut: for
that the trace itself is read, see `durability.py`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core import trust
from llmos_cli.core.manifest import Made
from llmos_cli.core.refs import HEAD, HEADS, RUNS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.branch import branch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.tag import tag
from tests.core.durability import unsafe
from tests.core.tracing import Forks, copied

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")

MODULES = [
    __name__,
    *("llmos_cli.app", "llmos_cli.core.index", "llmos_cli.core.runs", "sqlite3", "concurrent.futures.thread", "yaml"),
    *(f"llmos_cli.operations.{verb}" for verb in ("tag", "branch", "checkout", "rm", "gc", "undo", "redo", "trust")),
    *(f"llmos_cli.commands.{verb}" for verb in ("tag", "branch", "checkout", "rm", "gc", "undo", "redo", "trust")),
]


def commit(ws: Workspace, parents: tuple[str, ...], *, move: bool = True, time: str = "1", **files: str) -> str:
    """A run that commits files, given all that makes a checkpoint's id."""
    made = Made("train", parents, {}, {}, {}, 0, f"2026-11-22T10:45:0{time}Z")
    config = [ws.configs / "train.yaml"]
    with ws.begin("train", config={}, files=config, parents=parents, argv=["llmos"]) as run, ws.stage() as staged:
        (staged / "folder").mkdir()
        for name, text in files.items():
            (staged / ("folder" if name == "same" else "") / name).write_text(text)
        return run.commit(staged, made, move=move).id


def commit_here() -> None:
    """What is killed: a commit on the branch it finds, half of whose bytes are in the workspace already."""
    ws = Workspace.find()
    commit(ws, (ws.resolve(),), time="9", same="s" * 100, other="new")


def commit_what_was_removed() -> None:
    """The same content made the same way as what `rm` took away."""
    ws = Workspace.find()
    commit(ws, (ws.resolve("base"),), move=False, time="5", same="s" * 100, other="removed")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """In memory where that can be: a disk would take longer over its fsyncs than everything else together."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def forks(scratch: Path) -> Iterator[Forks]:
    started = Forks(scratch, MODULES)
    yield started
    started.close()


@pytest.fixture(scope="module")
def template(scratch: Path) -> Path:
    """A workspace with something for every command to do."""
    ws = Workspace.create(scratch / "template")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (ws.root / "code.py").write_text("x = 1\n")
    first = commit(ws, (), same="s" * 100, other="first")
    tag(ws, "base")
    tag(ws, "old")
    second = commit(ws, (first,), time="2", same="s" * 100, other="second")
    branch(ws, "other", "base")
    branch(ws, "spare", "base")
    unnamed = commit(ws, (second,), move=False, time="3", same="s" * 100, other="unnamed")
    commit(ws, (unnamed,), move=False, time="4", other="its child")
    removed = commit(ws, (first,), move=False, time="5", same="s" * 100, other="removed")
    commit(ws, (removed,), move=False, time="6", other="child of what is removed")
    (ws.configs / "train.yaml").write_text("seed: 2\n")
    commit(ws, (second,), time="7", same="s" * 100, other="third")
    tag(ws, "undone")
    ws.oplog.undo()
    ws.oplog.undo()
    _leftovers(ws)
    _settle(ws)
    return ws.root


def _leftovers(ws: Workspace) -> None:
    """Of a process that is dead, and of a run that nobody resumed."""
    pid = os.fork()
    if not pid:
        from llmos_cli.core.processes import scratch_name

        (ws.dot / "tmp" / scratch_name("stage")).mkdir()
        os._exit(0)
    os.waitpid(pid, 0)
    state = next((ws.root / "runs").iterdir()) / "state"
    state.mkdir()
    (state / "weights").write_text("w")


def _settle(ws: Workspace) -> None:
    """Folders that were changed a moment ago are looked at twice; every copy is to be looked at alike."""
    for folder in (ws.checkpoints, ws.root / "runs"):
        os.utime(folder, (time.time() - 60,) * 2)
    Workspace(ws.root).index.entries()


@dataclass(frozen=True)
class State:
    """What commands can see of a workspace, checkpoints by their content: the time of a commit is in its id."""

    head: str | None
    refs: dict[str, Any]
    runs: list[Any]
    operations: list[str]
    removed: set[str]
    configs: dict[str, str]
    trusted: dict[str, str]


def state(root: Path) -> State:
    ws = Workspace.find(root)

    def content(checkpoint: str) -> Any:
        return sorted((name, entry.sha256) for name, entry in ws.manifest(checkpoint).tree.items())

    refs = {prefix + name: content(value) for prefix in (HEADS, TAGS) for name, value in ws.refs.under(prefix).items()}
    return State(
        ws.refs.read(HEAD),
        refs,
        sorted(content(value) for value in ws.refs.under(RUNS).values()),
        [operation.name for operation in ws.oplog.operations()],
        ws.dropped.all(),
        {path.name: path.read_text() for path in ws.configs.iterdir()},
        trust.trusted(ws),
    )


COMMANDS: dict[str, tuple[str, ...]] = {
    "tag": ("tag", "new"),
    "tag -f": ("tag", "-f", "base"),
    "tag -d": ("tag", "-d", "base"),
    "branch": ("branch", "new"),
    "branch -f": ("branch", "-f", "other", "HEAD"),
    "branch -d": ("branch", "-d", "spare"),
    "branch -m": ("branch", "-m", "main", "trunk"),
    "checkout": ("checkout", "other"),
    "checkout -b": ("checkout", "-b", "new", "base"),
    "checkout --configs": ("checkout", "--configs", "base"),
    "rm": ("rm", "--force", "base", "other"),
    "gc": ("gc", "--expire", "now"),
    "undo": ("undo",),
    "redo": ("redo",),
    "trust": ("trust", "code.py"),
    "commit": (f"{__name__}:commit_here",),
    "commit again": (f"{__name__}:commit_what_was_removed",),
}
QUICK = {"tag", "checkout", "commit"}


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own folder is in the workspace, to be copied and watched with the rest."""
    monkeypatch.setenv("LLMOS_CONFIG_HOME", str(scratch / "w" / "home"))


@pytest.mark.parametrize("name", COMMANDS)
def test_synced_before_it_is_named(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    root = copied(template, scratch / "w")
    assert unsafe(forks.calls(COMMANDS[name], root, root), root, template) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in COMMANDS]
)
def test_killed_at_every_call(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    words, root = COMMANDS[name], scratch / "w"
    before = state(copied(template, root))
    calls = forks.calls(words, root, root)
    after = state(root)
    assert after != before and len(calls) > 5
    for call in calls:
        copied(template, root)
        assert forks.killed(words, root, call), f"{call} never came"
        assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
        now = state(root)
        assert now in (before, after), f"killed before {call}"
        if now == before:
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
            assert state(root) == after
