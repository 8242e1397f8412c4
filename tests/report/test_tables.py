"""The frames hold what the run measured, in fixed columns, whatever the run has come to."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from qatflow.report.write import TABLES, csv
from qatflow.results import tables
from qatflow.results.result import RunResult

GOLDEN = Path(__file__).parent / "golden"
RESULT_COLUMNS = (
    "candidate stage part look metric value fp32 drop drop_low drop_high lost gained verdict sqnr_db kept seconds "
    "design"
)
LAYER_COLUMNS = (
    "layer tensor kind bits signed symmetric channels scale_min scale_max range_min range_max zero_point sqnr_db "
    "output_sqnr_db clipped levels why helps"
)
TRIAL_COLUMNS = (
    "number state probe lr epochs trained decay_period range_learning distillation value best_epoch seconds reason"
)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_csv_equals_golden(name: str, trained_run: RunResult) -> None:
    """QATFLOW_UPDATE_GOLDEN=1 writes the golden files anew; look at the difference before you commit it."""
    text = csv(TABLES[name](trained_run))
    if os.environ.get("QATFLOW_UPDATE_GOLDEN") == "1":
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (tables.results, RESULT_COLUMNS),
        (tables.layers, LAYER_COLUMNS),
        (tables.trials, TRIAL_COLUMNS),
        (tables.epochs, "trial epoch lr train_loss value seconds"),
        (tables.float_tensors, "layer tensor op reason"),
    ],
)
def test_columns_and_types_are_the_same_when_empty(table, columns, met_run, trained_run, empty_run) -> None:
    frames = [table(run) for run in (empty_run, met_run, trained_run)]
    assert len(frames[0]) == 0
    for frame in frames:
        assert list(frame.columns) == columns.split()
        assert list(frame.dtypes) == list(frames[0].dtypes)


def test_results_follow_the_candidates(trained_run: RunResult) -> None:
    frame = tables.results(trained_run)
    assert list(frame["candidate"]) == ["fp32", "naive", "fold_batch_norms", "equalize", "adaround", "qat"]
    assert set(frame["metric"]) == {"accuracy"}
    assert list(frame["kept"]) == [True, True, True, True, False, True]
    assert frame["verdict"].iloc[-1] == "within_noise"
    assert frame["drop"].iloc[3] == pytest.approx(0.9859 - 0.5870)


def test_a_missing_number_is_missing_and_not_zero(trained_run: RunResult) -> None:
    results = tables.results(trained_run)
    assert results["sqnr_db"].isna().tolist() == [True, True, False, False, False, False]
    trials = tables.trials(trained_run)
    assert trials["best_epoch"].isna().tolist() == [False, True, False]
    layers = tables.layers(trained_run)
    assert layers["zero_point"].isna().sum() == 10
    assert layers["zero_point"].dropna().unique().tolist() == [0]


def test_epochs_are_the_histories_in_long_form(trained_run: RunResult) -> None:
    frame = tables.epochs(trained_run)
    assert frame.groupby("trial").size().to_dict() == {0: 17, 1: 5, 2: 21}
    assert frame[frame["epoch"] == 0]["value"].tolist() == [0.62, 0.62, 0.62]
    assert frame[frame["trial"] == 1]["value"].isna().tolist() == [False] * 4 + [True]


def test_float_tensors_give_the_reason(met_run: RunResult) -> None:
    frame = tables.float_tensors(met_run)
    assert frame.to_dict("records") == [
        {"layer": "head.softmax", "tensor": "output", "op": "softmax", "reason": "the target has no rule for softmax"}
    ]


def test_frames_of_several_runs_go_together(met_run: RunResult, empty_run: RunResult, trained_run: RunResult) -> None:
    frame = pd.concat([tables.results(run) for run in (empty_run, met_run, trained_run)], ignore_index=True)
    assert len(frame) == 10
    assert frame["kept"].dtype == bool


def test_csv_reads_back(trained_run: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(csv(tables.results(trained_run)), encoding="utf-8")
    back = pd.read_csv(path)
    assert back["value"].tolist() == [candidate.value for candidate in trained_run.candidates]
