"""What the finished parts of a block answered: each computes once a batch, however often the block runs while its layers are changed.

A block is run once for each group of its layers, up to that group. Whatever ran before the group's first layer has its final
weights and its final inputs, so its answer stands: the next run is given it instead of computing it again. A part is a layer, or a
module of the block that holds some; a module's answer makes those of what it holds needless. A module that ends with a layer (attention
with its output's projection) computes up to it once as well: what the layer was given is kept until that is final. Answers are kept while
there is room for them; without room the part computes again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from llmos_cli.models.activations import Spill
from llmos_cli.models.blocks import weights
from llmos_cli.models.replay import Output, each_tensor


@dataclass(frozen=True)
class Ending:
    """A module that answers what its last layer does, to the very tensor: `layer`, and the module's answer with True in its place."""

    layer: str
    answer: Output


class Given(NamedTuple):
    """What a module's last layer was given, in place of the module's answer."""

    x: Tensor


class Memo:
    """Of one block, called `name` in the model, and its `layers` that are to be changed; `once`: those of them that are known to run
    at most once a pass; `endings`: how its modules are known to end."""

    def __init__(
        self, block: nn.Module, name: str, layers: Mapping[str, nn.Module], once: Set[str], spill: Spill,
        endings: Mapping[str, Ending] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self._spill = spill
        self._layers = layers
        self._parts = _parts(block, name, layers, once)
        self._endings = {
            part: ending for part, ending in endings.items() if part in self._parts and ending.layer in layers
        }
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

        def give(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
            if any(open_) and len(given) == 1:
                self._keep(number, name, Given(given[0]))

        pending = {name.rpartition(".")[0] for name in self._pending}
        with ExitStack() as undo:
            for name, ending in self._endings.items() if learning else ():
                if ending.layer in pending and (number, name) not in self._kept:
                    undo.callback(self._layers[ending.layer].register_forward_pre_hook(partial(give, name)).remove)
            for layer in pending if learning else ():
                undo.callback(self._layers[layer].register_forward_pre_hook(close).remove)
            for name, part in self._parts.items():
                known = self._kept.get((number, name))
                begun = isinstance(known, Given)
                if known is not None and not (begun and any(layer.startswith(f"{name}.") for layer in pending)):
                    part.forward = partial(self._answer, number, name)
                    undo.callback(part.__dict__.pop, "forward")
                if learning and (known is None or begun):
                    undo.callback(part.register_forward_hook(partial(keep, name)).remove)
            yield

    def forget(self, number: int | None = None) -> None:
        """What was kept of batch `number`, or of all, no longer holds or is of no more use."""
        for key in [key for key in self._kept if number in (None, key[0])]:
            self._drop(key)

    def _answer(self, number: int, name: str, *_: Any, **__: Any) -> Output:
        known = self._kept[number, name]
        if isinstance(known, Given):
            ending = self._endings[name]
            answer = self._layers[ending.layer](known.x)
            return tree_map(lambda leaf: answer if leaf is True else leaf, ending.answer)
        # A copy: what follows may work in place on what it is given.
        return each_tensor(Tensor.clone, known)

    def _keep(self, number: int, name: str, output: Output) -> None:
        if self._spill.take(_size(output)):
            for inner in [key for key in self._kept if key[0] == number and f"{key[1]}.".startswith(f"{name}.")]:
                self._drop(inner)
            self._kept[number, name] = output

    def _drop(self, key: tuple[int, str]) -> None:
        self._spill.give(_size(self._kept.pop(key)))


def _parts(block: nn.Module, name: str, layers: Mapping[str, nn.Module], once: Set[str]) -> dict[str, nn.Module]:
    """What may be kept: layers and modules of the block all of whose layers run once."""
    found = {f"{name}.{inner}" if name else inner: module for inner, module in block.named_modules() if inner}
    held = {part: [layer for layer in layers if f"{layer}.".startswith(f"{part}.")] for part in found}
    return {part: found[part] for part, inside in held.items() if inside and once >= set(inside)}


@contextmanager
def ending(block: nn.Module, name: str) -> Iterator[dict[str, Ending]]:
    """Within it, a run of the block tells how its modules end."""
    found, answers = dict[str, Ending](), dict[int, tuple[str, Tensor, int]]()

    def note(part: str, module: nn.Module, _: Any, output: Output) -> None:
        leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
        if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            return
        layer, answer, version = answers.setdefault(id(leaves[0]), (part, leaves[0], leaves[0]._version))
        if layer.startswith(f"{part}.") and version == answer._version:  # nothing worked on it in place since
            found[part] = Ending(layer, tree_map(lambda leaf: leaf if leaf is None else True, output))

    with ExitStack() as undo:
        for inner, module in block.named_modules():
            if inner:
                undo.callback(module.register_forward_hook(partial(note, f"{name}.{inner}" if name else inner)).remove)
        yield found


def _size(output: Output) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
