"""A run folder that was written before schema 2 still renders, and is done anew rather than misread.

`schema_1` was left by the code of that time, given the recipe in it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import optuna
import pandas
import pytest
import yaml

import qatflow
from qatflow.recipe import Recipe
from qatflow.report.__main__ import main
from qatflow.report.read import read_result, upgraded
from qatflow.results.progress import Silent
from qatflow.results.result import SCHEMA_VERSION, CandidateRecord

OLD = Path(__file__).parent / "schema_1"
STORED = json.loads((OLD / "result.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_what_is_stored_is_what_it_was_then() -> None:
    result = read_result(OLD)
    assert STORED["schema_version"] == 1
    assert (result.schema_version, result.looks, result.training_error) == (SCHEMA_VERSION, 0, "")
    assert result.gate is not None
    assert (result.gate.chosen_on, result.gate.samples, result.gate.chosen_samples) == ("test", 128, None)
    for record, stored in zip(result.candidates, STORED["candidates"], strict=True):
        kept = record.model_dump(mode="json")
        assert {name: kept[name] for name in stored} == stored
        assert (record.part, record.samples, record.look) == ("test", 128, None)
        assert record.confidence == (None if record.drop_low is None else 0.95)
    assert [trial.value for trial in result.trials] == [trial["value"] for trial in STORED["trials"]]


def test_it_is_upgraded_once_and_left_alone_then() -> None:
    once = upgraded(STORED)
    assert upgraded(once) == once
    assert STORED["schema_version"] == 1
    assert upgraded({"schema_version": 1, "gate": None})["candidates"] == []


def test_it_renders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0, capsys.readouterr().err
    page = (folder / "report.html").read_text(encoding="utf-8")
    for candidate in STORED["candidates"]:
        assert candidate["id"] in page
    table = pandas.read_csv(folder / "results.csv")
    assert list(table["candidate"]) == [record["id"] for record in STORED["candidates"]]
    assert set(table["part"]) == {"test"}
    assert len(pandas.read_csv(folder / "trials.csv")) == len(STORED["trials"])
    assert (folder / "optuna.html").exists()
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == STORED, "only the run writes it"


class Told(Silent):
    def __init__(self) -> None:
        self.records: list[CandidateRecord] = []
        self.notes: list[str] = []

    def candidate(self, record: CandidateRecord) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_second_start_takes_nothing_of_it_over(folder: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{folder / 'study.db'}"
    old = optuna.create_study(storage=url, study_name="old")
    old.enqueue_trial({"lr": 1.0})
    settings = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    settings["search"].update(max_trials=1, epochs=[1, 1], decay_period=[1, 1])
    settings.update(report={"html": False}, export={"verify": False})
    told = Told()
    result = qatflow.run(Recipe.model_validate(settings), folder, trust=("tests",), progress=told)
    assert not any(record.resumed for record in told.records)
    assert {record.id for record in told.records} >= {"fp32", "naive", "equalize", "adaround", "qat"}
    assert "holds results of schema 1" in told.notes[0] and "all is done anew" in told.notes[0]
    assert result.schema_version == SCHEMA_VERSION == json.loads((folder / "result.json").read_text())["schema_version"]
    assert [trial.number for trial in result.trials] == [0]
    assert set(optuna.get_all_study_names(storage=url)) > {"old"}
    page = (Path(__file__).parents[2] / "docs" / "run_folder.md").read_text(encoding="utf-8")
    tree = page.partition("```\n")[2].partition("```")[0]
    left = {path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != "export"}
    assert not [name for name in left if name not in tree], "docs/run_folder.md names every file"
