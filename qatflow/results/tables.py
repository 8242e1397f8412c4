"""`RunResult` to pandas frames: what the CSV files hold and what a notebook starts from.

Every function is pure and always returns the same columns with the same types, also where a run has no rows yet, so
that frames of several runs can be concatenated. A number that was not measured is missing, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qatflow.results.result import RunResult
from qatflow.results.store import write_text

Columns = Mapping[str, str]

RESULTS: Columns = {
    "candidate": "string",
    "stage": "string",
    "part": "string",
    "look": "Int64",
    "metric": "string",
    "value": "float64",
    "fp32": "float64",
    "drop": "float64",
    "drop_low": "float64",
    "drop_high": "float64",
    "lost": "Int64",
    "gained": "Int64",
    "verdict": "string",
    "sqnr_db": "float64",
    "kept": "bool",
    "seconds": "float64",
    "design": "string",
}
LAYERS: Columns = {
    "layer": "string",
    "tensor": "string",
    "kind": "string",
    "bits": "int64",
    "signed": "bool",
    "symmetric": "bool",
    "channels": "int64",
    "scale_min": "float64",
    "scale_max": "float64",
    "range_min": "float64",
    "range_max": "float64",
    "zero_point": "Int64",
    "sqnr_db": "float64",
    "output_sqnr_db": "float64",
    "clipped": "float64",
    "levels": "Int64",
    "why": "string",
    "helps": "string",
}
TRIALS: Columns = {
    "number": "int64",
    "state": "string",
    "probe": "bool",
    "lr": "float64",
    "epochs": "int64",
    "trained": "int64",
    "decay_period": "int64",
    "range_learning": "bool",
    "distillation": "float64",
    "value": "float64",
    "best_epoch": "Int64",
    "seconds": "float64",
    "reason": "string",
}
EPOCHS: Columns = {
    "trial": "int64",
    "epoch": "int64",
    "lr": "float64",
    "train_loss": "float64",
    "value": "float64",
    "seconds": "float64",
}
FLOAT_TENSORS: Columns = {"layer": "string", "tensor": "string", "op": "string", "reason": "string"}


def results(result: RunResult) -> pd.DataFrame:
    """Return one row per candidate in order, FP32 first; drops are in the metric's unit, positive where worse.

    `part` is where a row's figures are from; a candidate that was judged has a row of its own for that, with a `look`.
    """
    metric = result.gate.metric if result.gate else None
    rows = [
        {
            **candidate.model_dump(),
            "candidate": candidate.id,
            "metric": metric,
            "verdict": candidate.verdict.value,
            "design": None if candidate.design is None else candidate.design.sentence,
        }
        for candidate in result.candidates
    ]
    return _frame(rows, RESULTS)


def layers(result: RunResult) -> pd.DataFrame:
    """Return one row per quantized tensor of the best candidate, in the model's order; SQNR is in dB."""
    return _frame((tensor.model_dump() for tensor in result.tensors), LAYERS)


def trials(result: RunResult) -> pd.DataFrame:
    """Return one row per QAT trial, with all that was searched.

    `epochs` were planned and `trained` were done; `value` is the best metric on the validation part, `seconds`
    wall-clock time.
    """
    rows = ({**trial.model_dump(), "trained": max(len(trial.history) - 1, 0)} for trial in result.trials)
    return _frame(rows, TRIALS)


def epochs(result: RunResult) -> pd.DataFrame:
    """Return one row per trial and epoch; epoch 0 is the PTQ candidate that the trial starts from."""
    rows = ({"trial": trial.number, **epoch.model_dump()} for trial in result.trials for epoch in trial.history)
    return _frame(rows, EPOCHS)


def float_tensors(result: RunResult) -> pd.DataFrame:
    """Return one row per tensor that stays in float, with the reason."""
    return _frame((tensor.model_dump() for tensor in result.float_tensors), FLOAT_TENSORS)


def _frame(rows: Iterable[Mapping[str, object]], columns: Columns) -> pd.DataFrame:
    """Pick `columns` out of each row and give them their types."""
    picked = [[row[name] for name in columns] for row in rows]
    return pd.DataFrame(picked, columns=list(columns)).astype(dict(columns))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table whose columns are the keys of its rows."""
    write_text(path, str(pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n")))
