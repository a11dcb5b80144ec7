"""What was measured, as Markdown, and whether the bars hold.

An interval holds 95 % of the ratios over bootstrap draws of whole sequences, both cells drawn alike. A KL bar holds when the interval
lies wholly below it, fails when it lies wholly above, and is open when the bar is within; it decides only where the gauge's KL is at
least 20 times the half-width of its own interval, so that noise does not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.compress.cells import Measured
from benchmarks.compress.rows import Bar, Row

DRAWS = 2000
CLEAR = 20
"""A gauge's KL in half-widths of its interval, at least."""

ALIKE = 1.03
"""Parameters of two results that compare, by each other, at most."""

Verdict = Literal["holds", "FAILS", "undecided"]
Found = Mapping[tuple[str, int], Measured]
"""By the cell's name and seed."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Judgement:
    sentence: str
    verdict: Verdict


def mean(kl_SL: NDArray[np.floating[Any]]) -> Interval:
    kl_S = kl_SL.astype(np.float64).mean(1)
    return _interval(kl_S.mean(), _draws(len(kl_S)) @ kl_S)


def median(share_R: NDArray[np.floating[Any]]) -> Interval:
    """Of ratios of times: one that something else on the machine held up counts as one."""
    drawn_DR = np.random.default_rng(0).integers(len(share_R), size=(DRAWS, len(share_R)))
    return _interval(float(np.median(share_R)), np.median(share_R[drawn_DR], axis=1))


def ratio(of_SL: NDArray[np.floating[Any]], against_SL: NDArray[np.floating[Any]]) -> Interval:
    """Of two mean KLs over the same tokens."""
    of_S, against_S = (kl_SL.astype(np.float64).mean(1) for kl_SL in (of_SL, against_SL))
    draws_RS = _draws(len(of_S))
    return _interval(of_S.mean() / against_S.mean(), (draws_RS @ of_S) / (draws_RS @ against_S))


def perplexity_ratio(of_SL: NDArray[np.floating[Any]], against_SL: NDArray[np.floating[Any]]) -> Interval:
    gap_S = (of_SL.astype(np.float64) - against_SL).mean(1)
    return _interval(np.exp(gap_S.mean()), np.exp(_draws(len(gap_S)) @ gap_S))


def _draws(sequences: int) -> NDArray[np.float64]:
    """[R, S] the weight of each sequence in each resample: the same for everyone."""
    counts = np.random.default_rng(0).multinomial(sequences, np.full(sequences, 1 / sequences), size=DRAWS)
    return counts / sequences


def _interval(value: float, draws_R: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws_R, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


HEADER = "| | result | seed | KL to the parent, nats [95 %] | perplexity | s | CPU s | peak MB (before our proof) |\n|---|---|---|---|---|---|---|---|"


def line(row: Row, measured: Measured) -> str:
    kl = str(mean(measured.scores["kl_SL"])) if "kl_SL" in measured.scores else ""
    perplexity = f"{np.exp(measured.scores['nll_SL'].mean()):.2f}" if "nll_SL" in measured.scores else ""
    compressing = measured.report.get("peak_before_proof")
    before = f" ({compressing / 1e6:.0f})" if compressing else ""
    took = f"{measured.seconds:.0f} | {measured.cpu_seconds:.0f} | {measured.peak / 1e6:.0f}{before}"
    return f"| {row.name} | {measured.cell.name} | {measured.seed} | {kl} | {perplexity} | {took} |"


def judged(row: Row, found: Found, seeds: Sequence[int]) -> list[Judgement]:
    """Every bar whose cells were run, on every seed."""
    return [
        _judge(row, bar, found, seed)
        for bar in row.bars
        for seed in seeds
        if {(bar.of, seed), (bar.against or bar.of, seed)} <= set(found)
    ]


def _judge(row: Row, bar: Bar, found: Found, seed: int) -> Judgement:
    words = f"{row.name}: {bar.what} of {bar.of} at most {bar.most:.3g} of {bar.against or 'its parent'}, seed {seed}"
    of, against = found[bar.of, seed], found[bar.against or bar.of, seed]
    unclear = _unclear(found, row.gauge, seed) if row.gauge and bar.what == "KL" else ""
    share, verdict = COMPARISONS[bar.what](of, against, bar.most)
    return Judgement(f"{words}: {share}{unclear}", "undecided" if unclear else verdict)


def _by_kl(of: Measured, against: Measured, most: float) -> tuple[str, Verdict]:
    share = ratio(of.scores["kl_SL"], against.scores["kl_SL"])
    return str(share), _verdict(share, most)


def _by_perplexity(of: Measured, against: Measured, most: float) -> tuple[str, Verdict]:
    """Undecided where the other one kept more parameters: a block more or less may be all that it could do."""
    share = perplexity_ratio(of.scores["nll_SL"], against.scores["nll_SL"])
    kept = [float(found.report.get("parameters", 0)) for found in (of, against)]
    if kept[1] > ALIKE * kept[0]:
        return f"{share}, but that kept {kept[1] / kept[0] - 1:.0%} more parameters", "undecided"
    return str(share), _verdict(share, most)


def _by_latency(dtype: str, of: Measured, _: Measured, most: float) -> tuple[str, Verdict]:
    """Both were timed in turn in one process."""
    share = median(of.scores[f"pace_{dtype}_R"])
    return str(share), _verdict(share, most)


def _by_time(of: Measured, against: Measured, most: float) -> tuple[str, Verdict]:
    if of.run != against.run:
        return "measured in different runs, not compared", "undecided"
    share, wall = of.cpu_seconds / against.cpu_seconds, of.seconds / against.seconds
    return f"{share:.2f} of its CPU seconds ({wall:.2f} of the wall's)", _either(share, most)


def _by_peak(of: Measured, against: Measured, most: float) -> tuple[str, Verdict]:
    share = of.peak / against.peak
    return f"{share:.2f}", _either(share, most)


COMPARISONS: Mapping[str, Callable[[Measured, Measured, float], tuple[str, Verdict]]] = {
    "KL": _by_kl,
    "perplexity": _by_perplexity,
    "latency fp32": partial(_by_latency, "fp32"),
    "latency bf16": partial(_by_latency, "bf16"),
    "time": _by_time,
    "peak memory": _by_peak,
}


def _unclear(found: Found, gauge: str, seed: int) -> str:
    """Why the row cannot decide, if so."""
    if (gauge, seed) not in found:
        return f", but {gauge} was not run"
    kl = mean(found[gauge, seed].scores["kl_SL"])
    halves = kl.value / ((kl.high - kl.low) / 2)
    return (
        "" if halves >= CLEAR else f", but {gauge}'s KL is only {halves:.1f} half-widths of its interval, not {CLEAR}"
    )


def _verdict(share: Interval, most: float) -> Verdict:
    if share.high <= most:
        return "holds"
    return "FAILS" if share.low > most else "undecided"


def _either(share: float, most: float) -> Verdict:
    return "holds" if share <= most else "FAILS"
