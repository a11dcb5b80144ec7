"""The residual stream of a model: which tensors write to it, which read it through which norm, and which heads lie between values and
outputs. Nothing is listed by architecture.

A small random twin is asked: one channel of what a module puts out is moved while all other linear layers answer as before, and where
just that channel moves, no weight stands between. So a linear layer, an embedding or a table of positions writes to the stream where a norm sees its channel alone move, and a
linear layer reads the stream where a norm's channel alone moves in its inputs. Whether all that together is the whole truth is judged on
the twin too (`models/rotation.py`): rotated, it must answer as before.

Shapes: D channels of the stream, F features of a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmos_cli.models.blocks import head_names, shard_of
from llmos_cli.models.channels import twin
from llmos_cli.models.narrow import HEAD_SIZE, HEADS, grouping

Value = TypeVar("Value")
CHANNEL = 1
"""The channel, and the feature of a head, that is moved."""
ALONE = 1e-3
"""How far other channels may move, as a share of how far the one does: by rounding they hardly do."""


class Unfit(Exception):
    """Why a model has no residual stream that could be rotated."""


@dataclass(frozen=True)
class Norm:
    """How a norm scales: by `offset` + its weight (0, or 1 where weights start at 0); `centers`: it subtracts the mean first."""

    offset: float
    centers: bool


@dataclass(frozen=True)
class Along:
    """An axis of a tensor on which channels of the stream lie; `norm`: the module through which they are read."""

    axis: int
    norm: str = ""


@dataclass(frozen=True)
class Heads:
    """An axis of a tensor on which, from `start` to the end, features of heads lie in runs of `size`."""

    axis: int
    start: int
    size: int


@dataclass(frozen=True)
class Stream:
    """`width`: channels; `along` and `heads` by the names of tensors, `norms` by those of modules."""

    width: int
    norms: Mapping[str, Norm] = field(default_factory=dict)
    along: Mapping[str, Along] = field(default_factory=dict)
    heads: Mapping[str, Heads] = field(default_factory=dict)


def find(model: PreTrainedModel, batch: Mapping[str, Tensor], *, whole: bool) -> tuple[PreTrainedModel, Stream]:
    """The twin and what was found on it; `batch`: inputs for it; `whole`: the stream too, not only heads.

    Raises Unfit.
    """
    small = twin(model)
    untie(small)
    width = _width(small)
    with torch.no_grad():
        probe = _Probe(small, {name: value[:2].cpu() for name, value in batch.items()}, width)
        norms, along = _stream(probe) if whole else ({}, {})
        return small, Stream(width, norms, along, _heads(probe))


def untie(model: nn.Module) -> None:
    """The head has weights of its own."""
    for name in head_names(model):
        head = model.get_submodule(name)
        if isinstance(head, nn.Linear):
            head.weight = nn.Parameter(head.weight.detach().clone())


def carried(found: Stream, small: nn.Module, model: nn.Module) -> Stream:
    """The same of the whole model, whose blocks must all be built as the twin's are; Unfit where they are not."""
    theirs, ours = _shapes(small), _shapes(model)
    if theirs == ours:
        return found
    if {(_alike(name), shape) for name, shape in theirs.items()} != {
        (_alike(name), shape) for name, shape in ours.items()
    }:
        raise Unfit("its blocks are not all built alike")
    along = _everywhere(found.along, ours)
    return Stream(
        found.width,
        dict(_everywhere(found.norms, [name for name, _ in model.named_modules()])),
        {name: Along(part.axis, _beside(part.norm, name)) for name, part in along},
        dict(_everywhere(found.heads, ours)),
    )


def _stream(probe: _Probe) -> tuple[dict[str, Norm], dict[str, Along]]:
    along: dict[str, Along] = {}
    norms: dict[str, Norm] = {}
    for name, norm in probe.norms.items():
        seen = probe.moved(probe.shifted(norm))
        readers = [other for other in seen if other in probe.linear]
        if any(other in probe.norms for other in seen):
            raise Unfit("its norms write to the residual stream, not only the layers that they feed")
        if readers:
            norms[name] = _kind(norm, probe.width)
            along |= {f"{reader}.weight": Along(_inputs(probe.linear[reader]), name) for reader in readers}
    for name, writer in probe.writers.items():
        if any(seen in norms for seen in probe.moved(probe.shifted(writer))):
            for part, parameter in writer.named_parameters(recurse=False):
                along[f"{name}.{part}"] = Along(_outputs(writer, parameter))
    for name, table in probe.tables.items():
        if any(seen in norms for seen in probe.moved(_raised(table))):
            along[name] = Along(table.dim() - 1)
    if not norms:
        raise Unfit("it has no residual stream that linear layers read through norms")
    return norms, along


