"""The summary over several runs: what differed, what came out, and that no run goes missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qatflow.errors import RunFolderError
from qatflow.report.recipe_keys import differing, flatten
from qatflow.report.sweep import run_folders, write_sweep
from qatflow.report.write import write
from qatflow.results.outputs import keep_outputs
from qatflow.results.result import LatencyRecord, RunResult, Verdict, Verification

RECIPE = "name: quickstart\nprecision: {weights: 8, activations: 8}\nsteps: {equalize: {sweeps: 3}}\nrun: {dir: a}\n"
OUTCOME = ["metric", "fp32", "best", "value", "drop", "drop_low", "drop_high", "verdict", "passed"]
OUTCOME += ["seconds", "status", "error"]


@pytest.fixture
def sweep(tmp_path: Path, leave_run: Callable[..., Path], met_run: RunResult, trained_run: RunResult) -> Path:
    """Three runs: met, within noise with other bits and one step more, and one that never got as far as a result."""
    folder = tmp_path / "sweep"
    leave_run(folder / "0", met_run, RECIPE)
    steps = RECIPE.replace("sweeps: 3}", "sweeps: 3}, adaround: {iterations: 10}")
    leave_run(folder / "1", trained_run, steps.replace("weights: 8", "weights: 4").replace("dir: a", "dir: b"))
    failed = folder / "2"
    failed.mkdir()
    (failed / "recipe.yaml").write_text(RECIPE.replace("weights: 8", "weights: 2"), encoding="utf-8")
    write(folder / "0")
    return folder


def test_one_row_per_run_with_what_differed(sweep: Path) -> None:
    paths = write_sweep(sweep, [sweep / name for name in "012"])
    assert [path.name for path in paths] == ["summary.csv", "summary.html"]
    frame = pd.read_csv(paths[0], dtype={"run": str})
    assert list(frame.columns) == ["run", "recipe", "precision.weights", "steps", *OUTCOME]
    assert frame["run"].tolist() == ["0", "1", "2"]
    assert frame["recipe"].tolist() == ["quickstart", "digits-w4a4", "quickstart"]
    assert frame["precision.weights"].tolist() == [8, 4, 2]
    assert frame["steps"].tolist() == ["equalize", "equalize, adaround", "equalize"]
    assert frame["best"].tolist()[:2] == ["equalize", "qat"]
    assert frame["drop"].tolist()[:2] == pytest.approx([0.0044, 0.0081])
    assert frame["passed"].tolist() == [True, True, False]


def test_a_run_that_left_no_result_is_a_failed_row(sweep: Path) -> None:
    paths = write_sweep(sweep, [sweep / name for name in "012"])
    last = pd.read_csv(paths[0]).iloc[-1]
    assert (last["status"], last["error"]) == ("failed", "It left no result.json.")
    assert last[["value", "drop", "verdict", "seconds"]].isna().all()
    page = paths[1].read_text(encoding="utf-8")
    assert "2 of 3 runs met the gate" in page
    assert "It left no result.json." in page


def test_every_row_has_a_cell_per_column(sweep: Path) -> None:
    page = write_sweep(sweep, [sweep / name for name in "012"])[1].read_text(encoding="utf-8")
    head, *rows = page.partition("<thead>")[2].partition("</table>")[0].split("<tr>")[1:]
    assert [row.count("<td") for row in rows] == [head.count("<th")] * 3


def test_a_damaged_run_is_a_failed_row(sweep: Path) -> None:
    (sweep / "1" / "result.json").write_text("{", encoding="utf-8")
    paths = write_sweep(sweep, [sweep / "0", sweep / "1", sweep / "gone"])
    frame = pd.read_csv(paths[0])
    assert frame["status"].tolist() == ["finished", "failed", "failed"]
    assert "is not valid JSON" in frame["error"][1]
    assert "is not a folder" in frame["error"][2]


def test_an_unfinished_run_says_why(sweep: Path, met_run: RunResult, leave_run: Callable[..., Path]) -> None:
    changes = {"status": "interrupted", "error": "stopped <b>by hand</b>", "verdict": Verdict.MISSED, "command": "on"}
    leave_run(sweep / "0", met_run.model_copy(update={**changes, "remaining": ("adaround",)}))
    table, summary = write_sweep(sweep, [sweep / "0"])
    page = summary.read_text(encoding="utf-8")
    assert "interrupted: stopped &lt;b&gt;by hand&lt;/b&gt;" in page
    assert '<span class="badge none">Stopped before the gate was decided</span>' in page
    assert "What remains: adaround.</small><pre>on</pre>" in page
    assert "0 of 1 runs met the gate, 1 did not finish" in page
    assert "missed" not in page.partition("</style>")[2]
    row = pd.read_csv(table).iloc[0]
    assert (row["status"], row["passed"], row["best"]) == ("interrupted", False, "equalize")
    assert pd.isna(row["verdict"])


def test_reports_are_linked_where_they_are(sweep: Path) -> None:
    page = write_sweep(sweep, [sweep / name for name in "012"])[1].read_text(encoding="utf-8")
    assert 'href="./0/report.html"' in page
    assert "./1/report.html" not in page and "./2/report.html" not in page
    assert "http:" not in page and "https:" not in page


def test_runs_elsewhere_are_linked_relatively(sweep: Path, tmp_path: Path) -> None:
    page = write_sweep(tmp_path / "other", [sweep / "0"])[1].read_text(encoding="utf-8")
    assert 'href="./../sweep/0/report.html"' in page


def test_runs_are_drawn_by_metric(sweep: Path, trained_run: RunResult, leave_run: Callable[..., Path]) -> None:
    gate = trained_run.gate.model_copy(update={"metric": "agreement"}) if trained_run.gate else None
    leave_run(sweep / "3", trained_run.model_copy(update={"gate": gate}), RECIPE)
    page = write_sweep(sweep, [sweep / name for name in "0123"])[1].read_text(encoding="utf-8")
    assert page.count("Drop of ") == 2
    assert "Drop of accuracy" in page and "Drop of agreement" in page
    assert "1: weights 4, steps equalize, adaround" in page


def test_rebuilding_gives_the_same_summary(sweep: Path) -> None:
    first = [path.read_bytes() for path in write_sweep(sweep, run_folders(sweep))]
    assert [path.read_bytes() for path in write_sweep(sweep, run_folders(sweep))] == first


def test_run_folders_are_found_in_order(tmp_path: Path) -> None:
    for name in ("10_a", "2_b", "notes", ".hydra"):
        (tmp_path / name).mkdir()
    for name in ("10_a", "2_b"):
        (tmp_path / name / "log.txt").touch()
    (tmp_path / "summary.csv").touch()
    assert [path.name for path in run_folders(tmp_path)] == ["2_b", "10_a"]


def test_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="has no runs to summarize; give a folder"):
        write_sweep(tmp_path, [])


def test_flatten() -> None:
    flat = flatten(RECIPE + "search: {epochs: [15, 20]}\nexport: {}\nqat: {range_learning: null}\n")
    assert flat["precision.weights"] == "8"
    assert flat["search.epochs"] == "[15, 20]"
    assert (flat["export"], flat["qat.range_learning"]) == ("{}", "null")
    assert (flat["steps"], flat["steps.equalize.sweeps"]) == ("equalize", "3")
    assert flatten("") == flatten("- a") == flatten("{ broken") == {}


def test_differing_ignores_names_and_runs_without_a_recipe() -> None:
    one, other = flatten(RECIPE), flatten(RECIPE.replace("dir: a", "dir: b").replace("quickstart", "mine"))
    assert differing([one, other, {}]) == []
    assert differing([one, {**other, "gate.max_drop": "0.01"}]) == ["gate.max_drop"]
    assert (
        differing([one, {**other, "steps.equalize.sweeps": "4"}, {"steps": "equalize"}])[-1] == "steps.equalize.sweeps"
    )


def exported_run(result: RunResult, **changes: object) -> RunResult:
    found = Verification(
        file="export/model.onnx",
        runtime="ONNX Runtime 1.32.0",
        processor="some processor",
        is_target=True,
        exact_on="every processor",
        weights="int8",
        samples=540,
        agreement=0.995,
        sqnr_db=41.5,
        compared=3,
        layers=5,
        integer_layers=4,
        latency=LatencyRecord(batch=1, int8=2.0, int8_quartiles=(1.9, 2.1), fp32=5.0, fp32_quartiles=(4.9, 5.1)),
        bytes=3_900_000,
    )
    return result.model_copy(update={"deployed": 0.98, "verification": found.model_copy(update=changes)})


def test_exported_files_stand_beside_each_other(
    tmp_path: Path, leave_run: Callable[..., Path], met_run: RunResult
) -> None:
    simulated = {"runtime": "a simulator 2.7", "samples": 2, "of_samples": 540, "latency": None, "layers": 0}
    stand_in = {"is_target": False, "stands_in": "No runtime", "agreement": None, "latency": None, "layers": 0}
    names = {"onnxruntime": {}, "qnn": simulated, "tensorrt": stand_in}
    for number, (target, changes) in enumerate(names.items()):
        folder = leave_run(tmp_path / str(number), exported_run(met_run, **changes), f"{RECIPE}target: {target}\n")
        environment = {"hashes": {"model": "a" if number < 2 else "b", "test": "c"}}
        (folder / "environment.json").write_text(json.dumps(environment))
        keep_outputs(folder, [np.array([[1, 2], [3, 0], [0, 1]], np.float32)[: 2 if number == 1 else 3]])
    paths = write_sweep(tmp_path, [tmp_path / name for name in "012"])
    assert [path.name for path in paths] == ["summary.csv", "runtimes.csv", "summary.html"]
    frame = pd.read_csv(paths[1])
    assert frame["target"].tolist() == list(names)
    assert frame["own_runtime"].tolist() == [True, True, False]
    assert frame["value"].tolist() == [0.98, 0.98, 0.98]
    assert frame[["integer_layers", "layers", "int8_ms", "fp32_ms", "megabytes"]].iloc[0].tolist() == [4, 5, 2, 5, 3.9]
    assert frame[["integer_layers", "layers", "int8_ms"]].iloc[1].isna().all()
    page = paths[2].read_text(encoding="utf-8")
    assert "Exported files in their runtimes" in page
    assert "of 540" in page and "a stand-in, node by node" in page
    together = page.partition("How far two files agree")[2].partition("</table>")[0]
    assert together.count("<tr>") == 2  # the head, and the two of the same model
    assert "0 onnxruntime" in together and "1 qnn" in together and "100.00 %" in together and "exact" in together


def test_runs_without_exported_files_have_no_such_table(sweep: Path) -> None:
    paths = write_sweep(sweep, [sweep / "0"])
    assert [path.name for path in paths] == ["summary.csv", "summary.html"]
    assert "Exported files" not in paths[1].read_text(encoding="utf-8")
