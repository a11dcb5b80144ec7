"""Killed just before any call by which `data snapshot`, `data rm` or `gc` changes the disk: a snapshot is whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmos_cli.core.refs import DATA
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.data import remove
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.undo import undo
from tests.core.durability import unsafe
from tests.core.tracing import Forks, copied

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")

MODULES = [
    "llmos_cli.app",
    *("llmos_cli.commands.data", "llmos_cli.operations.data", "llmos_cli.data.files", "llmos_cli.tasks.causal_lm"),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in ("undo", "redo")),
    *("llmos_cli.commands.gc", "llmos_cli.operations.gc", "fsspec.implementations.local"),
]
COMMANDS: dict[str, tuple[str, ...]] = {
    "data snapshot": ("data", "snapshot", "--source", "notes", "-q"),
    "data snapshot --name": ("data", "snapshot", "--source", "notes", "--name", "named", "-q"),
    "data snapshot again": ("data", "snapshot", "--source", "kept", "-q"),
    "data rm": ("data", "rm", "{kept}", "-q"),
    "undo data rm": ("undo", "-q"),
    "redo data rm": ("redo", "-q"),
    "gc": ("gc", "--expire", "now", "-q"),
}


@pytest.fixture(scope="module")
def template(scratch: Path, request: pytest.FixtureRequest) -> Path:
    """Two folders of texts, some of them the same; of one the rows are kept."""
    from llmos_cli.data import snapshots
    from llmos_cli.data.sources import load
    from llmos_cli.options.data import DataOptions

    ws = Workspace.create(scratch / "template")
    (ws.configs / "train.yaml").write_text("data: {task: causal-lm}\n")
    for folder, first in (("kept", 0), ("notes", 20)):
        (ws.root / folder).mkdir()
        for at in range(first, first + 40):
            (ws.root / folder / f"{at}.txt").write_text(f"note {at}\n" * 20)
    loaded = load(DataOptions(source="kept"), ("text",), cache=ws.cache)
    made = snapshots.kept(loaded.splits, source="kept", asked="", store=ws.snapshots.store)
    ws.snapshots.write(made)
    ws.snapshots.store(b"what a kill left")
    return ws.root


def begun(name: str, template: Path, scratch: Path) -> Path:
    """What a command finds."""
    if not name.endswith("do data rm"):
        return template
    ws = Workspace.find(copied(template, scratch / "w"))
    remove(ws, ws.snapshots.ids()[0])
    if name.startswith("redo"):
        undo(ws)
    return copied(ws.root, scratch / "begun")


def words(name: str, root: Path) -> tuple[str, ...]:
    (kept, *_) = Workspace(root).snapshots.ids()
    return tuple(word.format(kept=kept) for word in COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_synced_before_it_is_named(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    start = begun(name, template, scratch)
    root = copied(start, scratch / "w")
    assert unsafe(forks.calls(words(name, template), root, root), root, start) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_call(name: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    told, root, start = words(name, template), scratch / "w", begun(name, template, scratch)
    before = Workspace(copied(start, root)).snapshots.ids()
    calls = forks.calls(told, root, root)
    after = Workspace(root).snapshots.ids()
    named, named_before = names(root), names(start)
    assert (named != named_before) is ("--name" in told)
    assert len(calls) > 5 and (after != before) is (name != "data snapshot again")
    for call in calls:
        ws = Workspace(copied(start, root))
        assert forks.killed(told, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
        assert ws.snapshots.ids() in (before, after), f"killed before {call}"
        assert all(ws.snapshots.wrong(each) == "" for each in ws.snapshots.all())
        assert names(root) in (named_before, named), f"killed before {call}"
        if (ws.snapshots.ids(), names(root)) != (after, named):
            assert forks.run(told, root) == 0, f"killed before {call}: {forks.said}"
            assert (ws.snapshots.ids(), names(root)) == (after, named)


def names(root: Path) -> dict[str, str]:
    """What is called something, each of which is there."""
    ws = Workspace(root)
    found = dict(ws.refs.under(DATA))
    assert set(found.values()) <= set(ws.snapshots.ids())
    return found
