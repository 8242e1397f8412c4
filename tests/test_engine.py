"""Whole runs on real data: what they find, what they leave, and how they go on."""

import json
from pathlib import Path

import pandas
import pytest
import yaml
from safetensors.torch import load_file

import qatflow
from qatflow.encodings import main as encodings_command
from qatflow.errors import DataError
from qatflow.recipe import Recipe
from qatflow.results.progress import Silent
from qatflow.results.result import CandidateRecord, RunResult
from qatflow.tasks.digits_mobilenet import digits_mobilenet_skewed

NO_FILE = {"verify": False, "onnx": False}
"""Writing and running the ONNX file takes longer than these runs do; the quickstart's tests look at it."""


def skewed(**changes: object) -> Recipe:
    """The quickstart's recipe, in Python."""
    settings = {
        "name": "test",
        "model": {"name": "digits_mobilenet_skewed", "final_lr": 1e-4},
        "data": {"name": "digits"},
        "precision": {"per_channel": False},
        "steps": {"fold_batch_norms": {}, "equalize": {}, "adaround": {"iterations": 5}},
    }
    return Recipe.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("quickstart")
    return qatflow.run(skewed(), folder), folder


def test_naive_collapses_equalization_recovers_and_the_ladder_stops(quickstart: tuple[RunResult, Path]) -> None:
    result, _ = quickstart
    rows = [(record.id, record.part, record.look) for record in result.candidates]
    chosen = [(name, "validation", None) for name in ("fp32", "naive", "fold_batch_norms", "equalize")]
    assert rows == [*chosen, ("equalize", "test", 1), ("deployed", "test", 1)]
    values = {(record.id, record.part): record.value for record in result.candidates}
    assert values["fp32", "validation"] >= 0.97
    assert values["naive", "validation"] < 0.5
    assert values["equalize", "validation"] > values["fp32", "validation"] - 0.01
    assert values["equalize", "test"] > result.fp32 - 0.01
    assert (result.looks, result.gate.chosen_on, result.gate.chosen_samples, result.gate.samples) == (
        1,
        "validation",
        150,
        497,
    )
    assert (result.best, result.passed, result.status, result.trials) == ("equalize", True, "finished", ())


def test_the_run_folder_keeps_its_contract(quickstart: tuple[RunResult, Path]) -> None:
    result, folder = quickstart
    assert RunResult.model_validate_json((folder / "result.json").read_text()) == result
    table = pandas.read_csv(folder / "results.csv")
    columns = (
        "candidate stage part look metric value fp32 drop drop_low drop_high lost gained verdict sqnr_db kept seconds "
        "design"
    )
    assert list(table.columns) == columns.split()
    assert list(table["candidate"]) == [record.id for record in result.candidates]
    layers = pandas.read_csv(folder / "layers.csv")
    assert set(layers["kind"]) == {"weight", "activation"}
    assert len(layers) == len(result.tensors) > 30
    for name in ("naive", "fold_batch_norms", "equalize"):
        files = {path.name for path in (folder / "candidates" / name).iterdir()}
        assert {"model.safetensors", "encodings.json", "meta.json"} <= files
    again = Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))
    assert again == skewed()
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    assert "equalize" in (folder / "log.txt").read_text()
    html = (folder / "report.html").read_text()
    assert html.index("Gate met") < html.index("fold_batch_norms")
    assert not list(folder.rglob(".*"))


def test_exported_weights_load_into_the_users_module(quickstart: tuple[RunResult, Path]) -> None:
    result, folder = quickstart
    assert result.export_notes["loads_into_model"] is True
    model = digits_mobilenet_skewed()
    model.load_state_dict(load_file(folder / "export" / "model.safetensors"), strict=True)
    encodings = json.loads((folder / "export" / "model.encodings").read_text())
    names = dict(model.named_parameters())
    assert encodings["version"] == "1.0.0"
    assert all(entry["name"] in names for entry in encodings["param_encodings"])


def test_encodings_and_files_belong_together(quickstart: tuple[RunResult, Path]) -> None:
    result, folder = quickstart
    assert result.artefacts["float_onnx"] == "export/model_float.onnx"
    export = folder / "export"
    for name in ("model.onnx", "model_float.onnx"):
        findings = encodings_command(["check", str(export / "model.encodings"), "--model", str(export / name)])
        assert findings == (0 if name == "model.onnx" else 2)  # of the float file, what stays in float is told


