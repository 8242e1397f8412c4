"""Candidates, and what is stored of them: one quantized model with its provenance and what was measured of it.

Only what was done and measured is stored. Verdicts, and whether later rungs build on a candidate, are decided anew
whenever it is taken up again, since the gate may have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import fx

from qatflow.errors import CaptureError, RunFolderError
from qatflow.gate import Measurement, Scores
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.saved import finite, load, save
from qatflow.result import CandidateRecord, Note
from qatflow.store import read_json, write_json
from qatflow.tasks.evaluate import Evaluation

Stage = Literal["fp32", "ptq", "qat", "deployed"]


@dataclass(frozen=True)
class Work:
    """What was done for a candidate.

    Attributes:
        id: also the name of its folder.
        stage: of the run.
        steps: those it stands on, its own last.
        notes: what its step counted and measured.
        seconds: that took.
        unchanged: why the step changed nothing; empty where it did.
        resumed: whether it was done by an earlier start.
    """

    id: str
    stage: Stage
    steps: tuple[str, ...] = ()
    notes: Mapping[str, Note] = field(default_factory=dict)
    seconds: float = 0.0
    unchanged: str = ""
    resumed: bool = False


@dataclass(frozen=True)
class Candidate:
    """One quantized model.

    Attributes:
        record: what the result says of it, on the part that candidates are chosen on.
        work: what was done for it.
        network: the float network it is made of.
        encodings: of every quantized tensor, by its name in the placement.
        evaluation: what was measured on the part that candidates are chosen on.
        key: hash of all it depends on.
    """

    record: CandidateRecord
    work: Work
    network: Network
    encodings: Mapping[str, Encoding]
    evaluation: Evaluation
    key: str

    @property
    def measurement(self) -> Measurement:
        """The metric on the part that candidates are chosen on."""
        return self.evaluation.measurement


@dataclass(frozen=True)
class Stored:
    """A candidate as it lies in the run folder: all of it but what is decided anew."""

    work: Work
    network: Network
    encodings: Mapping[str, Encoding]
    evaluation: Evaluation


def store(folder: Path, base: fx.GraphModule, candidate: Candidate) -> None:
    """Write a candidate to its folder; `meta.json` comes last, so that what it speaks of is there."""
    save(folder, base, candidate.network, candidate.encodings)
    work = candidate.work
    meta = {
        "key": candidate.key,
        "id": work.id,
        "stage": work.stage,
        "steps": list(work.steps),
        "notes": dict(work.notes),
        "seconds": work.seconds,
        "unchanged": work.unchanged,
        "evaluation": to_json(candidate.evaluation),
    }
    write_json(folder / "meta.json", meta)


def recall(folder: Path, base: fx.GraphModule, key: str, higher_is_better: bool) -> Stored | str:
    """Return what an earlier start stored in `folder`; a sentence where it cannot be used, empty if it is another's.

    Args:
        folder: of the candidate.
        base: the captured graph.
        key: what it must have been stored under.
        higher_is_better: the metric's direction.
    """
    if not (folder / "meta.json").exists():
        return ""
    try:
        meta = read_json(folder / "meta.json")
        if meta["key"] != key:
            return ""
        network, encodings = load(folder, base)
        work = Work(
            id=meta["id"],
            stage=meta["stage"],
            steps=tuple(meta["steps"]),
            notes=meta["notes"],
            seconds=meta["seconds"],
            unchanged=meta["unchanged"],
            resumed=True,
        )
        return Stored(work, network, encodings, from_json(meta["evaluation"], higher_is_better))
    except (RunFolderError, CaptureError, KeyError, TypeError, OSError) as error:
        return f"{folder} cannot be used again ({error}): doing that rung anew"


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return what was measured as plain values; null is what is not a finite number."""
    measurement = evaluation.measurement
    return {
        "value": finite(measurement.value),
        "per_sample": _numbers(measurement.per_sample),
        "replicates": _numbers(measurement.replicates),
        "outputs": [[name, finite(ratio)] for name, ratio in evaluation.outputs],
        "samples": evaluation.samples,
    }


def from_json(value: Mapping[str, Any], higher_is_better: bool) -> Evaluation:
    """Undo `to_json`."""
    measurement = Measurement(
        _or_nan(value["value"]),
        _scores(value["per_sample"]),
        higher_is_better,
        _scores(value["replicates"]),
        value["samples"],
    )
    outputs = tuple((str(name), _or_nan(ratio)) for name, ratio in value["outputs"])
    return Evaluation(measurement, outputs, value["samples"])


def _numbers(scores: Scores | None) -> list[float | None] | None:
    return None if scores is None else [finite(score) for score in scores.tolist()]


def _scores(numbers: list[float | None] | None) -> Scores | None:
    return None if numbers is None else np.array([_or_nan(one) for one in numbers], dtype=np.float64)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
