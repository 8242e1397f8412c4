"""One summary over several runs: what differed between their recipes, and what came out.

The runs' own folders are read, nothing is kept in between, so a summary can be made again when a run was resumed. A
run that failed before it measured anything is a row like the others: one that is missing would go unnoticed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from qatflow.errors import RunFolderError
from qatflow.report import numbers, wording
from qatflow.report.charts.ladder import Bar, RowChart, drop_charts, tone_of
from qatflow.report.html import page, relative_href
from qatflow.report.read import read_result
from qatflow.report.recipe_keys import differing, flatten
from qatflow.report.runtimes import FileRun, files, pairs
from qatflow.report.write import csv, read_environment, read_text, shown_in
from qatflow.results.result import RunResult
from qatflow.results.tables import Columns
from qatflow.results.unfinished import Unfinished, unfinished

RUN: Columns = {"run": "string", "recipe": "string"}
OUTCOME: Columns = {
    "metric": "string",
    "fp32": "float64",
    "best": "string",
    "value": "float64",
    "drop": "float64",
    "drop_low": "float64",
    "drop_high": "float64",
    "verdict": "string",
    "passed": "bool",
    "seconds": "float64",
    "status": "string",
    "error": "string",
}
RUN_FILES = ("result.json", "recipe.yaml", "environment.json", "log.txt")


class SweepRun(NamedTuple):
    """One run of a sweep, as far as its folder tells."""

    name: str
    """Its path, relative to the sweep's folder."""
    href: str
    """Link to its report; empty where it has none."""
    recipe: dict[str, str]
    """Flattened, see `recipe_keys`."""
    result: RunResult | None
    error: str


class Stopped(NamedTuple):
    """A run that did not finish."""

    name: str
    status: str
    error: str
    said: Unfinished | None
    """None where it left no usable result."""


class Panel(NamedTuple):
    """The runs that share a metric, as a picture."""

    metric: str
    charts: list[RowChart]


def write_sweep(folder: Path, runs: Sequence[Path]) -> list[Path]:
    """Write `summary.csv` and `summary.html` over `runs` into `folder`; returns their paths.

    Raises:
        RunFolderError: there are no runs, or `folder` cannot be written to. A run without a usable result is listed
            as failed instead.
    """
    folder = Path(folder)
    if not runs:
        message = f"{folder} has no runs to summarize; give a folder whose subfolders are run folders"
        raise RunFolderError(message)
    read = [_read(folder, Path(run)) for run in runs]
    keys = differing([run.recipe for run in read])
    exported = [one for run, path in zip(read, runs, strict=True) if (one := _exported(run, Path(path))) is not None]
    written = [shown_in(folder / "summary.csv", csv(summary(read, keys)))]
    if exported:
        written.append(shown_in(folder / "runtimes.csv", csv(files(exported))))
    return [*written, shown_in(folder / "summary.html", _page(folder, read, keys, exported))]


def run_folders(folder: Path) -> list[Path]:
    """Return the run folders directly below `folder`, 2 before 10; one counts if a run left any of its files there."""
    found = [path for path in folder.iterdir() if path.is_dir() and any((path / name).exists() for name in RUN_FILES)]
    return sorted(
        found,
        key=lambda path: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)
        ],
    )


def summary(runs: Sequence[SweepRun], keys: Sequence[str]) -> pd.DataFrame:
    """Return one row per run: its name, the recipe values under `keys`, and the outcome of its best candidate."""
    columns = {**RUN, **dict.fromkeys(keys, "string"), **OUTCOME}
    rows = [[*_identity(run), *(run.recipe.get(key) for key in keys), *_outcome(run)] for run in runs]
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def _identity(run: SweepRun) -> list[str | None]:
    return [run.name, run.result.name if run.result else run.recipe.get("name")]


