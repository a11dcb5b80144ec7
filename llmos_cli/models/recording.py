"""What the layers of a block are given in a pass, call by call, and which of its matrices are fed alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from llmos_cli.models.blocks import weights
from llmos_cli.models.inputs import Inputs, inputs_of, leaders
from llmos_cli.models.memo import Ending


class Enough(Exception):
    """All that was looked for has been seen: the rest of the forward pass need not run."""


@contextmanager
def recorded(watched: Mapping[str, nn.Module], until: int) -> Iterator[dict[str, list[Inputs]]]:
    """Within it, what each matrix is given, call by call; `until`: the call of a layer that ends the pass (`Enough`), 0 for none."""
    seen: dict[str, list[Inputs]] = {}
    with ExitStack() as undo:
        for name, layer in watched.items():
            undo.callback(_recording(name, layer, seen, until).remove)
        yield seen


def _recording(name: str, layer: nn.Module, seen: dict[str, list[Inputs]], until: int) -> RemovableHandle:
    """Adds what the layer is given to `seen`; ends the pass at its `until`-th call."""

    def note(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        calls = [seen.setdefault(f"{name}.{weight}", []) for weight in weights(layer)]
        for weight, inputs in inputs_of(layer, given, args[1:], output).items():
            seen[f"{name}.{weight}"].append(inputs)
        if until and all(len(call) == until for call in calls):
            raise Enough

    if isinstance(layer, nn.LSTM):  # its states are the inputs of one of its matrices
        return layer.register_forward_hook(lambda _, args, kwargs, output: note(args, kwargs, output), with_kwargs=True)
    return layer.register_forward_pre_hook(lambda _, args, kwargs: note(args, kwargs, None), with_kwargs=True)


@dataclass
class Layout:
    """Which of a block's matrices are fed alike. `follows`: for each matrix, in the order of their running, the first one that
    is given the same tensors; `calls`: how often that one is called; `most`: how often each was called in a pass; `endings`: of the
    block's modules."""

    follows: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    endings: Mapping[str, Ending] = field(default_factory=dict)

    def note(self, seen: Mapping[str, list[Inputs]]) -> None:
        self.most |= {name: max(len(calls), self.most.get(name, 0)) for name, calls in seen.items()}
        new = {name: leader for name, leader in leaders(seen).items() if name not in self.follows}
        self.follows |= new
        self.calls |= {leader: len(seen[leader]) for leader in new.values()}

    def once(self, layers: Mapping[str, nn.Module]) -> set[str]:
        """Those of `layers` that are called once in a pass, if at all."""
        return {
            name for name, layer in layers.items() if all(self.most.get(f"{name}.{w}") == 1 for w in weights(layer))
        }


def names_of(watched: Mapping[str, nn.Module]) -> list[str]:
    return [f"{name}.{weight}" for name, layer in watched.items() for weight in weights(layer)]
