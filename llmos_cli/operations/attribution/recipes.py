"""Recipes: what two checkpoints were told to be made by, from the last ancestor that they share on, and where they differ.

A difference is the least that can be changed by itself: a key, keys that only mean something together, a seed, a whole operation.
All of them applied to A's recipe make B's.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from llmos_cli.core import config as configs
from llmos_cli.core import yaml12
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.view import short
from llmos_cli.errors import ConfigError, UsageError
from llmos_cli.operations import lineage, rerun
from llmos_cli.operations.changed import Changed
from llmos_cli.operations.config import methods, root_of

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

KINDS = ("seed", "environment", "code", "data", "config", "operation")
"""In the order in which the walk from A to B changes them."""
DECIDE_NOTHING = {
    "train": ("save_every",),
    "prune": ("max_kl", "max_drop", "latency"),
    "quantize": ("max_kl", "max_drop", "latency"),
    "compress": ("max_kl", "max_drop", "latency"),
}
"""Options that do not touch what is made: guards, and what is measured beside it."""
WHERE = ("task", "source", "splits", "columns", "format", "evaluate", "validation_fraction", "test_fraction")
"""Keys of `data` that say together which rows are meant; a snapshot stands for all of them."""
CHOICES = {"train": "optimizer", "prune": "method", "quantize": "method"}
Key = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One operation: its sections and `seed` with today's defaults filled in, `threads`, the model's own code that its config names;
    `like` is the checkpoint it was read from."""

    operation: str
    config: Mapping[str, Any]
    threads: int | None
    module: rerun.Module | None
    like: Manifest


Recipe = tuple[Step, ...]


@dataclass(frozen=True)
class Slot:
    """The same operation in both recipes; one side is None where the other alone has it."""

    before: Step | None
    after: Step | None


@dataclass(frozen=True)
class Change:
    slot: int
    key: Key
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    kind: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Pair:
    """`ancestor`: the last checkpoint that both lines have, "" for none; `tails`: the manifests after it, in the order made."""

    ancestor: str
    tails: tuple[Sequence[Manifest], Sequence[Manifest]]
    slots: Sequence[Slot]
    differences: Sequence[Difference]

    @property
    def modules(self) -> Sequence[rerun.Module]:
        """The models' own code that recipes here run, each content once."""
        steps = [step for slot in self.slots for step in (slot.before, slot.after) if step]
        return list({step.module.sha256: step.module for step in steps if step.module}.values())

    def recipe(self, applied: Collection[Difference]) -> Recipe:
        """A's with these differences as in B."""
        changes = [change for difference in applied for change in difference.changes]
        return tuple(
            found
            for at, slot in enumerate(self.slots)
            if (found := _changed(slot, [change for change in changes if change.slot == at])) is not None
        )

    def told(self, change: Change) -> Changed:
        """For people: the operation is named where the key does not say which one is meant."""
        slot = self.slots[change.slot]
        if not change.key:
            return Changed("operation", change.before, change.after)
        assert slot.before is not None, "a key is of both sides"
        if change.key[0] == "code":
            return Changed(change.key[1], change.before, change.after)
        operation = slot.before.operation
        several = len(self.slots) > 1 and change.key[0] != operation
        return Changed(f"{operation}: " * several + ".".join(change.key), change.before, change.after)


def pair(ws: Workspace, before: str, after: str) -> Pair:
    """Of two full ids. UsageError where nothing of the lines was made here."""
    lines = [[*lineage.line(ws, checkpoint)][::-1] for checkpoint in (before, after)]
    shared = sum(1 for _ in _same_beginning(*lines))
    tails = (lines[0][shared:], lines[1][shared:])
    for manifest in (*tails[0], *tails[1]):
        if manifest.made.operation not in rerun.REDONE:
            raise UsageError(
                f"{short(manifest.id)} was made by {manifest.made.operation}: there is no recipe to compare",
                hint="`llmos diff` shows what the two hold",
            )
    slots = _aligned(*([step(ws, manifest) for manifest in tail] for tail in tails))
    ancestor = lines[0][shared - 1].id if shared else ""
    return Pair(ancestor, tails, slots, sorted(_differences(slots), key=lambda each: KINDS.index(each.kind)))


def identity(steps: Sequence[Step], *, seeds: bool = True) -> str:
    """Equal for recipes that say the same; without `seeds`, whatever the seeds are."""
    told = [
        [each.operation, {k: v for k, v in each.config.items() if seeds or k != "seed"}, each.threads, _code(each)]
        for each in steps
    ]
    return json.dumps(told, sort_keys=True)


def seeded(recipe: Recipe, seed: int) -> Recipe:
    return tuple(replace(each, config={**each.config, "seed": seed}) for each in recipe)


def untimed(of: Step) -> Mapping[str, Any]:
    """Its config, without the measuring of time that compressing ends with: what is made is the same."""
    if "latency" not in DECIDE_NOTHING[of.operation]:
        return of.config
    return {**of.config, of.operation: {**of.config[of.operation], "latency": False}}


def is_valid(recipe: Recipe) -> bool:
    """Whether today's options allow it: half of one config and half of another may contradict itself."""
    try:
        for each in recipe:
            _checked(each.operation, each.config)
    except ConfigError:
        return False
    return True


