"""Which weights move while a model trains, and what holds the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from llmos_cli import device


class Holding(Protocol):
    """What keeps weights where they are to be while they train, step by step."""

    def before_step(self) -> None:
        """The gradients of the step are there, finite and clipped; the weights have not moved yet."""

    def after_step(self, progress: float) -> None:
        """The weights have moved; `progress` is the share of the run that is done."""


@dataclass(frozen=True)
class Held:
    """`masks`: parameter name -> True where a weight may differ from zero; held after every step. `trainable`: names of the parameters
    to train, all that ask for a gradient when None. `by`: what else holds weights, by rules that change as training goes on."""

    masks: Mapping[str, Tensor] = field(default_factory=dict)
    trainable: Callable[[str], bool] | None = None
    by: Holding | None = None


FREE = Held()


@contextmanager
def moving(model: nn.Module, trainable: Callable[[str], bool] | None) -> Iterator[None]:
    """Only the chosen parameters ask for a gradient, for as long as training lasts."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(asked[parameter] and (trainable is None or trainable(name)))
    model.train()
    try:
        yield
    finally:
        model.eval()
        for parameter, before in asked.items():
            parameter.requires_grad_(before)
            parameter.grad = None


class Zeros:
    """The pruned weights of a model: they are zero after every step."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters())
        self._gone = [(named[name], device.move(~mask, named[name].device)) for name, mask in masks.items()]

    @torch.no_grad()
    def hold(self) -> None:
        for parameter, gone in self._gone:
            parameter.masked_fill_(gone, 0)  # a product would leave -0 of what became negative

    def check(self) -> None:
        for parameter, gone in self._gone:
            assert not parameter[gone].any(), "a pruned weight came back"
