"""What belongs together when a model is made narrower: channels of an MLP, attention heads, filters, units of an LSTM.

Nothing is listed by architecture. How wide a model is stands in its configuration, so its own constructor is asked: built
without weights with one of those numbers changed, the tensors whose shapes differ, and the axes along which, are what must be
cut together, and the result loads anywhere. Which positions of an axis make up one unit is a guess among few, judged on a
small random twin: leaving out units that nothing reads must leave the twin's logits as they were.

Shapes: N units of a group, R positions of a unit along an axis, D features of a head, K key-value heads, Q query heads of each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmos_cli.models.blocks import shard_of
from llmos_cli.models.narrow import (
    GROUPS,
    HEAD_SIZE,
    HEADS,
    QUERIES,
    Group,
    Slice,
    Width,
    grouping,
    narrowed,
    with_values,
)
from llmos_cli.models.shallow import depth_of, shallower

HIDDEN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim", "d_ff")
"""Keys for the width between the two halves of a transformer's MLP."""
CHAINED = ("channels", "hidden_size")
"""Keys for the widths of models that are a chain of layers; a list holds one for each."""
TOLERANCE = 1e-3
"""Largest difference of the twin's logits, as a share of the largest: a wrong guess is off by about 1."""

Layout = Callable[[int, int], Tensor]
"""Positions [N, R] of each unit along an axis of (size, units)."""


@dataclass(frozen=True)
class Trial:
    """A width to look for: the configuration with `to` units instead, and how a unit's positions may lie."""

    key: str
    place: int | None
    to: int
    config: PreTrainedConfig
    layouts: tuple[Layout, ...]
    head_size: int | None = None

    @property
    def name(self) -> str:
        return self.key if self.place is None else f"{self.key}[{self.place}]"


