"""The gate: what holds for all measurements, its sentences, and the cases at the edge."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qatflow.errors import DataError
from qatflow.recipe import Drop, Gate
from qatflow.results.gate import (
    Decision,
    Measurement,
    allowed_drop,
    best_of,
    check_direction,
    decide,
    is_worse,
    meets,
    paired_interval,
)
from qatflow.results.result import Verdict

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


def jackknifed(value: float, spread: float, samples: int = 400, higher: bool = True) -> Measurement:
    noise = np.random.default_rng(int(1e6 * value)).normal(size=20)
    return Measurement(value, None, higher, value + spread * (noise - noise.mean()), samples)


def changed(samples: int, lost: int = 0, gained: int = 0, wrong: int = 0) -> tuple[Measurement, Measurement]:
    """Return FP32 and a candidate, of which both have the last `wrong` samples wrong."""
    fp32, candidate = np.ones(samples), np.ones(samples)
    candidate[:lost], fp32[lost : lost + gained] = 0, 0
    fp32[samples - wrong :], candidate[samples - wrong :] = 0, 0
    return sampled(fp32), sampled(candidate)


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


@settings(deadline=None)
@given(gates, scores, st.booleans())
def test_a_metric_turned_upside_down_is_judged_alike(
    gate: Gate, pairs: list[tuple[float, float]], higher: bool
) -> None:
    fp32, candidate = (sampled(column, higher) for column in zip(*pairs, strict=True))
    assert same(decide(gate, fp32, candidate), decide(gate, flipped(fp32), flipped(candidate)))


@settings(deadline=None)
@given(gates, finite, finite, finite, st.booleans())
def test_a_larger_drop_is_never_judged_better(gate: Gate, fp32: float, one: float, other: float, higher: bool) -> None:
    better, worse = (max, min) if higher else (min, max)
    at_best, at_worst = (decide(gate, whole(fp32, higher), whole(f(one, other), higher)) for f in (better, worse))
    assert ORDER.index(at_best.verdict) <= ORDER.index(at_worst.verdict)
    assert at_best.passed >= at_worst.passed
    assert at_best.drop <= at_worst.drop


@settings(deadline=None)
@given(gates, scores, st.floats(0, 100), st.booleans())
def test_losing_as_much_on_every_sample_is_never_judged_better(
    gate: Gate, pairs: list[tuple[float, float]], loss: float, higher: bool
) -> None:
    fp32, candidate = (sampled(column, higher) for column in zip(*pairs, strict=True))
    worse = sampled(candidate.per_sample - (loss if higher else -loss), higher)
    assert decide(gate, fp32, candidate).passed >= decide(gate, fp32, worse).passed


@settings(deadline=None)
@given(gates, finite, st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_what_is_not_finite_never_passes(gate: Gate, value: float, bad: float, higher: bool) -> None:
    for fp32, candidate in ((value, bad), (bad, value), (bad, bad)):
        decision = decide(gate, whole(fp32, higher), whole(candidate, higher))
        assert (decision.verdict, decision.passed) == (Verdict.MISSED, False)
        assert math.isnan(decision.drop)


@settings(deadline=None)
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


@settings(deadline=None)
@given(gates, scores)
def test_the_same_results_twice_are_no_drop_but_never_without_an_interval(
    gate: Gate, pairs: list[tuple[float, float]]
) -> None:
    fp32 = sampled([one for one, _ in pairs])
    decision = decide(gate, fp32, fp32)
    assert decision.drop == 0 and meets(gate, fp32, fp32)
    assert decision.passed or gate.strict
    assert math.isnan(decision.low) or decision.low < 0 < decision.high


@pytest.mark.parametrize(
    ("max_drop", "fp32", "limit"),
    [(0.01, 0.9, 0.01), ("1%", 0.9, 0.009), ("1%", -50.0, 0.5), ("10%", 0.0, 0.0), (0.0, 0.9, 0.0)],
)
def test_allowed_drop(max_drop: object, fp32: float, limit: float) -> None:
    assert allowed_drop(gate(max_drop), fp32) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("max_drop", "fp32", "candidate", "verdict"),
    [
        (0.01, 0.97, 0.96, Verdict.MET),
        (0.01, 0.97, 0.9599, Verdict.MISSED),
        ("1%", 0.5, 0.495, Verdict.MET),
        ("1%", 0.5, 0.494, Verdict.MISSED),
        ("1%", 0.0, 0.0, Verdict.MET),
        ("1%", 0.0, -1e-3, Verdict.MISSED),
        ("1%", 0.0, 1e-3, Verdict.MET),
        (0.0, 0.8, 0.8, Verdict.MET),
        (0.0, 0.8, 0.7999, Verdict.MISSED),
        (0.01, 0.8, 0.83, Verdict.MET),
        (0.01, 0.8, 0.85, Verdict.MET),
        (5.0, -10.0, -12.0, Verdict.MET),
    ],
)
def test_verdicts_at_the_edge(max_drop: object, fp32: float, candidate: float, verdict: Verdict) -> None:
    decision = decide(gate(max_drop), whole(fp32), whole(candidate))
    assert decision.verdict == verdict
    assert decision.passed == (verdict != Verdict.MISSED)
    assert meets(gate(max_drop), whole(fp32), whole(candidate)) == decision.passed
    assert not decide(gate(max_drop, strict=True), whole(fp32), whole(candidate)).passed


def right_or_wrong(count: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64)


@settings(deadline=None)
@given(scores, st.integers(0, 100))
def test_the_interval_holds_the_mean_drop(pairs: list[tuple[float, float]], seed: int) -> None:
    fp32, candidate = (sampled(column) for column in zip(*pairs, strict=True))
    differences = fp32.per_sample - candidate.per_sample
    low, high = paired_interval(gate(resamples=200), fp32, candidate, seed)
    slack = 1e-9 + 1e-9 * np.abs(differences).max()
    assert math.isnan(low) or low - slack <= differences.mean() <= high + slack


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


def test_a_gain_on_a_metric_near_zero_is_noise() -> None:
    none_right, some_right = changed(2000, gained=60, wrong=1940)
    assert decide(gate(), none_right, some_right).verdict == Verdict.MET
    assert decide(gate(0.05), *changed(2000, gained=60, wrong=1000)).verdict == Verdict.MET
    unsure = decide(gate(), jackknifed(0.001, 0.01), jackknifed(0.2, 0.001))
    assert (unsure.verdict, unsure.high < 0) == (Verdict.MET, True)
    assert decide(gate(), jackknifed(0.1, 0.0001), jackknifed(0.2, 0.001)).verdict == Verdict.ANOMALOUS
    assert decide(gate(), whole(0.1), whole(0.9)).verdict == Verdict.MET


def test_few_equal_samples_do_not_pass_a_strict_gate() -> None:
    decision = decide(gate(0.001, strict=True), *changed(20))
    assert (decision.verdict, decision.passed, decision.drop) == (Verdict.WITHIN_NOISE, False, 0)
    assert decision.high == pytest.approx(0.168, abs=5e-4)
    assert (decision.lost, decision.gained, decision.confidence) == (0, 0, pytest.approx(0.95))
    assert decision.needed == 3700  # 1 - 0.025 ** (1 / 3688) is 0.001
    assert decide(gate(0.001, strict=True), *changed(decision.needed)).passed


@settings(deadline=None)
@given(st.integers(20, 400), st.integers(0, 5), st.integers(0, 5), st.floats(0.015, 0.2))
def test_so_many_samples_as_are_needed_do_settle_it(samples: int, lost: int, gained: int, allowed: float) -> None:
    decision = decide(gate(allowed), *changed(samples, lost, gained))
    assume(decision.needed is not None and decision.needed < 20_000)
    times = math.ceil(decision.needed / samples)
    settled = decide(gate(allowed), *changed(samples * times, lost * times, gained * times))
    assert settled.verdict in (Verdict.MET, Verdict.ANOMALOUS)


def test_scores_tell_how_many_would_settle_it_as_well() -> None:
    rng = np.random.default_rng(0)
    fp32 = rng.random(300)
    candidate = fp32 - 0.003 + 0.01 * rng.normal(size=300)
    decision = decide(gate(0.0035), sampled(fp32), sampled(candidate))
    assert decision.verdict == Verdict.WITHIN_NOISE
    margin = 0.0035 - decision.drop
    assert decision.needed == pytest.approx(300 * ((decision.high - decision.drop) / margin) ** 2, rel=0.1)
    assert decide(gate(0.0035), jackknifed(0.9, 0.001), jackknifed(0.8975, 0.002)).needed > 400
    assert decide(gate(decision.drop), sampled(fp32), sampled(candidate)).needed is None


def test_every_further_look_is_taken_at_less_risk() -> None:
    decisions = [decide(gate(0.03), *changed(1000, 15), looks=looks) for looks in (1, 2, 5)]
    assert [one.confidence for one in decisions] == pytest.approx([0.95, 0.975, 0.99])
    assert decisions[0].high < decisions[1].high < decisions[2].high
    assert decisions[1] == replace(
        decide(gate(0.03, confidence=0.975), *changed(1000, 15)), sentence=decisions[1].sentence
    )
    assert "look" not in decisions[0].sentence
    assert "This is look 2 at these samples, and paid for: hence 97.5 %." in decisions[1].sentence


@pytest.mark.parametrize("higher", [True, False])
def test_a_value_may_be_asked_for_beside_the_drop_or_instead(higher: bool) -> None:
    sign = 1 if higher else -1
    limit = {"min_value": 25.0} if higher else {"max_value": -25.0}
    fp32 = whole(sign * 100, higher)
    for value, met in ((26, True), (25, True), (24.9, False)):
        candidate = whole(sign * value, higher)
        decision = decide(gate(None, **limit), fp32, candidate)
        assert (decision.passed, decision.drop) == (met, 100 - value)
        assert decision.verdict == (Verdict.MET if met else Verdict.MISSED)
        assert meets(gate(None, **limit), fp32, candidate) == met
        assert not decide(gate(1.0, **limit), fp32, candidate).passed
        assert decide(gate(90.0, **limit), fp32, candidate).passed == met


def test_a_value_is_met_only_with_its_interval() -> None:
    close, far = changed(200, 2, wrong=15), changed(200, 2, wrong=5)
    asked = gate(None, min_value=0.9)
    decision = decide(asked, *close)
    assert (decision.verdict, decision.passed) == (Verdict.WITHIN_NOISE, True)
    assert decision.needed > 200
    assert not decide(gate(None, min_value=0.9, strict=True), *close).passed
    assert decide(asked, *far).verdict == Verdict.MET
    scores = sampled(25 + 3 * np.random.default_rng(0).normal(size=300))
    fp32 = sampled(np.full(300, 100.0))
    verdicts = [decide(gate(None, min_value=least), fp32, scores).verdict for least in (24, scores.value - 0.01, 26)]
    assert verdicts == [Verdict.MET, Verdict.WITHIN_NOISE, Verdict.MISSED]
    rmse = [jackknifed(1.5, 0.001, higher=False), jackknifed(1.9, 0.01, higher=False)]
    verdicts = [decide(gate(None, max_value=most), *rmse).verdict for most in (2.5, 1.95, 1.8)]
    assert verdicts == [Verdict.MET, Verdict.WITHIN_NOISE, Verdict.MISSED]


@pytest.mark.parametrize("strict", [True, False])
def test_a_gain_does_not_hide_a_value_that_is_too_low(strict: bool) -> None:
    decision = decide(gate(0.01, min_value=0.55, strict=strict), *changed(400, gained=40, wrong=176))
    assert (decision.verdict, decision.passed) == (Verdict.WITHIN_NOISE, not strict)
    assert decide(gate(0.01, min_value=0.9, strict=strict), *changed(400, gained=200)).verdict == Verdict.ANOMALOUS
    assert not decide(gate(0.01, min_value=0.9), *changed(400, gained=40, wrong=176)).passed


def test_what_is_not_met_by_more_than_noise_is_told() -> None:
    assert decide(gate(), *changed(1000, 50)).missed_beyond_noise
    assert not decide(gate(), *changed(200, 4)).missed_beyond_noise
    assert not decide(gate(), *changed(200)).missed_beyond_noise
    assert decide(gate(), whole(0.9), whole(0.8)).missed_beyond_noise
    assert decide(gate(None, min_value=0.9), *changed(1000, 300)).missed_beyond_noise


def test_the_limit_that_stands_for_none() -> None:
    assert allowed_drop(gate(None), 0.9) == 0.01
    assert allowed_drop(gate(None, min_value=0.5), 0.9) == math.inf
    assert allowed_drop(gate("1%", max_value=0.5), -0.5) == pytest.approx(0.005)


def test_limits_on_the_wrong_side_of_a_metric() -> None:
    check_direction(gate(None, min_value=1), higher_is_better=True)
    check_direction(gate(None, max_value=1), higher_is_better=False)
    check_direction(gate(), higher_is_better=False)
    with pytest.raises(DataError, match=r"gate\.min_value: a lower RMSE is better; write gate.max_value, or gate"):
        check_direction(gate(None, min_value=1, label="RMSE"), higher_is_better=False)
    with pytest.raises(DataError, match=r"gate\.max_value: a higher accuracy is better; write gate.min_value, or gate"):
        check_direction(gate(None, max_value=1), higher_is_better=True)


SENTENCES = [
    (
        decide(gate(), *changed(497)),
        "0 of 497 samples lost, 0 gained: with 95 % confidence the drop is at most 0.007395, within the 0.01 allowed.",
    ),
    (
        decide(gate(), *changed(20)),
        "0 of 20 samples lost, 0 gained: no drop, within the 0.01 allowed, but with 95 % confidence the drop may be up "
        "to 0.1685. Few samples: 20 without any loss say no more. About 370 samples would settle it.",
    ),
    (
        decide(gate(0.015), *changed(200, 2)),
        "2 of 200 samples lost, 0 gained: a drop of 0.01, within the 0.015 allowed, but with 95 % confidence the drop "
        "may be up to 0.03566. Few samples: with 200, even no loss at all leaves a drop of up to 0.01828 possible. "
        "About 2300 samples would settle it.",
    ),
    (
        decide(gate(), *changed(1000, 10)),
        "10 of 1000 samples lost, 0 gained: a drop of 0.01, within the 0.01 allowed, but with 95 % confidence the drop "
        "may be up to 0.01832. It is too near to the limit for more samples to settle it.",
    ),
    (
        decide(gate(), *changed(1000, 50, 3)),
        "50 of 1000 samples lost, 3 gained: a drop of 0.047, more than the 0.01 allowed; with 95 % confidence it is "
        "0.033 to 0.06262.",
    ),
    (
        decide(gate(), *changed(1000, 3, 120)),
        "3 of 1000 samples lost, 120 gained: with 95 % confidence the gain is at least 0.09653, where a drop of 0.01 "
        "is allowed. So large a gain is implausible: check the evaluation before you trust it.",
    ),
    (decide(gate(), whole(0.9), whole(0.895)), "A drop of 0.005, within the 0.01 allowed; no interval can be given."),
    (decide(gate(), whole(0.9), whole(0.8)), "A drop of 0.1, more than the 0.01 allowed."),
    (
        decide(gate(None, max_value=2.0, label="RMSE"), whole(1.5, False), whole(1.9, False)),
        "RMSE is 1.9, where at most 2 is asked for; no interval can be given.",
    ),
    (
        decide(gate(0.1, min_value=0.9), *changed(200, 2, wrong=15)),
        "2 of 200 samples lost, 0 gained: with 95 % confidence the drop is at most 0.03566, within the 0.1 allowed; "
        "the value is 0.915 over 200 samples, where at least 0.9 is asked for, but with 95 % confidence it may be as "
        "low as 0.8673. About 1600 samples would settle it.",
    ),
    (decide(gate(), whole(0.9), whole(math.nan)), "The metric is not a finite number."),
]


@pytest.mark.parametrize(("decision", "sentence"), SENTENCES, ids=range(len(SENTENCES)))
def test_sentences(decision: Decision, sentence: str) -> None:
    assert decision.sentence == sentence


@settings(deadline=None)
@given(gates, scores, st.booleans())
def test_a_sentence_speaks_of_confidence_only_where_there_is_an_interval(
    gate: Gate, pairs: list[tuple[float, float]], higher: bool
) -> None:
    fp32, candidate = (sampled(column, higher) for column in zip(*pairs, strict=True))
    for decision in (decide(gate, fp32, candidate), decide(gate, whole(fp32.value), whole(candidate.value))):
        assert ("confidence" in decision.sentence) == math.isfinite(decision.low)
        assert math.isfinite(decision.confidence) == math.isfinite(decision.low)
        assert decision.sentence.endswith(".") and "e-" not in decision.sentence


def test_different_numbers_of_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 samples against 2: measure both on the same ones"):
        decide(gate(), sampled([1, 1, 1]), sampled([1, 1]))
    with pytest.raises(ValueError, match="20 groups against 10: measure both on the same ones"):
        decide(gate(), jackknifed(1, 1), replace(jackknifed(1, 1), replicates=np.ones(10)))


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
