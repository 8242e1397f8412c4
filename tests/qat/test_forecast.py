"""What QAT is forecast to come to: real probes of real networks, beside what trials then make of them."""

import io
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import qatflow
from qatflow import Recipe, RunResult
from qatflow.errors import DataError, QatflowError
from qatflow.qat import forecast as forecasts
from qatflow.qat.forecast import Probed, expected, left_after, steps_of_each
from qatflow.qat.space import forecast_rates
from qatflow.recipe import Gate
from qatflow.recipe.check import check
from qatflow.report.console import PlainProgress
from qatflow.report.html import render
from qatflow.report.read import read_result
from qatflow.results.gate import Measurement, paired_interval
from qatflow.tasks.evaluate import Evaluation

HERE = "tests.qat.forecast_task"
MENDS, MOVES_NOTHING = (1e-4, 1e-2), (1e-9, 1e-8)


def recipe(lr: tuple[float, float] = MENDS, data: str = "data", **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "model": {"factory": f"{HERE}:model", "final_lr": 3e-3},
        "data": {"factory": f"{HERE}:{data}", "batch_size": 32},
        "precision": {"weights": 2, "activations": 3},
        "calibration": {"samples": 64},
        "ladder": {"judge": False},
        "gate": {"max_drop": 0.05},
        "qat": {"when": "worthwhile"},
        "search": {"max_trials": 1, "lr": lr, "epochs": (6, 6), "decay_period": (4, 4)},
        "export": {"verify": False, "onnx": False},
        "report": {"html": False},
        "device": "cpu",
    }
    return Recipe.model_validate({**base, **sections})


def run(recipe: Recipe, folder: Path) -> RunResult:
    return qatflow.run(recipe, folder, trust=("tests",))


def copied(result: RunResult, folder: Path) -> Path:
    assert result.folder is not None
    return shutil.copytree(result.folder, folder / "copy")


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(recipe(), tmp_path_factory.mktemp("mended"))


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(recipe(MOVES_NOTHING), tmp_path_factory.mktemp("left"))


def test_a_start_that_training_mends_is_worthwhile_and_mended(mended: RunResult) -> None:
    found, (trial,) = mended.forecast, mended.trials
    assert found is not None
    assert found.worthwhile
    assert (found.of, found.start) == ("naive", trial.history[0].value)
    assert found.start <= found.low < found.value <= found.high <= found.fp32
    assert trial.value > found.start + 0.05
    assert found.low - 0.02 < trial.value < found.high
    assert max(found.weights_only, found.activations_only) > found.start
    assert found.trial_steps == 6 * 1024 // 32
    assert [one.lr for one in found.probes] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert {one.steps for one in found.probes} == {16}


def test_a_start_that_no_probe_moves_is_not_trained(left: RunResult) -> None:
    found = left.forecast
    assert found is not None
    assert not found.worthwhile
    assert found.start == found.low == found.value
    assert found.start < found.high < found.limit, "chance hides what 256 samples cannot show"
    assert left.trials == ()
    assert left.status == "finished"
    assert any(one.command.endswith("qat.when=missed") for one in left.suggestions)


def test_what_is_not_trained_would_not_have_met_the_gate(left: RunResult, tmp_path: Path) -> None:
    trained = run(recipe(MOVES_NOTHING, qat={"when": "missed"}), copied(left, tmp_path))
    assert trained.forecast is None
    (trial,) = trained.trials
    assert trial.value == left.forecast.start
    assert not trained.passed


def test_one_that_meets_the_gate_is_not_forecast(tmp_path: Path) -> None:
    result = run(recipe(gate={"max_drop": 0.9}), tmp_path)
    assert result.passed
    assert result.forecast is None
    assert not (tmp_path / forecasts.FILE).exists()
    assert not any("qat.when" in one.command for one in result.suggestions)


def test_a_second_start_does_not_probe_again_and_decides_anew(
    mended: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "probe", None)
    folder = copied(mended, tmp_path)
    again = run(recipe(), folder)
    assert again.forecast == mended.forecast.model_copy(update={"resumed": True})
    stricter = run(recipe(gate={"max_drop": mended.forecast.fp32 - mended.forecast.high - 1e-4}), folder).forecast
    assert stricter.resumed
    assert not stricter.worthwhile


