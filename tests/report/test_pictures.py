"""What the pictures show, asserted on the values that are drawn."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qatflow.report.charts.axis import Axis, axis_over, log_ticks, ticks
from qatflow.report.charts.ladder import ladder_charts
from qatflow.report.charts.trials import curve_chart, spot_chart
from qatflow.report.info import best_trial, ladder_info, trials_info
from qatflow.report.numbers import MetricFormat
from qatflow.results.result import RunResult, Verdict

FORM = MetricFormat(4)


def lower_is_better(run: RunResult) -> RunResult:
    """Return the run with its values mirrored, as an error would have them."""
    candidates = tuple(
        one.model_copy(update={"value": 2.0 - one.value if one.value is not None else None, "fp32": 2.0 - 0.9859})
        for one in run.candidates
    )
    gate = run.gate.model_copy(update={"higher_is_better": False}) if run.gate else None
    return run.model_copy(update={"candidates": candidates, "fp32": 2.0 - 0.9859, "gate": gate})


def test_ladder_info_has_every_rung(trained_run: RunResult) -> None:
    info = ladder_info(trained_run)
    assert info.metric == "accuracy"
    assert info.limit == pytest.approx(0.9759)
    assert [rung.name for rung in info.rungs if rung.left_out] == ["adaround"]
    assert [rung.name for rung in info.rungs if rung.best] == ["qat"]
    last = info.rungs[-1]
    assert (last.low, last.high) == (pytest.approx(0.9718), pytest.approx(0.9838))
    assert last.verdict is Verdict.WITHIN_NOISE


def test_ladder_info_of_an_error_turns_the_gate_round(trained_run: RunResult) -> None:
    info = ladder_info(lower_is_better(trained_run))
    assert info.limit == pytest.approx(2.0 - 0.9759)
    last = info.rungs[-1]
    assert (last.low, last.high) == (pytest.approx(2.0 - 0.9838), pytest.approx(2.0 - 0.9718))


def test_ladder_info_of_a_run_that_measured_nothing(empty_run: RunResult) -> None:
    assert ladder_info(empty_run) == ("metric", True, None, None, ())
    assert ladder_charts(ladder_info(empty_run), FORM) == []


def test_a_broken_model_gets_a_second_picture_around_the_gate(met_run: RunResult) -> None:
    whole, near = ladder_charts(ladder_info(met_run), FORM)
    assert [row.off for row in whole.rows] == ["", "", "", ""]
    assert [row.off for row in near.rows] == ["", "left", "left", ""]
    assert near.has_off and not whole.has_off
    equalize = near.rows[-1]
    assert equalize.limit is not None and equalize.at is not None and equalize.limit + 10 < equalize.at
    assert equalize.pass_from == equalize.limit and equalize.pass_to == 100.0


def test_an_error_passes_to_the_left_of_its_limit(met_run: RunResult) -> None:
    near = ladder_charts(ladder_info(lower_is_better(met_run)), FORM)[-1]
    assert [row.off for row in near.rows] == ["", "right", "right", ""]
    assert near.rows[-1].pass_from == 0.0 and near.rows[-1].pass_to == near.rows[-1].limit


def test_one_picture_is_enough_where_all_is_near(met_run: RunResult) -> None:
    near = met_run.model_copy(update={"candidates": (met_run.candidates[0], met_run.candidates[-1])})
    assert [chart.title for chart in ladder_charts(ladder_info(near), FORM)] == [""]


def test_a_candidate_without_a_value_keeps_its_row(met_run: RunResult) -> None:
    broken = met_run.candidates[1].model_copy(update={"value": None, "drop": None, "drop_low": None})
    run = met_run.model_copy(update={"candidates": (met_run.candidates[0], broken, *met_run.candidates[2:])})
    for chart in ladder_charts(ladder_info(run), FORM):
        assert (chart.rows[1].at, chart.rows[1].off, chart.rows[1].bar.text) == (None, "", "–")


def test_trials_info_starts_at_the_ptq_candidate(trained_run: RunResult) -> None:
    info = trials_info(trained_run)
    assert info.start == 0.62
    assert [line.epochs[0] for line in info.lines] == [0, 0, 0]
    assert [line.number for line in info.lines if line.best] == [2]
    assert info.lines[1].values[-1] is None


def test_the_best_trial_is_the_one_that_was_taken(trained_run: RunResult) -> None:
    assert best_trial(trained_run) == 2
    unknown = trained_run.model_copy(update={"candidates": trained_run.candidates[:-1]})
    assert best_trial(unknown) == 2
    assert best_trial(lower_is_better(unknown)) == 0
    taken = trained_run.candidates[-1].model_copy(update={"notes": {"trial": 0}})
    assert best_trial(trained_run.model_copy(update={"candidates": (taken,)})) == 0
    failed = tuple(one.model_copy(update={"state": "failed"}) for one in trained_run.trials)
    assert best_trial(unknown.model_copy(update={"trials": failed})) is None


def test_curves_break_where_an_epoch_has_no_value(trained_run: RunResult) -> None:
    first = trained_run.trials[0]
    gap = tuple(one.model_copy(update={"value": None}) if one.epoch == 5 else one for one in first.history)
    run = trained_run.model_copy(update={"trials": (first.model_copy(update={"history": gap}),)})
    chart = curve_chart(trials_info(run), FORM)
    assert chart is not None
    assert [len(piece) for piece in chart.curves[0].pieces] == [5, 11]


def test_curves_put_the_best_on_top_and_labels_apart(trained_run: RunResult) -> None:
    first = trained_run.trials[0]
    same = tuple(first.model_copy(update={"number": number}) for number in range(3))
    chart = curve_chart(trials_info(trained_run.model_copy(update={"trials": same, "candidates": ()})), FORM)
    assert chart is not None
    assert chart.curves[-1].tone == "best"
    heights = sorted(curve.label.y for curve in chart.curves if curve.label)
    assert all(below - above >= 5.0 for above, below in pairwise(heights))


def test_a_diverged_trial_does_not_squeeze_the_others(trained_run: RunResult) -> None:
    dive = trained_run.trials[1].history[0].model_copy(update={"epoch": 4, "value": -50.0})
    bad = trained_run.trials[1].model_copy(update={"history": (*trained_run.trials[1].history[:4], dive)})
    run = trained_run.model_copy(update={"trials": (trained_run.trials[0], bad)})
    chart = curve_chart(trials_info(run), FORM)
    assert chart is not None
    assert chart.start is not None and chart.start > 80
    assert [curve.end.y for curve in chart.curves if curve.tone == "failed" and curve.end] == [97.0]


def test_nothing_to_draw(empty_run: RunResult, trained_run: RunResult) -> None:
    assert curve_chart(trials_info(empty_run), FORM) is None
    assert spot_chart(trials_info(empty_run), FORM) is None
    alone = trained_run.model_copy(update={"trials": trained_run.trials[:1]})
    assert spot_chart(trials_info(alone), FORM) is None


def test_spots_lie_on_a_log_scale(trained_run: RunResult) -> None:
    chart = spot_chart(trials_info(trained_run), FORM)
    assert chart is not None
    assert [spot.number for spot in chart.spots] == [0, 2]
    assert chart.spots[0].at.x + chart.spots[1].at.x == pytest.approx(100)
    assert chart.x_ticks[0].text == "1e−6"


@pytest.mark.parametrize(
    ("axis", "texts"),
    [
        (Axis(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (Axis(-0.01, 0.02), ["−0.010", "−0.005", "0.000", "0.005", "0.010", "0.015", "0.020"]),
        (Axis(0.0, 20.0), ["0", "5", "10", "15", "20"]),
    ],
)
def test_ticks_are_round(axis: Axis, texts: list[str]) -> None:
    assert [tick.text for tick in ticks(axis, 5)] == texts


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5.0, 5.0], [-2.0], [1e-9, 2e-9], [1e12, -1e12]])
def test_every_axis_has_room_and_ticks(values: list[float]) -> None:
    axis = axis_over(values)
    assert axis.low < min(values) <= max(values) < axis.high
    assert 2 <= len(ticks(axis, 5)) <= 9


def test_log_ticks_are_powers_of_ten_over_a_wide_axis() -> None:
    assert [tick.text for tick in log_ticks(Axis(-6.2, -3.9))] == ["1e−6", "1e−5", "1e−4"]