class Told(Silent):
    """Remembers what it was told, and may interrupt."""

    def __init__(self, stop_after: str = "") -> None:
        self.candidates: list[CandidateRecord] = []
        self.stop_after = stop_after

    def candidate(self, record: CandidateRecord) -> None:
        self.candidates.append(record)
        if record.id == self.stop_after:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        qatflow.run(skewed(export=NO_FILE), tmp_path, progress=Told(stop_after="fold_batch_norms"))
    stopped = RunResult.model_validate_json((tmp_path / "result.json").read_text())
    assert stopped.status == "interrupted"
    assert [record.id for record in stopped.candidates] == ["fp32", "naive", "fold_batch_norms"]
    assert stopped.best is not None
    assert (stopped.verdict, stopped.passed) == (None, False)
    assert stopped.remaining[0] == "equalize"
    assert stopped.command == f"python -m qatflow recipe={tmp_path}/recipe.yaml run.dir={tmp_path}"
    page = (tmp_path / "report.html").read_text()
    assert "Stopped before the gate was decided" in page
    assert "Gate missed" not in page
    told = Told()
    result = qatflow.run(skewed(export=NO_FILE), tmp_path, progress=told)
    assert [(record.id, record.resumed) for record in told.candidates if record.part == "validation"][1:] == [
        ("naive", True),
        ("fold_batch_norms", True),
        ("equalize", False),
    ]
    assert result.passed


def test_a_changed_setting_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    def run(**changes: object) -> tuple[RunResult, Told]:
        told = Told()
        settings = {"steps": {}, "qat": {"when": "never"}, "precision": {"per_channel": False}, "export": NO_FILE}
        return qatflow.run(skewed(**{**settings, **changes}), tmp_path, progress=told), told

    run()
    seven = {"per_channel": False, "weights": 7}
    assert not run(precision=seven)[1].candidates[1].resumed
    result, told = run(precision=seven, gate={"max_drop": 0.95})
    assert told.candidates[1].resumed
    assert result.passed, "the gate is judged anew"


def no_training_parts() -> dict[str, object]:
    """A data factory without the parts that QAT needs."""
    from qatflow.tasks.digits import digits

    parts = digits()
    return {"calibration": parts.calibration, "test": parts.test}


def test_qat_without_training_data_is_told_before_work_starts(tmp_path: Path) -> None:
    recipe = skewed(data={"factory": "tests.test_engine:no_training_parts"})
    told = Told()
    with pytest.raises(DataError, match=r"needs a train part .* qat.when=never"):
        qatflow.run(recipe, tmp_path, trust=("tests",), progress=told)
    assert not told.candidates
    failed = RunResult.model_validate_json((tmp_path / "result.json").read_text())
    assert failed.status == "failed"
    assert "needs a train part" in failed.error


def test_left_out_rung_is_recorded_and_not_built_on(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"name": "digits_mobilenet"},
            "data": {"name": "digits"},
            "precision": {"weights": 3, "activations": 8, "per_channel": False},
            "calibration": {"samples": 16},
            "steps": {"fold_batch_norms": {}, "equalize": {"relu6": "skip"}},
            "qat": {"when": "never"},
            "ladder": {"stop": "end"},
            "export": NO_FILE,
        }
    )
    result = qatflow.run(recipe, tmp_path)
    (skipped,) = [one for one in result.candidates if one.id == "equalize"]
    assert (skipped.id, skipped.kept) == ("equalize", False)
    assert "left out" in skipped.reason
    assert result.best == "fold_batch_norms"


def test_a_users_encoder_without_labels_is_distilled(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"factory": "tests.token_task:encoder"},
            "data": {"factory": "tests.token_task:tokens", "labels": False},
            "precision": {"weights": 4, "activations": 4},
            "gate": {"metric": "agreement", "max_drop": 0.0},
            "search": {"max_trials": 1, "lr": (1e-3, 1e-3), "epochs": (3, 3), "decay_period": (2, 2)},
            "export": NO_FILE,
        }
    )
    result = qatflow.run(recipe, tmp_path, trust=("tests",))
    chosen = {record.id: record for record in result.candidates if record.look is None}
    assert chosen["fp32"].value == 1
    assert chosen["naive"].value < 1
    assert chosen[result.best].value >= chosen["naive"].value
    assert {left.op for left in result.float_tensors} >= {"aten.layer_norm"}


@pytest.mark.slow
def test_qat_takes_over_where_the_ladder_misses(tmp_path: Path) -> None:
    recipe = skewed(
        precision={"weights": 3, "activations": 3, "per_channel": False},
        steps={"fold_batch_norms": {}, "equalize": {}},
        search={"max_trials": 2, "lr": (1e-3, 1e-2), "epochs": (3, 3), "decay_period": (2, 2)},
        qat={"range_learning": None},
        export=NO_FILE,
    )
    result = qatflow.run(recipe, tmp_path)
    by_id = {record.id: record for record in result.candidates if record.look is None}
    assert not by_id["equalize"].passed
    assert result.best == "qat"
    assert by_id["qat"].value > by_id["equalize"].value + 0.1
    assert [trial.number for trial in result.trials] == [0, 1]
    assert all(len(trial.history) == 4 for trial in result.trials)
    assert (tmp_path / "study.db").exists()
    again = qatflow.run(recipe, tmp_path)
    assert [one.resumed for one in again.candidates if one.stage == "qat"] == [True, True]
    assert [trial.value for trial in again.trials] == [trial.value for trial in result.trials]