@pytest.mark.parametrize("change", [{"seed": 1}, {"qat": {"when": "worthwhile", "optimizer": "sgd"}}])
def test_another_recipe_is_probed_anew(left: RunResult, change: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(forecasts, "MOST", 0)  # so that probes take as few steps as there may be
    again = run(recipe(MOVES_NOTHING, **change), copied(left, tmp_path))
    assert again.forecast is not None
    assert not again.forecast.resumed


def test_a_damaged_forecast_is_made_anew(mended: RunResult, tmp_path: Path) -> None:
    folder = copied(mended, tmp_path)
    path = folder / forecasts.FILE
    whole = path.read_text()
    for damaged in (whole[:50], whole.replace('"start"', '"begin"')):
        path.write_text(damaged)
        again = run(recipe(), folder)
        without_time = {"seconds": 0.0, "resumed": False}
        assert again.forecast.model_copy(update=without_time) == mended.forecast.model_copy(update=without_time)
        assert not again.forecast.resumed


def test_result_and_report_tell_of_it(mended: RunResult, left: RunResult) -> None:
    for result, ending in ((mended, "so QAT is begun"), (left, "so QAT is not begun")):
        assert read_result(result.folder).forecast == result.forecast
        assert result.forecast.sentence.endswith(ending)
        for value in (result.forecast.start, result.forecast.value, result.forecast.limit):
            assert f"{value:.4g}" in result.forecast.sentence
        console = Console(file=io.StringIO(), width=80)
        PlainProgress(console).forecast(result.forecast)
        assert result.forecast.sentence in console.file.getvalue()
        page = render(result, (result.folder / "recipe.yaml").read_text(), {})
        assert result.forecast.sentence[1:] in page
    assert "(qat.when: worthwhile)" in page


def test_where_a_forecast_fails_training_is_begun_and_says_why(tmp_path: Path) -> None:
    result = run(recipe(data="unreadable"), tmp_path)
    assert result.forecast is None
    assert result.status == "finished"
    assert "the disk is gone" in result.training_error
    assert any("cannot be forecast, so it is begun" in one and "the disk is gone" in one for one in result.notes)


def test_a_train_part_is_asked_for_as_ever(tmp_path: Path) -> None:
    with pytest.raises(QatflowError, match="needs a train part"):
        run(recipe(data="untrainable"), tmp_path)


def test_the_recipe_check_knows_it() -> None:
    mapping = {**recipe().model_dump(mode="json"), "qat": {"when": "worthwile"}}
    _, mistakes = check(mapping, ("tests",))
    assert [str(one) for one in mistakes] == [
        "qat.when: 'worthwile' is not an option; did you mean 'worthwhile'? allowed: missed, worthwhile, never, always"
    ]


def test_rates_go_down_from_the_highest_that_is_searched() -> None:
    assert forecast_rates(recipe((1e-3, 2e-3))) == pytest.approx((2e-3, 2e-4, 2e-5))
    unknown = recipe(search={}, model={"factory": f"{HERE}:model"})
    assert forecast_rates(unknown) == pytest.approx((1e-3, 1e-4, 1e-5))


def test_probes_together_are_a_tenth_of_a_trial_unless_that_is_very_short_or_long() -> None:
    assert [steps_of_each(steps, 3) for steps in (10, 300, 900, 10**6)] == [10, 16, 30, 48]


def evaluation(value: float, sqnr_db: float = math.nan, higher: bool = True) -> Evaluation:
    return Evaluation(Measurement(value, None, higher), (("out", sqnr_db),), 100)


@pytest.mark.parametrize("higher", [True, False])
def test_a_drop_that_falls_as_the_model_says_is_told_exactly(higher: bool) -> None:
    sign = 1.0 if higher else -1.0

    def value(steps: float) -> float:
        return 0.9 - sign * 0.4 / (1 + 0.07 * steps)

    fp32, start = Measurement(0.9, None, higher), evaluation(value(0), higher=higher)
    probes = [Probed(1e-3, 20, evaluation(value(20), higher=higher)), Probed(1e-2, 20, start)]
    found = expected(Gate(), fp32, start, probes, trial_steps=200)
    assert (found.low, found.value, found.high) == pytest.approx((value(20), value(200), value(200)))
    furthest = expected(Gate(), fp32, start, probes, trial_steps=10**6)
    assert furthest.value == pytest.approx(value(20 * forecasts.FURTHEST))


def test_what_chance_may_hide_of_a_gain_makes_the_best_better() -> None:
    right = np.arange(200) < 180
    fp32, start = (
        Measurement(float(one.mean()), one.astype(float), True) for one in (right, right & (np.arange(200) > 3))
    )
    reached = right & (np.arange(200) % 200 > 2) & (np.arange(200) != 100)  # one gained, one lost
    probed = Evaluation(Measurement(float(reached.mean()), reached.astype(float), True), (), 200)
    found = expected(Gate(), fp32, Evaluation(start, (), 200), [Probed(1e-3, 20, probed)], trial_steps=200)
    assert (found.low, found.value) == pytest.approx((start.value, start.value))
    low, _ = paired_interval(Gate(), start, probed.measurement)
    assert found.high == pytest.approx(fp32.value - 0.02 * left_after(10, max(0.0, 1 + low / 0.02)))
    assert found.high > start.value


def test_noise_that_falls_while_the_metric_does_not_makes_the_best_better() -> None:
    fp32, start = Measurement(0.9, None, True), evaluation(0.1, 0.0)
    found = expected(Gate(), fp32, start, [Probed(1e-3, 20, evaluation(0.1, 10 * math.log10(2)))], trial_steps=180)
    assert (found.value, found.low) == pytest.approx((0.1, 0.1))
    assert found.high == pytest.approx(0.9 - 0.8 / (1 + 180 / 20))


def test_probes_that_break_or_make_worse_leave_the_start() -> None:
    fp32, start = Measurement(0.9, None, True), evaluation(0.5, 10.0)
    for broken in (None, evaluation(math.nan, math.nan), evaluation(0.2, 3.0)):
        found = expected(Gate(), fp32, start, [Probed(1e-3, 20, broken)], trial_steps=200)
        assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_start_that_is_not_finite_has_no_forecast() -> None:
    fp32, probes = Measurement(0.9, None, True), [Probed(1e-3, 20, evaluation(0.5))]
    with pytest.raises(DataError, match="not finite where training would start"):
        expected(Gate(), fp32, evaluation(math.nan), probes, trial_steps=200)


def test_better_than_fp32_is_taken_as_it_is() -> None:
    fp32, start = Measurement(0.9, None, True), evaluation(0.5)
    beyond = expected(Gate(), fp32, start, [Probed(1e-3, 20, evaluation(0.95))], trial_steps=200)
    assert (beyond.value, beyond.low, beyond.high) == pytest.approx((0.95, 0.95, 0.95))
    nothing_lost = expected(Gate(), fp32, evaluation(0.92), [Probed(1e-3, 20, evaluation(0.91))], trial_steps=200)
    assert (nothing_lost.value, nothing_lost.low, nothing_lost.high) == pytest.approx((0.92, 0.92, 0.92))


def test_what_is_left_composes() -> None:
    once = left_after(3, 0.8)
    assert left_after(4, once) == pytest.approx(left_after(12, 0.8))
    assert left_after(5, 1.0) == 1.0
    assert left_after(5, 0.0) == 0.0


class Counted:
    """Passes of two batches, which remember their seeds."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def reshuffle(self, seed: int) -> None:
        self.seeds.append(seed)

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        return iter([torch.zeros(1), torch.ones(1)])


def test_few_steps_go_through_as_many_passes_as_they_take() -> None:
    passes = Counted()
    few = forecasts._Few(passes, 5, seconds=60.0)
    few.reshuffle(7)
    assert [float(one) for one in few] == [0, 1, 0, 1, 0]
    assert few.done == 5
    assert passes.seeds[:3] == [7, 8, 9]
    late = forecasts._Few(Counted(), 5, seconds=0.0)
    assert len(list(late)) == 1
    assert late.done == 1
