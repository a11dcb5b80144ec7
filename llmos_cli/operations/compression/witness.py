"""A few held-out samples that go through a model as it is compressed, block by block: what the result in memory answers to them.

A model that streams is never in memory as a whole; yet what its files say when they are read back must be what was computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from llmos_cli import device
from llmos_cli.models.replay import Output, Replay, replaying
from llmos_cli.models.shelf import Shelf
from llmos_cli.tasks.base import Batch


class Witness:
    """Made by `witnessing`; `follow` is told of each block, in order, while it is held."""

    def __init__(self, shelf: Shelf, replay: Replay, inputs: Batch) -> None:
        self.shelf, self.replay, self.inputs = shelf, replay, inputs
        self._output: Output = None
        self._next = 0

    def follow(self, index: int) -> None:
        if index < len(self.shelf.stack):
            assert index == self._next, "blocks come in order"
            self._output = self.replay.run(index, 0, self.inputs, self._output)
            self._next += 1

    def logits(self) -> Tensor:
        """Of the whole model: blocks that nothing was done to are run from their files."""
        for index in range(self._next, len(self.shelf.stack)):
            with self.shelf.held(index):
                self.follow(index)
        logits: Tensor = self.replay.run(len(self.shelf.stack), 0, self.inputs, self._output).logits
        return logits.float().cpu()


@contextmanager
def witnessing(shelf: Shelf, inputs: Batch) -> Iterator[Witness]:
    with replaying(shelf.model, shelf.stack) as replay:
        yield Witness(shelf, replay, device.move(inputs, shelf.on))
