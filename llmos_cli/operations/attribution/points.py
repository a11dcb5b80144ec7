"""Points: what a recipe measures. A checkpoint of the workspace that was made so answers; else what is remembered; else it is run again.

What is run again is made in a scratch workspace that is gone afterwards; its measurement stays in the workspace's cache
(`.llmos/cache/why/`) under the key of the recipe, the world and the samples, so that nothing is run twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from llmos_cli.core import atomic
from llmos_cli.core.listing import read_text
from llmos_cli.core.view import short
from llmos_cli.errors import NotFound
from llmos_cli.events import Emit, Note
from llmos_cli.operations import lineage, processors, rerun
from llmos_cli.operations.attribution.recipes import Pair, Recipe, Slot, Step, identity, is_valid, step, untimed
from llmos_cli.operations.attribution.worlds import Worlds
from llmos_cli.operations.evaluations import key_of

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace
    from llmos_cli.operations.eval import Exam
    from llmos_cli.options.data import DataOptions

FORMAT = 1
FOLDER = "why"
RESAMPLES = 200
BATCH = 16
"""As `eval` has it, so that both give the same number."""
TOO_MANY = "--runs was reached"
LONGEST = 60.0
"""Seconds: a process that has lived longer did other things than to start."""
CONTRADICTORY = "one half of the changes without the other is no valid config"


@dataclass(frozen=True)
class Measurement:
    """Of a checkpoint whose files have the hash `tree`: metric -> its value, and -> its value on each resample of the samples."""

    tree: str
    values: Mapping[str, float]
    draws: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Rerun:
    """One recipe that was asked for. `how`: `run`, `remembered` from an earlier time, or `found`: `checkpoint` was made by it.
    `seconds` that running it took."""

    what: str
    how: str
    seconds: float = 0.0
    checkpoint: str = ""


@dataclass(frozen=True)
class Samples:
    """What all answer for: a split of B's data as it is today, which `fingerprint` tells."""

    data: DataOptions
    split: str
    fingerprint: Any

    def identity(self) -> Mapping[str, Any]:
        return {"data": self.data.model_dump(mode="json"), "split": self.split, "samples": self.fingerprint}