def widths(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[list[Width], dict[str, str]]:
    """The widths that can be cut, each tried on a twin with the inputs `batch`, and those that cannot: name -> reason."""
    small = twin(model)
    found: list[Width] = []
    refused: dict[str, str] = {}
    for trial, again in zip(_trials(model.config), _trials(small.config), strict=True):
        try:
            right = _layout_that_holds(small, again, batch)
            found.append(_width(model, trial, right))
        except _Unfit as unfit:
            refused[trial.name] = str(unfit)
    return found, refused


class _Unfit(Exception):
    """Why a number of the configuration is no width of groups that can be cut."""


def _trials(config: PreTrainedConfig) -> Iterator[Trial]:
    for key in HIDDEN:
        if hasattr(config, key):
            yield _trial(config, key, None, getattr(config, key))
    attention = isinstance(getattr(config, HEADS, None), int)
    if attention:
        yield from _heads(config)
    for key in CHAINED:
        value = getattr(config, key, None)
        if isinstance(value, list | tuple):
            for place, width in enumerate(value):
                yield _trial(config, key, place, width)
        elif value is not None and not attention:
            yield _trial(config, key, None, value)


def _trial(config: PreTrainedConfig, key: str, place: int | None, width: int | None) -> Trial:
    # A width that is left to the architecture (None) is some multiple of another, and so never odd.
    to = width + 1 if width is not None else 23
    value = to if place is None else [*getattr(config, key)[:place], to, *getattr(config, key)[place + 1 :]]
    return Trial(key, place, to, with_values(config, {key: value}), (_sections, _runs))


def _heads(config: PreTrainedConfig) -> Iterator[Trial]:
    """Whole key-value heads with their query heads; where several share one, query heads of each too."""
    groups, queries = grouping(config)
    size = getattr(config, HEAD_SIZE, None) or getattr(config, "hidden_size", 0) // getattr(config, HEADS)
    more = {HEADS: (groups + 1) * queries, GROUPS: groups + 1, HEAD_SIZE: size}
    yield Trial(GROUPS, None, groups + 1, with_values(config, more), (_runs, _fused(queries, size)), size)
    if queries > 1:
        more = {HEADS: groups * (queries + 1), GROUPS: groups, HEAD_SIZE: size}
        yield Trial(QUERIES, None, queries + 1, with_values(config, more), (_shared(groups, size),), size)


def _sections(size: int, units: int) -> Tensor:
    """One position in each of R sections: the gates of an LSTM, a gate and its value in one matrix."""
    return torch.arange(size).view(-1, units).T


def _runs(size: int, units: int) -> Tensor:
    """R positions in a row: the features of a head."""
    return torch.arange(size).view(units, -1)


def _fused(queries: int, size: int) -> Layout:
    """Queries, keys and values one below the other in one matrix, each in runs."""

    def layout(total: int, units: int) -> Tensor:
        if total != units * (queries + 2) * size:
            return _runs(total, units)
        parts = torch.arange(total).split([units * queries * size, units * size, units * size])
        return torch.cat([part.view(units, -1) for part in parts], 1)

    return layout


def _shared(groups: int, size: int) -> Layout:
    """The q-th query head of every key-value head: [Q, K x D]; each key-value head's own is a group by itself."""

    def layout(total: int, units: int) -> Tensor:
        if total != groups * units * size:
            raise _Unfit("queries, keys and values are one matrix")
        return torch.arange(total).view(groups, units, size).transpose(0, 1).flatten(1)

    return layout


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture with its first and last block, one of each kind, and random weights, biases and norms among them."""
    depth, config = depth_of(model.config), copy.deepcopy(model.config)
    if depth is not None and depth[1] > 2:
        kinds = getattr(config, "layer_types", None) or []
        config = shallower(config, sorted({0, depth[1] - 1, *map(kinds.index, set(kinds))}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small: PreTrainedModel = nn.Module.to(type(model)(config), torch.float32).eval()
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return small


def _layout_that_holds(twin: PreTrainedModel, trial: Trial, batch: Mapping[str, Tensor]) -> Layout:
    for layout in trial.layouts:
        width = _width(twin, trial, layout)
        if width.units < 2:
            raise _Unfit(f"there is only {width.units}")
        if _holds(twin, width, batch):
            return layout
    raise _Unfit("what is left would not compute what it did before: something ties its units together")


def _holds(twin: PreTrainedModel, width: Width, batch: Mapping[str, Tensor]) -> bool:
    """Whether leaving out every other unit changes nothing once no matrix reads them."""
    kept = {group: torch.arange(width.units) % 2 == index % 2 for index, group in enumerate(width.groups)}
    if width.units % 2:
        kept = dict.fromkeys(width.groups, torch.arange(width.units) % 2 == 0)
    deaf = copy.deepcopy(twin)
    deafen(deaf, kept)
    inputs = {name: value[:2].cpu() for name, value in batch.items()}
    with torch.no_grad():
        before, after = (model(**inputs).logits for model in (deaf, narrowed(twin, {width: kept})))
    return bool((before - after).abs().max() <= TOLERANCE * before.abs().max())


def deafen(model: nn.Module, kept: Mapping[Group, Tensor]) -> None:
    """Zero what reads the units that are not kept, in place."""
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for group, kept_N in kept.items():
            for reader in group.readers:
                tensors[reader.tensor].index_fill_(reader.axis, reader.index_NR[~kept_N].flatten(), 0.0)


def _width(model: PreTrainedModel, trial: Trial, layout: Layout) -> Width:
    """The groups whose units `trial` counts."""
    changes = _changes(model, trial)
    if not changes:
        raise _Unfit("no tensor's shape follows it")
    units = {size * trial.to // after for _, _, size, after in changes}
    if len(units) > 1 or any(after % trial.to or size * trial.to % after for _, _, size, after in changes):
        raise _Unfit("its tensors do not change in proportion")
    count = units.pop()
    parts = _parts(model, changes, count, layout)
    groups = tuple(group for name, (own, read) in parts.items() for group in _groups(name, own, read, trial))
    return Width(trial.key, trial.place, count, groups, trial.head_size)


def _changes(model: PreTrainedModel, trial: Trial) -> list[tuple[str, int, int, int]]:
    """(tensor, axis, size, size in the trial) of every axis that changes."""
    try:
        with torch.device("meta"):
            other = type(model)(trial.config).state_dict()
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as problem:
        raise _Unfit(f"the architecture allows no other: {str(problem).strip().splitlines()[0]}") from problem
    state = model.state_dict()
    if state.keys() != other.keys() or any(state[name].dim() != other[name].dim() for name in state):
        raise _Unfit("other tensors come and go with it")
    return [
        (name, axis, value.shape[axis], other[name].shape[axis])
        for name, value in state.items()
        for axis in range(value.dim())
        if value.shape[axis] != other[name].shape[axis]
    ]


Parts = dict[str, tuple[list[Slice], list[Slice]]]


def _parts(model: nn.Module, changes: list[tuple[str, int, int, int]], units: int, layout: Layout) -> Parts:
    """Places of each group by its name: those where its units are made, and those where they are read.

    What is read in the block that makes it belongs to that; what a layer reads that makes units itself, or that stands outside
    the blocks, comes from the nearest block before. The groups of one block that are read side by side take turns.
    """
    parts: Parts = {}
    made: set[str] = set()
    for name, axis, size, _ in changes:
        if not _reads(model, name, axis):
            made.add(name.rpartition(".")[0])
            parts.setdefault(_owner(model, name), ([], []))[0].append(Slice(name, axis, layout(size, units)))
    for name, axis, size, _ in changes:
        if _reads(model, name, axis):
            sources = _sources(model, name, parts, itself=name.rpartition(".")[0] in made)
            index_NR = layout(size, units)
            for turn, source in enumerate(sources):
                parts[source][1].append(Slice(name, axis, index_NR[:, turn :: len(sources)]))
    return parts


def _reads(model: nn.Module, name: str, axis: int) -> bool:
    """Whether an axis of a tensor is a matrix's inputs; _Unfit where that cannot be told."""
    module_name, _, part = name.rpartition(".")
    module = model.get_submodule(module_name)
    if isinstance(module, nn.Embedding):
        raise _Unfit("it is also the width of the embeddings")
    if isinstance(module, nn.LSTM) and (module.num_layers > 1 or module.bidirectional or module.proj_size):
        raise _Unfit(f"{module_name} is a stack of LSTMs in one")
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise _Unfit(f"{module_name} convolves in groups")
    if isinstance(module, Conv1D):
        return part == "weight" and axis == 0
    if isinstance(module, nn.Linear | nn.Conv2d | nn.LSTM):
        return part.startswith("weight") and axis == 1
    if module._parameters.get(part) is not None and module._parameters[part].dim() > 1:  # type: ignore[union-attr]
        raise _Unfit(f"{name} belongs to a {type(module).__name__}, whose inputs cannot be looked at")
    return False


def _owner(model: nn.Module, name: str) -> str:
    """The group that a place makes units of: one for each block, but each LSTM has its own."""
    module_name = name.rpartition(".")[0]
    return module_name if isinstance(model.get_submodule(module_name), nn.LSTM) else shard_of(name) or ""


def _sources(model: nn.Module, name: str, parts: Parts, *, itself: bool) -> list[str]:
    block = shard_of(name) or ""
    if name.rpartition(".")[2].startswith("weight_hh"):
        return [_owner(model, name)]
    if not itself and block in parts:
        return [block]
    blocks = list(dict.fromkeys(_block(owner) for owner in parts))
    before = blocks[: blocks.index(block)] if block in blocks else blocks
    if not before:
        raise _Unfit(f"nothing before {name} gives it these inputs")
    return [owner for owner in parts if _block(owner) == before[-1]]


def _block(owner: str) -> str:
    return shard_of(f"{owner}.") or ""


def _groups(name: str, own: list[Slice], read: list[Slice], trial: Trial) -> Iterator[Group]:
    if not own or not read:
        raise _Unfit(f"in {name or 'the model'} nothing {'makes' if not own else 'reads'} its units")
    label = f"{trial.name} of {name}" if name else trial.name
    if trial.key != QUERIES:
        yield Group(label, (*own, *read), tuple(read))
        return
    assert trial.head_size is not None
    for start in range(0, own[0].index_NR.shape[1], trial.head_size):
        own_ND, read_ND = (
            tuple(Slice(each.tensor, each.axis, each.index_NR[:, start : start + trial.head_size]) for each in places)
            for places in (own, read)
        )
        yield Group(f"{label}, group {start // trial.head_size}", (*own_ND, *read_ND), read_ND)
