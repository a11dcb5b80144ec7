"""The stages that llmos.yaml describes: read, multiplied by `foreach`, and put in the order in which they depend on each other.

A stage depends on another whose result is its REV, its teacher or a bound of its gates; that writes a file which it reads as
an input, a config or data; or that it says it needs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from llmos_cli.catalog import did_you_mean
from llmos_cli.core import config as configs
from llmos_cli.core import own, settings, yaml12
from llmos_cli.core.config import Resolved
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.core.yaml12 import Node
from llmos_cli.errors import ConfigError, LlmosError, NotFound
from llmos_cli.operations import gate
from llmos_cli.operations.config import resolve
from llmos_cli.operations.pipeline import foreach
from llmos_cli.options.data import DataOptions
from llmos_cli.options.pipeline import StageOptions

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
PREFIX = "stages/"
EXPORT = ("export.format", "export.type", "export.dequantize", "export.standalone")


@dataclass(frozen=True)
class Stage:
    """`verb` is `sh` for a shell command; `family` the name without what `foreach` appended; `needs`: the stages that it depends
    on, in the pipeline's order; `reads`: those of them whose checkpoint it reads, under the words by which it names them."""

    name: str
    family: str
    verb: str
    options: StageOptions
    variables: Mapping[str, str]
    needs: tuple[str, ...] = ()
    reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def sets(self) -> list[str]:
        """As `-s` takes them; an export's are flags of its command."""
        return [f"{key}={yaml12.dump(value)}" for key, value in self.options.set.items() if key not in EXPORT]

    def resolved(self, ws: Workspace) -> Resolved | None:
        """Its config as it would run now; None for what has none."""
        if self.verb in ("sh", "export"):
            return None
        flags = {"eval.require": self.options.require or None} if self.verb == "eval" else {}
        files = [ws.root / file for file in self.options.config]
        return resolve(ws, self.verb, files=files, sets=self.sets, flags=flags)


def read(ws: Workspace) -> list[Stage]:
    """All stages, each after those it depends on; NotFound where there is no pipeline, ConfigError with the place of what is wrong."""
    node = _written(ws)
    if node is None:
        raise NotFound(
            "llmos.yaml has no `pipeline:`", hint="docs/guide.md shows one; `llmos train` and its like need none"
        )
    _check_text(node)
    for name, child in node.mapping.items():
        _check_name(name, child)
    axes = foreach.read(node)
    written = [stage for name, child in node.mapping.items() for stage in _multiplied(name, child, axes[name])]
    _check_outputs(written, node)
    return _ordered([_connected(ws, stage, written, node) for stage in written], node)


def there(ws: Workspace) -> bool:
    return _written(ws) is not None


def names(ws: Workspace) -> set[str] | None:
    """Of the stages that there are; None where llmos.yaml cannot be read."""
    try:
        return {stage.name for stage in read(ws)} if there(ws) else set()
    except LlmosError:
        return None


def _written(ws: Workspace) -> Node | None:
    settings.must_be_there(ws.root)
    path = ws.root / settings.NAME
    node = configs.read_file(path, ws.root).mapping.get("pipeline") if path.is_file() else None
    return node if node is not None and node.mapping else None


