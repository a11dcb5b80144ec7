"""An Optuna study: opened by name, so that a search goes on where it stopped, on this machine or on several.

Trials that were running in a process that is gone are put back in the queue with the same values.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.exceptions import StorageInternalError
from optuna.importance import get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from llmos_cli.core.processes import Process, this_process
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.operations.tuning.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

VALIDATIONS = 10
"""Intermediate values of a trial: one at each tenth of its budget."""
SETTLING = 2
"""Validations before the median says anything: the first ones mostly tell the learning rate's warm-up."""
_DIRECTIONS = {"minimize": StudyDirection.MINIMIZE, "maximize": StudyDirection.MAXIMIZE}
KEPT = "options"
"""The study's attribute that holds what it was made with."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def storage_url(given: str | None, dot: Path) -> str:
    """Of the storage that was given, or else of the workspace's own."""
    return given or f"sqlite:///{dot / 'studies.sqlite'}"


def open_storage(url: str) -> BaseStorage:
    """Connect, and make the tables where there are none; UsageError for what is no storage."""
    try:
        if url.startswith("sqlite"):
            _make_file(url)
            # Two searches may share the file: the second waits instead of failing.
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        return get_storage(url)
    except (ImportError, ValueError, ArgumentError) as problem:
        reason = str(problem).splitlines()[0]
        raise UsageError(
            f"cannot open the storage {without_password(url)}: {reason}",
            hint="tune.storage is an Optuna URL, such as sqlite:///studies.sqlite or postgresql://HOST/DATABASE",
        ) from problem
    except (SQLAlchemyError, StorageInternalError, OSError) as problem:
        raise LlmosError(
            f"the storage {without_password(url)} does not answer: {str(problem).splitlines()[0]}",
            hint="check tune.storage: its server, file and password",
        ) from problem


def _make_file(url: str) -> None:
    """SQLite itself would make it for its user alone, whatever the umask; an empty file is an empty database."""
    file = Path(make_url(url).database or "")
    if file.name and file.parent.is_dir() and not file.exists():
        file.touch()


def without_password(url: str) -> str:
    scheme, there, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}@{host}" if there and at else url


def open_study(
    name: str, storage: BaseStorage, directions: Mapping[str, str], sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    """Make the study, or go on with the one of that name; UsageError where it was made for other objectives."""
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=[_DIRECTIONS[direction] for direction in directions.values()],
        load_if_exists=True,
    )
    known = study.user_attrs.get("objectives")
    if known is not None and known != list(directions):
        raise UsageError(
            f"study {name} searches for {', '.join(known)}, not {', '.join(directions)}",
            hint="give --study another name",
        )
    study.set_user_attr("objectives", list(directions))
    return study


def towards(objectives: Mapping[str, str]) -> str:
    """Objectives in words."""
    return ", ".join(f"{direction} {name}" for name, direction in objectives.items())


def told(name: str, storage: BaseStorage) -> int:
    """How many trials the study has, if there is one."""
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    return next((summary.n_trials for summary in summaries if summary.study_name == name), 0)


def kept(name: str, storage: BaseStorage) -> dict[str, Any]:
    """The options that the study was made with, or last gone on with; empty where there is no such study."""
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    found = (summary.user_attrs.get(KEPT) for summary in summaries if summary.study_name == name)
    return dict(next(found, None) or {})


def keep(study: optuna.Study, options: Mapping[str, Any]) -> None:
    """Options as JSON values, so that the name alone goes on with the study."""
    study.set_user_attr(KEPT, dict(options))


def check_space(study: optuna.Study, space: Space) -> None:
    """UsageError where a key's values are not those of the trials there are: Optuna compares no two lists of choices."""
    known = {key: old for trial in study.trials for key, old in trial.distributions.items()}
    for key, old in known.items():
        try:
            if key in space:
                check_distribution_compatibility(old, space[key].distribution())
        except ValueError as problem:
            raise UsageError(
                f"study {study.study_name} has trials with other values of {key}, not {space[key]}",
                hint="give --study another name",
            ) from problem


def pruner(name: str, startup: int) -> BasePruner:
    if name == "median":
        return MedianPruner(n_startup_trials=startup, n_warmup_steps=SETTLING)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=VALIDATIONS, reduction_factor=3)
    return NopPruner()


def ask(study: optuna.Study, space: Space) -> optuna.Trial:
    trial = study.ask({key: dimension.distribution() for key, dimension in space.items()})
    trial.set_user_attr("process", this_process()._asdict())
    return trial


def put_back(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
    """A trial that was cut off says nothing of its values: they are tried again."""
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params, user_attrs={"again": trial.number})


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: not those that were cut off and put back."""
    again = {trial.user_attrs.get("again") for trial in study.trials}
    return [trial for trial in study.trials if trial.state in FINISHED and trial.number not in again]


def reclaim(study: optuna.Study) -> None:
    """Put back what a dead process was training."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("process")
        if owner is None or not Process.from_json(owner).alive():
            put_back(study, trial)


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial; with several objectives, those that no other beats in all of them."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    if len(study.directions) > 1:
        return sorted(study.best_trials, key=lambda trial: trial.values)
    return [study.best_trial]


def ranked(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Best first by the first objective; those without a value last, in their order."""
    sign = _sign(study)

    def place(trial: FrozenTrial) -> tuple[bool, float, int]:
        done = trial.state == TrialState.COMPLETE
        return not done, sign * trial.values[0] if done else 0.0, trial.number

    return sorted(trials, key=place)


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in how good a trial is (PED-ANOVA), by the first objective; empty where too few trials say."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    if len(study.directions) == 1:
        return dict(get_param_importances(study))
    sign = _sign(study)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # that of a target the lowest is the best: which holds, by its sign
        return dict(get_param_importances(study, target=lambda trial: sign * trial.values[0]))


def _sign(study: optuna.Study) -> int:
    """What makes the first objective one that is the better the lower it is."""
    return 1 if study.directions[0] == StudyDirection.MINIMIZE else -1
