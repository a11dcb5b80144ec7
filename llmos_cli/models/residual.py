"""The width of a model's residual stream, made smaller: every tensor that writes to the stream or reads it loses the same channels.

Where those lie is found twice, and must agree: by what moves when one channel is moved (`models/stream.py`), and by the shapes that the
model's own constructor gives when its configuration says another `hidden_size`, with heads as large as they are. A norm divides by the
mean over fewer channels then: where K of D stay and the others were zero, it would give sqrt(K / D) of what it gave, and that is made up
for in its scales. Judged on the twin: channels that nothing writes to can go without its answers changing. A norm that subtracts the mean
cannot lose a channel so.

Shapes: D channels of the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmos_cli.models.channels import TOLERANCE, twin
from llmos_cli.models.narrow import HEAD_SIZE, HEADS, built, grouping, is_accepted, with_values
from llmos_cli.models.stream import Norm, Stream, Unfit, carried, find

WIDTH = "hidden_size"


@dataclass(frozen=True)
class Channels:
    """`axes`: where the channels lie in each tensor of the state dict; `read`: of the matrices that read them, the norm they are read
    through; `written`: matrices of linear layers that write to them; `norms` by the names of modules."""

    width: int
    axes: Mapping[str, int]
    read: Mapping[str, str]
    written: frozenset[str]
    norms: Mapping[str, Norm]


def channels(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Channels:
    """Of a model in memory; `batch`: inputs for it. Raises Unfit where the stream's width is not a number that can be changed alone."""
    small, found = find(model, batch, whole=True)
    if any(norm.centers for norm in found.norms.values()):
        raise Unfit("its norms subtract the mean over all channels")
    again = twin(model)  # tied, where the model is
    if not _holds(again, _of(again, found), batch):
        raise Unfit("something besides its norms and linear layers works on the channels")
    return _of(model, carried(found, small, model))


def _of(model: PreTrainedModel, stream: Stream) -> Channels:
    axes = {name: part.axis for name, part in stream.along.items()}
    axes |= {name: 0 for name in model.state_dict() if name.rpartition(".")[0] in stream.norms}
    _check_shapes(model, stream.width, axes)
    read = {name: part.norm for name, part in stream.along.items() if part.norm}
    written = {name for name, part in stream.along.items() if not part.norm and _is_matrix(model, name)}
    return Channels(stream.width, axes, read, frozenset(written), stream.norms)


def _check_shapes(model: PreTrainedModel, width: int, axes: Mapping[str, int]) -> None:
    """Unfit unless the constructor has the same tensors of another shape, along the same axis, when told another width."""
    heads = max(1, getattr(model.config, HEADS, 1))
    try:
        with torch.device("meta"):
            other = type(model)(thinner(model.config, width + heads)).state_dict()
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as problem:
        told = str(problem).strip().splitlines()
        raise Unfit(
            f"the architecture allows no other width: {told[0] if told else type(problem).__name__}"
        ) from problem
    for name, value in model.state_dict().items():
        differ = [axis for axis, size in enumerate(other[name].shape) if size != value.shape[axis]]
        if differ != ([axes[name]] if name in axes else []):
            raise Unfit(f"{name} has a width that its configuration ties to that of the stream")


def thinner(config: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """A copy of `config` with a stream of `width` channels, and heads of the size they have."""
    values: dict[str, object] = {WIDTH: width}
    if grouping(config)[0]:
        values[HEAD_SIZE] = getattr(config, HEAD_SIZE, None) or getattr(config, WIDTH) // getattr(config, HEADS)
    return with_values(config, values)


def allowed(config: PreTrainedConfig, wanted: float, multiple: int) -> int:
    """The accepted width that is nearest to `wanted`, a multiple of `multiple`, or of half of that and so on, until one is near enough."""
    width: int = getattr(config, WIDTH)
    while True:
        found = [count for count in range(multiple, width, multiple) if is_accepted(thinner(config, count))]
        nearest = min(found, key=lambda count: (abs(count - wanted), count), default=0)
        if found and (abs(nearest - wanted) <= width / 32 or multiple == 1):
            return nearest
        if multiple == 1:
            raise Unfit("its configuration accepts no smaller width")
        multiple = max(1, multiple // 2)


def thinned(model: PreTrainedModel, found: Channels, kept_D: Tensor) -> PreTrainedModel:
    """A new model with the channels `kept_D` (bool) alone; its norms give as much as if the others had been zero."""
    stays = kept_D.nonzero()[:, 0]
    state = {
        name: value.index_select(found.axes[name], stays.to(value.device)) if name in found.axes else value
        for name, value in model.state_dict().items()
    }
    smaller = built(type(model), thinner(model.config, len(stays)), state, model.device)
    with torch.no_grad():
        for name in found.norms:
            scaled(smaller, found, name, torch.tensor(found.width / len(stays)).sqrt())
    return smaller


def scaled(model: nn.Module, found: Channels, norm: str, by: Tensor) -> None:
    """What the norm gives is `by` times what it gave, in place."""
    offset = found.norms[norm].offset
    for name, parameter in model.get_submodule(norm).named_parameters(recurse=False):
        parameter.copy_(
            (parameter + offset) * by.to(parameter) - offset if name == "weight" else parameter * by.to(parameter)
        )


def _holds(again: PreTrainedModel, found: Channels, batch: Mapping[str, Tensor]) -> bool:
    """Whether the twin answers alike without half of its channels, once nothing is written to those."""
    heads = max(1, getattr(again.config, HEADS, 1))
    count = max(1, found.width // 2 // heads) * heads
    kept_D = torch.zeros(found.width, dtype=torch.bool)
    kept_D[torch.arange(count) * found.width // count] = True
    deaf = copy.deepcopy(again)
    inputs = {name: value[:2].cpu() for name, value in batch.items()}
    with torch.no_grad():
        for name, parameter in deaf.named_parameters():
            if name in found.axes and name not in found.read and name.rpartition(".")[0] not in found.norms:
                parameter.index_fill_(found.axes[name], (~kept_D).nonzero()[:, 0], 0.0)
        before, after = (model(**inputs).logits for model in (deaf, thinned(deaf, found, kept_D)))
    return bool((before - after).abs().max() <= TOLERANCE * before.abs().max())


def _is_matrix(model: nn.Module, name: str) -> bool:
    module_name, _, part = name.rpartition(".")
    return part == "weight" and isinstance(model.get_submodule(module_name), nn.Linear)
