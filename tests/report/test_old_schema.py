"""A run folder that was written before this schema still renders, and is done anew rather than misread.

`schema_1` and `schema_2` were left by the code of their time, given the recipes in them.
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
from qatflow.results.result import SCHEMA_VERSION, CandidateRecord, Judgement

HERE = Path(__file__).parent
STORED = {number: json.loads((HERE / f"schema_{number}" / "result.json").read_text("utf-8")) for number in (1, 2)}
every_schema = pytest.mark.parametrize("number", STORED)


@pytest.fixture
def folder(number: int, tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / f"schema_{number}", tmp_path / "run"))


def test_there_is_a_folder_of_every_schema_before_this_one() -> None:
    assert list(STORED) == list(range(1, SCHEMA_VERSION))
    assert [stored["schema_version"] for stored in STORED.values()] == list(STORED)


def test_what_schema_1_stored_is_what_it_was_then() -> None:
    stored, result = STORED[1], read_result(HERE / "schema_1")
    assert (result.schema_version, result.looks, result.training_error) == (SCHEMA_VERSION, 0, "")
    assert result.gate is not None
    assert (result.gate.chosen_on, result.gate.samples, result.gate.chosen_samples) == ("test", 128, None)
    for record, old in zip(result.candidates, stored["candidates"], strict=True):
        kept = record.model_dump(mode="json")
        assert {name: kept[name] for name in old} == old
        assert (record.part, record.samples, record.look, record.design) == ("test", 128, None, None)
        assert record.confidence == (None if record.drop_low is None else 0.95)
    assert [trial.value for trial in result.trials] == [trial["value"] for trial in stored["trials"]]


def test_what_schema_2_stored_is_what_it_was_then() -> None:
    stored, result = STORED[2], read_result(HERE / "schema_2")
    kept = result.model_dump(mode="json")
    added = {"stands_in": "", "settings": "", "by_default": None, "of_samples": None, "exact_latency": None}
    times = {**stored["verification"]["latency"], "speed_up_interval": None}
    assert kept["verification"] == {**stored["verification"], **added, "latency": times}
    apart = ("schema_version", "candidates", "activations_only", "verification", "tensors")
    for record, old in zip(kept["tensors"], stored["tensors"], strict=True):
        assert {name: record[name] for name in old} == old
        assert {record[name] for name in record.keys() - old.keys()} == {None, ""}
    assert {name: kept[name] for name in stored if name not in apart} == {
        name: value for name, value in stored.items() if name not in apart
    }
    for record, old in zip(kept["candidates"], stored["candidates"], strict=True):
        assert record == {**old, "design": None}
    assert [one.id for one in result.candidates if one.look is None] == [
        "fp32", "naive", "equalize", "ranges_sqnr", "adaround", "qat"
    ]  # fmt: skip


def test_what_the_judge_advised_then_is_read_and_nothing_made_of_it() -> None:
    judgement = read_result(HERE / "schema_2").activations_only
    assert judgement is not None
    old = STORED[2]["activations_only"]
    assert (old["calibration"], old["sixteen_bits"]) == ("sqnr", [])
    assert judgement.model_dump() == {
        **{name: old[name] for name in ("drop", "drop_low", "passed", "hopeless", "sqnr_db")},
        "advice": "other ranges (calibration.activations=sqnr) or range-learning QAT may",
    }
    assert judgement.sentence == (
        "activations alone (weights in float) miss the gate, which better rounding of weights seldom mends; "
        "other ranges (calibration.activations=sqnr) or range-learning QAT may"
    )


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        ({"calibration": None, "calibration_passes": False, "sixteen_bits": []}, "range-learning QAT may"),
        (
            {"calibration": None, "calibration_passes": False, "sixteen_bits": ["a.b", "c"]},
            "16 bits for a.b, c or range-learning QAT may",
        ),
        (
            {"calibration": "minmax", "calibration_passes": True, "sixteen_bits": []},
            "other ranges (calibration.activations=minmax) may",
        ),
    ],
)
def test_all_that_could_be_advised_is_said(found: dict[str, object], advice: str) -> None:
    old = {**STORED[2]["activations_only"], **found}
    assert upgraded({**STORED[2], "activations_only": old})["activations_only"]["advice"] == advice


def test_a_judgement_that_passed_gives_no_advice() -> None:
    old = {**STORED[2]["activations_only"], "passed": True, "calibration": None}
    judgement = Judgement.model_validate(upgraded({**STORED[2], "activations_only": old})["activations_only"])
    assert judgement.sentence.endswith("meet the gate: rounding weights better can help")


@every_schema
def test_it_is_upgraded_once_and_left_alone_then(number: int) -> None:
    once = upgraded(STORED[number])
    assert once["schema_version"] == SCHEMA_VERSION
    assert upgraded(once) == once
    assert STORED[number]["schema_version"] == number
    assert upgraded({"schema_version": number, "gate": None, "candidates": []})["candidates"] == []


@every_schema
def test_it_renders(number: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = STORED[number]
    assert main([str(folder)]) == 0, capsys.readouterr().err
    page = (folder / "report.html").read_text(encoding="utf-8")
    for candidate in stored["candidates"]:
        assert candidate["id"] in page
    assert "range-learning QAT may" in page
    table = pandas.read_csv(folder / "results.csv")
    assert list(table["candidate"]) == [record["id"] for record in stored["candidates"]]
    assert set(table["part"]) == {record.get("part", "test") for record in stored["candidates"]}
    assert len(pandas.read_csv(folder / "trials.csv")) == len(stored["trials"])
    assert (folder / "optuna.html").exists()
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == stored, "only the run writes it"


class Told(Silent):
    def __init__(self) -> None:
        self.records: list[CandidateRecord] = []
        self.notes: list[str] = []

    def candidate(self, record: CandidateRecord) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)


@every_schema
def test_a_second_start_takes_nothing_of_it_over(number: int, folder: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{folder / 'study.db'}"
    old = optuna.create_study(storage=url, study_name="old")
    old.enqueue_trial({"lr": 1.0})
    settings = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    settings["search"].update(max_trials=1, epochs=[1, 1], decay_period=[1, 1])
    settings.update(report={"html": False}, export={"verify": False}, ladder={"judge": False})
    told = Told()
    result = qatflow.run(Recipe.model_validate(settings), folder, trust=("tests",), progress=told)
    assert not any(record.resumed for record in told.records)
    assert {record.id for record in told.records} >= {"fp32", "naive", "equalize", "adaround", "qat"}
    assert f"holds results of schema {number}" in told.notes[0] and "all is done anew" in told.notes[0]
    assert result.schema_version == SCHEMA_VERSION == json.loads((folder / "result.json").read_text())["schema_version"]
    assert [trial.number for trial in result.trials] == [0]
    assert set(optuna.get_all_study_names(storage=url)) > {"old"}
    page = (HERE.parents[1] / "docs" / "run_folder.md").read_text(encoding="utf-8")
    tree = page.partition("```text\n")[2].partition("```")[0]
    left = {path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != "export"}
    assert not [name for name in left if name not in tree], "docs/run_folder.md names every file"
