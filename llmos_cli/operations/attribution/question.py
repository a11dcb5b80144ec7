"""The question: a metric, two checkpoints, where their recipes and worlds differ, and the samples that all answer for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_cli.errors import UsageError
from llmos_cli.events import Emit
from llmos_cli.operations import rerun
from llmos_cli.operations.attribution.points import Measurement, Points, Samples
from llmos_cli.operations.attribution.recipes import Difference, Recipe, pair
from llmos_cli.operations.attribution.telling import Side
from llmos_cli.operations.attribution.worlds import Worlds, worlds
from llmos_cli.operations.changed import Changed

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace


@dataclass(frozen=True)
class WhyOptions:
    """`metric`: the task's own when ""; `split`: test when "", or validation where there is none; `runs`: re-runs at most."""

    metric: str = ""
    split: str = ""
    runs: int = 8


@dataclass(frozen=True)
class Question:
    """`span`: how far two values of the metric can lie apart."""

    metric: str
    span: float
    before: Checkpoint
    after: Checkpoint
    points: Points
    sides: tuple[Side, Side]

    @property
    def split(self) -> str:
        return self.points.samples.split

    @property
    def worlds(self) -> Worlds:
        return self.points.worlds

    @property
    def differences(self) -> Sequence[Difference]:
        return self.points.pair.differences

    @property
    def direct(self) -> bool:
        """Whether A and B as they are answer by themselves: one thing differs, whatever the world is like today."""
        return not self.differences or (len(self.differences) == 1 and not self.worlds.between)

    def recipe(self, at: int) -> Recipe:
        """With the first `at` differences as in B."""
        return self.points.pair.recipe(self.differences[:at])

    def value(self, measured: Measurement) -> float:
        return measured.values[self.metric]

    def told(self, low: int, high: int) -> tuple[str, list[Changed]]:
        """The kinds and changes of a part of the differences."""
        part = self.differences[low:high]
        changes: list[Changed] = []
        for told in (self.points.pair.told(change) for each in part for change in each.changes):
            if told not in changes:  # one seed, or one module, of several operations
                changes.append(told)
        return "+".join(dict.fromkeys(each.kind for each in part)), changes


@contextmanager
def asking(ws: Workspace, sides: tuple[Side, Side], options: WhyOptions, emit: Emit) -> Iterator[Question]:
    from llmos_cli import tasks
    from llmos_cli.operations import eval as evaluating
    from llmos_cli.operations.proof import proof_split
    from llmos_cli.options.data import DataOptions

    one, other = (ws.checkpoint(side.checkpoint) for side in sides)
    kinds = [tasks.of_checkpoint(each.manifest, each.config_json()) for each in (one, other)]
    if kinds[0].name != kinds[1].name:
        raise UsageError(
            f"{sides[0].rev} is for {kinds[0].name} and {sides[1].rev} for {kinds[1].name}",
            hint="no metric is of both; `llmos diff` compares them",
        )
    metric = options.metric or kinds[1].metric
    if metric not in (known := kinds[1].metric_names()):
        raise UsageError(f"nothing here is called {metric}", hint=f"--metric is one of {', '.join(known)}")
    emit = evaluating.notes_once(emit)
    parted = pair(ws, one.id, other.id)
    data = evaluating.common_data(ws, {"A": one, "B": other}, "B", DataOptions(), emit)
    prepared = evaluating.prepare(ws, other, data, seed=0, emit=emit).prepared
    split = options.split or proof_split(prepared)
    samples = Samples(data, split, prepared.fingerprint.get("splits", {}).get(split))
    with ws.stage() as staged, rerun.scratch(ws, staged / "workspace") as scratch:
        points = Points(ws, scratch, parted, worlds(ws, parted, emit), samples, options.runs, emit)
        yield Question(metric, 1.0 if metric in kinds[1].shares else math.inf, one, other, points, sides)
