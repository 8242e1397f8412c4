"""`python -m qatflow.report` as a user runs it: exit codes, messages, and no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qatflow.report.__main__ import main

HEAVY = ("torch", "hydra", "omegaconf", "optuna", "plotly")


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qatflow.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_rebuilds_run_folders(met_folder: Path, trained_folder: Path) -> None:
    done = report(met_folder, trained_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[3] == str(met_folder / "report.html")
    assert (trained_folder / "report.html").stat().st_size > 10_000


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path, met_folder: Path) -> None:
    done = report(tmp_path / "nowhere", met_folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'nowhere'} is not a folder")
    assert len(done.stderr.splitlines()) == 1
    assert (met_folder / "report.html").exists()


def test_no_folder_given_is_exit_code_1_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "RUN_DIR" in message and len(message.splitlines()) == 1


def test_a_folder_of_runs_gets_its_summary(met_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(met_folder.parent)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(met_folder.parent / "summary.csv"),
        str(met_folder.parent / "summary.html"),
    ]
    assert not (met_folder / "report.html").exists()


def test_a_folder_that_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    assert main([str(tmp_path)]) == 1
    assert "has no result.json" in capsys.readouterr().err


def test_only_the_tables(met_folder: Path) -> None:
    assert main([str(met_folder), "--no-html"]) == 0
    assert (met_folder / "results.csv").exists() and not (met_folder / "report.html").exists()


def test_nothing_heavy_is_imported(met_folder: Path) -> None:
    code = (
        "import sys\n"
        "from qatflow.report.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        f"print('imported', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, str(met_folder), str(met_folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"
