"""Models evaluated side by side that are too large to be in memory together: of one of them, one block at a time.

The samples go through a model's first block, then through its second, and so on; what lies between two blocks is kept, on disk
past a budget. The numbers are the bits that `scoring.evaluate` gives of the models loaded whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmos_cli import device
from llmos_cli.events import Emit, Progress
from llmos_cli.models.activations import Spill
from llmos_cli.models.replay import Replay, replaying
from llmos_cli.models.shelf import Shelf
from llmos_cli.operations.beside import Judged, judged
from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Batch, Split, Task


@dataclass(frozen=True)
class Abreast:
    """`logits`: what the result's files answer to the samples asked beside the split."""

    outcomes: Judged
    logits: Tensor


def abreast(
    task: Task,
    split: Split,
    *,
    result: Path,
    parent: Path,
    teachers: Sequence[Path],
    asked: Batch,
    batch_size: int,
    spill: Spill,
    emit: Emit,
) -> Abreast:
    """Every sample of `split`, judged by the checkpoint directories' models; `asked`: further samples, without labels."""
    rows = list(scoring.batches(len(split), batch_size))
    with ExitStack() as stack:
        walks = {path: stack.enter_context(walking(path, spill)) for path in dict.fromkeys([result, parent, *teachers])}
        for place, (path, walk) in enumerate(walks.items(), 1):
            stage = "the result" if path == result else "the parent" if path == parent else "the original"
            walk.through(split, rows, asked, f"evaluate {stage} block by block ({place} of {len(walks)})", emit)

        def answers(number: int, batch: Batch) -> dict[Path, Tensor]:
            return {path: walk.logits(number, batch) for path, walk in walks.items()}

        outcomes = judged(task, split, rows, answers, result=result, parent=parent, teachers=teachers)
        answered = walks[result].logits(len(rows), device.move(asked, device.pick())).float().cpu()
    return Abreast(outcomes, answered)


class Walk:
    """One model on the way from block to block: made by `walking`."""

    def __init__(self, shelf: Shelf, replay: Replay, spill: Spill) -> None:
        self.shelf, self.replay, self.between = shelf, replay, spill.store()

    def through(self, split: Split, rows: Sequence[range], asked: Batch, stage: str, emit: Emit) -> None:
        """All batches through all blocks; the samples asked beside them are one more batch."""
        started, total = time.monotonic(), len(self.shelf.stack)
        emit(Progress(stage, 0, total, "block"))
        for index in range(total):
            with self.shelf.held(index):
                for number in range(len(rows) + 1):
                    batch = split.batch(rows[number]) if number < len(rows) else asked
                    self.between[number] = self.replay.run(
                        index, number, _unlabelled(batch, self.shelf), self.between[number]
                    )
            elapsed = time.monotonic() - started
            eta = elapsed / (index + 1) * (total - index - 1)
            emit(Progress(stage, index + 1, total, "block", elapsed=elapsed, eta=eta))

    def logits(self, number: int, batch: Batch) -> Tensor:
        """Past the last block."""
        output = self.replay.run(len(self.shelf.stack), number, _unlabelled(batch, self.shelf), self.between[number])
        logits: Tensor = output.logits
        return logits


@contextmanager
def walking(path: Path, spill: Spill) -> Iterator[Walk]:
    shelf = Shelf(path, device.pick())
    assert not shelf.lost, "a model that was streamed can be read so"
    with replaying(shelf.model, shelf.stack) as replay:
        walk = Walk(shelf, replay, spill)
        yield walk
        walk.between.clear()


def _unlabelled(batch: Batch, shelf: Shelf) -> Batch:
    return device.move({name: value for name, value in batch.items() if name != "labels"}, shelf.on)
