"""Confidence intervals: of a share, of the difference of two shares of the same samples, of a mean, of any metric.

A verdict rests on these, so none of them may collapse where nothing was seen to change: that all of 20 samples stayed
right does not say that all of the next 20 will. Nothing here knows of a gate or of models.

- Right or wrong: the limits of the share lost and of the share gained are exact (Clopper and Pearson 1934) and are
  joined by squaring and adding (Newcombe 1998, method 10; Zou and Donner 2008), which holds 95 % in every case of
  `benchmarks.intervals`. Tango's score interval (1998) is a little shorter, but covers 93.3 % where only gains occur,
  and gives 20 equal samples a bound of 0.161 where the exact one is 0.168.
- A mean of other scores: BCa (Efron 1987), and for many samples the closed form that BCa tends to (Hall 1988).
- No mean of samples (F1, mean average precision): the jackknife over groups of samples, with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Bounds = tuple[float, float]

NO_BOUNDS = (math.nan, math.nan)
MOST_RESAMPLED = 5000
"""Samples beyond which resampling is slow and no better than the closed form."""
BATCH = 2**20
"""Numbers that resampling holds in memory at a time."""
FEW = 10
"""So few samples, or so few that differ from the rest, say little of how large differences are."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; both bounds are NaN where none can be given.

    Attributes:
        scaled: returns the bounds that so many times the samples would have, if their results were alike.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    scaled: Callable[[float], Bounds] = field(default=lambda times: NO_BOUNDS, compare=False, repr=False)

    @property
    def exists(self) -> bool:
        """Whether there are bounds."""
        return not math.isnan(self.low)

    def __neg__(self) -> Interval:
        """Return the interval of the negated quantity."""

        def scaled(times: float) -> Bounds:
            low, high = self.scaled(times)
            return -high, -low

        return Interval(-self.value, -self.high, -self.low, scaled)


def _interval(value: float, scaled: Callable[[float], Bounds]) -> Interval:
    return Interval(value, *scaled(1.0), scaled)


def share(count: int, samples: int, confidence: float) -> Interval:
    """Return the interval of a share of which `count` of `samples` were seen; it has no bounds without samples."""
    if samples == 0:
        return Interval(math.nan)

    def scaled(times: float) -> Bounds:
        low, high = clopper_pearson(count * times, samples * times, confidence)
        return float(low), float(high)

    return _interval(count / samples, scaled)


def share_difference(lost: int, gained: int, samples: int, confidence: float) -> Interval:
    """Return the interval of the share lost less the share gained, of the same samples."""
    if samples == 0:
        return Interval(math.nan)

    def scaled(times: float) -> Bounds:
        low, high = square_and_add(lost * times, gained * times, samples * times, confidence)
        return float(low), float(high)

    return _interval((lost - gained) / samples, scaled)


def clopper_pearson(count: npt.ArrayLike, samples: float, confidence: float) -> tuple[Values, Values]:
    """Return the exact bounds of a share, elementwise; `count` need not be whole."""
    from scipy.special import betaincinv

    count = np.asarray(count, np.float64)
    rest = samples - count
    tail = (1 - confidence) / 2
    low = np.where(count > 0, betaincinv(np.where(count > 0, count, 1), rest + 1, tail), 0.0)
    high = np.where(rest > 0, betaincinv(count + 1, np.where(rest > 0, rest, 1), 1 - tail), 1.0)
    return low, high


def square_and_add(
    lost: npt.ArrayLike, gained: npt.ArrayLike, samples: float, confidence: float
) -> tuple[Values, Values]:
    """Return the bounds of the share lost less the share gained, elementwise.

    The two shares of one multinomial are correlated. Estimating that correlation with half of z^2 more samples of
    each kind, as Wilson's interval is centred, keeps the bounds monotone in what was lost and in what was gained.
    """
    lost, gained = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    (low, high), (gained_low, gained_high) = (clopper_pearson(one, samples, confidence) for one in (lost, gained))
    p, q = lost / samples, gained / samples
    more = _z(confidence) ** 2 / 2
    odds = [(one + more) / (samples - one + 2 * more) for one in (lost, gained)]
    correlation = -np.sqrt(odds[0] * odds[1])

    def length(a: Values, b: Values) -> Values:
        return np.sqrt(a**2 + b**2 - 2 * correlation * a * b)

    return (
        np.maximum(p - q - length(p - low, gained_high - q), -1),
        np.minimum(p - q + length(high - p, q - gained_low), 1),
    )


