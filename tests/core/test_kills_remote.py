"""Killed before any call of a push, a fetch, a pull or a backup: here and there nothing is damaged, and the next one finishes it.

The remote is a folder inside the workspace's own, so that both are copied, watched and looked at together.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.branch import branch
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import push
from llmos_cli.operations.seal import seal
from llmos_cli.operations.tag import tag
from tests.core.durability import unsafe
from tests.core.killing import commit, settle, state
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
]

VERBS = ("push", "fetch", "pull", "remote", "backup", "clone")
MODULES = [
    *("llmos_cli.app", "llmos_cli.core.index", "llmos_cli.core.runs", "sqlite3", "concurrent.futures.thread", "yaml"),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in VERBS),
    *("llmos_cli.transports.local", "llmos_cli.core.remote.receiving"),
]
COMMANDS = {
    "remote add": ("remote", "add", "another", "elsewhere"),
    "push": ("push", "--all"),
    "fetch": ("-C", "clone", "fetch"),
    "pull": ("-C", "clone", "pull"),
    "backup": ("backup",),
}


@pytest.fixture(scope="module")
def template(scratch: Path) -> Path:
    """A workspace that is a commit ahead of its remote, with a clone that is one behind it."""
    ws = Workspace.create(scratch / "w")
    far = ws.root / "far"
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    remotes.add(ws, "origin", str(far))
    first = commit(ws, (), same="s" * 100, other="first")
    push(ws)
    clone(str(far), ws.root / "clone")
    second = commit(ws, (first,), time="2", same="s" * 100, other="second")
    tag(ws, "base")
    push(ws)
    tag(ws, "secret", commit(ws, (first,), move=False, time="4", other="secret", same="secret too"))
    seal(ws, "secret", ask=lambda _: "5" * 64)
    shutil.rmtree(ws.root / "runs" / ws.index.makers(ws.resolve("secret"))[0][0])  # two runs would be sent at once
    commit(ws, (second,), time="3", same="s" * 100, other="third")
    branch(ws, "other", "HEAD")
    for each in (ws, Workspace.find(ws.root / "clone")):
        settle(each)
    return copied(ws.root, scratch / "template")


@pytest.mark.parametrize("name", COMMANDS)
def test_synced_before_it_is_named(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    root = copied(template, scratch / "w")
    assert unsafe(forks.calls(COMMANDS[name], root, root), root, template) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_call(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    words, root = COMMANDS[name], scratch / "w"
    copied(template, root)
    calls = forks.calls(words, root, root)
    after = seen(root)
    for call in calls:
        copied(template, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came"
        for part in (root, root / "clone"):
            assert fsck(Workspace.find(part)).problems == (), f"killed before {call}"
        assert clone(str(root / "far"), root / "proof"), f"killed before {call}"
        shutil.rmtree(root / "proof")
        if seen(root) != after:
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
            assert seen(root) == after, f"killed before {call}"


@pytest.fixture(scope="module")
def one(scratch: Path) -> Path:
    """A remote that has a checkpoint and a tag, and nothing beside it."""
    ws = Workspace.create(scratch / "one-source")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (scratch / "one").mkdir()
    remotes.add(ws, "origin", str(scratch / "one" / "far"))
    commit(ws, (), other="first")
    tag(ws, "base")
    push(ws, everything=True)
    return scratch / "one"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("empty", [False, True], ids=["anew", "into an empty folder"])
def test_a_clone_is_killed_at_every_call(empty: bool, forks: Forks, one: Path, scratch: Path, home: None) -> None:
    """There is none, and the same command makes it, or there is a whole one; nothing has to be removed by hand. Into a folder
    that is there only the move differs."""
    root = scratch / "w"
    words = ("-C", "new", "clone", "../far", ".") if empty else ("clone", "far", "new")

    def begun() -> Path:
        copied(one, root)
        if empty:
            (root / "new").mkdir()
        return root / "new"

    new = begun()
    calls = forks.calls(words, root, root)
    assert unsafe([call for call in calls if "/far" not in str(call)], root, one) == []
    after, there = state(new), listed(root)
    moving = next((at for at, call in enumerate(calls) if "/whole" in str(call)), 0)
    assert bool(moving) is empty and len(calls) - moving > 20
    for call in calls[moving:]:
        new = begun()
        assert forks.killed(words, root, call) or call.aside, f"{call} never came"
        if not (new / ".llmos").exists():
            assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        assert state(new) == after, f"killed before {call}"
        assert fsck(Workspace.find(new)).problems == (), f"killed before {call}"
        assert listed(root) - there <= {".new.cloning", ".new.cloning/whole"}, f"killed before {call}"


def listed(root: Path) -> set[str]:
    """What lies beside the workspaces."""
    return {str(path.relative_to(root)) for path in [*root.glob(".*"), *root.glob(".*.cloning/*"), *root.glob("*")]}


def seen(root: Path) -> dict[str, object]:
    """Every workspace of the copy, and what the remote says: what is in it is only reached by its refs."""
    refs = {str(path): path.read_bytes() for path in sorted((root / "far" / "refs").rglob("*")) if path.is_file()}
    return {**{str(part): state(part) for part in (root, root / "clone")}, **refs}
