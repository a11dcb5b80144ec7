"""What is needed around a kill: a commit that is the same every time, a workspace that is looked at alike in every copy, and
what commands can see of it before and after."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos_cli.core import signatures, trust
from llmos_cli.core.manifest import FileEntry, Made
from llmos_cli.core.objects import hash_file
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.refs import DATA, HEAD, HEADS, ID, RUNS, TAGS
from llmos_cli.core.snapshots import Snapshot
from llmos_cli.core.workspace import Workspace
from llmos_cli.data import snapshots
from llmos_cli.data.rows import Rows
from llmos_cli.operations.sign import sign
from tests.core.durability import unsafe
from tests.core.tracing import Call, Forks, copied


def commit(
    ws: Workspace,
    parents: tuple[str, ...],
    *,
    move: bool = True,
    time: str = "1",
    rows: Snapshot | None = None,
    **files: str,
) -> str:
    """A run that commits files, given all that makes a checkpoint's id. `rows`: of the data that it was made with."""
    data = {} if rows is None else {"splits": rows.fingerprint}
    made = Made("train", parents, {}, data, {}, 0, f"2026-11-22T10:45:0{time}Z")
    config = [ws.configs / "train.yaml"]
    with ws.begin("train", config={}, files=config, parents=parents, argv=["llmos"]) as run, ws.stage() as staged:
        (staged / "folder").mkdir()
        for name, text in files.items():
            (staged / ("folder" if name == "same" else "") / name).write_text(text)
        return run.commit(staged, made, move=move).id


def keep_rows(ws: Workspace) -> Snapshot:
    """A snapshot of two pieces."""
    splits = {"train": Rows({"text": ["a row", "another"]}), "test": Rows({"text": ["a third"]})}
    kept = snapshots.kept(splits, source="notes", asked="", store=ws.snapshots.store)
    ws.snapshots.write(kept)
    return kept


def vouch(ws: Workspace, checkpoint: str, who: str) -> None:
    """A signature that says it is of a checkpoint and of `who`: whether it is true is for keys to find out."""
    digest = hash_file(ws.checkpoints / checkpoint / "manifest.json").sha256
    statement = {"predicate": {"resources": [{"name": "manifest.json", "algorithm": "sha256", "digest": digest}]}}
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    text = json.dumps({"verificationMaterial": {"publicKey": {"hint": who}}, "dsseEnvelope": {"payload": payload}})
    bundle = ws.root.parent / "vouched.sig"
    bundle.write_text(text)
    sign(ws, checkpoint, bundle=bundle)


def killed_before(step: int, act: Callable[[], object], names: Iterable[str]) -> bool:
    """`act` in a child that dies before its `step`-th call of those functions of `os`; whether it got to the end instead."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    left = step

    def counted(call: Any) -> Any:
        def stepped(*args: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return stepped

    for name in names:
        setattr(os, name, counted(getattr(os, name)))
    act()
    os._exit(0)


def settle(ws: Workspace) -> None:
    """Folders that were changed a moment ago are looked at twice; every copy is to be looked at alike."""
    for folder in (ws.checkpoints, ws.root / "runs"):
        os.utime(folder, (time.time() - 60,) * 2)
    Workspace(ws.root).index.entries()


@dataclass(frozen=True)
class State:
    """What commands can see of a workspace, checkpoints by their content: the time of a commit is in its id. `measured`: of which,
    and what, by evaluations that ended well."""

    head: str | None
    refs: dict[str, Any]
    runs: list[Any]
    operations: list[str]
    removed: set[str]
    configs: dict[str, str]
    trusted: dict[str, str]
    sealed: set[str]
    signed: dict[str, str | None]
    given_up: list[str]
    measured: list[Any]


def state(root: Path) -> State:
    ws = Workspace.find(root)

    def content(checkpoint: str) -> Any:
        if not (ws.checkpoints / checkpoint).is_dir():
            return []
        return sorted((name, entry.sha256) for name, entry in ws.manifest(checkpoint).tree.items())

    refs = {prefix + name: content(value) for prefix in (HEADS, TAGS) for name, value in ws.refs.under(prefix).items()}
    return State(
        ws.refs.read(HEAD),
        refs,
        sorted(content(value) for value in ws.refs.under(RUNS).values()),
        [operation.name for operation in ws.oplog.operations()],
        ws.dropped.all(),
        {path.name: path.read_text() for path in [*ws.configs.iterdir(), *ws.root.glob("*.yaml")]},
        trust.trusted(ws),
        ws.sealed.all(),
        {each: signatures.read(ws.dot, each) for each in signatures.signed(ws.dot)},
        sorted(ws.lost.all()),
        sorted((content(each["checkpoint"]), sorted(each["metrics"])) for each in evaluations(ws)),
    )


def rehearsed(forks: Forks, words: Sequence[str], root: Path, begun: Path) -> tuple[State, list[Call], State]:
    """What was before the command that stands at `begun`, the calls of its way to its end, all synced in time, and what is then."""
    assert forks.run(words, root) == 0, forks.said  # what is imported on the way is compiled now, and never again
    before = state(copied(begun, root))
    copied(begun, root)
    calls = forks.calls(words, root, root)
    assert unsafe(calls, root, begun) == []
    return before, calls, state(root)


def evaluations(ws: Workspace) -> list[dict[str, Any]]:
    done = [each.path for each in ws.runs.list() if each.operation == "eval" and each.status == "done"]
    return [json.loads((path / "evaluation.json").read_bytes()) for path in done]


def refs_of(root: Path) -> dict[str, str]:
    """Every ref and what it says, those of remotes, of runs and of data too."""
    refs = Workspace.find(root).refs
    return {HEAD: str(refs.read(HEAD)), **{f"refs/{name}": value for name, value in refs.under("refs/").items()}}


def torn(root: Path) -> list[str]:
    """Refs whose checkpoint, or an ancestor of it, is not whole: every byte is hashed that it should have."""
    ws = Workspace.find(root)
    named = {ref: value for ref, value in refs_of(root).items() if ID.fullmatch(value) and not ref.startswith(DATA)}
    wrong = {each for each in with_ancestors(ws, named.values()) if not _is_whole(ws, each)}
    return [ref for ref, value in named.items() if not wrong.isdisjoint(with_ancestors(ws, [value]))]


def _is_whole(ws: Workspace, checkpoint: str) -> bool:
    """With its weights, or sealed, or with its manifest alone where they were removed, or given up."""
    if checkpoint in ws.index.lost():
        return True
    if not (ws.checkpoints / checkpoint).is_dir() or ws.manifest(checkpoint).id != checkpoint:
        return False
    if checkpoint in ws.dropped:
        return True
    if checkpoint in ws.sealed:
        return all(_is(ws.sealed.path(each.sha256), each) for each in ws.sealed.seal(checkpoint).tree.values())
    return all(_is(ws.checkpoints / checkpoint / name, each) for name, each in ws.manifest(checkpoint).tree.items())


def _is(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and hash_file(path) == entry
