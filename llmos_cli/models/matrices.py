"""A model's compressible weights as matrices, each [O, I] whatever the layer keeps it as, and why others are left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llmos_cli.errors import LlmosError
from llmos_cli.models.blocks import embedding_names, head_names, layers, other_matrices, weights


@dataclass(frozen=True)
class Matrix:
    """One weight of a compressible layer; `name` is the parameter's full name in the model, `shape` its own there."""

    name: str
    layer_name: str
    layer: nn.Module
    shape: torch.Size

    @property
    def parameter(self) -> nn.Parameter:
        """As it is now: of a model that streams, another each time its block comes."""
        found: nn.Parameter = getattr(self.layer, self.name[len(self.layer_name) + 1 :])
        return found

    @property
    def inputs(self) -> int:
        return self.shape[0] if self.transposed else self.shape[1:].numel()

    @property
    def transposed(self) -> bool:
        """transformers' Conv1D keeps its weight as [I, O]."""
        return isinstance(self.layer, Conv1D)

    def read(self) -> Tensor:
        """[O, I] in fp32, a copy: a kernel's inputs are channels x height x width."""
        return self.flat(self.parameter.detach())

    def flat(self, weight: Tensor) -> Tensor:
        """[O, I] in fp32, a copy, of a tensor in the layer's own shape; LlmosError where it is not finite."""
        weight = weight.float()
        weight_OI = (weight.T if self.transposed else weight.flatten(1)).clone()
        if not finite(weight_OI):
            raise LlmosError(
                f"{self.name} holds values that are not finite", hint="compress a checkpoint from before that"
            )
        return weight_OI

    def write(self, weight_OI: Tensor) -> None:
        with torch.no_grad():
            self.parameter.copy_(self.shaped(weight_OI))

    def shaped(self, weight_OI: Tensor) -> Tensor:
        """[O, I] in the layer's own shape."""
        return weight_OI.T if self.transposed else weight_OI.view(self.shape)


def finite(value: Tensor) -> bool:
    """Whether all of it is, of what lies in rows without a copy: `isfinite` would make twice as much of it to tell."""
    return value.numel() == 0 or all(math.isfinite(end) for end in value.detach().aminmax())


def matrices(model: nn.Module, ignore: Sequence[str] = ()) -> dict[str, Matrix]:
    """All of a model's compressible weights by name, but those of layers that a glob pattern of `ignore` matches."""
    return {
        f"{layer_name}.{weight}": Matrix(f"{layer_name}.{weight}", layer_name, layer, parameter.shape)
        for layer_name, layer in layers(model).items()
        if not matches(layer_name, ignore)
        for weight, parameter in weights(layer).items()
    }


def left_alone(model: nn.Module, ignore: Sequence[str] = ()) -> dict[str, str]:
    """Modules with weights that no method touches, and why."""
    reasons = dict.fromkeys(head_names(model), "output layer")
    lookups = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    reasons |= dict.fromkeys([*lookups, *embedding_names(model)], "embedding")
    reasons |= {name: f"in a {kind}, which no method reads" for name, kind in other_matrices(model).items()}
    reasons |= {name: "ignored, as the config says" for name in layers(model) if matches(name, ignore)}
    return reasons


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
