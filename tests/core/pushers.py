"""Many who push the same branch of one remote at once, each a process of its own."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.push import push
from tests.core.conftest import commit_to

PUSHERS, ROUNDS = 3, 2


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
