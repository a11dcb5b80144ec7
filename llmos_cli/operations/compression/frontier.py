"""The frontier of cost and loss: models that could be built, models that were, and the search among them for a target.

A stock is the parent, or the parent with a share of its parameters cut out; of each, the bits of the layers are chosen along the
frontier of `methods/allocation.py`, whether bytes are spent or seconds. What is predicted there is set right by what is measured of the
models that are built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Generic, TypeVar

from llmos_cli.methods import allocation
from llmos_cli.methods.allocation import Allocation, Choice
from llmos_cli.operations.compression.sensitivity import Part

Made = TypeVar("Made")
Cost = Callable[[Part], Mapping[int, float]]
"""What a part costs in each number of bits that it may have, in a unit that adds up."""
BYTES: Cost = attrgetter("bits_bytes")
SECONDS: Cost = attrgetter("bits_seconds")
HEALS = 0.1
"""What healing leaves of a cut's KL at the very best."""
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
    """`cut`: the share of parameters that went; `rough`: what that alone cost, nats a position, before `healed`, which heals it and
    says what is left; `look` measures the rest. Both take long, and are done once they are asked for. `method` of cutting, and `how`
    in words."""

    cut: float
    rough: float
    look: Callable[[], Rest]
    healed: Callable[[], float] | None = None
    method: str = ""
    how: str = ""

    @property
    def promise(self) -> float:
        """The KL can hardly be less."""
        return self.rough if self.healed is None else HEALS * self.rough

    @cached_property
    def kl(self) -> float:
        return self.rough if self.healed is None else self.healed()

    @cached_property
    def rest(self) -> Rest:
        _ = self.kl  # what is measured is the healed one
        return self.look()

    @property
    def looked_at(self) -> bool:
        return "rest" in self.__dict__

    def costs(self, bound: float) -> bool:
        """Whether the cut alone costs `bound` or more; it is not healed to see what is clear."""
        return self.promise >= bound or self.kl >= bound

    @cached_property
    def _priced(self) -> dict[Cost, list[list[Choice]]]:
        return {}

    def choices(self, cost: Cost = BYTES) -> list[list[Choice]]:
        if cost not in self._priced:
            self._priced[cost] = [
                [Choice(cost(part)[b], part.bits_kl[b]) for b in sorted(part.bits_bytes)] for part in self.rest.parts
            ]
        return self._priced[cost]

    def candidates(self, cost: Cost = BYTES) -> list[Candidate]:
        return [self.candidate(chosen) for chosen in allocation.frontier(self.choices(cost))]

    def candidate(self, chosen: Allocation) -> Candidate:
        whole = allocation.total(self.choices(), chosen)
        return Candidate(self, chosen, self.rest.fixed + int(whole.cost), whole.loss)

    def uniform(self, bits: int) -> Candidate:
        """Every part in so many bits, or the most below that it has."""
        kept = [sorted(part.bits_bytes) for part in self.rest.parts]
        return self.candidate(tuple(max(0, sum(each <= bits for each in widths) - 1) for widths in kept))

    def within(self, budget: float, cost: Cost = BYTES) -> Candidate | None:
        """The least loss that all parts together cost at most `budget` for; never more than that of all parts alike."""
        found = allocation.within(self.choices(cost), budget)
        widths = {bits for part in self.rest.parts for bits in part.bits_bytes}
        alike = [one for one in map(self.uniform, widths) if one.spends(cost) <= budget]
        fitting = [*([] if found is None else [self.candidate(found)]), *alike]
        return min(fitting, key=lambda candidate: candidate.loss, default=None)


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

    def spends(self, cost: Cost) -> float:
        return allocation.total(self.stock.choices(cost), self.chosen).cost

    @property
    def finest(self) -> bool:
        """Whether no bits of this stock would lose less."""
        return self.chosen == self.stock.candidates()[-1].chosen

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
Prove = Callable[[Built[Made]], float]
"""The KL of a built model on samples that the search does not see."""
Latency = Callable[[Stock | Candidate], float]
"""As a share of the parent's: of a candidate, or of a stock that need not have healed, all its layers in the fewest bits."""


class Unreachable(Exception):
    """No candidate reaches the target; `nearest` comes closest (with a KL of `measured` where it was built, of `proven` where that was
    proven), or a stock with so much of it `cut` out, of which `told` says how close."""

    def __init__(
        self,
        nearest: Candidate | None = None,
        *,
        measured: float | None = None,
        proven: float | None = None,
        cut: float = 0.0,
        told: str = "",
    ) -> None:
        super().__init__()
        self.nearest, self.measured, self.proven, self.told = nearest, measured, proven, told
        self.cut = cut if nearest is None else nearest.stock.cut


def best_of_size(stocks: Iterable[Stock], size: int, build: Build[Made]) -> Built[Made]:
    """The least KL within `size` bytes. Stocks come by rising cut, and no more are asked for once the cut alone costs more than
    the best candidate as a whole, or that one has nothing to gain."""
    best: Candidate | None = None
    smallest: list[Candidate] = []
    for stock in stocks:
        if best is not None and stock.costs(best.kl):
            break
        smallest.append(stock.candidates()[0])
        found = stock.within(size - stock.rest.fixed)
        if found is not None and (best is None or found.kl < best.kl):
            best = found
        if best is not None and best.finest:
            break
    if best is None:
        raise Unreachable(min(smallest, key=lambda candidate: candidate.size))
    return build(best)


