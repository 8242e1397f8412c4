"""The gate: decide about one candidate beside FP32, as a pure function.

Candidates are compared with each other by point estimate (`meets`, `best_of`); the winner is judged with its interval
(`decide`). A drop is positive where the candidate is worse, whichever way the metric points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qatflow.errors import DataError
from qatflow.recipe import Gate
from qatflow.results.comparison import Measurement as Measurement
from qatflow.results.comparison import Scores as Scores
from qatflow.results.comparison import drop_interval, drop_of, lost_and_gained
from qatflow.results.intervals import FEW, Interval, share_difference
from qatflow.results.result import Verdict
from qatflow.results.verdict_sentence import Basis, Limit, verdict_sentence

MOST_TIMES = 1e4
"""So many times the samples are looked at for a verdict that they would settle."""


@dataclass(frozen=True)
class Decision:
    """A verdict and the numbers behind it; drops are in the metric's unit, NaN where they are undefined.

    Attributes:
        low, high: the interval of the drop; NaN where there is none.
        confidence: of that interval; NaN where there is none.
        lost, gained: samples that only FP32, or only the candidate, has right; None where they are not right or wrong.
        needed: about how many samples would settle a verdict within noise; None where it is settled, or no number
            that can be thought of would.
        sentence: what the verdict rests on.
        missed_beyond_noise: whether it is missed by more than the interval's width.
    """

    verdict: Verdict
    passed: bool
    drop: float
    low: float
    high: float
    confidence: float = math.nan
    lost: int | None = None
    gained: int | None = None
    needed: int | None = None
    sentence: str = ""
    missed_beyond_noise: bool = False


def allowed_drop(gate: Gate, fp32: float) -> float:
    """Return the largest allowed drop in the metric's unit, infinity where the gate has none.

    A relative one is a share of `|fp32|`.
    """
    limit = gate.drop_limit
    if limit is None:
        return math.inf
    return limit.amount * abs(fp32) if limit.relative else limit.amount


def check_direction(gate: Gate, higher_is_better: bool) -> None:
    """Hold a gate's limits against the direction of its metric.

    Raises:
        DataError: `min_value` is given where lower is better, or `max_value` where higher is.
    """
    wrong, right = ("max_value", "min_value") if higher_is_better else ("min_value", "max_value")
    if getattr(gate, wrong) is not None:
        better = "higher" if higher_is_better else "lower"
        message = f"gate.{wrong}: a {better} {gate.label or gate.metric} is better; write gate.{right}, or "
        raise DataError(message + f"gate.direction: {'lower' if higher_is_better else 'higher'}")


def meets(gate: Gate, fp32: Measurement, candidate: Measurement) -> bool:
    """Tell whether a candidate meets the gate by its point estimate: what rungs and trials are chosen by."""
    drop, value = Interval(drop_of(fp32, candidate)), Interval(candidate.value)
    return math.isfinite(drop.value) and not any(one.missed for one in _limits(gate, fp32, drop, value))


def _limits(gate: Gate, fp32: Measurement, drop: Interval, value: Interval) -> Iterator[Limit]:
    """Yield what the gate asks of a candidate with this drop and value."""
    allowed = allowed_drop(gate, fp32.value)
    if math.isfinite(allowed):
        yield Limit(drop, allowed, 1e-9 * max(1.0, abs(fp32.value)))
    worst = gate.worst_value
    if worst is not None:
        negated = fp32.higher_is_better
        loss, most = (-value, -worst) if negated else (value, worst)
        yield Limit(loss, most, 1e-9 * max(1.0, abs(worst)), gate.label or "the value", negated)


def decide(gate: Gate, fp32: Measurement, candidate: Measurement, seed: int = 0, looks: int = 1) -> Decision:
    """Compare a candidate with FP32 and give the verdict.

    A value that is not finite never passes. `gate.strict` passes only what is met beyond noise, so nothing that has
    no interval; a gain, however large, passes.

    Args:
        looks: how many candidates were judged on these samples, with this one. Each look is taken at a risk that is
            so many times smaller.

    Raises:
        ValueError: the two were not measured on the same number of samples.
    """
    counts, nothing = lost_and_gained(fp32, candidate), Interval(drop_of(fp32, candidate))
    if not math.isfinite(nothing.value):
        said = "The metric is not a finite number."
        return Decision(Verdict.MISSED, False, math.nan, math.nan, math.nan, sentence=said, missed_beyond_noise=True)
    confidence = 1 - (1 - gate.confidence) / looks
    drop = drop_interval(fp32, candidate, confidence, gate.resamples, seed)
    value = Interval(candidate.value)
    if gate.worst_value is not None:
        value = candidate.interval(confidence, gate.resamples, seed)
    limits = list(_limits(gate, fp32, drop, value))
    verdict = _verdict(gate, fp32, drop, limits, confidence)
    needed = least = None
    if verdict is Verdict.WITHIN_NOISE and all(limit.loss.exists for limit in limits):
        needed = _needed(fp32.size, lambda times: all(limit.settled(times) for limit in limits))
        least = _least(counts, fp32.size, allowed_drop(gate, fp32.value), confidence)
    basis = Basis(confidence, counts, fp32.size, needed, least, looks, verdict is Verdict.ANOMALOUS)
    return Decision(
        verdict,
        passed=verdict is not Verdict.MISSED and not (gate.strict and verdict is Verdict.WITHIN_NOISE),
        drop=drop.value,
        low=drop.low,
        high=drop.high,
        confidence=confidence if drop.exists else math.nan,
        lost=counts[0] if counts else None,
        gained=counts[1] if counts else None,
        needed=needed,
        sentence=verdict_sentence(limits, basis),
        missed_beyond_noise=any(limit.missed_beyond_noise for limit in limits),
    )


def _verdict(gate: Gate, fp32: Measurement, drop: Interval, limits: list[Limit], confidence: float) -> Verdict:
    if any(limit.missed for limit in limits):
        return Verdict.MISSED
    known = all(limit.loss.exists for limit in limits)
    unknown = not known and (gate.strict or 0 < fp32.size < FEW)
    if unknown or any(limit.loss.exists and not limit.settled() for limit in limits):
        return Verdict.WITHIN_NOISE
    allowed = allowed_drop(gate, fp32.value)
    least_gain = max(gate.max_gain * abs(fp32.value), allowed if math.isfinite(allowed) else 0.0)
    if -drop.value > least_gain and drop.high < 0:
        own = fp32.interval(confidence, gate.resamples)
        if own.low > 0 or own.high < 0:  # a share of a value that may be zero says nothing
            return Verdict.ANOMALOUS
    return Verdict.MET


def _needed(samples: int, settled: Callable[[float], bool]) -> int | None:
    """Return about how many samples settle a verdict, to two digits; None where `MOST_TIMES` as many do not."""
    if samples == 0 or not settled(MOST_TIMES):
        return None
    low, high = 0.0, math.log(MOST_TIMES)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if settled(math.exp(middle)) else (middle, high)
    found = samples * math.exp(high)
    unit = int(10 ** max(0, math.floor(math.log10(found)) - 1))
    return math.ceil(found / unit) * unit


def _least(counts: tuple[int, int] | None, samples: int, allowed: float, confidence: float) -> float | None:
    """Return the drop that is possible although no sample changes, where that is more than is allowed."""
    if counts is None:
        return None
    possible = share_difference(0, 0, samples, confidence).high
    return possible if possible > allowed else None


def paired_interval(gate: Gate, better: Measurement, worse: Measurement, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the drop from `better` to `worse`; both NaN where there is none.

    Raises:
        ValueError: the two were not measured on the same number of samples.
    """
    found = drop_interval(better, worse, gate.confidence, gate.resamples, seed)
    return found.low, found.high


