"""The report's files in a run folder: tables and pages, made from what is in the folder and nothing else.

A run that is going on can be reported at any time, and one of last year again: only `result.json` is needed. Each file
appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from qatflow.errors import RunFolderError
from qatflow.report import tables
from qatflow.report.html import STUDY_PAGE, render
from qatflow.report.info import has_plots
from qatflow.result import SCHEMA_VERSION, RunResult
from qatflow.store import write_text

TABLES: dict[str, Callable[[RunResult], pd.DataFrame]] = {
    "results.csv": tables.results,
    "layers.csv": tables.layers,
    "trials.csv": tables.trials,
}


def write(folder: Path, html: bool = True) -> list[Path]:
    """Write the tables and, unless `html` is false, `report.html` into a run folder; returns their paths.

    Where there are QAT trials, `optuna.html` goes with `report.html`.

    Raises:
        RunFolderError: the folder is not a run folder, its `result.json` is damaged or of another version, or it
            cannot be written to.
    """
    folder = Path(folder)
    result = read_result(folder)
    written = [write_text(folder / name, csv(table(result))) for name, table in TABLES.items()]
    if html:
        page = render(result, read_text(folder / "recipe.yaml"), read_environment(folder))
        written.append(write_text(folder / "report.html", page))
    if html and has_plots(result):
        from qatflow.report.study_page import render_study  # brings Optuna and Plotly, which most runs do without

        written.append(write_text(folder / STUDY_PAGE, render_study(result)))
    return written


def read_result(folder: Path) -> RunResult:
    """Return the result that a run left in its folder.

    Raises:
        RunFolderError: there is none, or it is damaged or of another version.
    """
    path = folder / "result.json"
    if not folder.is_dir():
        message = f"{folder} is not a folder; give the folder of a run, such as reports/quickstart/20260131-120000"
        raise RunFolderError(message)
    if not path.is_file():
        message = f"{folder} has no result.json, so it is not a run folder; give the folder that a run wrote"
        raise RunFolderError(message)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; check who may read it"
        raise RunFolderError(message) from error
    except ValueError as error:
        message = f"{path} is not valid JSON ({error}); start the run again on this folder, which writes it anew"
        raise RunFolderError(message) from error
    return _checked(path, values)


def read_text(path: Path) -> str:
    """Return a text file's content; empty where there is none, for a report must not fail on what it can do without."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what `environment.json` holds; empty where it is missing, and a remark where it is damaged."""
    text = read_text(folder / "environment.json")
    if not text:
        return {}
    try:
        values = json.loads(text)
    except ValueError:
        return {"environment.json": "is damaged"}
    return values if isinstance(values, dict) else {"environment.json": "is not a mapping"}


def csv(table: pd.DataFrame) -> str:
    """Return a table as CSV: a header line, no index, missing values empty, the same on every system."""
    return str(table.to_csv(index=False, lineterminator="\n"))


def _checked(path: Path, values: Any) -> RunResult:
    """Return the result, or say which field does not fit."""
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        message = (
            f"{path} has schema_version {version}, this qatflow reads {SCHEMA_VERSION}; "
            "rebuild the report with the qatflow that made the run, whose version is in environment.json"
        )
        raise RunFolderError(message)
    try:
        return RunResult.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = (
            f"{path} is not a qatflow result ({where}: {first['msg'].lower()}); "
            "start the run again on this folder, which writes it anew"
        )
        raise RunFolderError(message) from error
