"""The gate: decide about one candidate from per-sample results, as a pure function.

FP32 and candidate are scored on the same samples, so the drop is a mean of paired differences and its uncertainty is
found by resampling those pairs (the paired bootstrap; Efron and Tibshirani 1993, chapter 8). A drop is positive where
the candidate is worse, whichever way the metric points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qatflow.recipe import Drop, Gate
from qatflow.result import Verdict

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """A metric of one model on the evaluation part.

    Attributes:
        value: the metric; NaN where it is undefined.
        per_sample: shape `[samples]`, whose mean is `value`, in the same order for every model; None for a metric
            that has no value per sample (mean average precision, say).
        higher_is_better: the metric's direction.
        replicates: the metric without one group of samples after the other, shape `[groups]`, in the same groups for
            every model (a grouped jackknife); None where there is a value per sample, or too few samples.
        samples: how many were measured.
    """

    value: float
    per_sample: Scores | None
    higher_is_better: bool
    replicates: Scores | None = None
    samples: int = 0


@dataclass(frozen=True)
class Decision:
    """A verdict and the numbers behind it; drops are in the metric's unit, NaN where they are undefined.

    Attributes:
        low, high: the interval of the drop; NaN where there is none.
        confidence: of that interval; NaN where there is none.
        lost, gained: samples that only FP32, or only the candidate, has right; None where they are not right or wrong.
        needed: about how many samples would settle a verdict within noise; None where it is settled.
        sentence: what the verdict rests on.
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


def allowed_drop(max_drop: Drop, fp32: float) -> float:
    """Return the largest allowed drop in the metric's unit; a relative one is a share of `|fp32|`."""
    return max_drop.amount * abs(fp32) if max_drop.relative else max_drop.amount


def meets(gate: Gate, fp32: Measurement, candidate: Measurement) -> bool:
    """Tell whether a candidate meets the gate by its point estimate: what rungs and trials are chosen by."""
    sign = 1.0 if fp32.higher_is_better else -1.0
    drop = sign * (fp32.value - candidate.value)
    slack = 1e-9 * max(1.0, abs(fp32.value))
    return math.isfinite(drop) and drop <= allowed_drop(gate.max_drop, fp32.value) + slack


def decide(gate: Gate, fp32: Measurement, candidate: Measurement, seed: int = 0, looks: int = 1) -> Decision:
    """Compare a candidate with FP32 and give the verdict.

    A value that is not finite never passes. Where the metric has no value per sample, the interval is NaN and the
    verdict rests on the drop alone. `gate.strict` passes only `MET`; a gain, however large, passes.

    Raises:
        ValueError: the two were not measured on the same number of samples.
    """
    sign = 1.0 if fp32.higher_is_better else -1.0
    drop = sign * (fp32.value - candidate.value)
    if not math.isfinite(drop):
        return Decision(Verdict.MISSED, passed=False, drop=math.nan, low=math.nan, high=math.nan)
    low, high = paired_interval(gate, fp32, candidate, seed)
    limit = allowed_drop(gate.max_drop, fp32.value)
    slack = 1e-9 * max(1.0, abs(fp32.value))  # 0.97 - 0.96 is a hair more than 0.01 in binary
    if drop > limit + slack:
        return Decision(Verdict.MISSED, passed=False, drop=drop, low=low, high=high)
    gain_is_real = math.isnan(high) or high < 0
    if -drop > gate.max_gain * abs(fp32.value) and gain_is_real:
        return Decision(Verdict.ANOMALOUS, passed=True, drop=drop, low=low, high=high)
    if high > limit + slack:
        return Decision(Verdict.WITHIN_NOISE, passed=not gate.strict, drop=drop, low=low, high=high)
    return Decision(Verdict.MET, passed=True, drop=drop, low=low, high=high)


def paired_interval(gate: Gate, better: Measurement, worse: Measurement, seed: int = 0) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the mean paired drop from `better` to `worse`.

    Both NaN where a measurement has no finite per-sample values.

    Raises:
        ValueError: the two were not measured on the same number of samples.
    """
    if better.per_sample is None or worse.per_sample is None:
        return math.nan, math.nan
    if len(better.per_sample) != len(worse.per_sample):
        message = f"{len(better.per_sample)} samples against {len(worse.per_sample)}: measure both on the same ones"
        raise ValueError(message)
    sign = 1.0 if better.higher_is_better else -1.0
    differences = sign * (better.per_sample - worse.per_sample)
    if len(differences) == 0 or not np.isfinite(differences).all():
        return math.nan, math.nan
    means = _resampled_means(differences, gate.resamples, np.random.default_rng(seed))
    tail = (1 - gate.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(differences: Scores, resamples: int, rng: np.random.Generator) -> Scores:
    """Draw the mean of `resamples` bootstrap samples.

    Right or wrong answers differ by -1, 0 or 1 only; drawing how often each value occurs is then exact and far
    cheaper than drawing samples.
    """
    values, counts = np.unique(differences, return_counts=True)
    size = len(differences)
    if len(values) <= 64:
        return np.asarray(rng.multinomial(size, counts / size, size=resamples) @ values / size)
    return np.array([differences[rng.integers(0, size, size)].mean() for _ in range(resamples)])


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
    sign = 1.0 if kept.higher_is_better else -1.0
    drop = sign * (kept.value - new.value)
    decided = (low > 0 or high < 0) if math.isfinite(low) else drop != 0
    if decided:
        return drop > 0
    return new_sqnr < kept_sqnr and kept_sqnr > 0


def best_of(candidates: list[tuple[str, Measurement, bool, float]]) -> str:
    """Return the id of the best of `(id, measurement, passed, sqnr_db)`.

    One that passes beats one that does not; then the metric counts, then the SQNR, then the order.

    Raises:
        ValueError: there is none.
    """
    if not candidates:
        raise ValueError("no candidate to choose from")

    def rank(entry: tuple[str, Measurement, bool, float]) -> tuple[bool, float, float]:
        _, measurement, passed, sqnr = entry
        sign = 1.0 if measurement.higher_is_better else -1.0
        value = sign * measurement.value if math.isfinite(measurement.value) else -math.inf
        return passed, value, sqnr if not math.isnan(sqnr) else -math.inf

    return max(candidates, key=rank)[0]