@dataclass
class Points:
    """`left`: how many recipes may still be run; `asked`: those that were asked for, by identity."""

    ws: Workspace
    scratch: Workspace
    pair: Pair
    worlds: Worlds
    samples: Samples
    left: int
    emit: Emit
    asked: dict[str, Rerun] = field(default_factory=dict)
    _made: dict[str, str] = field(default_factory=dict)
    _exams: dict[str, Exam] = field(default_factory=dict)

    def of_checkpoint(self, checkpoint: str) -> Measurement:
        """Of a full id."""
        there = self.ws.checkpoint(checkpoint)
        place = self._place({"tree": _tree(there)})
        return _read(place) or self._keep(place, self._measured(there))

    def of_recipe(self, recipe: Recipe, what: str) -> Measurement | str:
        """Or why it cannot be had."""
        if not recipe:
            return self.of_checkpoint(self.pair.ancestor)
        if found := self.found(recipe):
            self.asked.setdefault(identity(recipe), Rerun(what, "found", checkpoint=found))
            return self.of_checkpoint(found)
        if remembered := _read(self._place(self._key(recipe))):
            self.asked.setdefault(identity(recipe), Rerun(what, "remembered"))
            return remembered
        if not is_valid(recipe):
            return CONTRADICTORY
        if self.left <= 0:
            return TOO_MANY
        self.left -= 1
        return self._run(recipe, what)

    def cost(self, recipe: Recipe) -> float | None:
        """Seconds that it would take by what is recorded, 0 where nothing would run; None where nothing is recorded."""
        if not recipe or self.found(recipe) or _read(self._place(self._key(recipe))):
            return 0.0
        costs = [self._seconds(each) for each in recipe[self._begun(recipe) :]]
        return None if None in costs else sum(cost + self._beside for cost in costs if cost is not None)

    def found(self, recipe: Recipe) -> str:
        """The checkpoint of the workspace that was made by it in today's world, or ""."""
        return self._known.get(identity(recipe), "")

    def siblings(self, recipe: Recipe) -> list[Recipe]:
        """The same with other seeds, as checkpoints of the workspace were made; by seed, or ids would decide what noise is taken for."""
        alike = [each for each in self._alike.get(identity(recipe, seeds=False), []) if not _same(each, recipe)]
        return sorted(alike, key=lambda each: [step.config["seed"] for step in each])

    def _run(self, recipe: Recipe, what: str) -> Measurement | str:
        self.emit(Note(f"run again: {what}"))
        started, begun = time.time(), self._begun(recipe)
        parent = self._lent(recipe[:begun])
        for at in range(begun, len(recipe)):
            each = recipe[at]
            job = rerun.Job(each.operation, untimed(each), parent, each.threads, each.module)
            ended = rerun.run(self.ws, self.scratch, job, self.emit)
            if ended.code:
                told = ended.said.get("error") or {}
                return f"{each.operation} cannot be run so: {told.get('message') or ended.failure}"
            parent = str(ended.said["checkpoint"])
            self._made[identity(recipe[: at + 1])] = parent
        measured = self._keep(self._place(self._key(recipe)), self._measured(self.scratch.checkpoint(parent)))
        seconds = time.time() - started
        self.asked[identity(recipe)] = Rerun(what, "run", seconds)
        made = {self._made[identity(recipe[: at + 1])] for at in range(begun, len(recipe))}
        ran = sum(took for checkpoint, took in _durations(self.scratch).items() if checkpoint in made)
        self._remember_beside((seconds - ran) / (len(recipe) - begun))
        return measured

    def _begun(self, recipe: Recipe) -> int:
        """How many of its operations need not be run, because what they make is there."""
        lengths = range(len(recipe), 0, -1)
        return next((n for n in lengths if identity(recipe[:n]) in self._made or self.found(recipe[:n])), 0)

    def _lent(self, steps: Recipe) -> str:
        """What they make, in the scratch workspace; "" for nothing."""
        if made := self._made.get(identity(steps)):
            return made
        found = self.found(steps) if steps else self.pair.ancestor
        if found:
            rerun.lend(self.ws, self.scratch, found)
        return found

    def _seconds(self, of: Step) -> float | None:
        """That its run takes: the longer of the two runs in which its operation made A and B."""
        slots = self.pair.slots
        sides = next([s.like.id for s in (slot.before, slot.after) if s] for slot in slots if _belongs(of, slot))
        return max((self._took[side] for side in sides if side in self._took), default=None)

    @cached_property
    def _took(self) -> Mapping[str, float]:
        return _durations(self.ws)

    @cached_property
    def _beside(self) -> float:
        """Seconds that an operation takes beside what its run does: its process starts, what it made is measured. As the last one
        did that was run here; before there is one, as this process took until now."""
        try:
            return float(self._place_beside.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return min(time.time() - psutil.Process().create_time(), LONGEST)

    def _remember_beside(self, seconds: float) -> None:
        atomic.write_text(self._place_beside, f"{seconds:.3f}\n", scratch=self.ws.dot / "tmp")

    @property
    def _place_beside(self) -> Path:
        return self.ws.cache / FOLDER / "beside.txt"

    @cached_property
    def _known(self) -> dict[str, str]:
        return {identity(each): each[-1].like.id for each in self._there}

    @cached_property
    def _alike(self) -> dict[str, list[Recipe]]:
        grouped: dict[str, list[Recipe]] = {}
        for each in self._there:
            grouped.setdefault(identity(each, seeds=False), []).append(each)
        return grouped

    @cached_property
    def _there(self) -> list[Recipe]:
        """Of every checkpoint that has its weights and was made from the ancestor in today's world."""
        entries = [entry for entry in self.ws.index.entries() if entry.operation in rerun.REDONE]
        recipes = [self._recipe(entry.id) for entry in entries if entry.id not in self.ws.dropped]
        return [each for each in recipes if each and all(map(self.worlds.is_todays, each))]

    def _recipe(self, checkpoint: str) -> Recipe:
        """What made it from the ancestor on; nothing where that is not on its line, or further than any recipe here goes."""
        steps: list[Step] = []
        for made in lineage.line(self.ws, checkpoint):
            if made.id == self.pair.ancestor:
                return tuple(reversed(steps))
            if made.made.operation not in rerun.REDONE or len(steps) == len(self.pair.slots):
                return ()
            steps.append(step(self.ws, made))
        return () if self.pair.ancestor else tuple(reversed(steps))

    def _measured(self, checkpoint: Checkpoint) -> Measurement:
        from llmos_cli import device
        from llmos_cli.models.load import load
        from llmos_cli.tasks import scoring

        exam = self._exam(checkpoint)
        split, name = exam.prepared.splits.get(self.samples.split), self.samples.split
        if split is None or not len(split):
            raise NotFound(f"the data has no {name} split", hint=f"it has {', '.join(exam.prepared.splits)}: --split")
        model, stage = load(checkpoint.path, device=device.pick()), f"measure {short(checkpoint.id)}"
        outcome = scoring.evaluate(exam.task, model, split, batch_size=BATCH, emit=self.emit, stage=stage)
        facts = exam.prepared.facts
        values = exam.task.metrics(outcome, facts)
        resamples = [exam.task.metrics(r, facts) for r in scoring.resampled(outcome, seed=0, resamples=RESAMPLES)]
        draws = {name: [draw.get(name, value) for draw in resamples] for name, value in values.items()}
        return Measurement(_tree(checkpoint), values, draws)

    def _exam(self, checkpoint: Checkpoint) -> Exam:
        """Read once for all that have the same tokenizer and the same labels."""
        from llmos_cli.operations import eval as evaluating

        config = checkpoint.config_json()
        facts = {name: config.get(name) for name in ("id2label", "vocab_size", "architectures")}
        alike = json.dumps([processors.identity(checkpoint), facts], sort_keys=True)
        if alike not in self._exams:
            prepared = evaluating.prepare(self.ws, checkpoint, self.samples.data, seed=0, emit=self.emit)
            self._exams[alike] = prepared
        return self._exams[alike]

    def _key(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"ancestor": self.pair.ancestor, "steps": identity(recipe), "world": self.worlds.identity()}

    def _place(self, key: Mapping[str, Any]) -> Path:
        return self.ws.cache / FOLDER / f"{key_of({'format': FORMAT, **key, **self.samples.identity()})}.json"

    def _keep(self, place: Path, measured: Measurement) -> Measurement:
        atomic.write_text(place, json.dumps(asdict(measured)), scratch=self.ws.dot / "tmp")
        return measured


def _read(place: Path) -> Measurement | None:
    try:
        return Measurement(**json.loads(read_text(place)))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # half a file is none: it is measured again


def _durations(ws: Workspace) -> dict[str, float]:
    """Of the runs that made checkpoints, in seconds."""
    return {run.checkpoint: run.ended - run.started for run in ws.runs.list() if run.checkpoint and run.ended}


def _tree(checkpoint: Checkpoint) -> str:
    return key_of({name: entry.sha256 for name, entry in checkpoint.manifest.tree.items()})


def _same(one: Recipe, other: Recipe) -> bool:
    return identity(one) == identity(other)


def _belongs(of: Step, slot: Slot) -> bool:
    return any(side is not None and side.like.id == of.like.id for side in (slot.before, slot.after))
