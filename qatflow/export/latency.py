"""How long two files take, measured in turn: machines are noisy, and noise then falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ENOUGH_SECONDS = 3.0
FEWEST, MOST = 5, 200


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def interleaved(*calls: Callable[[], object], seconds: float = ENOUGH_SECONDS) -> list[Latency]:
    """Return the latency of several calls, run in turn until `seconds` have gone by."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < FEWEST or (time.perf_counter() < end and len(times[0]) < MOST):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append((time.perf_counter() - started) * 1e3)
    return [_summary(taken) for taken in times]


def _summary(taken: list[float]) -> Latency:
    low, median, high = statistics.quantiles(taken, n=4)
    return Latency(median, low, high)
