"""A model run one block at a time: every block computes once per batch and pass, whatever stands between the blocks.

Cached activations are handed on by the model's own forward: blocks before the one of interest answer from the cache or with a
placeholder, the block itself runs, and the rest never starts. So masks, rotary tables, pooling between convolutions, reversed
copies for backward LSTMs are all the model's business and none of ours, and only one block's inputs are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from llmos_cli.errors import LlmosError
from llmos_cli.models.blocks import Block

Output = Any
"""What a block returns: a tensor or a nest of them."""
Held = Callable[[int], AbstractContextManager[None]]
"""Within it, the block of that number is in memory."""


@contextmanager
def replaying(model: nn.Module, stack: Sequence[Block], dtype: torch.dtype = torch.float32) -> Iterator[Replay]:
    """A Replay in evaluation mode without gradients or generation caches, its products in `dtype`; the model is as it was afterwards."""
    training, config = model.training, getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    if use_cache:
        config.use_cache = False  # type: ignore[union-attr]
    model.eval()
    try:
        with torch.no_grad():
            yield Replay(model, stack, dtype)
    finally:
        for block in stack:
            block.module.__dict__.pop("forward", None)
        if use_cache:
            config.use_cache = use_cache  # type: ignore[union-attr]
        model.train(training)


class Replay:
    """Runs the blocks of `stack` within `model`; made by `replaying`, which puts the blocks' own forwards back."""

    def __init__(self, model: nn.Module, stack: Sequence[Block], dtype: torch.dtype = torch.float32) -> None:
        self.model, self.stack, self.dtype = model, stack, dtype
        self.forwards = [block.module.forward for block in stack]
        self.blanks: dict[tuple[int, int], Output] = {}
        self.kept: dict[tuple[int, int], Output] = {}

    def check(self, batch: Mapping[str, Tensor], held: Held = lambda index: nullcontext()) -> None:
        """LlmosError unless every block runs exactly once and in order: all that follows rests on it.

        `held`: brings a block into memory, where they are not there all along.
        """
        order: list[int] = []
        with ExitStack() as hooks, ExitStack() as block_held:

            def enter(index: int, *_: Any) -> None:
                order.append(index)
                block_held.enter_context(held(index))

            for index, block in enumerate(self.stack):
                hooks.callback(block.module.register_forward_pre_hook(partial(enter, index)).remove)
                hooks.callback(block.module.register_forward_hook(lambda *_: block_held.close()).remove)
            self.model(**{name: value[:1] for name, value in batch.items()})
        for index, block in enumerate(self.stack):
            if order[index : index + 1] != [index] or len(order) > len(self.stack):
                raise LlmosError(
                    f"block {block.name!r} does not run once and in order, so it cannot be calibrated by itself",
                    hint="methods that need no data (magnitude, rtn) still work",
                )

    def run(self, index: int, number: int, batch: Mapping[str, Tensor], before: Output = None) -> Output:
        """The output of block `index` on batch `number`, given that of the block before it (None for the first).

        `index` = len(stack) runs what follows the last block, to the end of the model, and gives the model's output.
        """
        output = self._until(index, number, batch, before, self.forwards[index] if index < len(self.stack) else _given)
        if index < len(self.stack):
            self._remember(index, number, output)
        return output

    def given(
        self, index: int, number: int, batch: Mapping[str, Tensor], before: Output = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of block `index` on batch `number`: the model's own glue included."""
        args, kwargs = self._until(index, number, batch, before, _given)
        return args, kwargs

    def _until(
        self, index: int, number: int, batch: Mapping[str, Tensor], before: Output, compute: Callable[..., Any]
    ) -> Any:
        """What `compute` makes of the arguments of block `index`, where the forward pass ends; past the last block the model's
        own output."""
        for position, block in enumerate(self.stack):
            block.module.forward = partial(self._answer, position, index, number, before, compute)
        try:
            with self._autocast(batch):
                return self.model(**batch)
        except _Reached as reached:
            return reached.output
        finally:
            for block in self.stack:
                block.module.__dict__.pop("forward", None)

    def _autocast(self, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        where = next(iter(batch.values())).device.type
        return torch.autocast(where, self.dtype, enabled=self.dtype != torch.float32)

    def _answer(
        self,
        position: int,
        index: int,
        number: int,
        before: Output,
        compute: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Output:
        if position == index:
            raise _Reached(compute(*args, **kwargs))
        if position == index - 1:
            # A copy: the next block may work in place on what it is given.
            return each_tensor(Tensor.clone, before)
        return self.kept.get((position, number), self.blanks[position, number])

    def _remember(self, index: int, number: int, output: Output) -> None:
        self.blanks[index, number] = each_tensor(lambda value: value.new_zeros(()).expand(value.shape), output)
        if self._ends_a_list(index):
            self.kept[index, number] = output

    def _ends_a_list(self, index: int) -> bool:
        """Whether later blocks stand in another list, and may read this one's result at any time (a decoder its encoder's)."""
        lists = [block.name.rpartition(".")[0] for block in self.stack]
        return index + 1 < len(lists) and lists[index + 1] != lists[index]


def _given(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


class _Reached(Exception):
    """The block of interest has run: ends the forward pass that led to it."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output


def each_tensor(change: Callable[[Tensor], Tensor], nest: Output) -> Output:
    return tree_map(lambda value: change(value) if isinstance(value, Tensor) else value, nest)