def mean(values: Values, confidence: float, reach: float, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the interval of a mean; it has no bounds for one value, or where one is not finite.

    Where most values are equal and fewer than `FEW` differ, the data hardly say how large a difference can be: the
    bounds are then at least those of a share that few samples show, times `reach`.

    Args:
        values: shape `[samples]`.
        reach: how large one sample's difference can be.
    """
    samples = len(values)
    if samples < 2 or not np.isfinite(values).all():
        return Interval(float(values.mean()) if samples else math.nan)
    value = float(values.mean())
    differing = int(np.count_nonzero(values != np.median(values)))
    low, high = _mean_bounds(values, confidence, resamples, seed) if differing else (value, value)
    unseen = _unseen(differing, samples, samples, confidence, reach)
    return _interval(value, _shrinking(value, low, high, unseen))


def jackknife(value: float, replicates: Values, confidence: float, reach: float, samples: int) -> Interval:
    """Return the interval of any statistic; it has no bounds below two groups, or where a replicate is not finite.

    Args:
        value: the statistic of all samples.
        replicates: the statistic without one group of samples after the other, shape `[groups]`.
        reach: how large one sample's difference can be, on the statistic's scale.
        samples: in all groups together.
    """
    from scipy.special import stdtrit

    groups = len(replicates)
    if groups < 2 or not np.isfinite(replicates).all():
        return Interval(value)
    error = math.sqrt((groups - 1) / groups * float(np.square(replicates - replicates.mean()).sum()))
    half = error * float(stdtrit(groups - 1, (1 + confidence) / 2))
    distances = np.abs(replicates - np.median(replicates))
    differing = int(np.count_nonzero(distances > 0.05 * distances.max()))
    unseen = _unseen(differing, groups, samples or groups, confidence, reach)
    return _interval(value, _shrinking(value, value - half, value + half, unseen))


def _mean_bounds(values: Values, confidence: float, resamples: int, seed: int) -> Bounds:
    """Return BCa's bounds, or the closed form; few values get at least what Student's t gives."""
    samples, centre = len(values), float(values.mean())
    scale = float(np.abs(values - centre).max())
    deviations = (values - centre) / scale
    error = float(deviations.std(ddof=1)) / math.sqrt(samples)
    if samples > MOST_RESAMPLED:
        z, skew = _z(confidence), float(np.mean(deviations**3)) / float(deviations.std()) ** 3
        shift = (2 * z**2 + 1) * skew / (6 * math.sqrt(samples))
        return centre + scale * error * (shift - z), centre + scale * error * (shift + z)
    from scipy.special import stdtrit
    from scipy.stats import bootstrap

    found = bootstrap(
        (deviations,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH // samples),
        vectorized=True,
        confidence_level=confidence,
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    half = error * float(stdtrit(samples - 1, (1 + confidence) / 2)) if samples < FEW else 0.0
    return centre + scale * min(float(found.low), -half), centre + scale * max(float(found.high), half)


def _unseen(differing: int, of: int, samples: int, confidence: float, reach: float) -> Callable[[float], float]:
    """Return, by a multiple of the samples, how far a mean can lie from the one seen if few of them differ."""
    if differing >= FEW or differing > of / 2:
        return lambda times: 0.0

    def beyond(times: float) -> float:
        _, high = clopper_pearson(differing * times, samples * times, confidence)
        return (float(high) - differing / samples) * reach

    return beyond


def _shrinking(value: float, low: float, high: float, unseen: Callable[[float], float]) -> Callable[[float], Bounds]:
    """Return the bounds by a multiple of the samples: their distance falls with its root."""

    def scaled(times: float) -> Bounds:
        root, least = math.sqrt(times), unseen(times)
        return value - max((value - low) / root, least), value + max((high - value) / root, least)

    return scaled


def _z(confidence: float) -> float:
    """Return the two-sided quantile of the normal distribution."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