def _heads(probe: _Probe) -> dict[str, Heads]:
    """Linear layers whose last outputs are values, each with the one that reads what attention makes of them: the same feature
    of every head that attends to them moves, and no other."""
    config = probe.model.config
    groups, queries = grouping(config)
    if not groups:
        return {}
    size = getattr(config, HEAD_SIZE, None) or getattr(config, "hidden_size", 0) // getattr(config, HEADS)
    found: dict[str, Heads] = {}
    for name, layer in probe.linears(outputs=groups * size):
        start = _count(layer, _outputs(layer, layer.weight)) - groups * size
        places = torch.arange(groups * queries) * size + CHANNEL
        for reader in probe.moved(probe.shifted(layer, start + CHANNEL), places):
            output = dict(probe.linears()).get(reader)
            near = shard_of(f"{name}.") == shard_of(f"{reader}.") is not None
            if output is not None and near and _count(output, _inputs(output)) == groups * queries * size:
                for part, parameter in layer.named_parameters(recurse=False):
                    found[f"{name}.{part}"] = Heads(_outputs(layer, parameter), start, size)
                found[f"{reader}.weight"] = Heads(_inputs(output), 0, size)
    return found


class _Probe:
    """The twin with ears at every norm and linear layer. `writers`: modules that put out as many channels as the stream has;
    `tables`: parameters of that width that belong to none of them; `linear`: layers that take so many."""

    def __init__(self, model: PreTrainedModel, batch: Mapping[str, Tensor], width: int) -> None:
        self.model, self.batch, self.width = model, batch, width
        named = dict(model.named_modules())
        self.norms = {name: module for name, module in named.items() if _is_norm(module, width)}
        self.linear = {name: layer for name, layer in self.linears() if _count(layer, _inputs(layer)) == width}
        self.writers = {name: module for name, module in named.items() if _puts_out(module) == width}
        told = {id(module) for module in (*self.norms.values(), *self.linear.values(), *self.writers.values())}
        self.tables = {
            name: parameter
            for name, parameter in model.named_parameters()
            if id(named[name.rpartition(".")[0]]) not in told and parameter.dim() > 1 and parameter.shape[-1] == width
        }
        self.said: dict[str, list[Tensor]] = {}
        with ExitStack() as hooks:
            for name, layer in self.linears():
                said = self.said.setdefault(name, [])
                hooks.callback(layer.register_forward_hook(lambda *call, said=said: said.append(call[2])).remove)
            self.still = self.heard()

    def linears(self, outputs: int = 0) -> Iterator[tuple[str, Any]]:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear | Conv1D) and _count(module, _outputs(module, module.weight)) >= outputs:
                yield name, module

    def heard(self) -> dict[str, Tensor]:
        """What each norm and linear layer is given first."""
        heard: dict[str, Tensor] = {}

        def listen(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
            heard.setdefault(name, (args[0] if args else next(iter(kwargs.values()))).detach().clone())

        with ExitStack() as hooks:
            for name, module in (*self.norms.items(), *self.linears()):
                hooks.callback(module.register_forward_pre_hook(partial(listen, name), with_kwargs=True).remove)
            self.model(**self.batch)
        return heard

    def moved(self, shift: AbstractContextManager[None], places: Tensor | None = None) -> list[str]:
        """Where, while `shift` holds, the channel moves and no other: or some of those at `places`."""
        with self._mute(), shift:
            heard = self.heard()
        return [name for name, given in heard.items() if _alone(given, self.still[name], places)]

    @contextmanager
    def _mute(self) -> Iterator[None]:
        """Linear layers answer as they did, whatever they are given."""
        calls = {name: iter(said) for name, said in self.said.items()}
        with ExitStack() as hooks:
            for name, layer in self.linears():
                hooks.callback(layer.register_forward_hook(lambda *_, name=name: next(calls[name])).remove)
            yield

    @contextmanager
    def shifted(self, module: nn.Module, channel: int = CHANNEL) -> Iterator[None]:
        """One channel of what the module puts out is moved."""

        def move(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output.select(1 if isinstance(module, nn.Conv2d) else -1, channel).add_(1.0)
            return output

        hook = module.register_forward_hook(move)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _raised(table: nn.Parameter) -> Iterator[None]:
    before = table.detach().clone()
    table[..., CHANNEL] += 1.0
    try:
        yield
    finally:
        table.copy_(before)


def _alone(given: Tensor, still: Tensor, places: Tensor | None) -> bool:
    """At `places` it moves as far as it was moved: weights of attention add up to one, a gate's numbers do not."""
    if given.shape != still.shape:
        return False
    by_channel = (given - still).abs().flatten(0, -2).amax(0)
    inside = torch.zeros_like(by_channel, dtype=torch.bool)
    wanted = torch.tensor([CHANNEL]) if places is None else places
    inside[wanted[wanted < len(inside)]] = True
    largest = float(by_channel[inside].max())
    there = largest > 0 if places is None else abs(largest - 1) < ALONE
    return there and not bool((by_channel[~inside] > ALONE * largest).any())


def _width(model: PreTrainedModel) -> int:
    tables = [
        module.embedding_dim if isinstance(module, nn.Embedding) else module.out_channels
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.Conv2d)
    ]
    width = getattr(model.config, "hidden_size", None) or next(iter(tables), 0)
    if not isinstance(width, int) or width < 2:
        raise Unfit("its configuration says no width of a residual stream")
    return width


def _is_norm(module: nn.Module, width: int) -> bool:
    """Vectors of that length for parameters and nothing within."""
    parameters = list(module.parameters(recurse=False))
    own = bool(parameters) and all(each.shape == (width,) for each in parameters)
    return own and not list(module.children()) and "weight" in module._parameters


def _puts_out(module: nn.Module) -> int:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.Linear | Conv1D | nn.Conv2d):
        assert isinstance(module.weight, Tensor)
        return _count(module, _outputs(module, module.weight))
    return 0


