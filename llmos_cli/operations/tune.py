"""`llmos tune`: search config keys for the values that train best; each trial is a training run that moves no branch.

The study lives in the workspace (or any Optuna storage) under a name: the same command goes on where it was cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler

from llmos_cli import catalog
from llmos_cli.core.config_edit import edited
from llmos_cli.core.operation import Change
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Note
from llmos_cli.methods.tune import Search
from llmos_cli.operations.config import note_unread
from llmos_cli.operations.tuning import study as studies
from llmos_cli.operations.tuning.plan import Plan, make_plan
from llmos_cli.operations.tuning.result import TunePlan, TuneResult, result
from llmos_cli.operations.tuning.search import search
from llmos_cli.operations.tuning.space import settings

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace


def rehearse(ws: Workspace, resolved: Resolved, *, apply: bool) -> TunePlan:
    """What `tune` would search, every key and option of it checked; the study is not opened."""
    plan = make_plan(ws, resolved, apply=apply)
    _, trials = _sampler(plan, told=0)
    return TunePlan(
        study=plan.name,
        storage=studies.without_password(plan.storage),
        sampler=plan.sampler,
        pruner=plan.pruner,
        objectives=plan.objectives,
        space={key: str(dimension) for key, dimension in plan.space.items()},
        fixed=plan.fixed,
        trials=trials,
        jobs=min(plan.options.jobs, trials),
    )


def tune(ws: Workspace, resolved: Resolved, *, apply: bool = False, emit: Emit) -> TuneResult:
    """Search until the study has `tune.trials` trials; with `apply`, write the best one's values into configs/train.yaml."""
    plan = make_plan(ws, resolved, apply=apply)
    study, limit = _open(plan)
    studies.reclaim(study)
    if len(studies.finished(study)) < limit:
        search(ws, plan, study, limit, resolved, emit)
    note_unread(resolved, lambda message: emit(Note(message, level="warning")))
    return result(plan, study, _apply(ws, plan, study) if apply else None)


def _open(plan: Plan) -> tuple[optuna.Study, int]:
    """The study, and how many trials it is to have."""
    storage = studies.open_storage(plan.storage)
    told = studies.told(plan.name, storage)
    sampler, limit = _sampler(plan, told=told)
    study = studies.open_study(plan.name, storage, plan.objectives, sampler, studies.pruner(plan.pruner, plan.startup))
    studies.check_space(study, plan.space)
    studies.keep(study, plan.kept)
    if plan.now is not None and not told and not plan.lists_all:
        study.enqueue_trial(dict(plan.now))  # so that the best is never worse than what is there
    return study, limit


def _sampler(plan: Plan, *, told: int) -> tuple[BaseSampler, int]:
    """The sampler, and how many trials there are to be: it may run out of new ones before."""
    module = catalog.method("tune", plan.sampler).load()
    grid = {key: dimension.values() for key, dimension in plan.space.items()}
    asked = Search(plan.seed, told, plan.startup, len(plan.objectives), grid)
    sampler: BaseSampler = module.sampler(plan.options.of_method(plan.sampler, module.Options), asked)
    return sampler, min(plan.options.trials, module.limit(asked)) if plan.lists_all else plan.options.trials


def _apply(ws: Workspace, plan: Plan, study: optuna.Study) -> dict[str, Any]:
    """Write the best trial's values into configs/train.yaml: one operation, which `undo` takes back."""
    best = studies.front(study)
    if not best:
        raise LlmosError("no trial was completed, so there is nothing to apply", hint="look at `llmos ps --all`")
    values = settings(plan.space, best[0].params)
    path = ws.configs / "train.yaml"
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    after = edited(before or "", values, file="configs/train.yaml")
    if after != before:
        ws.oplog.apply("tune --apply", [Change("configs/train.yaml", before, after)], emit=ws.emit)
    return values
