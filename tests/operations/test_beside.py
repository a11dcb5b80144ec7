"""A result judged beside its parent and its teachers: what evaluations one by one say, of answers that each model gives once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from llmos_cli import tasks
from llmos_cli.core.workspace import Workspace
from llmos_cli.models.load import load
from llmos_cli.operations.beside import judged
from llmos_cli.operations.config import resolve
from llmos_cli.tasks import scoring

TASK = tasks.load("causal-lm")


def test_the_numbers_of_evaluations_one_by_one_and_nothing_answered_twice(line: Workspace) -> None:
    resolved = resolve(line, "train", flags={"data.task": "causal-lm"}).config
    split = TASK.prepare(resolved.data, resolved.model, seed=0, cache=line.cache).splits["test"]
    original, parent, result = (line.checkpoint(name).path for name in ("HEAD~2", "HEAD~1", "HEAD"))
    models = {path: load(path) for path in (original, parent, result)}
    rows, asked = list(scoring.batches(len(split), 3)), Counter[tuple[Path, int]]()
    told: list[Any] = []

    def answers(number: int, batch: dict[str, torch.Tensor]) -> dict[Path, torch.Tensor]:
        asked.update((path, number) for path in models)
        with torch.inference_mode():
            return {path: scoring.forward(model, batch) for path, model in models.items()}

    found = judged(
        TASK, split, rows, answers, result=result, parent=parent, teachers=[parent, original], emit=told.append
    )
    assert set(asked.values()) == {1} and len(asked) == 3 * len(rows)
    assert [event.step for event in told] == [range_.stop for range_ in rows]
    before = scoring.evaluate(TASK, models[parent], split, batch_size=3)
    assert torch.equal(found.before.nll_N, before.nll_N) and "kl" not in found.before.extra
    for teacher in (parent, original):
        after = scoring.evaluate(TASK, models[result], split, batch_size=3, teacher=models[teacher])
        assert torch.equal(found.after[teacher].nll_N, after.nll_N)
        assert torch.equal(found.after[teacher].extra["kl"], after.extra["kl"])
    assert not torch.equal(found.after[parent].extra["kl"], found.after[original].extra["kl"])
