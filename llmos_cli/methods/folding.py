"""Scales moved from a block's activations into its weights: which layers allow it, and doing it.

Where a norm, or a linear layer, makes the inputs of linear layers, each channel may be divided by a number there and multiplied by it in
the weights that read it: the block computes the same. Which pairs allow that is not looked up by architecture but tried on the block:
powers of two change no bit of what it answers where the pair holds, and some where something else reads the channel too (a residual),
or stands between (a gate's nonlinearity), or where the norm does not multiply by its weight alone.

Shapes: I channels, the inputs of the reading layers; O their outputs; N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmos_cli.models.calibrate import Turn, answered


@dataclass(frozen=True)
class Fold:
    """`maker`: the norm or linear layer that makes the channels; `readers`: the linear layers that are given just those, by name."""

    maker: nn.Module
    readers: dict[str, nn.Linear]

    def apply(self, scale_I: Tensor) -> None:
        """Divide the channels by `scale_I` and multiply the weights that read them by it, in place."""
        with torch.no_grad():
            for parameter in self.maker.parameters(recurse=False):
                parameter.div_(scale_I.view(-1, *[1] * (parameter.ndim - 1)))
            for reader in self.readers.values():
                reader.weight.mul_(scale_I)


def folds(turn: Turn) -> list[Fold]:
    """The pairs of a block that hold, no layer reading or making twice."""
    args, kwargs = turn.given(0)

    def answer() -> Tensor:
        with torch.no_grad():
            return answered(turn.module, turn.name, args, kwargs, {})

    seen = _watched(turn, answer)
    whole = answer()
    found: list[Fold] = []
    for candidate in _candidates(seen):
        taken = {name for fold in found for name in fold.readers} | {id(fold.maker) for fold in found}
        fresh = id(candidate.maker) not in taken and not taken & set(candidate.readers)
        if fresh and _holds(candidate, whole, answer):
            found.append(candidate)
    return found


def largest_inputs(turn: Turn) -> dict[str, Tensor]:
    """[I] for each linear layer by name: the largest magnitude of each input over the calibration data."""
    largest: dict[str, Tensor] = {}

    def note(name: str, given: Tensor) -> None:
        here_I = given.detach().float().abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest[name], here_I) if name in largest else here_I

    linear = {name: layer for name, layer in turn.layers.items() if isinstance(layer, nn.Linear)}
    hooks = [
        layer.register_forward_hook(lambda _, args, output, name=name: note(name, args[0]))  # type: ignore[misc]
        for name, layer in linear.items()
    ]
    try:
        for number in range(turn.batches):
            turn.answer(number)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


@dataclass
class _Seen:
    """What ran in a block, in order: makers with what they made, linear layers with what they were given."""

    made: list[tuple[nn.Module, Any]] = field(default_factory=list)
    given: dict[str, tuple[nn.Linear, Any]] = field(default_factory=dict)


def _watched(turn: Turn, answer: Callable[[], Tensor]) -> _Seen:
    seen = _Seen()
    names = {id(layer): name for name, layer in turn.layers.items() if isinstance(layer, nn.Linear)}

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in names and args:
            assert isinstance(module, nn.Linear)
            seen.given[names[id(module)]] = module, args[0]
        seen.made.append((module, output))

    makers = [module for module in turn.module.modules() if id(module) in names or _is_norm(module)]
    hooks = [module.register_forward_hook(hook) for module in makers]
    try:
        answer()
    finally:
        for each in hooks:
            each.remove()
    return seen


def _is_norm(module: nn.Module) -> bool:
    """Vectors for parameters and nothing within."""
    parameters = list(module.parameters(recurse=False))
    return not list(module.children()) and bool(parameters) and all(each.ndim == 1 for each in parameters)


def _candidates(seen: _Seen) -> Iterator[Fold]:
    """Norms with all the layers that are given what they made; then linear layers, each with a later one as wide as it."""
    fed: set[str] = set()
    for maker, output in seen.made:
        readers = {name: layer for name, (layer, given) in seen.given.items() if given is output}
        if readers and _is_norm(maker):
            fed |= set(readers)
            yield Fold(maker, readers)
    order = [id(maker) for maker, _ in seen.made]
    for name, (reader, _) in seen.given.items():
        for maker, _ in reversed(seen.made):
            earlier = order.index(id(maker)) < order.index(id(reader))
            wide = isinstance(maker, nn.Linear) and maker.out_features == reader.in_features
            if name not in fed and earlier and wide:
                yield Fold(maker, {name: reader})


def _holds(fold: Fold, whole: Tensor, answer: Callable[[], Tensor]) -> bool:
    inputs = next(iter(fold.readers.values())).in_features
    if any(len(parameter) != inputs for parameter in fold.maker.parameters(recurse=False)):
        return False
    generator = torch.Generator().manual_seed(0)
    powers_I = 2.0 ** torch.randint(-1, 2, (inputs,), generator=generator).to(whole.device)
    fold.apply(powers_I)
    same = torch.equal(answer(), whole)
    fold.apply(1 / powers_I)
    return same
