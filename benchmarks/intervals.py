"""How often the gate's interval of the drop covers the true one, and how long a verdict takes: `python -m
benchmarks.intervals`.

Right or wrong answers are drawn 10,000 times for every number of samples, true drop and true gain. A drop beside a
gain is read both ways: as the share of samples lost, and as what is lost less what is gained. Real scores and a
metric that is no mean of samples are drawn less often, since their intervals cost more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qatflow.recipe import Gate
from qatflow.results.comparison import Measurement, drop_interval
from qatflow.results.gate import decide
from qatflow.results.intervals import NO_BOUNDS, Bounds, jackknife, mean, square_and_add

SAMPLES = (20, 100, 200, 500, 5000)
DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
GAINS = (0.0, 0.02)
CONFIDENCE = 0.95
LEAST = 0.93
DRAWS = 10_000


@dataclass(frozen=True)
class Cell:
    """One case: so many samples, of which these shares are lost and gained on average."""

    samples: int
    lost: float
    gained: float

    @property
    def drop(self) -> float:
        """The true one."""
        return self.lost - self.gained


def cells() -> Iterator[Cell]:
    """Yield every case, a drop beside a gain in both readings."""
    for samples in SAMPLES:
        for drop in DROPS:
            for gain in GAINS:
                for lost in sorted({drop, drop + gain}):
                    yield Cell(samples, lost, gain)


def coverage(cell: Cell, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Return the share of draws whose interval holds the true drop, and the intervals' mean width."""
    shares = [cell.lost, cell.gained, 1 - cell.lost - cell.gained]
    drawn = np.random.default_rng(seed).multinomial(cell.samples, shares, size=draws)
    pairs, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    low, high = square_and_add(pairs[:, 0], pairs[:, 1], cell.samples, CONFIDENCE)
    held = (low <= cell.drop + 1e-12) & (cell.drop <= high + 1e-12)
    return float(counts[held].sum()) / draws, float(counts @ (high - low)) / draws


def covered(interval: Callable[[np.random.Generator], Bounds], truth: float, draws: int) -> float:
    """Return the share of intervals, each of its own data, that hold the truth."""
    found = [interval(np.random.default_rng(seed)) for seed in range(draws)]
    return sum(low <= truth <= high for low, high in found if (low, high) != NO_BOUNDS) / draws


def score_drops(rng: np.random.Generator, samples: int, share: float) -> np.ndarray:
    """Return differences of scores within 0..1 of which a share are not zero: skewed losses, 0.1 on average."""
    return np.where(rng.random(samples) < share, rng.beta(1, 9, samples), 0.0)


def of_scores(samples: int, share: float) -> Callable[[np.random.Generator], Bounds]:
    """Return what draws scores and gives the interval of their mean drop."""

    def interval(rng: np.random.Generator) -> Bounds:
        found = mean(score_drops(rng, samples, share), CONFIDENCE, reach=1.0, resamples=1000)
        return found.low, found.high

    return interval


def f1(lost: np.ndarray, found: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return F1 from counts of positives missed and found, and of negatives called positive."""
    return 2 * found / np.maximum(2 * found + lost + wrong, 1)


def of_f1(samples: int, lost: float, groups: int = 20) -> Callable[[np.random.Generator], Bounds]:
    """Return what draws answers of FP32 (90 % right, half of the samples positive) and of a candidate that errs more
    often, and gives the interval of the drop of F1."""

    def interval(rng: np.random.Generator) -> Bounds:
        positive = rng.random(samples) < 0.5
        fp32 = np.where(rng.random(samples) < 0.9, positive, ~positive)
        candidate = np.where(rng.random(samples) < lost, ~positive, fp32)
        group = np.arange(samples) % groups
        values, replicates = zip(*(_f1_without(positive, one, group, groups) for one in (fp32, candidate)), strict=True)
        found = jackknife(values[0] - values[1], replicates[0] - replicates[1], CONFIDENCE, 1.0, samples)
        return found.low, found.high

    return interval


def _f1_without(positive: np.ndarray, answers: np.ndarray, group: np.ndarray, groups: int) -> tuple[float, np.ndarray]:
    kinds = [positive & ~answers, positive & answers, ~positive & answers]
    counts = [np.bincount(group, weights=kind, minlength=groups) for kind in kinds]
    whole = [np.array([one.sum()]) for one in counts]
    return float(f1(*whole)[0]), f1(*(one.sum() - one for one in counts))


def f1_drop(lost: float) -> float:
    """Return the true drop of F1 in `of_f1`."""
    right = np.array([0.9, 0.9 * (1 - lost)])
    values = f1(0.5 * (1 - right) * 1e9, 0.5 * right * 1e9, 0.5 * (1 - right) * 1e9)
    return float(values[0] - values[1])


def seconds_to_decide(samples: int) -> float:
    """Return how long a verdict about so many real scores takes."""
    rng = np.random.default_rng(0)
    fp32, noise = rng.random(samples), 0.01 * rng.normal(size=samples)
    measured = [Measurement(float(one.mean()), one, True) for one in (fp32, fp32 - 0.001 + noise)]
    drop_interval(*measured, CONFIDENCE, 100)  # libraries are loaded
    start = time.perf_counter()
    decide(Gate(max_drop=0.01), *measured)
    return time.perf_counter() - start


def main() -> None:
    """Print every case, the worst ones and the times."""
    print(f"right or wrong, nominal {CONFIDENCE:.0%}, {DRAWS:,} draws each\n")
    print("| samples | lost % | gained % | coverage % | mean width |\n|---|---|---|---|---|")
    found = [(*coverage(cell), cell) for cell in cells()]
    for held, width, cell in found:
        print(f"| {cell.samples} | {100 * cell.lost:g} | {100 * cell.gained:g} | {100 * held:.2f} | {width:.4f} |")
    held, _, cell = min(found, key=lambda one: one[0])
    print(f"\nlowest {held:.2%} in {cell}; at least {LEAST:.0%} is asked for: {'yes' if held >= LEAST else 'NO'}\n")
    print("| samples | other scores: share that lose | coverage % |\n|---|---|---|")
    for samples in (20, 200, 2000, 20_000):
        for share in (0.01, 0.1, 1.0):
            print(f"| {samples} | {share:g} | {100 * covered(of_scores(samples, share), 0.1 * share, 300):.1f} |")
    print("\n| samples | F1: share that candidates lose | coverage % |\n|---|---|---|")
    for samples in (100, 500, 5000):
        for lost in (0.01, 0.05):
            print(f"| {samples} | {lost:g} | {100 * covered(of_f1(samples, lost), f1_drop(lost), 2000):.1f} |")
    for samples in (5000, 50_000):
        print(f"\n{samples:,} real scores decided in {seconds_to_decide(samples):.3f} s")


if __name__ == "__main__":
    main()
