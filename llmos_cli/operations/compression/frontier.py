"""The frontier of size and loss: models that could be built, models that were, and the search among them for a target.

A stock is the parent, or the parent with a share of its parameters cut out; of each, the bits of the layers are chosen along the
frontier of `methods/allocation.py`. What is predicted there is set right by what is measured of the models that are built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from llmos_cli.methods import allocation
from llmos_cli.methods.allocation import Allocation, Choice
from llmos_cli.operations.compression.sensitivity import Part

Made = TypeVar("Made")
BUILDS = 4
"""Models built of one stock on the way to a KL: each sets the prediction right for the next."""
MARGIN = 0.97
"""Share of a bound that a prediction aims at."""


@dataclass(frozen=True)
class Rest:
    """What is left to be quantized: its `parts`, their `weights` in number; `fixed`: bytes of all else."""

    parts: Sequence[Part]
    weights: int
    fixed: int


@dataclass(frozen=True, eq=False)
class Stock:
    """`cut`: the share of parameters that went; `kl`: what that alone cost, nats a position; `look` measures the rest, once it is
    asked for."""

    cut: float
    kl: float
    look: Callable[[], Rest]

    @cached_property
    def rest(self) -> Rest:
        return self.look()

    @cached_property
    def choices(self) -> list[list[Choice]]:
        return [
            [Choice(part.bits_bytes[b], part.bits_kl[b]) for b in sorted(part.bits_bytes)] for part in self.rest.parts
        ]

    def candidates(self) -> list[Candidate]:
        return [self.candidate(chosen) for chosen in allocation.frontier(self.choices)]

    def candidate(self, chosen: Allocation) -> Candidate:
        whole = allocation.total(self.choices, chosen)
        return Candidate(self, chosen, self.rest.fixed + int(whole.cost), whole.loss)

    def within(self, size: int) -> Candidate | None:
        chosen = allocation.within(self.choices, size - self.rest.fixed)
        return None if chosen is None else self.candidate(chosen)


@dataclass(frozen=True)
class Candidate:
    """One way to build a model: its `size` in bytes is exact, its `loss` by quantizing a prediction in nats a position."""

    stock: Stock = field(repr=False)
    chosen: Allocation = field(repr=False)
    size: int
    loss: float

    @property
    def kl(self) -> float:
        return self.stock.kl + self.loss

    def bits(self) -> dict[str, int]:
        """Matrix name -> bits."""
        widths = [
            sorted(part.bits_bytes)[index] for part, index in zip(self.stock.rest.parts, self.chosen, strict=True)
        ]
        return {name: width for part, width in zip(self.stock.rest.parts, widths, strict=True) for name in part.names}


@dataclass(frozen=True)
class Built(Generic[Made]):
    """A candidate, the KL that was measured of it, and the model itself."""

    candidate: Candidate
    kl: float
    made: Made


Build = Callable[[Candidate], Built[Made]]


class Unreachable(Exception):
    """No candidate reaches the target; `nearest` comes closest, `told` says how close where its size and KL do not."""

    def __init__(self, nearest: Candidate, told: str = "") -> None:
        super().__init__()
        self.nearest, self.told = nearest, told


def best_of_size(stocks: Iterable[Stock], size: int, build: Build[Made]) -> Built[Made]:
    """The least KL within `size` bytes. Stocks come by rising cut, and no more are asked for once the cut alone costs more than
    the best candidate as a whole."""
    best: Candidate | None = None
    smallest: list[Candidate] = []
    for stock in stocks:
        if best is not None and stock.kl >= best.kl:
            break
        smallest.append(stock.candidates()[0])
        found = stock.within(size)
        if found is not None and (best is None or found.kl < best.kl):
            best = found
    if best is None:
        raise Unreachable(min(smallest, key=lambda candidate: candidate.size))
    return build(best)


def smallest_of_kl(stocks: Iterable[Stock], bound: float, build: Build[Made]) -> Built[Made]:
    """The smallest model whose measured KL is at most `bound`."""
    best: Built[Made] | None = None
    nearest: list[Candidate] = []
    for stock in stocks:
        nearest.append(stock.candidates()[-1])
        if stock.kl >= bound:
            break
        for built in _approach(stock, bound, build, below=best.candidate.size if best else None):
            if built.kl <= bound and (best is None or built.candidate.size < best.candidate.size):
                best = built
    if best is None:
        raise Unreachable(min(nearest, key=lambda candidate: candidate.kl))
    return best


def best_of_latency(
    stocks: Iterable[Stock], share: float, build: Build[Made], latency: Callable[[Built[Made]], float]
) -> Built[Made]:
    """The least cut whose latency, measured as a share of the parent's, is at most `share`: its weights in the bits of least loss,
    for what a cut costs is far more."""
    slow: dict[float, Candidate] = {}
    for stock in stocks:
        built = build(stock.candidates()[-1])
        measured = latency(built)
        if measured <= share:
            return built
        slow[measured] = built.candidate
    raise Unreachable(slow[min(slow)], f"{min(slow):.2f} of the parent's latency")


def _approach(stock: Stock, bound: float, build: Build[Made], below: int | None) -> Iterable[Built[Made]]:
    """Candidates of one stock nearer and nearer to the bound, from what the ones before measured; none as large as `below`."""
    tried: set[Allocation] = set()
    correction = 1.0
    for _ in range(BUILDS):
        fitting = [c for c in stock.candidates() if stock.kl + correction * c.loss <= MARGIN * bound]
        if not fitting:
            return
        pick = min(fitting, key=lambda candidate: candidate.size)
        if pick.chosen in tried or (below is not None and pick.size >= below):
            return
        built = build(pick)
        tried.add(pick.chosen)
        yield built
        correction = max(built.kl - stock.kl, 0.0) / pick.loss if pick.loss > 0 else 1.0


def thinned(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most about `most` of them, evenly over their sizes, both ends among them."""
    if len(candidates) <= most:
        return list(candidates)
    low, high = candidates[0].size, candidates[-1].size
    by_place: Mapping[int, Candidate] = {
        round((candidate.size - low) / (high - low) * (most - 1)): candidate for candidate in candidates
    }
    return [*dict.fromkeys([candidates[0], *by_place.values(), candidates[-1]])]
