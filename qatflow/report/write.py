"""The report's files in a run folder: tables and pages, made from what is in the folder and nothing else.

A run that is going on can be reported at any time, and one of last year again: only `result.json` is needed. Each file
appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from qatflow.report.html import STUDY_PAGE, render
from qatflow.report.info import has_plots
from qatflow.report.read import read_result
from qatflow.report.wording import spelt
from qatflow.results import tables
from qatflow.results.result import RunResult
from qatflow.results.store import parsed, write_text

MOST_SHOWN = 1_000_000
"""Characters of a text that a page shows."""
TABLES: dict[str, Callable[[RunResult], pd.DataFrame]] = {
    "results.csv": tables.results,
    "layers.csv": tables.layers,
    "trials.csv": tables.trials,
}


def write(folder: Path, html: bool = True) -> list[Path]:
    """Write the tables and, unless `html` is false, `report.html` into a run folder; returns their paths.

    Where there are QAT trials, `optuna.html` goes with `report.html`.

    Raises:
        RunFolderError: the folder is not a run folder, its `result.json` is damaged or of a newer schema, or it
            cannot be written to.
    """
    folder = Path(folder)
    result = read_result(folder)
    written = [shown_in(folder / name, csv(table(result))) for name, table in TABLES.items()]
    if html:
        precisions = read_text(folder / "mixed_precision.csv")
        page = render(result, read_text(folder / "recipe.yaml"), read_environment(folder), precisions)
        written.append(shown_in(folder / "report.html", page))
    if html and has_plots(result):
        from qatflow.report.study_page import render_study  # brings Optuna and Plotly, which most runs do without

        written.append(write_text(folder / STUDY_PAGE, render_study(result)))  # Plotly's script has some of its own
    return written


def read_text(path: Path) -> str:
    """Return a text file's content; empty where there is none, for a report must not fail on what it can do without."""
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_SHOWN + 1)
    except OSError:
        return ""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}\n... (too long to show)\n"


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what `environment.json` holds; empty where it is missing, and a remark where it is damaged."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    try:
        values = parsed(path)
    except (OSError, ValueError):
        return {"environment.json": "is damaged"}
    return values if isinstance(values, dict) else {"environment.json": "is not a mapping"}


def shown_in(path: Path, text: str) -> Path:
    """Write a text that people look at, also in a terminal; returns its path.

    Raises:
        RunFolderError: the folder cannot be written to.
    """
    return write_text(path, spelt(text))


def csv(table: pd.DataFrame) -> str:
    """Return a table as CSV: a header line, no index, missing values empty, the same on every system."""
    return str(table.to_csv(index=False, lineterminator="\n"))
