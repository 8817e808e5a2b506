"""How sure a mean of few values is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent values; infinite for fewer than two."""
    from scipy import stats

    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * deviation(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation (n - 1); 0 for one value."""
    if len(values) < 2:
        return 0.0
    return math.sqrt(math.fsum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))
