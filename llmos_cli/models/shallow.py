"""Making a model shallower: some of its blocks left out, the rest numbered anew, the configuration saying how many there are."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import UsageError
from llmos_cli.models.blocks import blocks
from llmos_cli.models.narrow import built, with_values

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def depth_of(config: PreTrainedConfig) -> tuple[str, int] | None:
    """The key that counts the blocks and what it says; None where there is no such key."""
    return next(((key, getattr(config, key)) for key in DEPTHS if isinstance(getattr(config, key, None), int)), None)


def shallower(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """A copy of `config` with the blocks numbered `kept`; lists that speak of each layer (`layer_types`...) are cut alike."""
    found = depth_of(config)
    assert found is not None
    key, depth = found
    listed = {
        name: [value[index] for index in kept]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == depth and "layer" in name
    }
    return with_values(config, {**listed, key: len(kept)})


def shortened(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model of the blocks numbered `kept`, in that order; UsageError where the blocks are no such stack."""
    stack, found = blocks(model), depth_of(model.config)
    if found is None or found[1] != len(stack):
        raise UsageError(
            f"the configuration of {model.config.model_type} does not say how many blocks it has, so none can be left out",
            hint="`--method width` makes blocks narrower instead",
        )
    places = {stack[old].name: stack[new].name for new, old in enumerate(kept)}
    gone = {block.name for block in stack} - places.keys()
    state = {}
    for name, value in model.state_dict().items():
        block = next((prefix for prefix in places.keys() | gone if name.startswith(prefix + ".")), None)
        if block is None:
            state[name] = value
        elif block in places:
            state[places[block] + name[len(block) :]] = value
    return built(type(model), shallower(model.config, kept), state, model.device)