def chosen(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """The stages (or families) of those names, and all that they depend on; every stage when none is named."""
    if not names:
        return list(stages)
    known = {stage.name for stage in stages} | {stage.family for stage in stages}
    for name in names:
        if name not in known:
            raise NotFound(f"there is no stage called {name!r}", hint=did_you_mean(name, known))
    wanted = {stage.name for stage in stages if stage.name in names or stage.family in names}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted |= set(stage.needs)
    return [stage for stage in stages if stage.name in wanted]


def _multiplied(name: str, node: Node, axes: foreach.Axes) -> Iterator[Stage]:
    """One stage, or one for each combination of what `foreach` lists."""
    seen: set[str] = set()
    for full, variables in foreach.combinations(name, axes):
        options = _checked(foreach.substituted(node, variables), name)
        if full in seen:
            raise ConfigError(
                f"two stages would be called {full}", hint="let their values differ", place=node.key_place
            )
        seen.add(full)
        told = {variable: foreach.text(value) for variable, value in variables.items()}
        yield Stage(full, name, options.verb or "sh", options, told)


def _check_text(node: Node) -> None:
    """All of it may become a file, a variable or an argument of a command, and the system ends each of those at a NUL."""
    children = node.value if isinstance(node.value, list) else node.mapping.values()
    for child in children:
        _check_text(child)
    if isinstance(node.value, str) and "\0" in node.value:
        raise ConfigError("a pipeline cannot have a NUL character in it", hint="leave it out", place=node.place)


def _check_name(name: str, node: Node) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a stage", hint="letters, digits, `-`, `_` and `.`", place=node.key_place
        )
    if name == "stages" and _holds_stages(node):
        raise ConfigError("stages stand directly under `pipeline:`", hint="leave `stages:` out", place=node.key_place)


def _holds_stages(node: Node) -> bool:
    """Another program's layout: what stands here are no keys of a stage, but stages by name."""
    children = node.value if isinstance(node.value, dict) else {}
    return (
        bool(children)
        and all(isinstance(each.value, dict) for each in children.values())
        and not (children.keys() & StageOptions.model_fields.keys())
    )


def _checked(node: Node, name: str) -> StageOptions:
    options = configs.check(node, StageOptions)
    assert isinstance(options, StageOptions), "it is what was checked"
    wrong = _misfit(options)
    if wrong:
        raise ConfigError(f"stage {name}: {wrong[0]}", hint=wrong[1], place=node.key_place)
    return options


def _misfit(options: StageOptions) -> tuple[str, str] | None:
    """What a stage of its kind cannot have, and what to do."""
    verb = options.verb
    if (verb is None) == (options.sh is None):
        return "it has either a verb or a shell command", "`verb: train`, or `sh: python clean.py`"
    if verb not in ("train", None) and options.rev is None:
        return f"{verb} needs a REV", "`rev:` names another stage, or a checkpoint"
    if options.require and verb != "eval":
        return "only eval has gates", "give `require:` to a stage with `verb: eval`"
    if options.sh is not None and (options.set or options.config):
        return "a shell command has no config", "leave `set:` and `config:` out"
    if verb == "export" and (len(options.outputs) != 1 or options.config):
        return "an export has one output, and no config", "`outputs: [out/model]`"
    if verb not in ("export", None) and options.outputs:
        return f"{verb} writes no files of yours", "`outputs:` is for shell commands and exports"
    for key in options.set:
        if key.startswith("export.") and key not in EXPORT:
            return f"there is no option {key}", f"there are: {', '.join(EXPORT)}"
    for path in options.outputs:
        if not writable(path):
            return f"{path} is no place for an output", "name a path within the workspace's folder that is not its own"
    return None


