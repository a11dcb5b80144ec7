"""Healing: after a compression the model learns its parent's logits again, by the one training loop.

What was compressed stays so: pruned weights are held at zero, and of a quantized layer the codes stand still while its scales
move. Norms and biases are free in both; a pruned model's remaining weights too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from llmos_cli.events import Emit
from llmos_cli.operations.eval import Exam
from llmos_cli.operations.fit import Fitted, fit
from llmos_cli.operations.training.holding import FREE, Held
from llmos_cli.options.verbs import HealOptions, TrainOptions

HEAL = "heal"
"""The folder of that state, in a run's own."""
SAVES = 10
"""Resume states that are written on the way."""


@dataclass(frozen=True)
class Healing:
    """`steps` optimizer steps, as the config's `heal` section says; `seed` draws the samples. `state`: where healing that is cut off
    finds how far it was, None where it begins again."""

    steps: int
    options: HealOptions
    seed: int
    state: Path | None = None


def heal(
    model: nn.Module,
    teacher: nn.Module,
    exam: Exam,
    healing: Healing,
    held: Held = FREE,
    *,
    emit: Emit,
    stage: str = "heal",
) -> Fitted:
    """So many optimizer steps towards the teacher's logits on the training split; the last weights are kept. It goes on from the state
    where there is one, to the same bits."""
    return fit(
        model,
        exam.prepared.splits["train"],
        None,
        exam.task,
        _options(healing),
        # Other samples than those of calibration come first.
        seed=healing.seed + 1,
        facts=exam.prepared.facts,
        emit=emit,
        teacher=teacher,
        held=held,
        state=healing.state,
        resume=healing.state is not None,
        fixed=True,
        stage=stage,
    )


def _options(healing: Healing) -> TrainOptions:
    return TrainOptions(
        max_steps=healing.steps,
        learning_rate=healing.options.learning_rate,
        batch_size=healing.options.batch_size,
        temperature=healing.options.temperature,
        precision=healing.options.precision,
        hidden_weight=healing.options.hidden_weight,
        teacher_weight=1.0,
        schedule="linear",
        weight_decay=0.0,
        keep="last",
        save_every=max(1, healing.steps // SAVES),
    )
