"""bisect: the first checkpoint of a line that breaks a gate, found by halving.

The ends are judged first, then the middle of what is left: log2 of the line's length evaluations, each remembered as `eval`
remembers it, all on the same samples. Like any search by halving it believes that what broke once stayed broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil, log2
from typing import TYPE_CHECKING

from llmos_cli.core.view import Cell, Group, Line, Lines, Span, Table, View, short
from llmos_cli.errors import GateFailed, NotFound, UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.operations import gate
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.config import note_unread
from llmos_cli.operations.evaluations import Evaluation
from llmos_cli.operations.gate import Requirement, Verdict

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Checkpoint, Workspace
    from llmos_cli.options.data import DataOptions

Measure = Callable[[str], Evaluation]


@dataclass(frozen=True)
class Judged:
    """A checkpoint that was looked at; `place` counts along the line from 1, `cached` when it had been measured before."""

    checkpoint: str
    made_by: str
    place: int
    passed: bool
    verdicts: Sequence[Verdict]
    cached: bool


@dataclass(frozen=True)
class BisectResult:
    """`first` breaks the gate and what comes before it does not; None when the end of the line holds. `suspects`: of the line,
    what cannot be judged (its weights were removed, or are sealed or lost) and stands right before `first`, where it may have broken already."""

    requirements: Sequence[str]
    length: int
    judged: Sequence[Judged]
    first: str | None
    before: str | None
    suspects: Sequence[str]

    def view(self) -> View:
        rows: list[list[Cell]] = [
            [judged.place, Span(short(judged.checkpoint), "id"), judged.made_by, _word(judged), _reasons(judged)]
            for judged in sorted(self.judged, key=lambda judged: judged.place)
        ]
        return Group([Table(["", "checkpoint", "made by", "gate", "why"], rows, align="rllll"), Lines(self._answer())])

    def _answer(self) -> list[Line]:
        count = f"{len(self.judged)} of {self.length} were evaluated"
        if self.first is None:
            return [f"the end of the line holds: {count}"]
        first = Span(short(self.first), "id")
        if self.before is None and not self.suspects:
            on = "what broke it is found in a line that begins at one that holds: `--since REV`, or other REVs"
            return [[first, f" begins the line and does not hold: {count}"], Span(on, "dim")]
        lines: list[Line] = [[first, f" is the first that does not hold: {count}"]]
        if self.suspects:
            hidden = ", ".join(map(short, self.suspects))
            lines.append(f"or {hidden} before it, whose weights were removed, or are sealed or lost")
        if self.before is not None:
            lines.append(Span(f"`llmos diff {short(self.before)} {short(self.first)}` shows what it changed", "dim"))
        return lines


def bisect(
    ws: Workspace,
    revs: Sequence[str],
    requirements: Sequence[Requirement],
    resolved: Resolved,
    *,
    since: str | None = None,
    emit: Emit,
) -> BisectResult:
    """Along the line of the one revision in `revs`, or along those given, oldest first."""
    whole, line = readable_line(ws, revs, since)
    measure = _measuring(ws, line, requirements, resolved, emit)
    judged: list[Judged] = []

    def holds(at: int) -> bool:
        judged.append(_judge(ws, line[at], whole.index(line[at]) + 1, requirements, measure))
        emit(Note(f"{short(line[at])} {'holds' if judged[-1].passed else 'does not hold'}"))
        return judged[-1].passed

    emit(Note(f"{counted(len(line), 'checkpoint')}: at most {counted(most(len(line)), 'evaluation')}"))
    broken = first_broken(len(line), holds)
    note_unread(resolved, lambda message: emit(Note(message, level="warning")))
    texts = [requirement.text for requirement in requirements]
    if broken is None:
        return BisectResult(texts, len(whole), judged, None, None, ())
    before = line[broken - 1] if broken else None
    unknown = whole[whole.index(before) + 1 if before else 0 : whole.index(line[broken])]
    return BisectResult(texts, len(whole), judged, line[broken], before, unknown)


def readable_line(ws: Workspace, revs: Sequence[str], since: str | None) -> tuple[list[str], list[str]]:
    """All of it, oldest first, and what of it can be judged."""
    whole = list(dict.fromkeys(map(ws.resolve, revs))) if len(revs) > 1 else _line(ws, revs[0], since)
    line = [checkpoint for checkpoint in whole if not ws.closed(checkpoint)]
    if not line:
        raise NotFound("of this line no weights can be read", hint="`llmos log` shows which were removed, or sealed")
    return whole, line


def most(length: int) -> int:
    """Evaluations that `first_broken` may take."""
    return min(length, 2 + ceil(log2(max(length - 1, 1))))


def first_broken(length: int, holds: Callable[[int], bool]) -> int | None:
    """The first place that does not hold, where all before it do; None when the last one holds. Each place is asked once."""
    if holds(length - 1):
        return None
    if length == 1 or not holds(0):
        return 0
    good, bad = 0, length - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return bad


def _line(ws: Workspace, rev: str, since: str | None) -> list[str]:
    """First parents from the root (or from `since`) to `rev`, with those that were given up."""
    found = [ws.resolve(rev)]
    while parents := ws.parents(found[-1]):
        found.append(parents[0])
    if since is None:
        return found[::-1]
    start = ws.resolve(since)
    if start not in found:
        raise UsageError(
            f"{since} is not an ancestor of {rev} by first parents", hint=f"`llmos log {rev}` shows its line"
        )
    return [*takewhile(lambda checkpoint: checkpoint != start, found), start][::-1]


def _measuring(
    ws: Workspace, line: Sequence[str], requirements: Sequence[Requirement], resolved: Resolved, emit: Emit
) -> Measure:
    """How one of them, or a revision that the gate speaks of, is evaluated: once."""
    from llmos_cli.operations import eval as evaluating

    checkpoints, data, emit = readied(ws, line, requirements, resolved, emit)
    known: dict[str, Evaluation] = {}

    def measure(rev: str) -> Evaluation:
        checkpoint = checkpoints[rev]
        if checkpoint.id not in known:
            known[checkpoint.id] = evaluating.recall_or_measure(ws, rev, checkpoint, data, resolved, emit=emit)
        return known[checkpoint.id]

    return measure


def readied(
    ws: Workspace, line: Sequence[str], requirements: Sequence[Requirement], resolved: Resolved, emit: Emit
) -> tuple[dict[str, Checkpoint], DataOptions, Emit]:
    """What may be evaluated, the data of the line's end, on which all of it is, and who hears of that once."""
    from llmos_cli.operations import eval as evaluating

    names = [*line, *gate.revisions(requirements)]
    checkpoints = {rev: ws.checkpoint(rev) for rev in dict.fromkeys(names)}
    emit = evaluating.notes_once(emit)
    return checkpoints, evaluating.common_data(ws, checkpoints, line[-1], resolved.config.data, emit), emit


