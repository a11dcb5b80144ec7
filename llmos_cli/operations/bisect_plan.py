"""bisect --dry-run: what the search may look at, in which order, what of that is measured already, and what the rest takes at most.

What is measured answers as it would in the search, so that only what may still be asked is told; at what is not, both answers are
followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from llmos_cli.core.view import Cell, Group, Lines, Span, Table, View, duration, short
from llmos_cli.operations import eval as evaluating
from llmos_cli.operations import gate
from llmos_cli.operations.bisect import made_by, readable_line, readied
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.evaluations import OPERATION
from llmos_cli.operations.gate import Requirement

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.events import Emit

_RECENT = 8
"""Evaluations whose mean time tells what another one takes."""


@dataclass(frozen=True)
class Look:
    """A checkpoint that may be looked at: as the `step`-th at the earliest (0: it is what the gate compares with). `holds`: None
    where that is not known before it is measured."""

    checkpoint: str
    made_by: str
    place: int
    step: int
    measured: bool
    holds: bool | None


@dataclass(frozen=True)
class BisectPlan:
    """`evaluations` at most; `seconds`: what they take, as the last ones did, None where there were none."""

    requirements: Sequence[str]
    length: int
    looks: Sequence[Look]
    evaluations: int
    seconds: float | None

    def view(self) -> View:
        rows: list[list[Cell]] = [
            [each.step or None, each.place or None, Span(short(each.checkpoint), "id"), each.made_by, _state(each)]
            for each in sorted(self.looks, key=lambda each: (each.step, each.place))
        ]
        took = f", {duration(self.seconds)} as recorded ones took" if self.seconds else ""
        end = f"would compute at most {counted(self.evaluations, 'evaluation')}{took}"
        told = end if self.evaluations else "all that it would look at is measured: nothing would be computed"
        return Group([Table(["look", "", "checkpoint", "made by", "is"], rows, align="rrlll"), Lines([told])])


def plan(
    ws: Workspace,
    revs: Sequence[str],
    requirements: Sequence[Requirement],
    resolved: Resolved,
    *,
    since: str | None = None,
    emit: Emit,
) -> BisectPlan:
    """Data is read and nothing is computed."""
    whole, line = readable_line(ws, revs, since)
    known = _known(ws, line, requirements, resolved, emit)
    bounds = [rev for rev in gate.revisions(requirements) if rev not in known]
    verdicts = [_verdict(known, requirements, each) for each in line]
    asked = steps([each in known for each in line], verdicts)
    looks = [
        Look(line[at], made_by(ws, line[at]), whole.index(line[at]) + 1, step, line[at] in known, verdicts[at])
        for at, step in asked.steps.items()
    ]
    compared = {ws.resolve(rev): rev for rev in gate.revisions(requirements)}
    looks += [
        Look(each, made_by(ws, each), 0, 0, rev in known, None) for each, rev in compared.items() if each not in line
    ]
    beside = len({ws.resolve(rev) for rev in bounds} - set(line))
    most = asked.most + beside
    seconds = _seconds(ws, line)
    texts = [requirement.text for requirement in requirements]
    return BisectPlan(texts, len(whole), looks, most, None if seconds is None else seconds * most)


@dataclass(frozen=True)
class Steps:
    """Place -> when it is looked at first, counted from 1; `most`: evaluations in the worst case."""

    steps: Mapping[int, int]
    most: int


def steps(measured: Sequence[bool], verdicts: Sequence[bool | None]) -> Steps:
    """Of `bisect.first_broken`, which this follows into both answers wherever there is none."""
    found: dict[int, int] = {}

    def look(at: int, step: int) -> int:
        found[at] = min(step, found.get(at, step))
        return 0 if measured[at] else 1

    def between(good: int, bad: int, step: int) -> int:
        if bad - good <= 1:
            return 0
        middle = (good + bad) // 2
        cost = look(middle, step)
        holds = verdicts[middle]
        later = 0 if holds is False else between(middle, bad, step + 1)
        return cost + max(later, 0 if holds is True else between(good, middle, step + 1))

    last = len(measured) - 1
    most = look(last, 1)
    if verdicts[last] is not True and last:
        most += look(0, 2)
        if verdicts[0] is not False:
            most += between(0, last, 3)
    return Steps(found, most)


def _known(
    ws: Workspace, line: Sequence[str], requirements: Sequence[Requirement], resolved: Resolved, emit: Emit
) -> dict[str, Mapping[str, float]]:
    """Values of those that were measured, on these samples and with these options."""
    checkpoints, data, emit = readied(ws, line, requirements, resolved, emit)
    found = {rev: evaluating.recall(ws, rev, each, data, resolved, emit=emit) for rev, each in checkpoints.items()}
    return {rev: evaluation.values for rev, evaluation in found.items() if evaluation is not None}


def _verdict(
    known: Mapping[str, Mapping[str, float]], requirements: Sequence[Requirement], checkpoint: str
) -> bool | None:
    others = gate.revisions(requirements)
    if checkpoint not in known or not all(rev in known for rev in others):
        return None
    bounds = {rev: known[rev] for rev in others}
    return all(gate.judge(requirement, known[checkpoint], bounds).passed for requirement in requirements)


def _seconds(ws: Workspace, line: Sequence[str]) -> float | None:
    runs = [record for run in ws.index.runs_of(line) if (record := ws.index.record(run)) and record.status == "done"]
    took = sorted(
        (each.started, each.ended - each.started) for each in runs if each.operation == OPERATION and each.ended
    )
    return fmean(seconds for _, seconds in took[-_RECENT:]) if took else None


def _state(look: Look) -> str:
    if look.holds is not None:
        return "measured, holds" if look.holds else "measured, does not hold"
    return "measured" if look.measured else "not measured"