def _same_beginning(one: Sequence[Manifest], other: Sequence[Manifest]) -> Iterator[Manifest]:
    for mine, theirs in zip(one, other, strict=False):
        if mine.id != theirs.id:
            return
        yield mine


def step(ws: Workspace, manifest: Manifest) -> Step:
    """Where its rows were kept it reads those, whatever became of their source."""
    operation = manifest.made.operation
    recorded = rerun.readable(ws, manifest)
    with contextlib.suppress(ConfigError):  # what this version refuses is compared as it is, and cannot be run
        recorded = _checked(operation, recorded)
    section = {k: v for k, v in recorded[operation].items() if k not in DECIDE_NOTHING[operation]}
    return Step(operation, {**recorded, operation: section}, rerun.threads(manifest), rerun.module(manifest), manifest)


def _checked(operation: str, config: Mapping[str, Any]) -> dict[str, Any]:
    tree = yaml12.from_plain(config, "what was recorded")
    return configs.check(tree, root_of(operation), methods=methods).model_dump(mode="json")


def _aligned(before: Sequence[Step], after: Sequence[Step]) -> list[Slot]:
    """Operations of one kind, in order, side by side."""
    words = [[each.operation for each in side] for side in (before, after)]
    slots: list[Slot] = []
    for tag, a, b, c, d in SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        if tag == "equal":
            slots += [Slot(one, other) for one, other in zip(before[a:b], after[c:d], strict=True)]
        else:
            slots += [Slot(one, None) for one in before[a:b]] + [Slot(None, other) for other in after[c:d]]
    return slots


def _differences(slots: Sequence[Slot]) -> Iterator[Difference]:
    lines: dict[str, list[Change]] = {"seed": [], "code": []}
    for at, slot in enumerate(slots):
        if slot.before is None or slot.after is None:
            sides = [each and _word(each) for each in (slot.before, slot.after)]
            yield Difference("operation", (Change(at, (), *sides),))
            continue
        found = [Change(at, *each) for each in _leaves(_settings(slot.before), _settings(slot.after))]
        groups = _grouped(slot.before.operation, found)
        for key, changes in groups.items():
            if key[0] in lines:
                lines[key[0]] += changes
            else:
                yield Difference(key[0] if key[0] in KINDS else "config", tuple(changes))
    # Of all operations of a line: what goes on with a model has the code that it began with.
    yield from (Difference(kind, tuple(changes)) for kind, changes in lines.items() if changes)


def _settings(of: Step) -> dict[str, Any]:
    return {**of.config, "environment": {"threads": of.threads}, "code": _code(of)}


def _code(of: Step) -> dict[str, str]:
    return {of.module.file: of.module.sha256} if of.module else {}


def _leaves(before: Mapping[str, Any], after: Mapping[str, Any], at: Key = ()) -> Iterator[tuple[Key, Any, Any]]:
    """Keys as tuples: a pattern that names layers has dots of its own."""
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _leaves(one, other, (*at, name))
        elif (one or None) != (other or None) if isinstance(one or other, list | dict) else one != other:
            yield (*at, name), one, other


def _grouped(operation: str, changes: Sequence[Change]) -> dict[Key, list[Change]]:
    changed = {change.key for change in changes}
    groups: dict[Key, list[Change]] = {}
    for change in changes:
        groups.setdefault(_group(operation, change.key, changed), []).append(change)
    return groups


def _group(operation: str, key: Key, changed: Collection[Key]) -> Key:
    """The key under which it changes, with the others that have the same."""
    section, name = key[0], key[1] if len(key) > 1 else ""
    if section == "data":
        return ("data", "source") if name in WHERE else key
    if (section, name) == (operation, "calibration"):
        return ("data", name)
    if section in ("model", "code") and {("model", "arch"), ("model", "module")} & set(changed):
        return ("model",)
    if section in ("seed", "code"):
        return (section,)
    if section != operation:
        return key
    choice = CHOICES.get(operation, "")
    if (section, choice) in changed and (name == choice or name in methods(operation)):
        return (section, choice)
    together = next((beginning for beginning in ("target_", "max_") if name.startswith(beginning)), None)
    return (section, together) if together else key


def _word(of: Step) -> str:
    section = of.config.get(of.operation) or {}
    words = [section.get(name) for name in ("method", "sparsity" if of.operation == "prune" else "bits")]
    return " ".join([of.operation, *(str(word) for word in words if word is not None and not isinstance(word, list))])


def _changed(slot: Slot, changes: Sequence[Change]) -> Step | None:
    if slot.before is None or slot.after is None:
        return slot.after if changes else slot.before
    config, threads, module = copy.deepcopy(dict(slot.before.config)), slot.before.threads, slot.before.module
    for change in changes:
        if change.key[0] == "environment":
            threads = slot.after.threads
        elif change.key[0] == "code":
            module = slot.after.module
        else:
            _copy(slot.after.config, config, change.key)
    return replace(slot.before, config=config, threads=threads, module=module)


def _copy(source: Mapping[str, Any], target: dict[str, Any], key: Key) -> None:
    """What stands at a key, be it None: to be told nothing is not to be told None."""
    for name in key[:-1]:
        source, target = source.get(name) or {}, target.setdefault(name, {})
    if key[-1] in source:
        target[key[-1]] = copy.deepcopy(source[key[-1]])
    else:
        target.pop(key[-1], None)
