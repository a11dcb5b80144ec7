"""What a sample costs a model, counted in a forward pass over a few: how often its weights are multiplied, and what layers put out.

Attention's own products are left out: below a few thousand positions the weights' are most of the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.models import blocks


@dataclass(frozen=True)
class Work:
    """Of one sample: `products` of a weight with an input, of all layers; `outputs`: elements that layers below the head put out."""

    products: float
    outputs: float


def of_sample(model: nn.Module, batch: Mapping[str, Tensor]) -> Work:
    """The mean over a batch as a task's split makes it; nothing is trained."""
    heads = {id(model.get_submodule(name)) for name in blocks.head_names(model)}
    products, outputs = [0], [0]

    def count(layer: nn.Module, _: object, output: object) -> None:
        made = output[0] if isinstance(output, tuple) else output
        if not isinstance(made, Tensor):
            return
        products[0] += _weights(layer) * _positions(layer, made)
        outputs[0] += 0 if id(layer) in heads else made.numel()

    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(**device.move(dict(batch), next(model.parameters()).device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    samples = len(next(iter(batch.values())))
    return Work(products[0] / samples, outputs[0] / samples)


def _weights(layer: nn.Module) -> int:
    """Those that each position is multiplied with."""
    return sum(weight.numel() for weight in blocks.weights(layer).values()) if _multiplies(layer) else 0


def _multiplies(layer: nn.Module) -> bool:
    return isinstance(layer, blocks.COMPRESSIBLE)


def _positions(layer: nn.Module, output: Tensor) -> int:
    """How often a layer was applied: tokens, pixels, steps."""
    channels = output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1]
    return output.numel() // max(1, channels)
