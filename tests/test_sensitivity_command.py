"""`python -m qatflow.sensitivity`: what it measures, writes down, and goes on from."""

import json
from pathlib import Path

import pandas as pd
import pytest

from qatflow.door import cli, measuring
from qatflow.sensitivity import main

LINE = ["recipe=tiny", "data.batch_size=16"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path / "sensitivity.csv", keep_default_na=False, na_values=[""])


def test_one_pass_ranks_every_quantizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--samples", "8", "--top", "3"]) == 0
    found = table(folder / "reports/tiny/sensitivity")
    assert list(found["estimated_db"]) == sorted(found["estimated_db"])
    assert found["share"].sum() == pytest.approx(1)
    assert {"weight", "activation"} == {*found["kind"]}
    assert "alone_db" not in found
    said = capsys.readouterr().out
    assert str(found["tensor"][0]) in said
    assert f"... {len(found) - 3} more" in said


def test_exact_measurements_agree_and_are_gone_on_with(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [*LINE, "--samples", "4", "--exact", "run.dir=mine"]
    measured, real = [], measuring._OneByOne.measure

    def stopping(self: measuring._OneByOne, name: str, column: str) -> dict[str, float | None]:
        measured.append((name, column))
        if len(measured) == 10:
            raise KeyboardInterrupt
        return real(self, name, column)

    monkeypatch.setattr(measuring._OneByOne, "measure", stopping)
    assert main(line) == 130
    assert len(json.loads((folder / "mine/sensitivity_exact.json").read_text())["rows"]) == 5
    assert main(line) == 0
    found = table(folder / "mine")
    assert len(measured) == 2 * len(found) + 1  # the one that was stopped is measured again
    assert list(found["alone_db"]) == sorted(found["alone_db"])
    assert found["alone_db"].corr(found["estimated_db"], method="spearman") > 0.8
    assert (found["without_db"] < found["alone_db"]).all()
    said = capsys.readouterr().out
    assert "rank correlation of estimate and measurement: 0." in said
    assert f"4 of {len(found)} were measured by an earlier start" in said


def test_the_metric_is_that_of_a_run(folder: Path) -> None:
    assert main([*LINE, "--samples", "4", "--metric"]) == 0
    found = table(folder / "reports/tiny/sensitivity")
    assert found["alone_metric"].between(0.97, 1).all()
    assert found["without_metric"].between(0.97, 1).all()


def test_the_best_candidate_of_a_run_is_measured_as_it_is(folder: Path) -> None:
    assert cli.main([*LINE, "run.dir=mine", "steps=[fold_batch_norms]", "qat=never"]) == 0
    assert main([*LINE, "run.dir=mine", "steps=[fold_batch_norms]", "qat=never"]) == 0
    found = table(folder / "mine").set_index("tensor")
    layers = pd.read_csv(folder / "mine/layers.csv").set_index("tensor")
    assert {*found.index} <= {*layers.index}
    there = layers.loc[found.index]
    assert (found["estimated_db"] - there["output_sqnr_db"]).abs().max() < 1e-6
    assert (found["levels"] - there["levels"]).abs().max() < 40  # other samples


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["recipe=nowhere"], "recipe"),
        ([*LINE, "--samples", "0"], "--samples: 0 is too few"),
        ([*LINE, "--samples", "many"], "invalid int value: 'many'"),
        ([*LINE, "-m"], "sensitivity takes"),
        ([*LINE, "--exactly"], "--exactly"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, line: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 1
    assert said in capsys.readouterr().err


def test_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "--exact" in said
    assert "quickstart" in said


def test_a_damaged_file_of_measurements_is_made_anew(folder: Path) -> None:
    line = [*LINE, "--samples", "2", "--exact", "run.dir=mine"]
    assert main(line) == 0
    whole = table(folder / "mine")
    path = folder / "mine/sensitivity_exact.json"
    stored = json.loads(path.read_text())
    stored["rows"] = {name: {**row, "alone_db": "bad"} for name, row in stored["rows"].items()}
    path.write_text(json.dumps(stored))
    assert main(line) == 0
    assert (table(folder / "mine")["alone_db"] - whole["alone_db"]).abs().max() < 1e-6


def test_the_run_for_another_target_is_told_to_be_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*LINE, "run.dir=mine", "steps=[fold_batch_norms]", "qat=never"]
    assert cli.main(line) == 0
    assert main([*line, "target=openvino"]) == 1
    assert "the run in mine is for target onnxruntime: write target=onnxruntime" in capsys.readouterr().err