def _outcome(run: SweepRun) -> list[object]:
    result = run.result
    if result is None:
        return [None, None, None, None, None, None, None, None, False, None, "failed", run.error]
    best = result.winner
    finished = result.status == "finished"
    drops = [best.drop, best.drop_low, best.drop_high] if best else [None, None, None]
    return [
        result.gate.metric if result.gate else None,
        result.fp32,
        result.best,
        best.value if best else None,
        *drops,
        result.verdict.value if result.verdict and finished else None,
        result.passed and finished,
        result.seconds,
        result.status,
        result.error or None,
    ]


def _read(folder: Path, run: Path) -> SweepRun:
    name = Path(os.path.relpath(run, folder)).as_posix()
    recipe = flatten(read_text(run / "recipe.yaml"))
    href = relative_href(f"{name}/report.html") if (run / "report.html").is_file() else ""
    try:
        return SweepRun(name, href, recipe, read_result(run), "")
    except RunFolderError as error:
        failed_early = run.is_dir() and not (run / "result.json").exists()
        return SweepRun(name, href, recipe, None, "It left no result.json." if failed_early else str(error))


def _exported(run: SweepRun, path: Path) -> FileRun | None:
    """Return the run, where its exported file was run."""
    if run.result is None or run.result.verification is None:
        return None
    hashes = read_environment(path).get("hashes")
    return FileRun(run.name, run.recipe.get("target", ""), path, hashes if isinstance(hashes, dict) else {}, run.result)


def _page(folder: Path, runs: Sequence[SweepRun], keys: Sequence[str], exported: Sequence[FileRun]) -> str:
    results = [run.result for run in runs if run.result]
    passed = sum(result.passed for result in results if result.status == "finished")
    return page(
        "summary.html.j2",
        title=folder.resolve().name,
        runs=[(run, numbers.format_of(run.result) if run.result else None) for run in runs],
        keys=keys,
        panels=_panels(results_by_metric(runs, keys)),
        passed=passed,
        unfinished=[one for run in runs if (one := _stopped(run)) is not None],
        allowed=wording.allowed,
        files=[(run, numbers.format_of(run.result), run.deployed) for run in exported],
        check_tones=wording.CHECK_TONES,
        check_word=wording.check_word,
        pairs=list(pairs(exported).itertuples()),
        headline=wording.headline,
    )


def _stopped(run: SweepRun) -> Stopped | None:
    """Return what to say of a run that did not finish; None of one that did."""
    if run.result is None:
        return Stopped(run.name, "failed", run.error, None)
    said = unfinished(run.result)
    return Stopped(run.name, run.result.status, run.result.error, said) if said is not None else None


def results_by_metric(runs: Sequence[SweepRun], keys: Sequence[str]) -> dict[str, list[tuple[str, RunResult]]]:
    """Return the labels and results of runs with a best candidate, by metric: drops of two metrics do not compare."""
    groups: dict[str, list[tuple[str, RunResult]]] = {}
    for run in runs:
        if run.result and run.result.gate and run.result.winner:
            groups.setdefault(run.result.gate.metric, []).append((_label(run, keys), run.result))
    return groups


def _label(run: SweepRun, keys: Sequence[str]) -> str:
    """Return the run's name with what sets it apart, `1: weights 4, activations 8`, where that is short."""
    apart = [f"{key.rpartition('.')[2]} {run.recipe[key]}" for key in keys if key in run.recipe]
    text = ", ".join(apart)
    return f"{run.name}: {text}" if text and len(text) <= 60 else run.name


def _panels(groups: dict[str, list[tuple[str, RunResult]]]) -> list[Panel]:
    return [Panel(metric, drop_charts(*_bars(members))) for metric, members in groups.items()]


def _bars(members: list[tuple[str, RunResult]]) -> tuple[list[Bar], numbers.MetricFormat]:
    limits = [result.gate.max_drop for _, result in members if result.gate and result.gate.max_drop is not None]
    form = numbers.metric_format((result.fp32 for _, result in members), min(limits, default=None))
    bars = []
    for name, result in members:
        best, gate = result.winner, result.gate
        if best and gate:
            tone = tone_of(result.verdict if result.status == "finished" else None)
            bars.append(Bar(name, form.drop(best.drop), best.drop, best.drop_low, best.drop_high, gate.max_drop, tone))
    return bars, form
