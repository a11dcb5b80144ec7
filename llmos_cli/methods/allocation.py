"""One of several sizes for each part of a model, so that the whole loses least within a budget.

Losses of parts are taken to add up. For a price on cost, every part then takes the choice least in loss + price * cost by
itself (Shoham & Gersho 1988); as the price falls, parts step along the lower convex hulls of their choices, the step that gains
most per unit of cost first. Those allocations are the frontier: between two neighbours of it no allocation is better by more
than the one step that parts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What a part costs (bytes, seconds: any unit that adds up) and loses (nats) one way."""

    cost: float
    loss: float


Parts = Sequence[Sequence[Choice]]
Allocation = tuple[int, ...]
"""For each part the index of its choice."""


def frontier(parts: Parts) -> Iterator[Allocation]:
    """From the cheapest allocation to the one of least loss, one part's step at a time."""
    hulls = [hull(choices) for choices in parts]
    now = [indices[0] for indices in hulls]
    yield tuple(now)
    steps = [
        (_gain(parts[part][before], parts[part][after]), part, after)
        for part, indices in enumerate(hulls)
        for before, after in itertools.pairwise(indices)
    ]
    for _, part, after in sorted(steps, key=lambda step: -step[0]):
        now[part] = after
        yield tuple(now)


def within(parts: Parts, budget: float) -> Allocation | None:
    """The frontier's last allocation that costs at most `budget`, what is left then spent on single parts; None where the
    cheapest costs more."""
    best: Allocation | None = None
    for allocation in frontier(parts):
        if total(parts, allocation).cost > budget:
            break
        best = allocation
    return best and _spend(parts, best, budget)


def total(parts: Parts, allocation: Allocation) -> Choice:
    chosen = [choices[index] for choices, index in zip(parts, allocation, strict=True)]
    return Choice(sum(choice.cost for choice in chosen), sum(choice.loss for choice in chosen))


def hull(choices: Sequence[Choice]) -> list[int]:
    """Indices of the choices that are best at some price, by rising cost: the lower convex hull of (cost, loss)."""
    corners: list[int] = []
    for index in sorted(range(len(choices)), key=lambda i: (choices[i].cost, choices[i].loss)):
        if corners and choices[index].loss >= choices[corners[-1]].loss:
            continue
        while len(corners) > 1 and _gain(choices[corners[-1]], choices[index]) >= _gain(
            choices[corners[-2]], choices[corners[-1]]
        ):
            corners.pop()
        corners.append(index)
    return corners


def _gain(before: Choice, after: Choice) -> float:
    """Loss saved per unit of cost added."""
    return (before.loss - after.loss) / (after.cost - before.cost)


def _spend(parts: Parts, allocation: Allocation, budget: float) -> Allocation:
    """Single changes that fit into what is left, the one that saves most first."""
    left = budget - total(parts, allocation).cost
    while True:
        changes = [
            (choices[now].loss - other.loss, part, index)
            for part, (choices, now) in enumerate(zip(parts, allocation, strict=True))
            for index, other in enumerate(choices)
            if other.loss < choices[now].loss and other.cost - choices[now].cost <= left
        ]
        if not changes:
            return allocation
        _, part, index = max(changes)
        left -= parts[part][index].cost - parts[part][allocation[part]].cost
        allocation = (*allocation[:part], index, *allocation[part + 1 :])
