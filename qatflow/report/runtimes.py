"""The exported files of several runs beside each other: what each does in its runtime, and how far two agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qatflow.results.outputs import agreement, kept_outputs
from qatflow.results.result import CandidateRecord, RunResult
from qatflow.results.tables import Columns

FILES: Columns = {
    "run": "string",
    "target": "string",
    "runtime": "string",
    "own_runtime": "bool",
    "metric": "string",
    "value": "float64",
    "drop": "float64",
    "drop_low": "float64",
    "drop_high": "float64",
    "samples": "Int64",
    "agreement": "float64",
    "sqnr_db": "float64",
    "integer_layers": "Int64",
    "layers": "Int64",
    "int8_ms": "float64",
    "fp32_ms": "float64",
    "megabytes": "float64",
    "verdict": "string",
}
PAIRS: Columns = {
    "run": "string",
    "target": "string",
    "other": "string",
    "other_target": "string",
    "samples": "Int64",
    "agreement": "float64",
    "sqnr_db": "float64",
}


class FileRun(NamedTuple):
    """A run whose exported file was run."""

    name: str
    target: str
    folder: Path
    hashes: Mapping[str, Any]
    """Of its model and data, as `environment.json` has them."""
    result: RunResult

    @property
    def deployed(self) -> CandidateRecord | None:
        """The file's row."""
        return next((one for one in self.result.candidates if one.stage == "deployed"), None)


def files(runs: Sequence[FileRun]) -> pd.DataFrame:
    """Return a row a run: its file in its runtime, as `verification.json` has it."""
    return pd.DataFrame([_row(run) for run in runs], columns=list(FILES)).astype(FILES)


def _row(run: FileRun) -> list[object]:
    found = run.result.verification
    assert found is not None
    deployed = run.deployed
    drops = [deployed.drop, deployed.drop_low, deployed.drop_high] if deployed else [None, None, None]
    times = [found.latency.int8, found.latency.fp32] if found.latency else [None, None]
    return [
        run.name,
        run.target,
        found.runtime,
        found.is_target,
        run.result.gate.metric if run.result.gate else None,
        run.result.deployed,
        *drops,
        found.samples,
        found.agreement,
        found.sqnr_db,
        found.integer_layers if found.layers else None,
        found.layers or None,
        *times,
        found.bytes / 1e6,
        found.verdict,
    ]


def pairs(runs: Sequence[FileRun]) -> pd.DataFrame:
    """Return how far the files of every two runs of the same model on the same samples agree."""
    kept = [(run, outputs) for run in runs if (outputs := kept_outputs(run.folder)) is not None]
    rows = []
    for (one, first), (other, second) in combinations(kept, 2):
        if not one.hashes or any(one.hashes.get(what) != other.hashes.get(what) for what in ("model", "test")):
            continue
        same, ratio = agreement(first, second)
        rows.append([one.name, one.target, other.name, other.target, min(len(first), len(second)), same, ratio])
    return pd.DataFrame(rows, columns=list(PAIRS)).astype(PAIRS)
