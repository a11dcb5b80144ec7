"""gc: remove what nothing names any more: old checkpoints, objects without a checkpoint, leftovers of killed processes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter

from llmos_cli.core import atomic, continuity
from llmos_cli.core.dropped import mark_of
from llmos_cli.core.oplog import KEPT
from llmos_cli.core.protection import holders, marked_by_nobody, needed, stored, undoable, unprotected, with_ancestors
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.storing import bare
from llmos_cli.core.view import Group, Table, View, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.gc_clutter import Garbage, clutter, discard, discard_pieces
from llmos_cli.operations.integrity.giving_up import tidy
from llmos_cli.operations.rm import everyone, freed_by, freed_with
from llmos_cli.operations.summary import age

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_GONE_BACK_TO = ("checkpoint", "weights", "remains", "lost", "snapshot", "piece")
"""Kinds of what the log of operations protects."""
STRAY = 86400.0
"""Seconds that an object stays which no checkpoint holds: it may be the last copy of what somebody has just removed by hand. Not longer,
or what a killed import left would fill the disk for a month."""


@dataclass(frozen=True)
class GcResult:
    """`grace`: seconds that an unnamed checkpoint is kept; `kept`: how many are within it; `undoable`: how many, older than the
    last ones of their branch, keep their weights for `undo`."""

    garbage: tuple[Garbage, ...]
    kept: int
    grace: float
    dry_run: bool
    undoable: int = 0

    def view(self) -> View:
        total = size(sum(each.size for each in self.garbage))
        if not self.garbage:
            said = "nothing to remove"
        else:
            said = f"{'would free' if self.dry_run else 'freed'} {total}"
        if self.kept:
            said += f"; {self.kept} unnamed checkpoint{'s are' if self.kept > 1 else ' is'} younger than {_told(self.grace)} (--expire)"
        if self.undoable:
            of = (
                "that is not among the last has its" if self.undoable == 1 else "that are not among the last have their"
            )
            said += f"; {counted(self.undoable, 'checkpoint')} {of} weights as long as `undo` reaches back (--window)"
        rows = [[each.kind, each.name, each.called, each.reason, size(each.size)] for each in self.garbage]
        headers = ["what", "name", "called", "why", "size"]
        return Group([Table(headers, rows, align="llllr") if rows else "", said])


def gc(
    ws: Workspace,
    *,
    expire: str = KEPT,
    window: str = KEPT,
    keep_last: int | None = None,
    keep_tagged: bool = False,
    dry_run: bool = False,
) -> GcResult:
    """`keep_last`, `keep_tagged`: of what is named, remove the weights of all but the last ones on each branch, what is tagged and
    what is in use; their manifests stay. `keep_tagged` alone leaves each branch its last one. `window`: how far back `undo` reaches,
    and what it may go back to loses nothing."""
    grace, reach = duration(expire), duration(window)
    if keep_last is not None and keep_last < 1:
        raise UsageError(f"--keep-last {keep_last} would leave branches nothing", hint="keep 1 or more")
    keep = keep_last or (1 if keep_tagged else None)
    # Under the lock of the refs: what is unnamed now stays unnamed until it is gone.
    with ws.oplog.locked(ws.emit):
        now = time.time()
        since = now - reach
        unnamed, young = _unnamed(ws, now, grace, since)
        old = _old(ws, keep, unnamed | young) if keep else set()
        undoable = old & ws.oplog.protected(since) if old else old
        remains = tuple(_remains(ws, unnamed, since))
        strays = tuple(_strays(ws, remains, since))
        garbage = (
            *_checkpoints(ws, unnamed, now),
            *(_weights(ws, keep, old - undoable) if keep else ()),
            *remains,
            *(each for each, changed in strays if changed <= now - min(grace, STRAY)),
            *clutter(ws, unnamed, now, grace=grace, reach=since),
        )
        if any(each.kind in _GONE_BACK_TO for each in garbage):
            _check_log(ws, since)
            _check_marks(ws)
        if not dry_run:
            _remove(ws, garbage, unnamed, {each.name for each, _ in strays} - {each.name for each in garbage}, since)
    return GcResult(tuple(garbage), len(young), grace, dry_run, len(undoable))


def _check_log(ws: Workspace, since: float) -> None:
    """What a lost operation of the window protected would go for nothing."""
    flaws = continuity.flaws(ws.oplog, ws.oplog.audit)
    if found := [flaw for flaw in flaws if flaw.time >= since]:
        what = f"{found[0].ref}: {found[0].what}" if found[0].ref else found[0].what
        raise Corrupt(f"the log of operations is not all of it, and nothing was removed: {what}", hint=continuity.HINT)


def _check_marks(ws: Workspace) -> None:
    """What nobody removed would go for good."""
    if odd := sorted(marked_by_nobody(ws)):
        raise Corrupt(
            f"{mark_of(odd[0])} says that weights were removed, which are here and which no operation removed; nothing was removed",
            hint="`llmos fsck --repair` takes the mark away; `llmos rm` removes the weights",
        )


def duration(text: str) -> float:
    """`30d`, `12h`, `now` in seconds."""
    if text in ("now", "0"):
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration", hint="`30d`, `12h`, `90m` or `now`")
    return float(match[1]) * _UNITS[match[2]]


def _unnamed(ws: Workspace, now: float, grace: float, reach: float) -> tuple[set[str], set[str]]:
    """Checkpoints that may go, and those that nothing names either but that are still young (or ancestors of such)."""
    unnamed = unprotected(ws, reach)  # whatever the grace period: `undo` must find what it goes back to
    # What was written since a living run began may be its own, whatever the grace period.
    since = min([now - grace, *(record.started for record in ws.runs.alive())])
    young = with_ancestors(ws, {name for name in unnamed if (ws.checkpoints / name).stat().st_mtime > since}) & unnamed
    return unnamed - young, young


def _checkpoints(ws: Workspace, unnamed: set[str], now: float) -> Iterator[Garbage]:
    if not unnamed:
        return
    left = everyone(ws)
    for name in sorted(unnamed):
        freed = freed_with(ws, ws.manifest(name), left)
        since = age((ws.checkpoints / name).stat().st_mtime, now)
        yield Garbage("checkpoint", name, f"nothing names it, written {since}", freed, _called(ws, name))


def _old(ws: Workspace, keep: int, unnamed: set[str]) -> set[str]:
    """Older than the last `keep` of every branch, and neither tagged nor in use."""
    kept = {each for tip in ws.refs.under(HEADS).values() for each in _last(ws, tip, keep)}
    kept |= {*ws.refs.pointing(), ws.head().checkpoint or "", *needed(ws), *unnamed, *ws.dropped.all()}
    return {entry.id for entry in ws.index.entries() if entry.id not in kept}


def _weights(ws: Workspace, keep: int, old: set[str]) -> Iterator[Garbage]:
    """Those that the user keeps no longer."""
    reason = (
        f"not the last on a branch (--keep-last {keep})" if keep > 1 else "not the last on a branch, and has no tag"
    )
    for removed in freed_by(ws, [ws.manifest(each.id) for each in ws.index.entries() if each.id in old]):
        yield Garbage("weights", removed.id, reason, removed.freed, _called(ws, removed.id))


def _last(ws: Workspace, tip: str, count: int) -> Iterator[str]:
    entry = ws.index.entry(tip)
    while entry is not None and count > 0:
        yield entry.id
        count -= not entry.is_lost
        entry = ws.index.entry(entry.parents[0]) if entry.parents else None


def _called(ws: Workspace, checkpoint: str) -> str:
    """`train llama, once branch try`: an id says nothing to people."""
    names = [
        change.what.removeprefix("refs/").replace("heads/", "branch ").replace("tags/", "tag ")
        for operation in ws.oplog.operations()
        for change in operation.changes
        if checkpoint in (change.before, change.after) and change.what.startswith((HEADS, TAGS))
    ]
    entry = ws.index.entry(checkpoint)
    made_by = f"{entry.operation} {entry.label}".strip() if entry else "?"
    return f"{made_by}, once {names[-1]}" if names else made_by


def _remains(ws: Workspace, unnamed: set[str], reach: float) -> Iterator[Garbage]:
    """Files of checkpoints without weights: what `rm` removed before the window of `undo`, or a kill in the middle of their
    coming back left. What others have too is freed with those."""
    marked = ws.dropped.all() - undoable(ws, reach) - unnamed
    removed = sorted(name for name in marked if (ws.checkpoints / name).is_dir())
    told = set(holders(ws)) if removed and ws.storage != "copy" else set()
    for name in removed:
        if name in ws.sealed:
            held = sum(ws.sealed.sizes(name).values())
            yield Garbage("remains", name, "its weights were removed", held, _called(ws, name))
        elif not bare(ws, name):
            tree = {file.sha256: file.size for file in ws.manifest(name).tree.values() if file.sha256 not in told}
            told |= tree.keys() if ws.storage != "copy" else set()
            yield Garbage("remains", name, "its weights were removed", sum(tree.values()), _called(ws, name))


def _strays(ws: Workspace, remains: tuple[Garbage, ...], reach: float) -> Iterator[tuple[Garbage, float]]:
    """Objects that no checkpoint held in the first place, and since when; the others go, and are counted, with their last checkpoint."""
    removed = {file.sha256 for each in remains for file in ws.manifest(each.name).tree.values()}
    for name, status in _unheld(ws, reach):
        if name not in removed:
            yield Garbage("object", name, "no checkpoint holds it", status.st_size), status.st_ctime


def _unheld(ws: Workspace, reach: float) -> Iterator[tuple[str, os.stat_result]]:
    """But for what has come since a living run began: it may be about to be held."""
    since = min([record.started for record in ws.runs.alive()], default=math.inf)
    for name in sorted(ws.objects.names(besides=stored(ws, reach))):
        with contextlib.suppress(FileNotFoundError):
            if (status := ws.objects.path(name).stat()).st_ctime < since:
                yield name, status


def _remove(ws: Workspace, garbage: tuple[Garbage, ...], unnamed: set[str], spared: set[str], reach: float) -> None:
    weights = [each.name for each in garbage if each.kind in ("weights", "remains")]
    lost = [each.name for each in garbage if each.kind == "lost"]
    if said := _said(garbage):
        ws.oplog.free_locked(f"gc: {said}", collects=[*_children_first(ws, unnamed), *lost], drops=weights)
    for each in garbage:
        discard(ws, each)
    tidy(ws)
    for name in ws.dropped.all():
        if not (ws.checkpoints / name).is_dir():
            ws.dropped.restore(name)  # a mark that outlived its checkpoint
    for folder in {(ws.dot / each.name).parent for each in garbage if each.kind == "result"}:
        atomic.sync_directory(folder)
    kinds = {each.kind for each in garbage}
    if kinds & {"checkpoint", "weights", "remains", "object"}:
        ws.objects.remove([name for name, _ in _unheld(ws, reach) if name not in spared])
    if kinds & {"snapshot", "piece"}:
        discard_pieces(ws, reach)


def _said(garbage: tuple[Garbage, ...]) -> str:
    """For the log of operations: what somebody may miss, and not what only takes room."""
    counts = Counter("weights" if each.kind == "remains" else each.kind for each in garbage)
    told = {
        "checkpoint": ("", "checkpoint"),
        "weights": ("weights of ", "checkpoint"),
        "lost": ("what was left of ", "lost checkpoint"),
        "state": ("state of ", "run"),
        "snapshot": ("", "snapshot"),
    }
    return ", ".join(of + counted(counts[kind], noun) for kind, (of, noun) in told.items() if counts[kind])


def _children_first(ws: Workspace, unnamed: set[str]) -> list[str]:
    parents = {entry.id: entry.parents for entry in ws.index.entries() if entry.id in unnamed}
    return [name for name in TopologicalSorter(parents).static_order() if name in unnamed][::-1]


def _told(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"
