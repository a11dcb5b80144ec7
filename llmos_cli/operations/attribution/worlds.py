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
from llmos_cli.errors import NotFound
from llmos_cli.events import Emit
from llmos_cli.operations import rerun, snapshots
from llmos_cli.operations.attribution.recipes import Pair, Step
from llmos_cli.operations.changed import Changed, changed
from llmos_cli.operations.environment import environment

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

CODE = ("llmos", "llmos_source")
MACHINE = ("python", "packages", "system", "device", "device_name")
MAKING = ("train", "validation")
"""Splits that decide what is made; the test split is looked at when that is done."""
GONE = "gone"


@dataclass(frozen=True)
class WorldChange:
    kind: str
    changed: Changed


@dataclass(frozen=True)
class Worlds:
    """`data`: what the data of a step (its `data` section as JSON) is today: split -> rows and hash, or that it is gone."""

    pair: Pair
    data: Mapping[str, Mapping[str, Any]]

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
                same_data = slot.before.config.get("data") == slot.after.config.get("data")
                data = _data(one, _recorded(one), _recorded(other)) if same_data else ()
                for each in (*_environment(one, other.made.environment), *data):
                    found[each.changed.key] = each
        return list(found.values())

    def is_todays(self, step: Step) -> bool:
        """Whether a recorded step was taken in the world of today, as far as records tell."""
        now = self.data.get(_section(step))
        made = step.like
        return not list(_environment(made, self.here)) and now is not None and _making(now) == _recorded(made)

    def identity(self) -> Mapping[str, Any]:
        """All that decides what a recipe makes beside what it says."""
        return {
            "environment": {name: self.here[name] for name in (*CODE, *MACHINE)},
            "data": {key: _making(value) for key, value in self.data.items()},
        }

    def _since(self, tail: Sequence[Manifest]) -> list[WorldChange]:
        found: dict[str, WorldChange] = {}
        steps = {each.like.id: each for slot in self.pair.slots for each in (slot.before, slot.after) if each}
        for made in tail:
            now = self.data.get(_section(steps[made.id]))
            data = _data(made, _recorded(made), _making(now)) if now is not None else ()
            for each in (*_environment(made, self.here), *data):
                found[each.changed.key] = each
        return list(found.values())


def worlds(ws: Workspace, pair: Pair, emit: Emit) -> Worlds:
    """Reads the data of both."""
    data: dict[str, Mapping[str, Any]] = {}
    for slot in pair.slots:
        for step in (slot.before, slot.after):
            if step and _section(step) not in data and not set(step.like.made.parents) & ws.dropped.all():
                data[_section(step)] = _today(ws, step.like, emit)
    return Worlds(pair, data)


def _today(ws: Workspace, made: Manifest, emit: Emit) -> Mapping[str, Any]:
    if snapshots.kept_of(ws, made):
        return dict(made.made.data["splits"])
    try:
        return dict(rerun.fingerprint(ws, made, emit).get("splits", {}))
    except NotFound as error:
        return {GONE: error.message}


def _section(step: Step) -> str:
    return json.dumps(step.config.get("data"), sort_keys=True)


def _making(splits: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: splits[name] for name in (*MAKING, GONE) if name in splits}


def _recorded(made: Manifest) -> Mapping[str, Any]:
    return _making(made.made.data.get("splits", {}))


def _environment(made: Manifest, now: Mapping[str, Any]) -> Iterator[WorldChange]:
    then = made.made.environment
    for kind, names in (("code", CODE), ("environment", MACHINE)):
        # Only what both have recorded: older manifests do not say which source made them.
        known = [name for name in names if name in then and name in now]
        sides = [{name: each[name] for name in known} for each in (then, now)]
        yield from (WorldChange(kind, change) for change in changed(sides[0], sides[1]))


def _data(made: Manifest, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[WorldChange]:
    called = ", ".join(rerun.sources(made.made.data)) or "data"
    if GONE in now:
        yield WorldChange("data", Changed(called, "there", GONE))
        return
    for split in MAKING:
        if then.get(split) != now.get(split):
            yield WorldChange(
                "data", Changed(f"{called} {split}", rows_told(then.get(split)), rows_told(now.get(split)))
            )


def environment_since(found: Worlds, made: Manifest) -> list[WorldChange]:
    """What of llmos and the machine is another than when a checkpoint was made."""
    return list(_environment(made, found.here))


def rows_told(split: Mapping[str, Any] | None) -> str | None:
    return f"{split['rows']:,} rows {split['sha256'][:8]}" if split else None