def is_worse(gate: Gate, kept: Measurement, kept_sqnr: float, new: Measurement, new_sqnr: float) -> bool:
    """Tell whether `new` is a step back from `kept`.

    A difference of the metric that is larger than its noise decides; within noise the finer measure does, the SQNR
    of the outputs in dB. Where both outputs are more noise than signal, nothing can be told and the new one is not
    called worse. A value that is not finite is worse than any that is.
    """
    if not math.isfinite(new.value):
        return True
    if not math.isfinite(kept.value):
        return False
    low, high = paired_interval(gate, kept, new)
    drop = drop_of(kept, new)
    decided = (low > 0 or high < 0) if math.isfinite(low) else drop != 0
    if decided:
        return drop > 0
    return new_sqnr < kept_sqnr and kept_sqnr > 0


def best_of(candidates: list[tuple[str, Measurement, bool, float]]) -> str:
    """Return the id of the best of `(id, measurement, passed, sqnr_db)`.

    Of those that `rank` holds equal it is the first.

    Raises:
        ValueError: there is none.
    """
    if not candidates:
        raise ValueError("no candidate to choose from")

    def place(entry: tuple[str, Measurement, bool, float]) -> tuple[bool, float, float]:
        _, measurement, passed, sqnr = entry
        return rank(measurement.higher_is_better, passed, measurement.value, sqnr)

    return max(candidates, key=place)[0]


def rank(higher_is_better: bool, passed: bool, value: float | None, sqnr_db: float | None) -> tuple[bool, float, float]:
    """Return what candidates are ordered by, the best one largest.

    One that passes beats one that does not; then the metric counts, then the SQNR. A number that is missing or
    undefined is the worst of its kind.
    """
    signed = -math.inf if value is None or not math.isfinite(value) else value if higher_is_better else -value
    return passed, signed, -math.inf if sqnr_db is None or math.isnan(sqnr_db) else sqnr_db
