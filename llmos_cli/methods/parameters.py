"""The trainable parameters of a model by the part they play, which is what optimizers tell apart.

Weight decay shrinks matrices and heads only: norms, biases and scales have a size of their own to keep, and the row of
an embedding would shrink on every step in which its token is absent. Muon takes the matrices only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from llmos_cli.models.blocks import layers


@dataclass(frozen=True)
class Parameters:
    """`matrices`: weights of the hidden Linear, Conv and LSTM layers; `heads`: output layers not tied to an embedding;
    `vectors`: whatever has fewer than two dimensions."""

    matrices: list[nn.Parameter]
    heads: list[nn.Parameter]
    embeddings: list[nn.Parameter]
    vectors: list[nn.Parameter]

    @property
    def decayed(self) -> list[nn.Parameter]:
        return self.matrices + self.heads

    @property
    def undecayed(self) -> list[nn.Parameter]:
        return self.embeddings + self.vectors

    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Two groups for an optimizer that treats all parameters alike but for the decay; empty ones left out."""
        groups: list[dict[str, object]] = [
            {"params": self.decayed, "weight_decay": weight_decay},
            {"params": self.undecayed, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


def of_model(model: nn.Module, trainable: Callable[[str], bool] | None = None) -> Parameters:
    """Sort the parameters that require a gradient and whose name `trainable` accepts; a tied tensor comes once."""
    hidden = {p for layer in layers(model).values() for p in layer.parameters()}
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    sorted_ = Parameters([], [], [], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (trainable is None or trainable(name)):
            _part(sorted_, parameter, hidden=hidden, tables=tables).append(parameter)
    return sorted_


def _part(
    parts: Parameters, parameter: nn.Parameter, *, hidden: set[nn.Parameter], tables: set[nn.Parameter]
) -> list[nn.Parameter]:
    if parameter.ndim < 2:
        return parts.vectors
    if parameter in tables:
        return parts.embeddings
    return parts.matrices if parameter in hidden else parts.heads
