"""The walk: from one recipe to another, one difference at a time, and no further into a group than its effect is worth.

Differences are changed in their order, each on top of those before it, so that effects add up to the whole: what a difference does is
what it does when all before it are as in B and all after it as in A. A group is halved where its effect is more than noise (first
where another kind begins), as delta debugging halves it (Zeller 1999, "Yesterday, my program worked. Today, it does not. Why?"): of k
differences of which one counts, about log2 k are run and not k. Like any halving it misses two in one half that cancel one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Measure = Callable[[int], float | str]
"""The metric with the first n differences as in B, or why it cannot be had."""


@dataclass(frozen=True)
class Leg:
    """What the differences from `low` up to `high` do together; `reason`: why they were not told apart."""

    low: int
    high: int
    effect: float
    reason: str = ""


def walk(kinds: Sequence[str], measure: Measure, *, limit: float) -> list[Leg]:
    """Over all differences, whose kinds are given; `measure` is asked for both ends first, which it must know."""
    ends = [_known(measure, at) for at in (0, len(kinds))]
    return _separated(kinds, measure, limit, (0, len(kinds)), (ends[0], ends[1]))


def _separated(
    kinds: Sequence[str], measure: Measure, limit: float, places: tuple[int, int], values: tuple[float, float]
) -> list[Leg]:
    low, high = places
    effect = values[1] - values[0]
    if high - low <= 1:
        return [Leg(low, high, effect)] if high > low else []
    seeds = kinds[low] == "seed"
    if abs(effect) <= limit and not seeds:
        return [Leg(low, high, effect)]
    middle, found = _cut(kinds, measure, low, high)
    if isinstance(found, str):
        return [Leg(low, high, effect, found)]
    first = _separated(kinds, measure, limit, (low, middle), (values[0], found))
    return first + _separated(kinds, measure, limit, (middle, high), (found, values[1]))


def _cut(kinds: Sequence[str], measure: Measure, low: int, high: int) -> tuple[int, float | str]:
    """The place to halve at, the first of those that can be measured, and what is measured there."""
    found: float | str = ""
    for place in cuts(kinds, low, high):
        found = measure(place)
        if not isinstance(found, str):
            return place, found
    return low, found


def cuts(kinds: Sequence[str], low: int, high: int) -> list[int]:
    """Places between two ends, the best first: after a seed, where another kind begins, near the middle."""

    def worth(place: int) -> tuple[bool, bool, float]:
        return (kinds[place - 1] != "seed", kinds[place - 1] == kinds[place], abs(place - (low + high) / 2))

    return sorted(range(low + 1, high), key=worth)


def _known(measure: Measure, at: int) -> float:
    found = measure(at)
    assert not isinstance(found, str), "both ends are measured before the walk"
    return found
