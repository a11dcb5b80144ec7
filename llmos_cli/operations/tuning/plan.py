"""The plan of a search, checked before any process starts: its keys, its objectives, its sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_cli import catalog, tasks
from llmos_cli.errors import UsageError
from llmos_cli.operations.config import no_task, resolve
from llmos_cli.operations.evaluations import key_of
from llmos_cli.operations.tuning import space as spaces
from llmos_cli.operations.tuning import study as studies
from llmos_cli.operations.tuning.resumption import resumption
from llmos_cli.operations.tuning.space import Space, settings
from llmos_cli.options.verbs import TuneOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class Plan:
    """A search, checked: what is varied, towards what, how, within which budget of each trial; `now` is where in the space the
    config stands, None for outside of it; `given_storage`: the storage, if it is not the workspace's own."""

    name: str
    storage: str
    given_storage: str | None
    space: Space
    objectives: Mapping[str, str]
    sampler: str
    pruner: str
    options: TuneOptions
    seed: int
    fixed: Mapping[str, Any]
    now: Mapping[str, Any] | None

    @property
    def startup(self) -> int:
        return self.options.startup_trials or max(1, min(10, self.options.trials // 3))

    @property
    def kept(self) -> dict[str, Any]:
        """What the study remembers: all that makes the search, as the options write it."""
        names = ("space", "trials", "sampler", "jobs", "max_seconds", "max_steps", "startup_trials")
        told = self.options.model_dump(mode="json")
        own = {self.sampler: told[self.sampler]} if self.sampler in told else {}
        return {name: told[name] for name in names} | {"objectives": self.objectives, "pruner": self.pruner} | own

    @property
    def lists_all(self) -> bool:
        """Whether the sampler goes through all points there are, and so knows their number."""
        return hasattr(catalog.method("tune", self.sampler).load(), "limit")


def make_plan(ws: Workspace, resolved: Resolved, *, apply: bool) -> Plan:
    """`apply`: whether the best trial's values are to be written."""
    options = resumption(ws, resolved)
    space = spaces.read(options.space)
    train = resolve(ws, "train")
    _check_edges(ws, space)
    objectives = dict(options.objectives) or _own_objective(ws, train.config.data.task)
    _check_measured(objectives, train.config.data.task)
    pruner = options.pruner or ("median" if len(objectives) == 1 else "none")
    if len(objectives) > 1:
        _check_several(objectives, pruner, apply=apply)
    fixed = _fixed(options, space)
    return Plan(
        name=options.study or _own_name(options, objectives, fixed, train),
        storage=studies.storage_url(options.storage, ws.dot),
        given_storage=options.storage,
        space=space,
        objectives=objectives,
        sampler=options.sampler,
        pruner=pruner,
        options=options,
        seed=resolved.config.seed,
        fixed=fixed,
        now=spaces.place_of(space, train.mapping),
    )


def _check_edges(ws: Workspace, space: Space) -> None:
    """The training config must take both ends of every key's values."""
    for edge in (0, -1):
        flags = settings(space, {key: dimension.edges()[edge] for key, dimension in space.items()})
        resolve(ws, "train", flags=flags)


def _own_objective(ws: Workspace, task_name: str | None) -> dict[str, str]:
    if task_name is None:
        raise no_task(ws)
    task = tasks.load(task_name)
    return {task.metric: "minimize" if task.lower_is_better else "maximize"}


def _check_measured(objectives: Mapping[str, str], task_name: str | None) -> None:
    """A metric that nothing gives would be missed only after a whole trial."""
    units = {name for method in catalog.methods("eval").values() for name in method.load().UNITS}
    known = units | set(tasks.load(task_name).metric_names() if task_name is not None else ())
    missing = [name for name in objectives if name not in known]
    if task_name is not None and missing:
        raise UsageError(f"no trial measures {missing[0]}", hint=f"objectives can be: {', '.join(sorted(known))}")


def _check_several(objectives: Mapping[str, str], pruner: str, *, apply: bool) -> None:
    if pruner != "none":
        raise UsageError(
            f"the pruner {pruner} cannot compare trials by several objectives ({', '.join(objectives)})",
            hint="set tune.pruner: none, or search for one objective",
        )
    if apply:
        raise UsageError(
            "--apply needs one best trial, and several objectives give a front of them",
            hint="choose one from the front and set its values in configs/train.yaml",
        )


def _fixed(options: TuneOptions, space: Space) -> dict[str, Any]:
    """What all trials share. They are short: compiling would take longer than it saves."""
    budget = {"train.max_seconds": options.max_seconds, "train.max_steps": options.max_steps, "train.compile": "off"}
    return {key: value for key, value in budget.items() if value is not None and key not in space}


def _own_name(options: TuneOptions, objectives: Mapping[str, str], fixed: Mapping[str, Any], train: Resolved) -> str:
    """The same for the same search of the same training, so that the same command goes on with it."""
    described = {"space": options.space, "objectives": objectives, "sampler": options.sampler, "fixed": fixed}
    return f"tune-{key_of({**described, 'train': train.mapping})[:8]}"
