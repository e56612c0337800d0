"""From several runs to a figure: medians, spread, ratios; and when requests arrive."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

from .processes import Runs

median = statistics.median


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, linear between two of them.

    Raises:
        ValueError: no values, or a share outside 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no percentile of {len(values)} values at {share}")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def medians(runs: Runs) -> dict[str, Any]:
    """Each figure's median over the runs."""
    return {key: median(run[key] for run in runs) for key in runs[0]}


def spread(values: Sequence[float]) -> float:
    """How far the values lie apart: the highest less the lowest, over the median."""
    return (max(values) - min(values)) / median(values)


def ratio(ours: Runs, theirs: Runs, key: str) -> float:
    """How many times our duration theirs is: the median over pairs of runs that followed each
    other, so that a slow spell of the machine, which meets both of a pair, cancels."""
    return median(b[key] / a[key] for a, b in zip(ours, theirs, strict=True))


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds at which `count` requests arrive: independent, `rate` per second on average.

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
