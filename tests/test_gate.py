"""The gate: what holds for all measurements, the interval by brute force, and the cases at the edge."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qatflow.gate import Decision, Measurement, allowed_drop, best_of, decide, is_worse, paired_interval
from qatflow.recipe import Drop, Gate
from qatflow.result import Verdict

ORDER = [Verdict.ANOMALOUS, Verdict.MET, Verdict.WITHIN_NOISE, Verdict.MISSED]

finite = st.floats(-1e3, 1e3)
amounts = st.floats(0, 10)
gates = st.builds(
    lambda amount, relative, strict, gain: Gate(
        max_drop=Drop(amount=amount, relative=relative), strict=strict, resamples=100, max_gain=gain
    ),
    amounts,
    st.booleans(),
    st.booleans(),
    st.floats(0.01, 1),
)
scores = st.lists(st.tuples(finite, finite), min_size=1, max_size=12)


def whole(value: float, higher: bool = True) -> Measurement:
    return Measurement(value, None, higher)


def sampled(per_sample: object, higher: bool = True) -> Measurement:
    values = np.asarray(per_sample, dtype=np.float64)
    return Measurement(float(values.mean()), values, higher)


def gate(max_drop: object = 0.01, **options: object) -> Gate:
    return Gate(max_drop=max_drop, **options)


def flipped(measurement: Measurement) -> Measurement:
    per_sample = None if measurement.per_sample is None else -measurement.per_sample
    return Measurement(-measurement.value, per_sample, not measurement.higher_is_better)


def same(one: Decision, other: Decision) -> bool:
    numbers = [(one.drop, other.drop), (one.low, other.low), (one.high, other.high)]
    return (one.verdict, one.passed) == (other.verdict, other.passed) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in numbers
    )


@given(gates, scores, st.booleans())
def test_a_metric_turned_upside_down_is_judged_alike(
    gate: Gate, pairs: list[tuple[float, float]], higher: bool
) -> None:
    fp32, candidate = (sampled(column, higher) for column in zip(*pairs, strict=True))
    assert same(decide(gate, fp32, candidate), decide(gate, flipped(fp32), flipped(candidate)))


@given(gates, finite, finite, finite, st.booleans())
def test_a_larger_drop_is_never_judged_better(gate: Gate, fp32: float, one: float, other: float, higher: bool) -> None:
    better, worse = (max, min) if higher else (min, max)
    at_best, at_worst = (decide(gate, whole(fp32, higher), whole(f(one, other), higher)) for f in (better, worse))
    assert ORDER.index(at_best.verdict) <= ORDER.index(at_worst.verdict)
    assert at_best.passed >= at_worst.passed
    assert at_best.drop <= at_worst.drop


@given(gates, scores, st.floats(0, 100), st.booleans())
def test_losing_as_much_on_every_sample_is_never_judged_better(
    gate: Gate, pairs: list[tuple[float, float]], loss: float, higher: bool
) -> None:
    fp32, candidate = (sampled(column, higher) for column in zip(*pairs, strict=True))
    worse = sampled(candidate.per_sample - (loss if higher else -loss), higher)
    assert decide(gate, fp32, candidate).passed >= decide(gate, fp32, worse).passed


@given(gates, finite, st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_what_is_not_finite_never_passes(gate: Gate, value: float, bad: float, higher: bool) -> None:
    for fp32, candidate in ((value, bad), (bad, value), (bad, bad)):
        decision = decide(gate, whole(fp32, higher), whole(candidate, higher))
        assert (decision.verdict, decision.passed) == (Verdict.MISSED, False)
        assert math.isnan(decision.drop)


@given(gates, scores, st.booleans())
def test_a_drop_beyond_the_limit_never_passes_and_one_within_does(
    gate: Gate, pairs: list[tuple[float, float]], higher: bool
) -> None:
    fp32, candidate = (sampled(column, higher) for column in zip(*pairs, strict=True))
    decision = decide(gate, fp32, candidate)
    drop = (fp32.value - candidate.value) * (1 if higher else -1)
    limit = gate.max_drop.amount * (abs(fp32.value) if gate.max_drop.relative else 1)
    assume(abs(drop - limit) > 1e-5)
    assert (decision.verdict == Verdict.MISSED) == (drop > limit)
    if not gate.strict:
        assert decision.passed == (drop < limit)


@given(gates, scores)
def test_the_same_results_twice_pass_every_gate(gate: Gate, pairs: list[tuple[float, float]]) -> None:
    fp32 = sampled([one for one, _ in pairs])
    assert decide(gate, fp32, fp32) == Decision(Verdict.MET, passed=True, drop=0.0, low=0.0, high=0.0)


@pytest.mark.parametrize(
    ("max_drop", "fp32", "limit"),
    [(0.01, 0.9, 0.01), ("1%", 0.9, 0.009), ("1%", -50.0, 0.5), ("10%", 0.0, 0.0), (0.0, 0.9, 0.0)],
)
def test_allowed_drop(max_drop: object, fp32: float, limit: float) -> None:
    assert allowed_drop(gate(max_drop).max_drop, fp32) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("max_drop", "fp32", "candidate", "verdict"),
    [
        (0.01, 0.97, 0.96, Verdict.MET),
        (0.01, 0.97, 0.9599, Verdict.MISSED),
        ("1%", 0.5, 0.495, Verdict.MET),
        ("1%", 0.5, 0.494, Verdict.MISSED),
        ("1%", 0.0, 0.0, Verdict.MET),
        ("1%", 0.0, -1e-3, Verdict.MISSED),
        ("1%", 0.0, 1e-3, Verdict.ANOMALOUS),
        (0.0, 0.8, 0.8, Verdict.MET),
        (0.0, 0.8, 0.7999, Verdict.MISSED),
        (0.01, 0.8, 0.83, Verdict.MET),
        (0.01, 0.8, 0.85, Verdict.ANOMALOUS),
        (5.0, -10.0, -12.0, Verdict.MET),
    ],
)
def test_verdicts_at_the_edge(max_drop: object, fp32: float, candidate: float, verdict: Verdict) -> None:
    decision = decide(gate(max_drop), whole(fp32), whole(candidate))
    assert decision.verdict == verdict
    assert decision.passed == (verdict != Verdict.MISSED)
    assert decide(gate(max_drop, strict=True), whole(fp32), whole(candidate)).passed == decision.passed


def right_or_wrong(count: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64)


def brute_force(differences: np.ndarray, confidence: float, resamples: int) -> np.ndarray:
    rng = np.random.default_rng(99)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(resamples)]
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("kind", ["right or wrong", "real numbers"])
@pytest.mark.parametrize("higher", [True, False])
def test_the_interval_is_that_of_a_brute_force_bootstrap(confidence: float, kind: str, higher: bool) -> None:
    if kind == "right or wrong":
        fp32, candidate = right_or_wrong(400, 0.9, 1), right_or_wrong(400, 0.8, 2)
    else:
        fp32, candidate = np.random.default_rng(1).normal(0, 1, (2, 300)) + np.array([[0.3], [0.0]])
    low, high = paired_interval(
        gate(confidence=confidence, resamples=4000), sampled(fp32, higher), sampled(candidate, higher)
    )
    differences = (fp32 - candidate) * (1 if higher else -1)
    wanted = brute_force(differences, confidence, 4000)
    width = wanted[1] - wanted[0]
    assert [low, high] == pytest.approx(wanted.tolist(), abs=0.08 * width)
    assert low < differences.mean() < high


@given(scores, st.integers(0, 100))
def test_the_interval_holds_the_mean_drop(pairs: list[tuple[float, float]], seed: int) -> None:
    fp32, candidate = (sampled(column) for column in zip(*pairs, strict=True))
    differences = fp32.per_sample - candidate.per_sample
    low, high = paired_interval(gate(resamples=200), fp32, candidate, seed)
    slack = 1e-9 + 1e-9 * np.abs(differences).max()
    assert differences.min() - slack <= low <= high <= differences.max() + slack
    assert low - slack <= differences.mean() <= high + slack


def test_the_interval_of_a_seed_is_always_the_same() -> None:
    fp32, candidate = sampled(right_or_wrong(100, 0.9, 1)), sampled(right_or_wrong(100, 0.85, 2))
    assert decide(gate(), fp32, candidate, 3) == decide(gate(), fp32, candidate, 3)
    finer = sampled(np.random.default_rng(0).random(100))
    assert paired_interval(gate(), fp32, finer, 3) != paired_interval(gate(), fp32, finer, 4)


def test_an_interval_that_reaches_beyond_the_gate_is_within_noise_and_strict_refuses_it() -> None:
    fp32 = np.ones(200)
    candidate = fp32.copy()
    candidate[:2] = 0
    decision = decide(gate(0.015), sampled(fp32), sampled(candidate))
    assert (decision.verdict, decision.passed) == (Verdict.WITHIN_NOISE, True)
    assert decision.drop == pytest.approx(0.01)
    assert decision.low < 0.01 < 0.015 < decision.high
    strict = decide(gate(0.015, strict=True), sampled(fp32), sampled(candidate))
    assert (strict.verdict, strict.passed) == (Verdict.WITHIN_NOISE, False)
    wide = decide(gate(0.1, strict=True), sampled(fp32), sampled(candidate))
    assert (wide.verdict, wide.passed) == (Verdict.MET, True)


def test_a_large_gain_is_anomalous_only_if_it_is_real() -> None:
    fp32, lucky = np.zeros(10), np.zeros(10)
    fp32[:5], lucky[4:] = 1, 1
    assert decide(gate(), sampled(fp32), sampled(lucky)).verdict == Verdict.WITHIN_NOISE
    assert decide(gate(), sampled(np.tile(fp32, 40)), sampled(np.ones(400))).verdict == Verdict.ANOMALOUS
    assert decide(gate(max_gain=2.0), sampled(np.tile(fp32, 40)), sampled(np.ones(400))).verdict == Verdict.MET


def test_different_numbers_of_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 samples against 2: measure both on the same ones"):
        decide(gate(), sampled([1, 1, 1]), sampled([1, 1]))


def test_scores_that_are_not_finite_give_no_interval() -> None:
    fp32 = Measurement(0.5, np.array([1.0, np.nan]), True)
    assert all(math.isnan(bound) for bound in paired_interval(gate(), fp32, sampled([1, 0])))
    assert all(math.isnan(bound) for bound in paired_interval(gate(), sampled([1, 0]), whole(0.5)))
    empty = Measurement(0.5, np.zeros(0), True)
    assert all(math.isnan(bound) for bound in paired_interval(gate(), empty, empty))


@pytest.mark.parametrize("higher", [True, False])
def test_is_worse_looks_at_the_metric_where_its_difference_is_no_noise(higher: bool) -> None:
    good, bad = np.ones(300), np.r_[np.ones(150), np.zeros(150)]
    better, worse = (sampled(good), sampled(bad)) if higher else (sampled(bad, False), sampled(good, False))
    assert is_worse(gate(), better, 10.0, worse, 99.0)
    assert not is_worse(gate(), worse, 99.0, better, 10.0)


def test_is_worse_looks_at_the_sqnr_where_the_metric_cannot_tell() -> None:
    kept, new = np.ones(300), np.ones(300)
    kept[0], new[1] = 0, 0
    for one, other in ((sampled(kept), sampled(new)), (whole(0.9), whole(0.9))):
        assert is_worse(gate(), one, 20.0, other, 19.9)
        assert not is_worse(gate(), one, 20.0, other, 20.1)
        assert not is_worse(gate(), one, 20.0, other, 20.0)


def test_is_worse_without_samples_takes_any_difference_for_real() -> None:
    assert is_worse(gate(), whole(0.9), 10.0, whole(0.899), 30.0)
    assert not is_worse(gate(), whole(0.9), 30.0, whole(0.901), 10.0)
    assert is_worse(gate(), whole(0.9, False), 10.0, whole(0.901, False), 30.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_is_worse_where_a_value_is_not_finite(bad: float) -> None:
    assert is_worse(gate(), whole(0.5), 10.0, whole(bad), 30.0)
    assert is_worse(gate(), whole(bad), 10.0, whole(bad), 30.0)
    assert not is_worse(gate(), whole(bad), 30.0, whole(0.5), 10.0)


def test_best_of_takes_passing_then_the_metric_then_the_sqnr_then_the_order() -> None:
    entries = [
        ("failed", whole(0.99), False, 60.0),
        ("first", whole(0.90), True, 20.0),
        ("finer", whole(0.90), True, 30.0),
        ("unknown", whole(0.90), True, math.nan),
        ("as fine", whole(0.90), True, 30.0),
        ("nan", whole(math.nan), True, 90.0),
    ]
    assert best_of(entries) == "finer"
    assert best_of([*entries, ("better", whole(0.91), True, math.nan)]) == "better"
    assert best_of(entries[:1]) == "failed"
    assert best_of([entries[5], entries[3]]) == "unknown"
    lower = [(name, replace(one, higher_is_better=False), passed, db) for name, one, passed, db in entries]
    assert best_of([*lower, ("lower", whole(0.5, False), True, 0.0)]) == "lower"
    with pytest.raises(ValueError, match="no candidate"):
        best_of([])
