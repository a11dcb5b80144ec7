"""What a search found, and what it would search: as tables, and as `--json` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from llmos_cli.core.view import Cell, Group, Lines, Span, Table, View, duration, short
from llmos_cli.operations.tuning import study as studies
from llmos_cli.operations.tuning.space import settings

if TYPE_CHECKING:
    from optuna import Study

    from llmos_cli.operations.tuning.plan import Plan

SHOWN = 12
"""Trials in the table; `--json` has them all."""


@dataclass(frozen=True)
class TrialRow:
    """`state`: complete, pruned or failed (then `reason` says why); `values` by objective; `settings` by config key."""

    number: int
    state: str
    values: Mapping[str, float]
    settings: Mapping[str, Any]
    checkpoint: str
    run: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class TuneResult:
    """`trials` best first; `front`: numbers of the best trial, or of the Pareto front; `importances` by config key, summing to
    one; `applied`: what was written into configs/train.yaml."""

    study: str
    storage: str
    sampler: str
    objectives: Mapping[str, str]
    trials: Sequence[TrialRow]
    front: Sequence[int]
    importances: Mapping[str, float]
    applied: Mapping[str, Any] | None

    def view(self) -> View:
        front = [row for row in self.trials if row.number in self.front]
        several = len(self.objectives) > 1
        title = "no other trial is better in every objective than these" if several else ""
        return Group(
            [
                self._table(self.trials[:SHOWN]),
                self._table(front, title) if several else Lines([]),
                self._importances(),
                self._remarks(),
            ]
        )

    def _table(self, rows: Sequence[TrialRow], title: str = "") -> Table:
        keys = list(dict.fromkeys(key for row in self.trials for key in row.settings))
        cells: list[list[Cell]] = [
            [
                row.number,
                Span(row.state, "good" if row.number in self.front else "bad" if row.state == "failed" else "dim"),
                *(row.values.get(name) for name in self.objectives),
                *(_cell(row.settings.get(key)) for key in keys),
                duration(row.seconds) if row.seconds else None,
                Span(short(row.checkpoint), "id") if row.checkpoint else None,
            ]
            for row in rows
        ]
        return Table(["trial", "state", *self.objectives, *keys, "time", "checkpoint"], cells, title=title)

    def _importances(self) -> Table | Lines:
        if not self.importances:
            return Lines([])
        rows: list[list[Cell]] = [[key, f"{100 * share:.0f} %"] for key, share in self.importances.items()]
        return Table(["importance", ""], rows, align="lr")

    def _remarks(self) -> Lines:
        lines: list[Any] = [
            Span(f"trial {row.number}: {row.reason}", "dim") for row in self.trials if row.state == "failed"
        ]
        if self.applied:
            told = ", ".join(f"{key}: {value}" for key, value in self.applied.items())
            lines.append(f"written into configs/train.yaml: {told} (`llmos undo` takes it back)")
        return Lines([*lines, Span(f"study {self.study}", "dim")])


def _cell(value: Any) -> Cell:
    return (
        value if value is None or (isinstance(value, int | float | str) and not isinstance(value, bool)) else str(value)
    )


@dataclass(frozen=True)
class TunePlan:
    """`space` by config key, in words; `fixed`: config keys that all trials share; `trials`: how many the study is to have."""

    study: str
    storage: str
    sampler: str
    pruner: str
    objectives: Mapping[str, str]
    space: Mapping[str, str]
    fixed: Mapping[str, Any]
    trials: int
    jobs: int

    def view(self) -> View:
        towards = studies.towards(self.objectives)
        rows: list[list[Cell]] = [[key, values] for key, values in self.space.items()]
        rows += [[key, str(value)] for key, value in self.fixed.items()]
        lines: list[Any] = [
            f"{self.trials} trials, {self.jobs} at a time, by {self.sampler}: {towards}; stopped early by: {self.pruner}",
            Span(f"study {self.study}", "dim"),
        ]
        return Group([Table(["key", "values"], rows, align="ll"), Lines(lines)])


def result(plan: Plan, study: Study, applied: Mapping[str, Any] | None) -> TuneResult:
    rows = [_row(plan, trial) for trial in studies.ranked(study, studies.finished(study))]
    return TuneResult(
        study=plan.name,
        storage=studies.without_password(plan.storage),
        sampler=plan.sampler,
        objectives=plan.objectives,
        trials=rows,
        front=[trial.number for trial in studies.front(study)],
        importances=studies.importances(study),
        applied=applied,
    )


def _row(plan: Plan, trial: FrozenTrial) -> TrialRow:
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    values = trial.values if trial.state == TrialState.COMPLETE else None
    attributes = trial.user_attrs
    return TrialRow(
        number=trial.number,
        state=states[trial.state],
        values=dict(zip(plan.objectives, values, strict=True)) if values else {},
        settings=settings(plan.space, trial.params),
        checkpoint=attributes.get("checkpoint", ""),
        run=attributes.get("run", ""),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason", ""),
    )