def writable(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and pure.parts[0] not in own.NAMES


def _check_outputs(stages: Sequence[Stage], node: Node) -> None:
    writing = [stage for stage in stages if stage.options.outputs]
    for one, other in itertools.combinations(writing, 2):
        for path in one.options.outputs:
            if any(overlap(path, theirs) for theirs in other.options.outputs):
                place = node.mapping[other.family].key_place
                raise ConfigError(
                    f"{one.name} and {other.name} both write {path}", hint="give each its own", place=place
                )


def overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _connected(ws: Workspace, stage: Stage, stages: Sequence[Stage], node: Node) -> Stage:
    """With what it depends on filled in."""
    place = node.mapping[stage.family].key_place
    named = {word: found for word in _revisions(ws, stage) if (found := _stage_of(ws, word, stages, place))}
    files = [_below(ws, file) for file in (*stage.options.inputs, *stage.options.config, *data_of(ws, stage))]
    writers = [
        other.name for other in stages
        if other.name != stage.name and any(overlap(file, out) for file in files for out in other.options.outputs)
    ] if files else []  # fmt: skip
    needed = [name for word in stage.options.needs for name in _needed(word, stages, place)]
    needs = {*named.values(), *writers, *needed}
    if stage.name in needs:
        raise ConfigError(f"{stage.name} depends on itself", hint="let it name another stage", place=place)
    return replace(stage, needs=tuple(other.name for other in stages if other.name in needs), reads=named)


def _revisions(ws: Workspace, stage: Stage) -> Iterator[str]:
    """Where a stage names checkpoints."""
    if stage.options.rev is not None:
        yield stage.options.rev
    resolved = stage.resolved(ws)
    if stage.verb == "train" and resolved and resolved.config.train.teacher:
        yield resolved.config.train.teacher
    if stage.verb == "eval" and resolved:
        yield from gate.revisions(map(gate.parse, resolved.config.eval.require))


def _stage_of(ws: Workspace, word: str, stages: Sequence[Stage], place: Any) -> str | None:
    """The stage that a revision names, None where it names a checkpoint that is there already."""
    names = {stage.name for stage in stages}
    if word.startswith(PREFIX):
        return word.removeprefix(PREFIX) if word.removeprefix(PREFIX) in names else None
    family = [stage.name for stage in stages if stage.family == word and stage.name != word]
    if family:
        raise ConfigError(f"{word} is several stages", hint=f"name one: {', '.join(family)}", place=place)
    if word not in names:
        return None
    for prefix, kind in ((HEADS, "heads"), (TAGS, "tags")):
        if ws.refs.read(prefix + word):
            raise ConfigError(
                f"{word} is a stage, and {kind}/{word} is another checkpoint",
                hint=f"say {PREFIX}{word} or {kind}/{word}",
                place=place,
            )
    return word


def _needed(word: str, stages: Iterable[Stage], place: Any) -> list[str]:
    found = [stage.name for stage in stages if word in (stage.name, stage.family)]
    if not found:
        hint = did_you_mean(word, [stage.name for stage in stages])
        raise ConfigError(f"there is no stage called {word!r} to need", hint=hint, place=place)
    return found


def data_of(ws: Workspace, stage: Stage) -> list[str]:
    """The sources that its config names; those of a checkpoint's record are read by whoever made that."""
    resolved = stage.resolved(ws)
    data = getattr(resolved.config, "data", None) if resolved else None
    found = data_sources(data) if isinstance(data, DataOptions) else []
    return [*found, *([calibration] if resolved and (calibration := calibration_of(resolved)) else [])]


def calibration_of(resolved: Resolved) -> str | None:
    """The source that a compression is calibrated on, where its config names one."""
    return getattr(getattr(resolved.config, resolved.verb), "calibration", None)


def data_sources(data: DataOptions) -> list[str]:
    given = data.source if isinstance(data.source, list) else [data.source]
    sources = [each if isinstance(each, str) else each.source for each in given if each is not None]
    return [*sources, *data.splits.values(), *([data.tokenizer.path] if data.tokenizer.path else [])]


def _below(ws: Workspace, file: str) -> str:
    """A path as outputs are written: relative to the workspace's folder."""
    pure = PurePosixPath(file)
    return str(pure.relative_to(ws.root)) if pure.is_absolute() and pure.is_relative_to(ws.root) else str(pure)


def _ordered(stages: Sequence[Stage], node: Node) -> list[Stage]:
    """As written, but each after what it depends on."""
    placed: dict[str, Stage] = {}
    waiting = list(stages)
    while waiting:
        ready = next((stage for stage in waiting if all(need in placed for need in stage.needs)), None)
        if ready is None:
            circle = ", ".join(stage.name for stage in waiting)
            place = node.mapping[waiting[0].family].key_place
            raise ConfigError(f"these stages wait for one another: {circle}", hint="let one of them begin", place=place)
        placed[ready.name] = ready
        waiting.remove(ready)
    return list(placed.values())
