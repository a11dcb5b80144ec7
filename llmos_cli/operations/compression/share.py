"""How a structured cut is shared out: which of a model's widths give way, and how far, for the parameters that must go.

Each width has the counts it may be cut to and what each of them costs; the cheapest step for the parameters it saves is taken
again and again, and what turns out to be too much is given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from llmos_cli.errors import UsageError
from llmos_cli.models.narrow import Width

Counts = dict[Width, int]


@dataclass(frozen=True)
class Choice:
    """The counts that a width may have, the parent's among them, and what each costs: the error that its absence adds, as a share
    of what it is added to, over all groups."""

    cost: Mapping[int, float]

    def below(self, count: int) -> list[int]:
        """The next smaller one first."""
        return sorted((each for each in self.cost if each < count), reverse=True)

    def above(self, count: int) -> list[int]:
        return sorted(each for each in self.cost if each > count)


Accepted = Callable[[Counts], bool]
"""Whether a configuration may say these counts together."""


def share(model: nn.Module, choices: Mapping[Width, Choice], sparsity: float, accepted: Accepted) -> Counts:
    """How many units of each width stay for a share `sparsity` of the model's parameters to go; UsageError where it is too many."""
    size = Size(model, choices)
    counts: Counts = {width: width.units for width in choices}
    budget = (1 - sparsity) * size.of(counts)
    while size.of(counts) > budget:
        steps = [
            (_price(choices, counts, step, size), index, step)
            for index, step in enumerate(_down(choices, counts, accepted))
        ]
        if not steps:
            gone = 1 - size.of(counts) / size.of({width: width.units for width in choices})
            raise UsageError(
                f"at most {gone:.1%} of the parameters are in {', '.join(width.name for width in choices)}, not {sparsity:.1%}",
                hint="lower --sparsity; the embeddings and what is tied to them stay",
            )
        counts = min(steps)[2]
    return _given_back(choices, counts, size, budget, accepted)


class Size:
    """Counts a model's parameters as they would be."""

    def __init__(self, model: nn.Module, widths: Mapping[Width, Choice]) -> None:
        touched: dict[str, dict[int, set[Width]]] = {}
        for width in widths:
            for group in width.groups:
                for part in group.slices:
                    touched.setdefault(part.tensor, {}).setdefault(part.axis, set()).add(width)
        # Layers alike are counted once: (parameters, the widths they are proportional to) -> how many.
        self.terms: dict[tuple[Width, ...], int] = {}
        for name, parameter in model.named_parameters():
            proportional = tuple(width for _, found in sorted(touched.get(name, {}).items()) for width in found)
            self.terms[proportional] = self.terms.get(proportional, 0) + parameter.numel()

    def of(self, counts: Mapping[Width, int]) -> float:
        return sum(
            numel * math.prod(counts[width] / width.units for width in widths) for widths, numel in self.terms.items()
        )


def _down(choices: Mapping[Width, Choice], counts: Counts, accepted: Accepted) -> list[Counts]:
    """Every way to cut one width by one step."""
    return _steps({width: choices[width].below(count) for width, count in counts.items()}, counts, accepted)


def _steps(towards: Mapping[Width, list[int]], counts: Counts, accepted: Accepted) -> list[Counts]:
    """Each width alone at the first of the counts it may go to that is accepted."""
    reachable = (
        next((step for to in others if accepted(step := {**counts, width: to})), None)
        for width, others in towards.items()
    )
    return [step for step in reachable if step is not None]


def _price(choices: Mapping[Width, Choice], counts: Counts, step: Counts, size: Size) -> float:
    """What a step costs for each parameter that it saves."""
    more = sum(choices[width].cost[step[width]] - choices[width].cost[counts[width]] for width in counts)
    return more / (size.of(counts) - size.of(step))


def _given_back(
    choices: Mapping[Width, Choice], counts: Counts, size: Size, budget: float, accepted: Accepted
) -> Counts:
    """Steps that the budget leaves room for, those first that are worth most."""
    while True:
        options = _steps({width: choices[width].above(count) for width, count in counts.items()}, counts, accepted)
        fitting = [option for option in options if size.of(option) <= budget]
        if not fitting:
            return counts
        counts = max(fitting, key=lambda option: _price(choices, option, counts, size))
