"""What may change when a training run goes on: how it is optimised. What it learns, and from what, stays as it was.

A run goes on from a state: weights, the optimizer's, a place in the data. Another model or batch size does not fit that
state, and other data would make the record of what the checkpoint was trained on a lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_cli.core import config as configs
from llmos_cli.core import kept
from llmos_cli.core.config import Resolved
from llmos_cli.core.records import EVENTS, read_events
from llmos_cli.errors import UsageError
from llmos_cli.operations.config import methods
from llmos_cli.operations.training.divergence import WAY_ON, noted
from llmos_cli.options.verbs import TrainConfig

if TYPE_CHECKING:
    from llmos_cli.core.records import RunRecord

FREE = frozenset(
    f"train.{name}"
    for name in (
        "clip_norm",
        "compile",
        "eval_every",
        "eval_samples",
        "gradient_checkpointing",
        "keep",
        "label_smoothing",
        "learning_rate",
        "max_epochs",
        "max_seconds",
        "max_steps",
        "patience",
        "precision",
        "save_every",
        "schedule",
        "teacher_weight",
        "temperature",
        "warmup",
        "weight_decay",
    )
)


@dataclass(frozen=True)
class Resumption:
    """The config to go on with, and what is new in it: key -> (before, now). `recorded`: whether the run's config.yaml says so."""

    resolved: Resolved
    changes: Mapping[str, tuple[Any, Any]]
    recorded: bool


def resumption(record: RunRecord, *, sets: Sequence[str] = (), unsets: Sequence[str] = ()) -> Resumption:
    """A run's own config, with none of what the config files say today, changed as asked; UsageError for what cannot change."""
    file = kept.require(record.path, kept.CONFIG)
    told = _told(record)
    before = _recorded(configs.amended(configs.read_file(file), sets=told, unsets=()))
    resolved = _recorded(
        configs.amended(configs.amended(configs.read_file(file), sets=told, unsets=()), sets=sets, unsets=unsets)
    )
    changes = configs.changes(before.mapping, resolved.mapping)
    _check_free(changes, before.config.train.optimizer)
    diverged = noted(record.path / "state")
    if diverged and not changes:
        raise UsageError(
            f"run {record.id} ended at step {diverged.step}, where the loss was no longer finite, and would end there again",
            hint=f"{WAY_ON} goes on with a lower rate (it was {resolved.config.train.learning_rate:g})",
        )
    recorded = _recorded(configs.read_file(file)).mapping == resolved.mapping
    return Resumption(resolved, changes, recorded)


def _told(record: RunRecord) -> list[str]:
    """What was changed before, as `-s` has it: told, then written to the config, and a kill may have come between."""
    events, _ = read_events(record.path / EVENTS)
    changed = [each["settings"].items() for each in events if each["event"] == "resumed"]
    return [f"{key}={json.dumps(now)}" for settings in changed for key, (_, now) in settings]


def _recorded(tree: Any) -> Resolved:
    config = configs.check(tree, TrainConfig, methods=methods)
    return Resolved("train", config, config.model_dump(mode="json"), {}, ())


def _check_free(changes: Mapping[str, Any], optimizer: str) -> None:
    for key in changes:
        if key not in FREE and not key.startswith(f"train.{optimizer}."):
            raise UsageError(
                f"{key} cannot change while a run goes on",
                hint="begin another run: `llmos train`, or `llmos train REV` from a checkpoint's weights; "
                "`--resume` takes -s train.learning_rate, clip_norm, schedule and their like",
            )
