"""Intervals: coverage by counting every outcome, against scipy's and by hand, what holds for all of them, the edges."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import intervals as benchmark
from qatflow.results.intervals import (
    FEW,
    MOST_RESAMPLED,
    Interval,
    clopper_pearson,
    jackknife,
    mean,
    share,
    share_difference,
    square_and_add,
)

confidences = st.sampled_from([0.6, 0.8, 0.95, 0.99, 0.9999])


def exact_coverage(cell: benchmark.Cell, confidence: float = 0.95) -> float:
    """Return the coverage by the probability of every outcome that is not all but impossible."""
    most = [int(scipy.stats.binom.ppf(1 - 1e-7, cell.samples, one)) for one in (cell.lost, cell.gained)]
    lost, gained = (one.ravel() for one in np.meshgrid(*(np.arange(one + 1) for one in most)))
    possible = lost + gained <= cell.samples
    lost, gained = lost[possible], gained[possible]
    outcomes = np.stack([lost, gained, cell.samples - lost - gained], 1)
    shares = [cell.lost, cell.gained, 1 - cell.lost - cell.gained]
    low, high = square_and_add(lost, gained, cell.samples, confidence)
    held = (low <= cell.drop + 1e-12) & (cell.drop <= high + 1e-12)
    return float(scipy.stats.multinomial.pmf(outcomes, cell.samples, shares)[held].sum())


def test_right_or_wrong_is_covered_in_every_case() -> None:
    cells = [cell for cell in benchmark.cells() if cell.samples < 5000]
    assert len(cells) >= 40
    assert min(map(exact_coverage, cells)) >= 0.95
    assert all(benchmark.coverage(cell)[0] >= 0.93 for cell in benchmark.cells())


@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("samples", [10, 50, 200])
def test_large_shares_and_other_confidences_are_covered_as_well(samples: int, confidence: float) -> None:
    for lost in (0.1, 0.3, 0.5, 0.7):
        for gained in (0.0, 0.05, 0.3):
            assert exact_coverage(benchmark.Cell(samples, lost, gained), confidence) >= confidence - 0.005


def test_the_exact_bounds_are_scipys() -> None:
    for samples, count in ((20, 0), (20, 20), (20, 7), (1, 1), (497, 3)):
        wanted = scipy.stats.binomtest(count, samples).proportion_ci(0.95, method="exact")
        assert [float(one) for one in clopper_pearson(count, samples, 0.95)] == pytest.approx(list(wanted))


def test_where_nothing_changed_the_bound_is_exact() -> None:
    for samples in (1, 20, 5000):
        found, bound = share_difference(0, 0, samples, 0.95), 1 - 0.025 ** (1 / samples)
        assert (found.low, found.high) == pytest.approx((-bound, bound))
    assert share_difference(0, 0, 20, 0.95).high == pytest.approx(0.168, abs=5e-4)
    assert share_difference(3, 0, 20, 0.95).high == pytest.approx(share(3, 20, 0.95).high)


@settings(deadline=None)
@given(st.integers(1, 300), st.data(), confidences)
def test_the_bounds_rise_with_what_is_lost_and_fall_with_what_is_gained(
    samples: int, data: st.DataObject, confidence: float
) -> None:
    lost = data.draw(st.integers(0, samples - 1))
    gained = data.draw(st.integers(0, samples - 1 - lost))
    here, more_lost, more_gained = (
        share_difference(lost + i, gained + j, samples, confidence) for i, j in ((0, 0), (1, 0), (0, 1))
    )
    assert -1 <= here.low <= here.value <= here.high <= 1
    assert here.low <= more_lost.low + 1e-12 and here.high <= more_lost.high + 1e-12
    assert here.low >= more_gained.low - 1e-12 and here.high >= more_gained.high - 1e-12


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), confidences)
def test_lost_and_gained_are_two_sides_of_the_same(samples: int, data: st.DataObject, confidence: float) -> None:
    lost = data.draw(st.integers(0, samples))
    gained = data.draw(st.integers(0, samples - lost))
    one = share_difference(lost, gained, samples, confidence)
    other = -share_difference(gained, lost, samples, confidence)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


@pytest.mark.parametrize("samples", [12, 300])
def test_scores_get_scipys_bca_interval(samples: int) -> None:
    values = np.random.default_rng(1).exponential(size=samples)
    wanted = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="BCa", random_state=np.random.default_rng(7)
    ).confidence_interval
    found = mean(values, 0.95, reach=10, resamples=4000, seed=7)
    assert (found.low, found.high) == pytest.approx(tuple(wanted), abs=1e-9)
    assert found.value == values.mean()
    assert mean(values, 0.95, 10, 4000, seed=7) == found
    assert mean(values, 0.95, 10, 4000, seed=8) != found


def test_the_closed_form_is_what_bca_tends_to() -> None:
    values = np.random.default_rng(2).exponential(size=MOST_RESAMPLED)
    resampled = mean(values, 0.95, 1, resamples=20_000)
    closed = mean(np.tile(values, 2), 0.95, 1)
    width, root = resampled.high - resampled.low, math.sqrt(2)
    for bound, wanted in ((closed.low, resampled.low), (closed.high, resampled.high)):
        assert root * (bound - values.mean()) == pytest.approx(wanted - values.mean(), abs=0.02 * width)
    z, skew = 1.959964, scipy.stats.skew(np.tile(values, 2))
    error = np.tile(values, 2).std(ddof=1) / math.sqrt(2 * MOST_RESAMPLED)
    shift = (2 * z**2 + 1) * skew / (6 * math.sqrt(2 * MOST_RESAMPLED))
    assert closed.high == pytest.approx(values.mean() + error * (z + shift), abs=1e-9)
    assert closed.low == pytest.approx(values.mean() + error * (shift - z), abs=1e-9)


def test_real_scores_are_covered() -> None:
    for samples, changing in ((20, 0.05), (200, 0.02), (200, 1.0), (20_000, 0.1)):
        assert benchmark.covered(benchmark.of_scores(samples, changing), 0.1 * changing, 200) >= 0.9


def test_fifty_thousand_scores_are_decided_at_once() -> None:
    assert min(benchmark.seconds_to_decide(50_000) for _ in range(3)) < 0.3


@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("samples", [2, 20, 6000])
def test_equal_differences_have_an_interval_all_the_same(value: float, samples: int) -> None:
    found, bound = mean(np.full(samples, value), 0.95, reach=2.0), 2 * (1 - 0.025 ** (1 / samples))
    assert (found.low, found.high) == pytest.approx((value - bound, value + bound))


def test_few_that_differ_hardly_narrow_it() -> None:
    widths = []
    for differing in range(FEW + 1):
        values = np.zeros(500)
        values[:differing] = 1e-6
        found = mean(values, 0.95, reach=1.0)
        widths.append(found.high - found.low)
    assert min(widths[:FEW]) >= 0.0147
    assert widths[FEW] < 1e-6


@pytest.mark.parametrize("values", [[], [3.0], [1.0, math.nan], [math.inf, 1.0, 2.0]])
def test_without_enough_finite_values_there_is_no_interval(values: list[float]) -> None:
    found = mean(np.array(values), 0.95, 1.0)
    assert not found.exists
    assert math.isnan(found.high)
    assert all(map(math.isnan, found.scaled(5.0)))
    assert not jackknife(0.5, np.array(values), 0.95, 1.0, 100).exists


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), confidences)
def test_the_interval_of_scores_holds_their_mean(values: list[float], confidence: float) -> None:
    found = mean(np.array(values), confidence, reach=2e3, resamples=200)
    slack = 1e-9 * max(map(abs, values))
    assert found.low - slack <= found.value <= found.high + slack
    assert found.high > found.low


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(3).normal(size=20)
    replicates = np.array([np.delete(values, one).mean() for one in range(20)])
    found = jackknife(float(values.mean()), replicates, 0.9, reach=1.0, samples=20)
    wanted = scipy.stats.t.interval(0.9, 19, values.mean(), values.std(ddof=1) / math.sqrt(20))
    assert (found.low, found.high) == pytest.approx(wanted)


def test_the_jackknife_covers_f1() -> None:
    for samples, lost in ((100, 0.02), (500, 0.05)):
        held = benchmark.covered(benchmark.of_f1(samples, lost), benchmark.f1_drop(lost), 1000)
        assert held >= 0.93 - 0.02


def test_equal_replicates_have_an_interval_all_the_same() -> None:
    found = jackknife(0.0, np.zeros(20), 0.95, reach=1.0, samples=200)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 200)) == -found.low


def some_interval(kind: str) -> Interval:
    rng = np.random.default_rng(4)
    if kind == "share":
        return share(50, 60, 0.95)
    if kind == "difference":
        return share_difference(7, 2, 100, 0.95)
    if kind == "mean":
        return mean(rng.normal(size=50), 0.95, 1.0)
    return jackknife(0.3, rng.normal(size=20), 0.95, 1.0, 200)


@pytest.mark.parametrize("kind", ["share", "difference", "mean", "jackknife"])
def test_more_samples_alike_narrow_an_interval(kind: str) -> None:
    found = some_interval(kind)
    widths = [high - low for low, high in map(found.scaled, (1, 4, 100, 10_000))]
    assert widths[0] == pytest.approx(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[2] / widths[3] == pytest.approx(10, rel=0.1)
    turned = -found
    assert (turned.low, turned.high, -turned.value) == (-found.high, -found.low, found.value)
    assert turned.scaled(4) == tuple(-one for one in reversed(found.scaled(4)))


def test_scaled_shares_are_those_of_more_samples() -> None:
    assert share_difference(1, 2, 100, 0.95).scaled(3) == pytest.approx(share_difference(3, 6, 300, 0.95).scaled(1))
    assert share(9, 10, 0.95).scaled(5) == pytest.approx(share(45, 50, 0.95).scaled(1))
    assert not share(0, 0, 0.95).exists and not share_difference(0, 0, 0, 0.95).exists


def test_scipy_is_not_imported_before_an_interval_is_asked_for() -> None:
    code = "import sys, qatflow.results.gate, qatflow.recipe.check; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
