"""The command line and the variables of a stage: what a person could type."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmos_cli.operations.pipeline.facts import Facts
from llmos_cli.operations.pipeline.stages import EXPORT, Stage

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

RESUMABLE = ("train", "prune", "quantize", "compress")
FLAGS = dict(zip(EXPORT, ("--format", "--type", "--dequantize", "--standalone"), strict=True))


def command(ws: Workspace, stage: Stage, facts: Facts, *, resume: str = "") -> list[str]:
    """What a stage runs; `resume`: the run that it goes on with."""
    if stage.options.sh is not None:
        return ["/bin/sh", "-c", stage.options.sh]
    words = [sys.executable, "-m", "llmos_cli", stage.verb, "--json"]
    if stage.verb in ("train", "prune", "quantize", "compress"):
        words.append("--keep-branch")
    if resume:
        return [*words, "--resume", "--run", resume]
    revisions = facts["revisions"]
    if stage.options.rev:
        words.append(revisions[stage.options.rev])
    if stage.verb == "export":
        return [*words, "-o", str(ws.root / stage.options.outputs[0]), *_flags(stage)]
    for file in stage.options.config:
        words += ["-c", str(ws.root / file)]
    for assignment in stage.sets:
        words += ["-s", assignment]
    if stage.verb == "train" and (teacher := facts["config"]["train"]["teacher"]):
        words += ["-s", f"train.teacher={revisions[teacher]}"]
    for text in facts["config"]["eval"]["require"] if stage.verb == "eval" else ():
        words += ["--require", by_id(text, revisions)]
    return [*words, "--detach"] if stage.verb == "deploy" else words


def by_id(text: str, revisions: Mapping[str, str]) -> str:
    """A gate with the ids of the checkpoints that it names."""
    from llmos_cli.operations import gate

    bound = gate.parse(text).bound
    if not bound.revision:
        return text
    found = gate.parse(text)
    return f"{found.metric} {found.op} {bound.factor!r} * {bound.metric}@{revisions[bound.revision]}"


def by_name(text: str, revisions: Mapping[str, str]) -> str:
    """The other way round, for people."""
    for word, checkpoint in revisions.items():
        text = text.replace(checkpoint, word)
    return text


def _flags(stage: Stage) -> list[str]:
    words: list[str] = []
    for key, flag in FLAGS.items():
        value = stage.options.set.get(key)
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, str(value)]
    return words


def environment(ws: Workspace, stage: Stage, facts: Facts, threads: int) -> dict[str, str]:
    """For a command: its variables, and the checkpoint of its REV as an id and a folder."""
    given = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if stage.options.sh is not None:
        given |= stage.variables
        if stage.options.rev:
            checkpoint = facts["revisions"][stage.options.rev]
            given |= {"LLMOS_REV": checkpoint, "LLMOS_CHECKPOINT": str(ws.checkpoint(checkpoint).path)}
    return given
