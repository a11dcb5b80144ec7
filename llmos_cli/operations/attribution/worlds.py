"""Worlds: what nobody can set when a recipe is followed again: the code, the machine, what a data source holds.

A checkpoint was made in the world of its day; what is run again is run in today's. Where the two differ, A as it is and A's recipe
followed today are two points, and what lies between them is the world's doing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmos_cli.core.manifest import Manifest
from llmos_cli.events import Emit
from llmos_cli.operations import reads
from llmos_cli.operations.attribution.recipes import Pair, Step
from llmos_cli.operations.changed import Changed, changed
from llmos_cli.operations.environment import environment
from llmos_cli.operations.reads import Gone, Place, Reads

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

CODE = ("llmos", "llmos_source")
MACHINE = ("python", "packages", "system", "device", "device_name")
GONE = "gone"


@dataclass(frozen=True)
class WorldChange:
    kind: str
    changed: Changed


@dataclass(frozen=True)
class Worlds:
    """`data`: what a step reads today, by what it is told to read (as JSON): or that it is gone."""

    pair: Pair
    data: Mapping[str, Reads]

    @cached_property
    def here(self) -> Mapping[str, Any]:
        """Asked once: every checkpoint of the workspace is compared with it."""
        return environment()

    @cached_property
    def since_before(self) -> Sequence[WorldChange]:
        """What has changed since A was made."""
        return self._since(self.pair.tails[0])

    @cached_property
    def since_after(self) -> Sequence[WorldChange]:
        return self._since(self.pair.tails[1])

    @cached_property
    def between(self) -> Sequence[WorldChange]:
        """What is otherwise in B's world than it was in A's, where both were told the same."""
        found: dict[str, WorldChange] = {}
        for slot in self.pair.slots:
            if slot.before and slot.after:
                one, other = slot.before.like, slot.after.like
                same_data = _section(slot.before) == _section(slot.after)
                data = _data(reads.recorded(one), reads.recorded(other)) if same_data else ()
                for each in (*_environment(one, other.made.environment), *data):
                    found[each.changed.key] = each
        return list(found.values())

    def is_todays(self, step: Step) -> bool:
        """Whether a recorded step was taken in the world of today, as far as records tell."""
        now = self.data.get(_section(step))
        made = step.like
        return (
            not list(_environment(made, self.here))
            and now is not None
            and _making(now) == _making(reads.recorded(made))
        )

    def identity(self) -> Mapping[str, Any]:
        """All that decides what a recipe makes beside what it says."""
        return {
            "environment": {name: self.here[name] for name in (*CODE, *MACHINE)},
            "data": {
                key: [[*place, told] for place, told in sorted(_making(value).items())]
                for key, value in self.data.items()
            },
        }

    def _since(self, tail: Sequence[Manifest]) -> list[WorldChange]:
        found: dict[str, WorldChange] = {}
        steps = {each.like.id: each for slot in self.pair.slots for each in (slot.before, slot.after) if each}
        for made in tail:
            now = self.data.get(_section(steps[made.id]))
            data = _data(reads.recorded(made), now) if now is not None else ()
            for each in (*_environment(made, self.here), *data):
                found[each.changed.key] = each
        return list(found.values())


def worlds(ws: Workspace, pair: Pair, emit: Emit) -> Worlds:
    """Reads the data of both."""
    data: dict[str, Reads] = {}
    for slot in pair.slots:
        for step in (slot.before, slot.after):
            if step and _section(step) not in data and not set(step.like.made.parents) & ws.dropped.all():
                data[_section(step)] = _today(ws, step.like, emit)
    return Worlds(pair, data)


def _today(ws: Workspace, made: Manifest, emit: Emit) -> Reads:
    try:
        return reads.today(ws, made, emit)
    except Gone as gone:
        return {Place("data", gone.source, GONE): {}}


def _section(step: Step) -> str:
    """What it is told to read."""
    return json.dumps(
        [step.config.get("data"), (step.config.get(step.operation) or {}).get("calibration")], sort_keys=True
    )


def _making(found: Reads) -> Reads:
    return {place: told for place, told in found.items() if place.makes}


def _environment(made: Manifest, now: Mapping[str, Any]) -> Iterator[WorldChange]:
    then = made.made.environment
    for kind, names in (("code", CODE), ("environment", MACHINE)):
        # Only what both have recorded: older manifests do not say which source made them.
        known = [name for name in names if name in then and name in now]
        sides = [{name: each[name] for name in known} for each in (then, now)]
        yield from (WorldChange(kind, change) for change in changed(sides[0], sides[1]))


def _data(then: Reads, now: Reads) -> Iterator[WorldChange]:
    if gone := next((place for place in now if place.split == GONE), None):
        yield WorldChange("data", Changed(gone.source, "there", GONE))
        return
    for place in dict.fromkeys((*_making(then), *_making(now))):
        if then.get(place) != now.get(place):
            yield WorldChange("data", Changed(place.name, _content(then.get(place)), _content(now.get(place))))


def _content(told: Mapping[str, Any] | None) -> str | None:
    return rows_told(told) if told is None or "rows" in told else told["sha256"][:8]


def environment_since(found: Worlds, made: Manifest) -> list[WorldChange]:
    """What of llmos and the machine is another than when a checkpoint was made."""
    return list(_environment(made, found.here))


def rows_told(split: Mapping[str, Any] | None) -> str | None:
    return f"{split['rows']:,} rows {split['sha256'][:8]}" if split else None
