"""What holds of every place that a remote may be: there and back, refs that are created once, and many who push at once."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.remote.store import Store
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, Corrupt
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.pull import pull
from llmos_cli.operations.push import push
from llmos_cli.operations.tag import tag
from tests.core.conftest import commit_to

PUSHERS, ROUNDS = 3, 2


def there_and_back(ws: Workspace, url: str, folder: Path) -> None:
    """Two workspaces and the place between them: what one pushes the other has, and who is behind is told so."""
    remotes.add(ws, "origin", url)
    first = commit_to(ws, {"a": "1", "b": "same"})
    tag(ws, "base")
    second = commit_to(ws, {"a": "2", "b": "same"})
    assert push(ws).checkpoints == 2
    assert push(ws).refs == ()
    clone(url, folder / "copy")
    other = Workspace.find(folder / "copy")
    assert (other.resolve(), other.resolve("base")) == (second.id, first.id)
    assert fsck(other).problems == ()
    third = commit_to(other, {"a": "3"})
    push(other)
    assert pull(ws).checkpoint == third.id
    commit_to(ws, {"a": "4"})
    commit_to(other, {"a": "5"})
    push(ws)
    with pytest.raises(Conflict, match=r"main is at .* on origin, which is not here yet"):
        push(other)


def created_once(store: Store) -> None:
    assert store.create("refs/x/00000001", b"one")
    assert not store.create("refs/x/00000001", b"two")
    assert store.read("refs/x/00000001", 100) == b"one"
    assert store.read("refs/x/00000002", 100) is None
    assert store.names("refs") == {"x/00000001"}
    assert store.names("uploads") <= {"conditional"}, "what S3 was asked with"
    assert (store.size("refs/x/00000001"), store.size("refs/x"), store.size("refs/y")) == (3, None, None)
    with pytest.raises(Corrupt, match="larger than such a file can be"):
        store.read("refs/x/00000001", 2)


def contest(ws: Workspace, url: str, folder: Path) -> None:
    """Round after round: exactly one moves the branch, the others are told of a conflict, and nobody's push is lost."""
    context = multiprocessing.get_context("spawn")
    for turn in range(ROUNDS):
        before = str(ws.head().checkpoint)
        start, said = context.Event(), context.Queue()
        clones = [folder / f"pusher-{turn}-{number}" for number in range(PUSHERS)]
        clone(url, clones[0])
        for each in clones[1:]:
            shutil.copytree(clones[0], each)
            (each / ".llmos" / "identity").unlink()
        pushers = [context.Process(target=_push, args=(each, start, said)) for each in clones]
        for each in pushers:
            each.start()
        for _ in pushers:
            assert said.get(timeout=60) == "ready"
        start.set()
        ended = dict(said.get(timeout=60) for _ in pushers)
        for each in pushers:
            each.join()
        won = [checkpoint for checkpoint, how in ended.items() if how == "pushed"]
        assert len(won) == 1 and sorted(ended.values()) == ["conflict"] * (PUSHERS - 1) + ["pushed"], ended
        fetch(ws)
        assert ws.resolve("origin/main") == won[0]
        assert ws.parents(won[0]) == (before,)
        ws.refs.write("refs/heads/main", won[0])


def _push(root: Path, start: Any, said: Any) -> None:
    ws = Workspace.find(root)
    made = commit_to(ws, {"a": root.name}).id
    said.put("ready")
    start.wait()
    try:
        push(ws)
    except Conflict:
        said.put((made, "conflict"))
    else:
        said.put((made, "pushed"))