def proven_of_kl(
    stocks: Callable[[], Iterable[Stock]], bound: float, build: Build[Made], prove: Prove[Made]
) -> Built[Made]:
    """The smallest model whose KL is at most `bound` where it was searched for, and where it is proven. One that misses in its proof tells
    how far the two are apart: the search goes on under a bound that is tighter by that, which leaves this one out."""
    aim, missed, known = bound, list[tuple[float, Candidate]](), list[Built[Made]]()

    def noted(candidate: Candidate) -> Built[Made]:
        known.append(build(candidate))
        return known[-1]

    while True:
        try:
            found = smallest_of_kl(stocks(), aim, noted, tuple(known))
        except Unreachable as failure:
            if not missed:
                raise
            proven, nearest = min(missed, key=lambda one: one[0])
            raise Unreachable(nearest, proven=proven) from failure
        proven = prove(found)
        if proven <= bound:
            return found
        missed.append((proven, found.candidate))
        if found.kl == 0:  # no bound is tight enough to leave it out
            raise Unreachable(found.candidate, proven=proven)
        aim = MARGIN * bound * found.kl / proven


def smallest_of_kl(
    stocks: Iterable[Stock], bound: float, build: Build[Made], known: Sequence[Built[Made]] = ()
) -> Built[Made]:
    """The smallest model whose measured KL is at most `bound`, among those `known` already and those built on the way."""
    best = min((one for one in known if one.kl <= bound), key=lambda one: one.candidate.size, default=None)
    nearest: list[Candidate] = []
    for stock in stocks:
        if stock.costs(bound):
            break
        nearest.append(stock.candidates()[-1])
        here = [one for one in known if one.candidate.stock is stock]
        for built in _approach(stock, bound, build, here, below=best.candidate.size if best else None):
            if built.kl <= bound and (best is None or built.candidate.size < best.candidate.size):
                best = built
    return best or _finest(min(nearest, key=lambda candidate: candidate.kl), bound, build, known)


def _finest(nearest: Candidate, bound: float, build: Build[Made], known: Sequence[Built[Made]]) -> Built[Made]:
    """Where no prediction reaches the bound, what comes nearest is built and measured before it is refused: predictions are of single
    layers, and their sum may be too high. Unreachable where it is above."""
    built = next((one for one in known if one.candidate == nearest), None) or build(nearest)
    if built.kl > bound:
        raise Unreachable(nearest, measured=built.kl)
    smaller = _approach(nearest.stock, bound, build, [built], below=nearest.size)
    return min((one for one in (built, *smaller) if one.kl <= bound), key=lambda one: one.candidate.size)


def best_of_latency(stocks: Iterable[Stock], share: float, latency: Latency, build: Build[Made]) -> Built[Made]:
    """The least KL whose latency is at most `share` of the parent's. Latency needs no weights that are good for anything, so nothing is
    healed until it is known to be fast enough."""
    best: Candidate | None = None
    slow: dict[float, Stock] = {}
    for stock in stocks:
        if best is not None and stock.costs(best.kl):
            break
        found = _fast_enough(stock, share, latency, slow)
        if found is not None and (best is None or found.kl < best.kl):
            best = found
        if best is not None and best.finest:
            break
    if best is None:
        raise Unreachable(cut=slow[min(slow)].cut, told=f"{min(slow):.2f} of the parent's latency")
    return build(best)


def _fast_enough(stock: Stock, share: float, latency: Latency, slow: dict[float, Stock]) -> Candidate | None:
    """The least loss of a stock that is measured to be fast enough; `slow` notes how slow the others are.

    The fewest bits are timed first: where they are too slow, all are. Then the most; what else the model does is the same in both, so
    between the two the latency rises as the seconds of the layers do. Where that is measured to be untrue of a mixture, fewer seconds
    are spent on the next.
    """
    quickest = latency(stock)
    if quickest > share:
        slow[quickest] = stock
        return None
    plans = stock.candidates(SECONDS)
    least, candidate = plans[0].spends(SECONDS), plans[-1]
    while (measured := latency(candidate)) > share:
        slow[measured] = stock
        over = candidate.spends(SECONDS) - least
        if over <= 0:
            return None
        allowed = least + MARGIN * over * (share - quickest) / (measured - quickest)
        candidate = stock.within(allowed, SECONDS) or plans[0]
    return candidate


def _approach(
    stock: Stock, bound: float, build: Build[Made], known: Sequence[Built[Made]], below: int | None
) -> Iterable[Built[Made]]:
    """Candidates of one stock nearer and nearer to the bound, from what the ones before measured, those `known` first; none as large as
    `below`."""
    tried = {one.candidate.chosen for one in known}
    correction = _correction(known[-1]) if known else 1.0
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
        correction = _correction(built)


def _correction(built: Built[Made]) -> float:
    """How many times what was predicted quantizing it cost."""
    candidate = built.candidate
    return max(built.kl - candidate.stock.kl, 0.0) / candidate.loss if candidate.loss > 0 else 1.0


def thinned(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """At most about `most` of them, evenly over their sizes, both ends among them."""
    if len(candidates) <= most:
        return list(candidates)
    low, high = candidates[0].size, candidates[-1].size
    by_place: Mapping[int, Candidate] = {
        round((candidate.size - low) / (high - low) * (most - 1)): candidate for candidate in candidates
    }
    return [*dict.fromkeys([candidates[0], *by_place.values(), candidates[-1]])]
