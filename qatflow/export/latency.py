"""How long two files take, measured in turn: machines are noisy, and noise then falls on both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from scipy.stats import quantile_test

ENOUGH_SECONDS = 3.0
FEWEST, MOST = 5, 200
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Beside:
    """How many times as fast one call is as another.

    Attributes:
        one, other: what each takes.
        ratio: the other's median over that of the one.
        low, high: bounds of the median of the pairs' ratios, by order statistics, so whatever their distribution.
    """

    one: Latency
    other: Latency
    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the first call is faster, beyond chance."""
        return self.low > 1


def interleaved(*calls: Callable[[], object], seconds: float = ENOUGH_SECONDS) -> list[Latency]:
    """Return the latency of several calls, run in turn until `seconds` have gone by."""
    return [_summary(taken) for taken in _in_turn(calls, seconds)]


def beside(one: Callable[[], object], other: Callable[[], object], seconds: float = ENOUGH_SECONDS) -> Beside:
    """Return how many times as fast `one` is as `other`, run in turn until `seconds` have gone by."""
    taken = _in_turn((one, other), seconds)
    first, second = map(_summary, taken)
    ratio = second.median / first.median
    ratios = [b / a for a, b in zip(*taken, strict=True)]
    interval = quantile_test(ratios, q=statistics.median(ratios)).confidence_interval(CONFIDENCE)
    low, high = (min(ratios) if math.isnan(interval.low) else interval.low), interval.high
    high = max(ratios) if math.isnan(high) else high
    return Beside(first, second, ratio, min(float(low), ratio), max(float(high), ratio))


def _in_turn(calls: tuple[Callable[[], object], ...], seconds: float) -> list[list[float]]:
    """Return the milliseconds of every call."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < FEWEST or (time.perf_counter() < end and len(times[0]) < MOST):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append((time.perf_counter() - started) * 1e3)
    return times


def _summary(taken: list[float]) -> Latency:
    low, median, high = statistics.quantiles(taken, n=4)
    return Latency(median, low, high)
