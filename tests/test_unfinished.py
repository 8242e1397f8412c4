"""How runs end that do not finish: by a signal, killed, with a report that fails, or with a disk that is full."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import qatflow
from qatflow import api
from qatflow.door import cli
from qatflow.errors import RunFolderError, UserCodeError
from qatflow.recipe import Recipe
from qatflow.report.__main__ import main as report
from qatflow.report.read import read_result
from qatflow.results.journal import Journal
from qatflow.results.progress import Silent
from qatflow.results.result import CandidateRecord
from qatflow.results.signals import undisturbed
from tests.users_task import DATA, MODEL

ROOT = Path(__file__).parent.parent


def settings(what: str = "", **changes: object) -> dict[str, object]:
    data = {"factory": DATA, "kwargs": {"what": what}, "batch_size": 8}
    chosen = {"model": {"factory": MODEL}, "data": data, "steps": {"fold_batch_norms": {}, "equalize": {}}}
    return {**chosen, "gate": {"max_drop": 0.2}, "qat": {"when": "never"}, "report": {"html": True}, **changes}


def command(folder: Path, what: str) -> list[str]:
    """Return a command line whose recipe is in `folder`."""
    (folder / "recipes").mkdir(parents=True)
    text = yaml.safe_dump(settings(what), sort_keys=False)
    (folder / "recipes" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    return ["--config-dir", str(folder), "recipe=mine", "trust=[tests]", f"run.dir={folder / 'run'}"]


class Told(Silent):
    """Remembers notes, and stops or fails where it is told of a candidate."""

    def __init__(self, at: str = "", error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.error = at, error
        self.notes: list[str] = []

    def candidate(self, record: CandidateRecord) -> None:
        if record.id == self.at and record.look is None:
            raise self.error

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("what", "code", "first", "status"),
    [
        ("test:SIGTERM", 143, "stopped by SIGTERM", "interrupted"),
        ("test:SIGINT", 130, "stopped by Ctrl-C", "interrupted"),
        ("test:raise", 1, "error: ", "failed"),
    ],
)
def test_a_run_that_is_stopped_says_what_remains_and_how_to_go_on(
    what: str, code: int, first: str, status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(tmp_path, what)
    assert cli.main(argv) == code
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(first)
    assert (
        "What remains: FP32, naive, fold_batch_norms, equalize, export, verification of the exported file, sensitivity."
        in told
    )
    assert told[-1] == f"go on    python -m qatflow {' '.join(argv).replace('trust=[tests]', repr('trust=[tests]'))}"
    left = read_result(tmp_path / "run")
    assert (left.status, left.verdict, f"go on    {left.command}") == (status, None, told[-1])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "before the gate was decided" in page
    assert "Gate missed" not in page


def test_the_best_so_far_is_told_with_its_value_and_drop(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        qatflow.run(Recipe.model_validate(settings()), tmp_path, ("tests",), Told("fold_batch_norms"))
    found = read_result(tmp_path)
    assert found.remaining == ("equalize", "export", "verification of the exported file", "sensitivity")
    page = (tmp_path / "report.html").read_text()
    assert f"Best so far: {found.best}, accuracy 1.0000 on validation, FP32 1.0000, drop 0.0000 (allowed: 0.2)" in page


def test_a_report_that_fails_changes_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(api, "write", fail)
    made, told = settings(steps={}, export={"onnx": False}), Told()
    assert qatflow.run(Recipe.model_validate(made), tmp_path / "a", ("tests",), told).passed
    assert "the report could not be written: " in told.notes[-1]
    assert "OSError: no space left" in told.notes[-1]
    assert f"`python -m qatflow.report {tmp_path / 'a'}` writes it again" in told.notes[-1]
    with (
        pytest.raises(UserCodeError, match="sample 20 is corrupt"),
        pytest.warns(UserWarning, match="the report could not be written"),
    ):
        qatflow.run(Recipe.model_validate(settings("test:raise")), tmp_path / "b", ("tests",))


def test_a_full_disk_does_not_hide_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RunFolderError("no space left")

    told = Told()
    journal = Journal(Recipe.model_validate(settings()), tmp_path, told)
    monkeypatch.setattr("qatflow.results.journal.write_text", fail)
    with pytest.raises(ZeroDivisionError), journal.to_the_end():
        exec(compile("1 / 0", cli.__file__, "exec"))
    assert told.notes == ["that the run ended early could not be written down: no space left"]


def test_folding_follows_a_rung_that_meets_the_gate_and_says_why(tmp_path: Path) -> None:
    told = Told()
    result = qatflow.run(Recipe.model_validate(settings(export={"onnx": False})), tmp_path, ("tests",), told)
    rows = {row.id: row for row in result.candidates if row.look is None}
    assert list(rows) == ["fp32", "naive", "fold_batch_norms"]
    assert rows["naive"].passed
    assert result.best == "fold_batch_norms"
    follows = "naive meets the gate on validation; fold_batch_norms follows all the same, because the target runs the"
    assert any(note.startswith(follows) for note in told.notes)
    assert "the target runs" in rows["fold_batch_norms"].reason


def test_processes_that_die_while_the_end_is_written_down_do_not_disturb_it() -> None:
    def torchs(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    before = signal.signal(signal.SIGCHLD, torchs)
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGCHLD)
        with pytest.raises(RuntimeError, match="is killed"):
            signal.raise_signal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.slow
def test_a_killed_run_is_not_reported_as_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = command(tmp_path, "test:SIGKILL")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-m", "qatflow", *argv], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == -9
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "running"
    assert read_result(tmp_path / "run").status == "interrupted"
    assert report([str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Stopped before the gate was decided" in page
    assert "it was cut off: its process was killed, or its machine stopped" in page
    assert f"run.dir={tmp_path}/run" in page


def test_a_sweep_with_a_job_that_fails(tmp_path: Path) -> None:
    argv = [part for part in command(tmp_path, "") if not part.startswith("run.dir=")]
    sweep = ["-m", *argv, "data.kwargs.what=train:raise,test:raise", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert cli.main(sweep) == 1
    assert [read_result(tmp_path / "sweep" / job).status for job in "01"] == ["finished", "failed"]
    page = (tmp_path / "sweep" / "summary.html").read_text()
    assert "1 of 2 runs met the gate, 1 did not finish" in page
    assert "Failed before the gate was decided" in page
