"""The search while it lasts: the study asks, the workers train, and what came of each trial is told."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from llmos_cli.core.view import number
from llmos_cli.errors import Interrupted, LlmosError, Terminated
from llmos_cli.events import Emit, Note, Progress
from llmos_cli.operations.tuning import study as studies
from llmos_cli.operations.tuning.plan import Plan
from llmos_cli.operations.tuning.space import settings
from llmos_cli.operations.tuning.workers import Job, Message, Reported, Stopped, Trained, Worker, Workers

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace

HOPELESS = 3
"""So many failures and nothing else: the search ends, for it is the config that is wrong."""


def search(ws: Workspace, plan: Plan, study: optuna.Study, limit: int, resolved: Resolved, emit: Emit) -> None:
    """As one run: train trials until the study has `limit` of them."""
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

    def to_the_end(self, workers: Workers) -> None:
        try:
            self._begin(workers)
            while self.running:
                for worker in workers.heard():
                    self._hear(worker)
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

    def _hear(self, worker: Worker) -> None:
        message = worker.receive()
        if isinstance(message, Reported):
            worker.connection.send(self._goes_on(message))
        else:
            self._tell(message)

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