def _count(layer: nn.Module, axis: int) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[axis]


def _inputs(layer: nn.Module) -> int:
    """The axis of a layer's weight that its inputs are on; transformers' Conv1D keeps its weight as [I, O]."""
    return 0 if isinstance(layer, Conv1D) else 1


def _outputs(module: nn.Module, parameter: Tensor) -> int:
    if parameter.dim() == 1:
        return 0
    return 1 if isinstance(module, Conv1D | nn.Embedding) else 0


def _kind(norm: nn.Module, width: int) -> Norm:
    """What it does to random inputs with weights 0 and 1 and no bias."""
    inputs_ND = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    own = {name: parameter.detach() for name, parameter in norm.named_parameters()}

    def given(weight: float, inputs_ND: Tensor = inputs_ND) -> Tensor:
        replaced = {name: torch.full_like(value, weight if name == "weight" else 0.0) for name, value in own.items()}
        answer: Tensor = torch.func.functional_call(norm, replaced, (inputs_ND,))
        return answer

    nothing, once = given(0.0), given(1.0)
    if bool((nothing == 0).all()):
        offset = 0.0
    elif torch.allclose(once, 2 * nothing, atol=1e-5):
        offset = 1.0
    else:
        raise Unfit("its norms do more than scale by their weights")
    return Norm(offset, centers=torch.allclose(given(1.0, inputs_ND + 3.0), once, atol=1e-3))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


def _alike(name: str) -> str:
    """The same for all blocks of a stack."""
    return NUMBER.sub(".*", name, count=1)


def _everywhere(found: Mapping[str, Value], names: Iterable[str]) -> Iterator[tuple[str, Value]]:
    """What was found of the twin's blocks, of all."""
    told = {_alike(name): value for name, value in found.items()}
    for name in names:
        if _alike(name) in told:
            yield name, told[_alike(name)]


def _beside(norm: str, name: str) -> str:
    """The norm of the same block as the tensor `name`; one outside all blocks is the only one."""
    block = NUMBER.search(name)
    return NUMBER.sub(f".{block.group(1)}", norm, count=1) if norm and block else norm