def _judge(ws: Workspace, checkpoint: str, place: int, requirements: Sequence[Requirement], measure: Measure) -> Judged:
    evaluation = measure(checkpoint)
    others: Mapping[str, Mapping[str, float]] = {rev: measure(rev).values for rev in gate.revisions(requirements)}
    verdicts = [gate.judge(requirement, evaluation.values, others) for requirement in requirements]
    _all_produced(checkpoint, verdicts)
    passed = all(verdict.passed for verdict in verdicts)
    return Judged(checkpoint, made_by(ws, checkpoint), place, passed, verdicts, evaluation.cached)


def made_by(ws: Workspace, checkpoint: str) -> str:
    entry = ws.index.entry(checkpoint)
    return f"{entry.operation} {entry.label}".strip() if entry else "?"


def _all_produced(checkpoint: str, verdicts: Sequence[Verdict]) -> None:
    """What was not measured breaks nothing: GateFailed, as `eval` has it. The root of a line has no KL to an ancestor."""
    for verdict in verdicts:
        if verdict.limit is None:
            raise GateFailed(
                f"{short(checkpoint)} cannot be judged by {verdict.requirement!r}: {verdict.reason}",
                hint=f"it produced {', '.join(verdict.produced)}; --since begins the line later",
            )


def _word(judged: Judged) -> Span:
    return Span("passed", "good") if judged.passed else Span("FAILED", "bad")


def _reasons(judged: Judged) -> str:
    return "; ".join(verdict.reason for verdict in judged.verdicts)
