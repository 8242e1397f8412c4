"""Run folders that are damaged or somebody else's: a sentence that names the file, or the thing is made anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from qatflow import worker
from qatflow.errors import RunFolderError
from qatflow.ladder.candidates import from_json
from qatflow.report.__main__ import main as report
from qatflow.report.read import read_result
from qatflow.results.design import DesignRecord
from qatflow.tasks.evaluation_data import measurement_from_json

STUDY = {"study": "a", "start": "naive", "bench": "x"}
MEASURED = {"value": 1.0, "higher_is_better": True, "replicates": None, "samples": 1}
AGAIN = "start the run again on this folder"


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        ([], "is damaged (input should be a valid dictionary or instance of known); " + AGAIN),
        ({**STUDY, "study": 1}, "is damaged (study: input should be a valid string); " + AGAIN),
        ({**STUDY, "start": "../x"}, "names no candidate: '../x'; " + AGAIN),
    ],
)
def test_a_worker_tells_of_a_damaged_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], study: Any, sentence: str
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study))
    assert worker.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'study.json'} {sentence}")


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("- a", "is a list, and a recipe is a mapping; write `key: value` lines"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_worker_tells_of_a_damaged_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str | None, sentence: str
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    assert worker.main([str(tmp_path)]) == 1
    assert f"- {tmp_path / 'recipe.yaml'}: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"schema_version": 2, "activations_only": 3}', "[" * 3000, '{"a": 1e999}']
)
def test_a_result_of_another_form_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert report([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'result.json'} ")
    assert len(said.splitlines()) == 1


def test_a_result_that_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(RunFolderError, match=r"result\.json cannot be read: it is not a file; check who may read it"):
        read_result(tmp_path)


@pytest.mark.parametrize("precision", [{}, {"weights": 8, "activations": 8, "overrides": {"a": 3}}])
def test_a_design_that_cannot_be_told_is_none(precision: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="precision or calibration is not as a recipe has it"):
        DesignRecord(target="qnn", precision=precision, calibration={"activations": "sqnr", "weights": "sqnr"})


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({}, "value: field required"),
        (
            {"value": 1.0, "per_sample": ["x"], "higher_is_better": True, "replicates": None, "samples": 1},
            "per_sample.0: ",
        ),
    ],
)
def test_a_measurement_of_another_form_is_told(stored: Any, sentence: str) -> None:
    for read in (measurement_from_json, from_json):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            read(stored)
