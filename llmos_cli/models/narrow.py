"""Making a model narrower: its tensors without the positions of the units that went, in a model whose configuration says so.

Shapes: N units of a group, R positions of a unit along an axis.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from llmos_cli.errors import LlmosError

HEADS, GROUPS, HEAD_SIZE = "num_attention_heads", "num_key_value_heads", "head_dim"
QUERIES = "queries"
"""Not a key of any configuration: how many query heads share a key-value head."""


@dataclass(frozen=True)
class Slice:
    """Where a group's units lie in one tensor: unit u is the positions `index_NR[u]` along `axis`."""

    tensor: str
    axis: int
    index_NR: Tensor = field(compare=False)


@dataclass(frozen=True)
class Group:
    """Units that can be left out one by one, and all their places. `readers` are those of the places that are inputs of a
    matrix: whatever a unit does, it does through them."""

    name: str
    slices: tuple[Slice, ...] = field(compare=False)
    readers: tuple[Slice, ...] = field(compare=False)


@dataclass(frozen=True)
class Width:
    """A number of the configuration, and the groups, about one a layer, that have that many units each.

    `place`: which element where `key` holds a list. `head_size`: what must be said outright once heads are fewer.
    """

    key: str
    place: int | None
    units: int
    groups: tuple[Group, ...] = field(compare=False)
    head_size: int | None = None

    @property
    def name(self) -> str:
        return self.key if self.place is None else f"{self.key}[{self.place}]"


Kept = Mapping[Width, Mapping[Group, Tensor]]
"""Of each group the units that stay, [N] bool."""


def narrowed(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model that has only the units `kept`: of all groups of a width equally many."""
    counts: dict[Width, int] = {}
    for width, groups in kept.items():
        found = {int(kept_N.sum()) for kept_N in groups.values()}
        assert len(found) == 1, "one number in the configuration, one width for all its groups"
        counts[width] = found.pop()
    gone = positions_gone(kept)
    state = {name: _without(value, gone.get(name, {})) for name, value in model.state_dict().items()}
    return built(type(model), configured(model.config, counts), state, model.device)


def configured(config: PreTrainedConfig, counts: Mapping[Width, int]) -> PreTrainedConfig:
    """A copy of `config` that says so many units of each width."""
    values: dict[str, object] = {}
    groups, queries = grouping(config)
    for width, count in counts.items():
        if width.place is not None:
            listed = list(values.get(width.key, getattr(config, width.key)))  # type: ignore[call-overload]
            listed[width.place] = count
            values[width.key] = listed
        elif width.head_size is None:
            values[width.key] = count
        else:
            groups, queries = (count, queries) if width.key == GROUPS else (groups, count)
            values |= {HEADS: groups * queries, GROUPS: groups, HEAD_SIZE: width.head_size}
    return with_values(config, values)


def with_values(config: PreTrainedConfig, values: Mapping[str, object]) -> PreTrainedConfig:
    """A copy that says so; what a configuration works out from other numbers and cannot be told (Falcon's size of a head) stays so."""
    changed, cls = copy.deepcopy(config), type(config)
    for key, value in values.items():
        said = getattr(cls, key, None)
        if not (isinstance(said, property) and said.fset is None):
            setattr(changed, key, value)
    return changed


def is_accepted(config: PreTrainedConfig) -> bool:
    """Whether the architecture takes such a configuration when it reads it: some want heads to divide the hidden size."""
    try:
        type(config).from_dict(config.to_dict())
    except (StrictDataclassError, ValueError, TypeError):
        return False
    return True


def grouping(config: PreTrainedConfig) -> tuple[int, int]:
    """Key-value heads, and query heads of each; (0, 0) for a model without attention."""
    heads = getattr(config, HEADS, 0)
    groups = getattr(config, GROUPS, None) or heads
    return groups, heads // groups if groups else 0


def positions_gone(kept: Kept) -> dict[str, dict[int, Tensor]]:
    """Tensor name -> axis -> the positions that go with the units that are not kept."""
    gone: dict[str, dict[int, list[Tensor]]] = {}
    for groups in kept.values():
        for group, kept_N in groups.items():
            for part in group.slices:
                found = gone.setdefault(part.tensor, {}).setdefault(part.axis, [])
                found.append(part.index_NR[~kept_N.cpu()].flatten())
    return {name: {axis: torch.cat(found).unique() for axis, found in axes.items()} for name, axes in gone.items()}


def _without(value: Tensor, gone: Mapping[int, Tensor]) -> Tensor:
    for axis, positions in gone.items():
        stays = torch.ones(value.shape[axis], dtype=torch.bool)
        stays[positions] = False
        value = value.index_select(axis, stays.nonzero()[:, 0].to(value.device))
    return value


def built(
    cls: type[PreTrainedModel], config: PreTrainedConfig, state: Mapping[str, Tensor], device: torch.device
) -> PreTrainedModel:
    """A model of `config` in eval mode holding copies of these weights; LlmosError where it has other shapes than they."""
    with no_init_weights():
        model = cls(config)
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        theirs, ours = (tuple(found[name].shape) if name in found else None for found in (state, own))
        if ours != theirs:
            raise LlmosError(
                f"{name} was cut to {theirs}, but a {config.model_type} of that configuration makes it {ours}",
                hint="nothing was committed; the unstructured methods leave all shapes alone",
            )
    model.load_state_dict(dict(state))
    model.tie_weights()  # type: ignore[no-untyped-call]
    moved: PreTrainedModel = nn.Module.to(model.eval(), device)
    return moved
