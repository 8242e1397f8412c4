"""A candidate beside FP32 on the same samples: the drop and its interval, whatever kind of metric it is of.

Right or wrong answers are counted, other scores are compared sample by sample, and a metric that is no mean of samples
is compared by its values without one group of samples after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qatflow.results.intervals import Interval, jackknife, mean, share, share_difference

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """A metric of one model on one part of the data.

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

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def size(self) -> int:
        """How many samples were measured; 0 where that is not known."""
        return self.samples if self.per_sample is None else len(self.per_sample)

    def interval(self, confidence: float, resamples: int, seed: int = 0) -> Interval:
        """Return the interval of the value."""
        scores = self.per_sample
        if scores is not None:
            if len(scores) and _right_or_wrong(scores):
                found = share(round(float(np.abs(scores).sum())), len(scores), confidence)
                return -found if scores.sum() < 0 else found
            return mean(scores, confidence, _reach(scores), resamples, seed)
        if self.replicates is not None:
            return jackknife(self.value, self.replicates, confidence, _reach(np.array([self.value])), self.samples)
        return Interval(self.value)


def drop_of(fp32: Measurement, candidate: Measurement) -> float:
    """Return the loss against FP32 in the metric's unit; negative is a gain, NaN where a value is not finite."""
    drop = fp32.sign * (fp32.value - candidate.value)
    return drop if math.isfinite(drop) else math.nan


def lost_and_gained(fp32: Measurement, candidate: Measurement) -> tuple[int, int] | None:
    """Return how many samples only FP32 has right, and how many only the candidate; None if none is right or wrong.

    Raises:
        ValueError: the two were not measured on the same number of samples.
    """
    both = _paired(fp32.per_sample, candidate.per_sample, "samples")
    if both is None or not len(both[0]) or not _right_or_wrong(np.concatenate(both)):
        return None
    differences = fp32.sign * (both[0] - both[1])
    return int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))


def drop_interval(
    fp32: Measurement, candidate: Measurement, confidence: float, resamples: int, seed: int = 0
) -> Interval:
    """Return the interval of the drop from FP32 to the candidate.

    Raises:
        ValueError: the two were not measured on the same number of samples, or in other groups of them.
    """
    counts = lost_and_gained(fp32, candidate)
    if counts is not None:
        return share_difference(*counts, fp32.size, confidence)
    scores = _paired(fp32.per_sample, candidate.per_sample, "samples")
    if scores is not None:
        differences = fp32.sign * (scores[0] - scores[1])
        return mean(differences, confidence, _reach(np.concatenate(scores)), resamples, seed)
    replicates = _paired(fp32.replicates, candidate.replicates, "groups")
    if replicates is not None:
        reach = _reach(np.array([fp32.value, candidate.value]))
        differences = fp32.sign * (replicates[0] - replicates[1])
        return jackknife(drop_of(fp32, candidate), differences, confidence, reach, fp32.samples)
    return Interval(drop_of(fp32, candidate))


def _paired(one: Scores | None, other: Scores | None, what: str) -> tuple[Scores, Scores] | None:
    if one is None or other is None:
        return None
    if len(one) != len(other):
        message = f"{len(one)} {what} against {len(other)}: measure both on the same ones"
        raise ValueError(message)
    return one, other


def _right_or_wrong(scores: Scores) -> bool:
    """Tell whether scores are only 0 and 1, or only 0 and -1."""
    return bool(np.isin(np.abs(scores), (0, 1)).all()) and abs(scores.sum()) == np.abs(scores).sum()


def _reach(scores: Scores) -> float:
    """Return how far a score can move: 1 for those that lie within 0..1, else as far as those seen lie apart.

    Zero counts as seen, so that scores which are all alike have a reach as well.
    """
    low, high = min(float(scores.min(initial=0)), 0.0), max(float(scores.max(initial=0)), 0.0)
    return max(high - low, 1.0) if low >= -1 and high <= 1 and (low == 0 or high == 0) else high - low
