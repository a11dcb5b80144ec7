"""clone: a new workspace with all that a remote has, its remote `origin` from then on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import appearing, config_edit, kept
from llmos_cli.core.atomic import write_text
from llmos_cli.core.operation import Change
from llmos_cli.core.refs import HEAD, HEADS, SYMBOLIC
from llmos_cli.core.settings import FIRST
from llmos_cli.core.view import Group, Lines, Span, View
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.errors import Corrupt, LlmosError, NotFound
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import templates
from llmos_cli.operations.fetch import Fetched, FetchResult, fetched
from llmos_cli.operations.init import GITIGNORE
from llmos_cli.operations.lineage import recorded_data
from llmos_cli.operations.remote import ORIGIN, SETTINGS, RemoteSettings, described, opened
from llmos_cli.operations.summary import shown_id


@dataclass(frozen=True)
class CloneResult:
    """`root` is relative to the current folder; `checkpoint` is empty where the remote has no branch."""

    root: str
    fetched: FetchResult
    branch: str
    checkpoint: str

    def view(self) -> View:
        at = (
            ["branch ", Span(self.branch, "name"), " at ", shown_id(self.checkpoint)]
            if self.checkpoint
            else ["no branch yet"]
        )
        begun = ["would make " if self.fetched.dry_run else "made ", f"the workspace {self.root}: ", *at]
        return Group([Lines([*self.fetched.lines(), begun]), Lines(["Next:", f"  cd {self.root}", "  llmos log"])])


def clone(
    url: str,
    directory: Path,
    *,
    branch: str | None = None,
    encrypted: bool = False,
    key_file: str = "",
    data: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> CloneResult:
    root, ready = appearing.place_for(directory, "clone", "cloning")
    place = described(Workspace(root), ORIGIN, url, encrypted=encrypted, key_file=key_file)
    plan = _plan(Workspace(root), place, data, emit)
    chosen = _branch(plan.branches, branch)
    if dry_run:
        return CloneResult(os.path.relpath(root), plan.result, chosen, plan.branches.get(chosen, ""))
    if appearing.finish(ready, root):
        return CloneResult(os.path.relpath(root), plan.result, chosen, plan.branches.get(chosen, ""))
    ws = _begun(ready, place, emit)
    try:
        found = fetched(ws, place, data=data, emit=emit)
        at = found.branches.get(chosen, "")
        _configs(ws, "" if at in ws.lost else at)
        _check_out(ws, chosen, at, f"clone {url}")
        appearing.appear(ready, root)
    except (LlmosError, OSError, KeyboardInterrupt):
        emit(Note(f"what came is kept in {os.path.relpath(ready)}: the same `llmos clone` goes on there", "warning"))
        raise
    return CloneResult(os.path.relpath(root), found.result, chosen, at)


def _plan(nowhere: Workspace, place: RemoteSettings, data: bool, emit: Emit) -> Fetched:
    """What would come, read before anything is made."""
    nowhere.oplog.rehearsing = True
    opened(nowhere, place).must_be_begun()
    return fetched(nowhere, place, data=data, dry_run=True, emit=ignore)


def _branch(branches: Mapping[str, str], wanted: str | None) -> str:
    """The one that is asked for, else `main`, else the first."""
    if wanted is not None and wanted not in branches:
        raise NotFound(f"there is no branch {wanted} there", hint=f"there are: {', '.join(branches) or 'none'}")
    return wanted or ("main" if "main" in branches or not branches else next(iter(branches)))


def _begun(ready: Path, place: RemoteSettings, emit: Emit) -> Workspace:
    """The skeleton, or what an earlier clone that was cut off left there, if it was of the same remote."""
    settings = config_edit.edited(FIRST, place.to_yaml(), file=SETTINGS)
    if ready.is_dir() and not (_text(ready / SETTINGS) == settings and (ready / DOT / HEAD).exists()):
        shutil.rmtree(ready)
    ws = Workspace(ready) if ready.is_dir() else Workspace.create(ready)
    ws.emit = emit
    ws.oplog.settle(emit)
    for name, text in ((SETTINGS, settings), (".gitignore", GITIGNORE)):
        write_text(ready / name, text, scratch=ready / DOT / "tmp")
    return ws


def _check_out(ws: Workspace, branch: str, at: str, name: str) -> None:
    """As an operation, like every move of a ref; what a clone that was cut off has done of it is not done again."""
    wanted = {HEADS + branch: at or None, HEAD: f"{SYMBOLIC}{HEADS}{branch}"}
    changes = [Change(ref, before, after) for ref, after in wanted.items() if (before := ws.refs.read(ref)) != after]
    if changes:
        ws.oplog.apply(name, changes, emit=ws.emit)
    else:
        ws.oplog.note(name)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _configs(ws: Workspace, checkpoint: str) -> None:
    """Those of the template of its task, and over them those that the runs of its line were given, the last of each kind."""
    task = recorded_data(ws, checkpoint).get("task") if checkpoint else None
    texts = templates.read(task if task in templates.names() else "causal-lm")
    for run in reversed([*_last_of_each_kind(ws, checkpoint)]):
        texts |= _given(ws, run)
    for name, text in texts.items():
        write_text(ws.configs / name, text, scratch=ws.dot / "tmp")


def _last_of_each_kind(ws: Workspace, checkpoint: str) -> Iterator[Path]:
    """Folders of runs, one of each operation, the last first, along the first parents of what is checked out."""
    seen = set[str]()
    line = [checkpoint] if checkpoint else []
    while line:
        entry = ws.index.entry(line[0])
        if entry and entry.operation not in seen:
            seen.add(entry.operation)
            yield from (ws.root / "runs" / run for run, _ in ws.index.makers(line[0])[:1])
        line = list(ws.parents(line[0]))[:1]


def _given(ws: Workspace, run: Path) -> dict[str, str]:
    """A remote may be of before anybody looked: what is wrong there keeps nobody from its checkpoints, and is not used."""
    try:
        return {path.name: path.read_text(encoding="utf-8") for path in kept.configs(run)}
    except Corrupt as error:
        ws.emit(Note(f"configs are the template's: {error.message}", "warning"))
        return {}
