"""`--resume` of prune, quantize and compress: an interrupted run goes on, as it was begun, where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmos_cli.core import atomic, kept
from llmos_cli.core import config as configs
from llmos_cli.core.config import Resolved
from llmos_cli.core.listing import read_text
from llmos_cli.errors import GateFailed, NotFound, UsageError
from llmos_cli.events import Emit
from llmos_cli.models.statistics import Need
from llmos_cli.operations import lineage
from llmos_cli.operations.compression.memory import room
from llmos_cli.operations.compression.subject import Calibration, Subject, calibration, precision_of, precision_told
from llmos_cli.operations.config import methods
from llmos_cli.options.verbs import ROOTS, Compressing

if TYPE_CHECKING:
    from llmos_cli.core.records import RunRecord
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace

Result = TypeVar("Result")
CarryOut = Callable[["Workspace", "Run", "Checkpoint", Resolved], Result]
SEEN = "calibration.json"


def resume(ws: Workspace, verb: str, name: str | None, carry_out: CarryOut[Result], *, emit: Emit) -> Result:
    """Go on with the run `name`, or the current branch's last one of `verb` that did not end well."""
    record = ws.runs.find(name) if name else _last_interrupted(ws, verb)
    if record.operation != verb:
        raise UsageError(f"run {record.id} is no {verb} run", hint="`llmos ps --all` lists every run")
    if record.status == "failed" and record.exit_code == GateFailed.exit_code:
        raise UsageError(
            f"run {record.id} was refused by its guards, and would be again: there is nothing to resume",
            hint="begin again: compress less, or heal longer",
        )
    config = configs.check(configs.read_file(kept.require(record.path, kept.CONFIG)), ROOTS[verb], methods=methods)
    resolved = Resolved(verb, config, config.model_dump(mode="json"), {}, ())
    with ws.runs.resume(record.id) as run:
        run.listen(emit)
        return carry_out(ws, run, ws.checkpoint(run.started.parents[0]), resolved)


def as_begun(ws: Workspace, parent: Checkpoint, resolved: Resolved) -> dict[str, Any]:
    """The config that a run records, and is resumed with: the data that its parent brings along included, and what was measured to
    be faster here."""
    data = lineage.effective_data(ws, parent.id, resolved.config.data)
    options: Compressing = getattr(resolved.config, resolved.verb)
    told = {**resolved.mapping[resolved.verb], "precision": precision_told(options, parent)}
    return {**resolved.mapping, resolved.verb: told, "data": data.model_dump(mode="json")}


def calibrated(
    ws: Workspace,
    run: Run,
    model: Subject,
    resolved: Resolved,
    needs: Collection[Need],
    *,
    labelled: bool = False,
    learns: bool = False,
) -> Calibration:
    """The calibration samples that the config asks for; UsageError where an earlier process of the run saw others.

    `learns`: the method draws minibatches from what is run together, so that no budget may make that less.
    """
    options: Compressing = getattr(resolved.config, resolved.verb)
    samples = calibration(
        model,
        options.calibration_samples,
        needs,
        labelled=labelled,
        seed=resolved.config.seed,
        source=options.calibration,
        cache=ws.cache,
        room=None if learns else room(options),
    )
    same_calibration(run.state, samples.record)
    return replace(samples, dtype=precision_of(options, model.checkpoint))


def same_calibration(state: Path, record: Mapping[str, Any]) -> None:
    """Remember what a run is calibrated on; UsageError where an earlier process of it saw other samples."""
    file = state / SEEN
    if not file.is_file():
        atomic.write_text(file, json.dumps(dict(record), sort_keys=True))
    elif json.loads(read_text(file)) != dict(record):
        raise UsageError(
            "the calibration data is not what it was when this run began, so its finished blocks do not fit the others",
            hint="begin again without --resume",
        )


def _last_interrupted(ws: Workspace, verb: str) -> RunRecord:
    base = ws.head().name
    for record in reversed(ws.runs.list()):
        if record.operation == verb and record.base == base and not record.alive and record.status != "done":
            return record
    raise NotFound(f"no {verb} run on {base} was interrupted", hint="`llmos ps --all` lists runs; `--run ID` names one")
