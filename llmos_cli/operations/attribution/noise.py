"""Noise: how far two runs of one recipe lie apart, and how far two models do on other samples of the same kind.

Of seeds: the repeatability limit (ISO 5725-6, 4.1.4): two single results of one recipe differ by no more than √2·t·s with the given
probability, s being the standard deviation of its results and t Student's quantile for as many. It is looked at after three results,
four and five, and each look may err a third as often as all of them together (Bonferroni).

Of samples: both are resampled alike, so that what is hard for both counts for neither (the paired bootstrap of `tasks/scoring.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np

LEVEL = 0.95
STUDENT = {3: 7.6488, 4: 4.8567, 5: 3.9608}
"""Results -> Student's t with one degree of freedom less, at 1 - (1 - LEVEL) / 2 / looks."""
FEWEST, MOST = min(STUDENT), max(STUDENT)


def limit(values: Sequence[float], span: float = math.inf) -> float | None:
    """How far two single results of a recipe may lie apart by chance; None where there are too few to say. `span`: how far any two
    values of the metric can; where the limit is that, the results are too few and lie too far apart to tell anything."""
    if len(values) < FEWEST:
        return None
    return min(math.sqrt(2) * STUDENT[min(len(values), MOST)] * stdev(values), span)


def interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """That holds LEVEL of the differences between draws of the same samples."""
    differences = np.subtract(after, before)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def covers(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether no difference at all is within that interval."""
    low, high = interval(before, after)
    return low <= 0.0 <= high
