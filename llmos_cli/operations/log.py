"""log: the line of ancestors of a checkpoint, or all checkpoints by time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from llmos_cli.core.index import Entry
from llmos_cli.core.refs import HEAD, HEADS, STAGES, TAGS
from llmos_cli.core.view import Group, Lines, Span, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.operations.summary import GONE, SHORT, Summary, age, has_others, shown_id, summarize, told

_LOST = "given up: it is lost for good"


@dataclass(frozen=True)
class Left:
    """An older, unrelated line that the branch left at `checkpoint`; `time` in seconds since the epoch."""

    checkpoint: str
    time: float


@dataclass(frozen=True)
class LogResult:
    """`current` is the checkpoint of HEAD, `branch` its branch; `more` tells that `-n` cut the list short, `others` that only other
    branches have checkpoints."""

    checkpoints: tuple[Summary, ...]
    current: str | None
    branch: str | None
    left: Left | None
    more: bool
    graph: bool = False
    oneline: bool = False
    others: bool = False

    def view(self) -> View:
        if self.others:
            return f"no checkpoint on branch {self.branch}: `llmos log --all` lists those of others\n"
        if not self.checkpoints:
            return "no checkpoints yet: `llmos train` makes the first\n"
        texts = [self._text(checkpoint) for checkpoint in self.checkpoints]
        lines = drawn(self.checkpoints, texts) if self.graph else aligned(texts)
        return Group([Lines(lines), Lines(self._after())])

    def _text(self, checkpoint: Summary) -> list[str | Span]:
        names = self._names(checkpoint)
        named = Span(f"({names})", "name") if names else ""
        if self.oneline:
            return [shown_id(checkpoint.id), checkpoint.made_by, named]
        if not checkpoint.time:
            return [
                shown_id(checkpoint.id),
                GONE if not checkpoint.lost else f"{_LOST}; {checkpoint.label}" if checkpoint.label else _LOST,
                "",
                "",
                "",
                named,
            ]
        facts = [age(checkpoint.time), checkpoint.told_size, told(checkpoint.metrics)]
        return [shown_id(checkpoint.id), checkpoint.made_by, *facts, named]

    def _names(self, checkpoint: Summary) -> str:
        """`HEAD -> main, base`, as git writes it."""
        names = list(checkpoint.names)
        if checkpoint.id != self.current:
            return ", ".join(names)
        if self.branch in names:
            names.remove(self.branch)
            return ", ".join([f"HEAD -> {self.branch}", *names])
        return ", ".join(["HEAD", *names])

    def _after(self) -> list[str]:
        if self.left is None:
            return []
        where = self.left.checkpoint[:SHORT]
        return [f"an older, unrelated line was left at {where}, {age(self.left.time)}: `llmos log {where}` shows it"]


def log(
    ws: Workspace,
    rev: str | None = None,
    *,
    limit: int | None = None,
    everything: bool = False,
    graph: bool = False,
    oneline: bool = False,
) -> LogResult:
    head = ws.head()
    ws.tell_moved(HEADS, TAGS, STAGES)
    with ws.index.still():
        found = listed(ws, rev, limit=limit, everything=everything, whole=graph)
        ordered = _children_first(found) if graph else found
        shown = ordered[:limit]
        names = ws.refs.pointing()
        summaries = tuple(summarize(ws, entry.id, names) for entry in shown)
        others = not shown and has_others(ws, head)
        ws.runs.tell_gone({entry.id for entry in shown})
    left = None if everything else _left(ws, shown)
    more = len(ordered) > len(shown)
    return LogResult(summaries, head.checkpoint, head.branch, left, more, graph, oneline, others)


def listed(ws: Workspace, rev: str | None, *, limit: int | None, everything: bool, whole: bool = False) -> list[Entry]:
    """What `log` is about, newest first: every checkpoint, or `rev` and its ancestors; one more than `limit`, to tell that there
    are more. `whole`: of everything all of it, whatever the limit."""
    if limit is not None and limit < 1:
        raise UsageError(f"-n takes a number of checkpoints from 1 on, not {limit}", hint="without -n all are listed")
    if everything:
        return ws.index.entries(-1 if limit is None or whole else limit + 1)
    if rev is None and ws.head().checkpoint is None:
        return []
    start = ws.named(rev or HEAD)
    return ancestors(ws, start if start in ws.lost else ws.resolve(rev or HEAD), None if limit is None else limit + 1)


def ancestors(ws: Workspace, start: str, limit: int | None) -> list[Entry]:
    """A checkpoint and its ancestors, newest first; a manifest that cannot be read ends its line."""
    return list(islice(_walk(ws, start), limit))


def _walk(ws: Workspace, start: str) -> Iterator[Entry]:
    waiting = [_aged(ws, start)]
    seen = {start}
    while waiting:
        _, entry = heapq.heappop(waiting)
        yield entry
        for parent in entry.parents:
            if parent not in seen:
                seen.add(parent)
                heapq.heappush(waiting, _aged(ws, parent))


def _aged(ws: Workspace, checkpoint: str) -> tuple[_NewestFirst, Entry]:
    entry = ws.index.entry(checkpoint) or Entry(checkpoint, "", "?", "", (), 0)
    return _NewestFirst(entry.time, entry.id), entry


class _NewestFirst:
    """Orders a heap by falling time; ids only break ties."""

    __slots__ = ("_key",)

    def __init__(self, time: str, checkpoint: str) -> None:
        self._key = (time, checkpoint)

    def __lt__(self, other: _NewestFirst) -> bool:
        return self._key > other._key


def _children_first(entries: Sequence[Entry]) -> list[Entry]:
    """By time, but never a parent before its child, whatever the clocks said: a graph cannot be drawn otherwise."""
    by_id = {entry.id: entry for entry in entries}
    children = dict.fromkeys(by_id, 0)
    for entry in entries:
        for parent in entry.parents:
            if parent in children:
                children[parent] += 1
    ready = [(_NewestFirst(by_id[name].time, name), name) for name, count in children.items() if not count]
    heapq.heapify(ready)
    ordered = []
    while ready:
        _, name = heapq.heappop(ready)
        ordered.append(by_id[name])
        for parent in by_id[name].parents:
            if parent in children:
                children[parent] -= 1
                if not children[parent]:
                    heapq.heappush(ready, (_NewestFirst(by_id[parent].time, parent), parent))
    return ordered


def _left(ws: Workspace, shown: Sequence[Entry]) -> Left | None:
    """Where a run started from scratch on a branch that was elsewhere: the line it left has nothing to do with this one."""
    for entry in shown:
        if entry.time and not entry.parents and (left := ws.oplog.left_for(entry.id)) is not None:
            return Left(*left)
    return None


def aligned(texts: Sequence[Sequence[str | Span]]) -> list[list[str | Span]]:
    """Columns of equal width, two spaces apart, the last one ragged; without rich, which takes longer than all of `log`."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*texts, strict=True)]
    return [_padded(row, widths) for row in texts]


def _padded(row: Sequence[str | Span], widths: Sequence[int]) -> list[str | Span]:
    line: list[str | Span] = []
    blanks = 0
    for cell, width in zip(row, widths, strict=True):
        if str(cell):
            line += [" " * blanks, cell]
            blanks = 0
        blanks += width - len(str(cell)) + (2 if width else 0)
    return line


def drawn(checkpoints: Sequence[Summary], texts: Sequence[Sequence[str | Span]]) -> list[list[str | Span]]:
    """The same lines with the lineage drawn before them."""
    from llmos_cli.operations.graph import rows

    graph = rows([(checkpoint.id, checkpoint.parents) for checkpoint in checkpoints])
    margin = max(len(row.node) for row in graph) + 1
    lines: list[list[str | Span]] = []
    for row, line in zip(graph, aligned(texts), strict=True):
        lines.append([row.node.ljust(margin), *line])
        lines += [[edge] for edge in row.edges]
    return lines
