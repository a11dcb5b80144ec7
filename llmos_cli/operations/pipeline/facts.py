"""The facts that decide what a stage makes, and the key that is their hash.

    config       of a verb all of it, resolved: comments, order and defaults that are written out change nothing; else the command
    revisions    what its REV, its teacher and the bounds of its gates are right now, as ids
    data         each file of its data by content; other sources by what they say of their version
    inputs       files that it says it reads, and code that it runs, by content
    code         llmos itself: its version and the hash of its source
    environment  the class of machines that make the same: Python, packages, system, kind of device

Number of threads and the CPU's model are no facts, except where time is measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli import __version__
from llmos_cli.core.config import Resolved
from llmos_cli.errors import NotFound
from llmos_cli.operations import gate, lineage
from llmos_cli.operations.changed import changed
from llmos_cli.operations.environment import SOURCE, environment
from llmos_cli.operations.pipeline import code
from llmos_cli.operations.pipeline.files import Hashes, relative, tree
from llmos_cli.operations.pipeline.stages import EXPORT, PREFIX, Stage, calibration_of, data_sources

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.options.data import DataOptions

Facts = dict[str, Any]
FORMAT = 1


@dataclass(frozen=True)
class Given:
    """What stands in the place of the names of stages: `made`, stage -> the checkpoint that it made."""

    ws: Workspace
    made: Mapping[str, str]
    hashes: Hashes

    def revision(self, stage: Stage, word: str) -> str:
        """The id that a stage means by a revision."""
        return self.made[stage.reads[word]] if word in stage.reads else self.ws.resolve(word)


def facts(stage: Stage, given: Given) -> Facts:
    """Plain JSON values; every stage that it depends on has been done."""
    ws, resolved = given.ws, stage.resolved(given.ws)
    revisions = {word: given.revision(stage, word) for word in named(stage, resolved)}
    parent = revisions.get(stage.options.rev or "")
    return {
        "format": FORMAT,
        "verb": stage.verb,
        "config": _config(stage, resolved),
        "revisions": revisions,
        "data": _data(ws, stage, resolved, parent, given.hashes),
        "inputs": tree(ws.root, [*stage.options.inputs, *code.files(ws, stage, resolved)], given.hashes),
        "code": {"llmos": f"{__version__} {SOURCE[:12]}"},
        "environment": machine(timed(resolved)),
    }


def key_of(found: Facts) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def named(stage: Stage, resolved: Resolved | None) -> list[str]:
    """The revisions that a stage speaks of, each once."""
    words = [stage.options.rev] if stage.options.rev else []
    if stage.verb == "train" and resolved and resolved.config.train.teacher:
        words.append(resolved.config.train.teacher)
    if stage.verb == "eval" and resolved:
        words += gate.revisions(map(gate.parse, resolved.config.eval.require))
    return list(dict.fromkeys(words))


def _config(stage: Stage, resolved: Resolved | None) -> Mapping[str, Any]:
    if resolved is not None:
        return resolved.mapping
    if stage.verb == "export":
        return {"outputs": stage.options.outputs, **{name: stage.options.set.get(name) for name in EXPORT}}
    return {"sh": stage.options.sh, "variables": dict(stage.variables), "outputs": stage.options.outputs}


def _data(
    ws: Workspace, stage: Stage, resolved: Resolved | None, parent: str | None, hashes: Hashes
) -> Mapping[str, str]:
    """Of each source that the stage reads: its files' hashes, or what else tells its version."""
    if resolved is None or stage.verb == "deploy":
        return {}
    asked: DataOptions = resolved.config.data
    data = asked if stage.verb == "train" or parent is None else lineage.effective_data(ws, parent, asked)
    calibration = calibration_of(resolved)
    sources = [*data_sources(data), *([calibration] if calibration else [])]
    found: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        found |= dict(_versions(ws, source, data.format, hashes, split=source in data.splits.values()))
    return found


def _versions(
    ws: Workspace, source: str, format: str | None, hashes: Hashes, *, split: bool
) -> Iterator[tuple[str, str]]:
    from llmos_cli.data.places import filesystem, locate
    from llmos_cli.data.sources import BUILTIN

    if source.startswith(BUILTIN):
        yield source, "with Python"  # whose version is a fact of the environment
        return
    try:
        place = locate(source, format=format, root=ws.root)
    except NotFound:
        if not split:
            raise
        return  # a split may be named as its source calls it, which is no file
    if not place.files:
        yield source, "as the hub has it"
    for file in place.files:
        if "://" in file:
            system, path = filesystem(file)
            yield file, str(system.ukey(path))
        else:
            yield relative(ws.root, Path(file)), hashes.of(Path(file))


def timed(resolved: Resolved | None) -> bool:
    """Whether what the stage makes, or whether it passes, depends on how fast the machine is."""
    if resolved is None:
        return False
    options = resolved.mapping.get(resolved.verb) or {}
    return bool(
        (resolved.verb == "eval" and options.get("latency"))
        or options.get("target_latency")
        or options.get("max_seconds")
    )


@cache
def machine(timed: bool) -> Mapping[str, Any]:
    """The class of an environment: machines of one class make the same of the same."""
    found = environment()
    code = ("llmos", "llmos_source")
    own = code if timed else (*code, "threads", *(("device_name",) if found["device"] == "cpu" else ()))
    return {name: value for name, value in found.items() if name not in own}


def why(before: Mapping[str, Any], now: Facts) -> str:
    """In words, what is new since a stage was done: at most three things."""
    told = list(_told(before, now))
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return ", ".join(told[:3]) + more if told else "the key is another one"


def _told(before: Mapping[str, Any], now: Facts) -> Iterable[str]:
    for section in ("verb", "config", "revisions", "inputs", "data", "code", "environment", "format"):
        for change in changed({section: before.get(section)}, {section: now.get(section)}):
            yield _sentence(section, change.key.removeprefix(f"{section}."), change.before, change.after)


def _sentence(section: str, key: str, before: Any, after: Any) -> str:
    if section in ("inputs", "data"):
        return f"{key} is {'new' if before is None else 'gone' if after is None else 'another one'}"
    if section == "revisions":
        return f"{key.removeprefix(PREFIX)} is another checkpoint"
    if key == "llmos":
        return "llmos is another one"
    if isinstance(before, list) and isinstance(after, list):
        return _listed(key, before, after)
    return f"{key} was {_short(before)} and is {_short(after)}"


def _listed(key: str, before: list[Any], after: list[Any]) -> str:
    """What both have tells nothing, and would leave no room for the rest."""
    gone, new = ([each for each in these if each not in those] for these, those in ((before, after), (after, before)))
    if gone and new:
        return f"{key} was {_short(gone)} and is {_short(new)}"
    if gone or new:
        return f"{key} has {_short(new)} too" if new else f"{key} has {_short(gone)} no more"
    return f"{key} was {_short(before)} and is {_short(after)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
