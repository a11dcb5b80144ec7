"""`llmos tune`: search config keys for the values that train best; each trial is a training run that moves no branch.

The study lives in the workspace (or any Optuna storage) under a name: the same command goes on where it was cut off.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from llmos_cli import catalog, tasks
from llmos_cli.core.config_edit import edited
from llmos_cli.core.operation import Change
from llmos_cli.core.view import Cell, Group, Lines, Span, Table, View, duration, number, short
from llmos_cli.errors import Interrupted, LlmosError, Terminated, UsageError
from llmos_cli.events import Emit, Note, Progress
from llmos_cli.methods.tune import Search
from llmos_cli.operations import space as spaces
from llmos_cli.operations import study as studies
from llmos_cli.operations.config import note_unread, resolve
from llmos_cli.operations.evaluations import key_of
from llmos_cli.operations.space import Space, settings
from llmos_cli.operations.trials import Job, Message, Reported, Stopped, Trained, Workers
from llmos_cli.options.verbs import TuneOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace

HOPELESS = 3
"""So many failures and nothing else: the search ends, for it is the config that is wrong."""
SHOWN = 12
"""Trials in the table; `--json` has them all."""


@dataclass(frozen=True)
class TrialRow:
    """`state`: complete, pruned or failed (then `reason` says why); `values` by objective; `settings` by config key."""

    number: int
    state: str
    values: Mapping[str, float]
    settings: Mapping[str, Any]
    checkpoint: str
    run: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class TuneResult:
    """`trials` best first; `front`: numbers of the best trial, or of the Pareto front; `importances` by config key, summing to
    one; `applied`: what was written into configs/train.yaml."""

    study: str
    storage: str
    sampler: str
    objectives: Mapping[str, str]
    trials: Sequence[TrialRow]
    front: Sequence[int]
    importances: Mapping[str, float]
    applied: Mapping[str, Any] | None

    def view(self) -> View:
        front = [row for row in self.trials if row.number in self.front]
        several = len(self.objectives) > 1
        title = "no other trial is better in every objective than these" if several else ""
        return Group(
            [
                self._table(self.trials[:SHOWN]),
                self._table(front, title) if several else Lines([]),
                self._importances(),
                self._remarks(),
            ]
        )

    def _table(self, rows: Sequence[TrialRow], title: str = "") -> Table:
        keys = list(dict.fromkeys(key for row in self.trials for key in row.settings))
        cells: list[list[Cell]] = [
            [
                row.number,
                Span(row.state, "good" if row.number in self.front else "bad" if row.state == "failed" else "dim"),
                *(row.values.get(name) for name in self.objectives),
                *(_cell(row.settings.get(key)) for key in keys),
                duration(row.seconds) if row.seconds else None,
                Span(short(row.checkpoint), "id") if row.checkpoint else None,
            ]
            for row in rows
        ]
        return Table(["trial", "state", *self.objectives, *keys, "time", "checkpoint"], cells, title=title)

    def _importances(self) -> Table | Lines:
        if not self.importances:
            return Lines([])
        rows: list[list[Cell]] = [[key, f"{100 * share:.0f} %"] for key, share in self.importances.items()]
        return Table(["importance", ""], rows, align="lr")

    def _remarks(self) -> Lines:
        lines: list[Any] = [
            Span(f"trial {row.number}: {row.reason}", "dim") for row in self.trials if row.state == "failed"
        ]
        if self.applied:
            told = ", ".join(f"{key}: {value}" for key, value in self.applied.items())
            lines.append(f"written into configs/train.yaml: {told} (`llmos undo` takes it back)")
        return Lines([*lines, Span(f"study {self.study}", "dim")])


def _cell(value: Any) -> Cell:
    return (
        value if value is None or (isinstance(value, int | float | str) and not isinstance(value, bool)) else str(value)
    )


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


@dataclass(frozen=True)
class TunePlan:
    """`space` by config key, in words; `fixed`: config keys that all trials share; `trials`: how many the study is to have."""

    study: str
    storage: str
    sampler: str
    pruner: str
    objectives: Mapping[str, str]
    space: Mapping[str, str]
    fixed: Mapping[str, Any]
    trials: int
    jobs: int

    def view(self) -> View:
        towards = _towards(self.objectives)
        rows: list[list[Cell]] = [[key, values] for key, values in self.space.items()]
        rows += [[key, str(value)] for key, value in self.fixed.items()]
        lines: list[Any] = [
            f"{self.trials} trials, {self.jobs} at a time, by {self.sampler}: {towards}; stopped early by: {self.pruner}",
            Span(f"study {self.study}", "dim"),
        ]
        return Group([Table(["key", "values"], rows, align="ll"), Lines(lines)])


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
        _search(ws, plan, study, limit, resolved, emit)
    note_unread(resolved, lambda message: emit(Note(message, level="warning")))
    return _result(plan, study, _apply(ws, plan, study) if apply else None)


def make_plan(ws: Workspace, resolved: Resolved, *, apply: bool) -> Plan:
    """Check the search before any process starts: its keys, its objectives, its sampler."""
    options = _options(ws, resolved)
    space = spaces.read(options.space)
    train = resolve(ws, "train")
    for edge in (0, -1):
        resolve(ws, "train", flags=settings(space, {key: _edge(dimension, edge) for key, dimension in space.items()}))
    objectives = dict(options.objectives) or _own_objective(train.config.data.task)
    _check_measured(objectives, train.config.data.task)
    pruner = options.pruner or ("median" if len(objectives) == 1 else "none")
    if len(objectives) > 1 and pruner != "none":
        raise UsageError(
            f"the pruner {pruner} cannot compare trials by several objectives ({', '.join(objectives)})",
            hint="set tune.pruner: none, or search for one objective",
        )
    if len(objectives) > 1 and apply:
        raise UsageError(
            "--apply needs one best trial, and several objectives give a front of them",
            hint="choose one from the front and set its values in configs/train.yaml",
        )
    fixed = _fixed(options, space)
    described = {"space": options.space, "objectives": objectives, "sampler": options.sampler, "fixed": fixed}
    name = options.study or f"tune-{key_of({**described, 'train': train.mapping})[:8]}"
    now = spaces.place_of(space, train.mapping)
    return Plan(
        name=name,
        storage=_storage(ws, options),
        given_storage=options.storage,
        space=space,
        objectives=objectives,
        sampler=options.sampler,
        pruner=pruner,
        options=options,
        seed=resolved.config.seed,
        fixed=fixed,
        now=now,
    )


def _storage(ws: Workspace, options: TuneOptions) -> str:
    return options.storage or f"sqlite:///{ws.dot / 'studies.sqlite'}"


def _options(ws: Workspace, resolved: Resolved) -> TuneOptions:
    """The options of the study that was asked for by name: what it was made with, where the user does not say otherwise now.
    UsageError for what would make it another search."""
    options: TuneOptions = resolved.config.tune
    kept = _kept(options.study, _storage(ws, options)) if options.study else {}
    if not kept:
        return options
    said = {key for key in kept if _said(key, resolved)}
    space = spaces.read(kept["space"])
    if "space" in said and spaces.read(options.space) != space:
        told = "; ".join(f"{key}: {dimension}" for key, dimension in space.items())
        raise UsageError(
            f"study {options.study} searches {told}",
            hint="drop tune.space to go on with it, or give --study another name",
        )
    if (
        "objectives" in said
        and options.objectives
        and list(options.objectives.items()) != list(kept["objectives"].items())
    ):
        raise UsageError(
            f"study {options.study} searches for {_towards(kept['objectives'])}, not {_towards(options.objectives)}",
            hint="drop tune.objectives to go on with it, or give --study another name",
        )
    fixed = {"space", "objectives"}
    return options.model_copy(update={key: kept[key] for key in kept if key in fixed or key not in said})


def _kept(name: str, storage: str) -> dict[str, Any]:
    """Looking makes no database where there is none."""
    file = storage.removeprefix("sqlite:///")
    return (
        {}
        if file != storage and not Path(file.partition("?")[0]).is_file()
        else studies.kept(name, studies.open_storage(storage))
    )


def _said(key: str, resolved: Resolved) -> bool:
    """Whether the user sets `tune.KEY` for this study: where it is named on the command line, there. The files may be about
    any other, but are about this one where they name it."""
    told = [origin for leaf, origin in resolved.origin.items() if f"{leaf}.".startswith(f"tune.{key}.")]
    if _of_a_file(resolved.origin.get("tune.study", ""), resolved):
        return bool(told)
    return any(not _of_a_file(origin, resolved) for origin in told)


def _of_a_file(origin: str, resolved: Resolved) -> bool:
    return origin.startswith((f"configs/{resolved.verb}.yaml:", "llmos.yaml:"))


def _towards(objectives: Mapping[str, str]) -> str:
    return ", ".join(f"{direction} {name}" for name, direction in objectives.items())


def _edge(dimension: spaces.Dimension, edge: int) -> Any:
    values = dimension.values()
    if values is not None:
        return values[edge]
    assert isinstance(dimension, spaces.Range)
    return dimension.low if edge == 0 else dimension.high


def _own_objective(task_name: str | None) -> dict[str, str]:
    if task_name is None:
        raise UsageError(
            "data.task is not set in configs/train.yaml", hint=f"set it to one of {', '.join(tasks.names())}"
        )
    task = tasks.load(task_name)
    return {task.metric: "minimize" if task.lower_is_better else "maximize"}


def _check_measured(objectives: Mapping[str, str], task_name: str | None) -> None:
    """A metric that nothing gives would be missed only after a whole trial."""
    units = {name for method in catalog.methods("eval").values() for name in method.load().UNITS}
    known = units | set(tasks.load(task_name).metric_names() if task_name is not None else ())
    missing = [name for name in objectives if name not in known]
    if task_name is not None and missing:
        raise UsageError(f"no trial measures {missing[0]}", hint=f"objectives can be: {', '.join(sorted(known))}")


def _fixed(options: TuneOptions, space: Space) -> dict[str, Any]:
    """What all trials share. They are short: compiling would take longer than it saves."""
    budget = {"train.max_seconds": options.max_seconds, "train.max_steps": options.max_steps, "train.compile": "off"}
    return {key: value for key, value in budget.items() if value is not None and key not in space}


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
    search = Search(plan.seed, told, plan.startup, len(plan.objectives), grid)
    sampler: BaseSampler = module.sampler(plan.options.of_method(plan.sampler, module.Options), search)
    return sampler, min(plan.options.trials, module.limit(search)) if plan.lists_all else plan.options.trials


def _search(ws: Workspace, plan: Plan, study: optuna.Study, limit: int, resolved: Resolved, emit: Emit) -> None:
    try:
        recorded = {**resolved.mapping, "tune": plan.options.model_dump(mode="json")}
        with ws.begin("tune", config=recorded, files=resolved.files, name=plan.name) as run:
            run.listen(emit)
            with Workers(ws.root, min(plan.options.jobs, limit)) as workers:
                _Search(plan, study, limit, run.emit).to_the_end(workers)
    except (Interrupted, Terminated) as stopped:
        done = len(studies.finished(study))
        stopped.message = f"{stopped.message} after {done} of {limit} trials"
        stopped.hint = going_on(plan)
        raise


def going_on(plan: Plan) -> str:
    """How the search is gone on with: the rest is kept in the study, but where that lies is not."""
    command = ["llmos", "tune", "--study", plan.name]
    if plan.given_storage is None:
        return f"`{shlex.join(command)}` goes on"
    storage = studies.without_password(plan.given_storage)
    secret = " (with the password in the URL)" if storage != plan.given_storage else ""
    return f"`{shlex.join([*command, '--storage', storage])}` goes on{secret}"


class _Search:
    """The search while it lasts: which trial is in which worker, and what came of the others."""

    def __init__(self, plan: Plan, study: optuna.Study, limit: int, emit: Emit) -> None:
        self.plan, self.study, self.limit, self.emit = plan, study, limit, emit
        self.running: dict[int, optuna.Trial] = {}
        self.failed_first = 0

    def to_the_end(self, workers: Workers) -> None:
        try:
            self._begin(workers)
            while self.running:
                for worker in workers.heard():
                    message = worker.receive()
                    if isinstance(message, Reported):
                        worker.connection.send(self._goes_on(message))
                    else:
                        self._tell(message)
                self._begin(workers)
        finally:
            for trial in self.running.values():
                studies.put_back(self.study, trial)

    def _begin(self, workers: Workers) -> None:
        for worker in workers.idle():
            if len(studies.finished(self.study)) + len(self.running) < self.limit:
                trial = studies.ask(self.study, self.plan.space)
                self.running[trial.number] = trial
                values = {**self.plan.fixed, **settings(self.plan.space, trial.params)}
                worker.begin(Job(trial.number, values, list(self.plan.objectives), self.plan.pruner != "none"))

    def _goes_on(self, reported: Reported) -> bool:
        trial = self.running[reported.number]
        trial.report(reported.value, reported.step)
        self._progress(running=reported.value)
        return not trial.should_prune()

    def _tell(self, message: Trained | Stopped) -> None:
        trial = self.running.pop(message.number)
        trial.set_user_attr("run", message.run)
        if isinstance(message, Trained):
            trial.set_user_attr("checkpoint", message.checkpoint)
            trial.set_user_attr("seconds", message.seconds)
            self.study.tell(trial, list(message.values))
        elif message.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr("reason", message.reason)
            self.study.tell(trial, state=TrialState.FAIL)
        self.emit(Note(self._sentence(message, trial)))
        self._progress()
        self._give_up_if_hopeless(message)

    def _sentence(self, message: Trained | Stopped, trial: optuna.Trial) -> str:
        values = " ".join(f"{key}={_short(value)}" for key, value in settings(self.plan.space, trial.params).items())
        if isinstance(message, Trained):
            found = " ".join(
                f"{name} {number(value)}" for name, value in zip(self.plan.objectives, message.values, strict=True)
            )
            return f"trial {trial.number}: {found}  ({values})"
        return f"trial {trial.number}: {message.reason}  ({values})"

    def _progress(self, **running: float) -> None:
        best = {"best": trials[0].values[0]} if (trials := studies.front(self.study)) else {}
        done = len(studies.finished(self.study))
        self.emit(Progress("tune", done, self.limit, unit="trial", values={**best, **running}))

    def _give_up_if_hopeless(self, message: Message) -> None:
        done = studies.finished(self.study)
        if len(done) >= min(HOPELESS, self.limit) and all(trial.state == TrialState.FAIL for trial in done):
            reason = message.reason if isinstance(message, Stopped) else ""
            raise LlmosError(
                f"all of the first {len(done)} trials failed: {reason}", hint="`llmos ps --all` lists their runs"
            )


def _short(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


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


def _result(plan: Plan, study: optuna.Study, applied: Mapping[str, Any] | None) -> TuneResult:
    rows = [_row(plan, trial) for trial in studies.ranked(study, studies.finished(study))]
    return TuneResult(
        study=plan.name,
        storage=studies.without_password(plan.storage),
        sampler=plan.sampler,
        objectives=plan.objectives,
        trials=rows,
        front=[trial.number for trial in studies.front(study)],
        importances=studies.importances(study),
        applied=applied,
    )


def _row(plan: Plan, trial: FrozenTrial) -> TrialRow:
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    values = trial.values if trial.state == TrialState.COMPLETE else None
    attributes = trial.user_attrs
    return TrialRow(
        number=trial.number,
        state=states[trial.state],
        values=dict(zip(plan.objectives, values, strict=True)) if values else {},
        settings=settings(plan.space, trial.params),
        checkpoint=attributes.get("checkpoint", ""),
        run=attributes.get("run", ""),
        seconds=attributes.get("seconds", 0.0),
        reason=attributes.get("reason", ""),
    )
