"""From several values to a figure: medians, spread, ratios; and when requests arrive."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import numpy as np

median = statistics.median


def spread(values: Sequence[float]) -> float | None:
    """Returns how far values lie apart: the highest less the lowest, over the median; None of a
    single one."""
    if len(values) < 2:
        return None
    return (max(values) - min(values)) / median(values)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns how many times our duration theirs is: the median over pairs of runs that followed
    each other, so that a slow spell of the machine, which meets both of a pair, cancels."""
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Returns what rounds of durations come to: `ours` and its `spread`, `reference` and `ratio`;
    the last two are None where there is nothing to compare with."""
    return {
        "ours": median(ours),
        "spread": spread(ours),
        "reference": median(theirs) if theirs else None,
        "ratio": ratio(ours, theirs) if theirs else None,
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """Returns the value below which `share` of the values lie; None of no values."""
    return float(np.quantile(values, share)) if values else None


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Draws seconds at which `count` requests arrive: independent, `rate` per second on average.

    Raises:
        ValueError: the rate is not positive and finite.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"the rate must be positive and finite, not {rate}")
    source = random.Random(seed)
    times, now = [], 0.0
    for _ in range(count):
        now += source.expovariate(rate)
        times.append(now)
    return times
