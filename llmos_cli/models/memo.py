"""What the finished parts of a block answered: each computes once a batch, however often the block runs while its layers are changed.

A block is run once for each group of its layers, up to that group. Whatever ran before the group's first layer has its final
weights and its final inputs, so its answer stands: the next run is given it instead of computing it again. A part is a layer, or a
module of the block that holds some; a module's answer makes those of what it holds needless. Answers are kept while there is room
for them; without room the part computes again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from llmos_cli.models.activations import Spill
from llmos_cli.models.blocks import weights
from llmos_cli.models.replay import Output, each_tensor


class Memo:
    """Of one block, called `name` in the model, and its `layers` that are to be changed; `once`: those of them that are known to run
    at most once a pass."""

    def __init__(
        self, block: nn.Module, name: str, layers: Mapping[str, nn.Module], once: Set[str], spill: Spill
    ) -> None:
        self._spill = spill
        self._layers = layers
        self._parts = _parts(block, name, layers, once)
        self._pending = {f"{layer}.{weight}" for layer, module in layers.items() for weight in weights(module)}
        self._kept: dict[tuple[int, str], Output] = {}

    def settle(self, names: Iterable[str]) -> None:
        """These matrices have their final weights."""
        self._pending -= set(names)

    @contextmanager
    def running(self, number: int, *, learning: bool) -> Iterator[None]:
        """Within it a run on batch `number` is spared what is known; when `learning`, what finishes before the first layer that
        is not final becomes known."""
        open_ = [learning]

        def close(*_: Any) -> None:
            open_.clear()

        def keep(name: str, *called: Any) -> None:
            if any(open_):
                self._keep(number, name, called[-1])

        with ExitStack() as undo:
            for layer in {name.rpartition(".")[0] for name in self._pending} if learning else ():
                undo.callback(self._layers[layer].register_forward_pre_hook(close).remove)
            for name, part in self._parts.items():
                if (number, name) in self._kept:
                    part.forward = partial(self._answer, number, name)
                    undo.callback(part.__dict__.pop, "forward")
                elif learning:
                    undo.callback(part.register_forward_hook(partial(keep, name)).remove)
            yield

    def forget(self, number: int | None = None) -> None:
        """What was kept of batch `number`, or of all, no longer holds or is of no more use."""
        for key in [key for key in self._kept if number in (None, key[0])]:
            self._drop(key)

    def _answer(self, number: int, name: str, *_: Any, **__: Any) -> Output:
        # A copy: what follows may work in place on what it is given.
        return each_tensor(Tensor.clone, self._kept[number, name])

    def _keep(self, number: int, name: str, output: Output) -> None:
        if self._spill.take(_size(output)):
            self._kept[number, name] = output
            for inner in [key for key in self._kept if key[0] == number and key[1].startswith(f"{name}.")]:
                self._drop(inner)

    def _drop(self, key: tuple[int, str]) -> None:
        self._spill.give(_size(self._kept.pop(key)))


def _parts(block: nn.Module, name: str, layers: Mapping[str, nn.Module], once: Set[str]) -> dict[str, nn.Module]:
    """What may be kept: layers and modules of the block all of whose layers run once."""
    found = {f"{name}.{inner}" if name else inner: module for inner, module in block.named_modules() if inner}
    held = {part: [layer for layer in layers if f"{layer}.".startswith(f"{part}.")] for part in found}
    return {part: found[part] for part, inside in held.items() if inside and once >= set(inside)}


def _size(output: Output) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
