"""Candidates, and what is stored of them: one quantized model with its provenance and what was measured of it.

Only what was done and measured is stored. Verdicts, and whether later rungs build on a candidate, are decided anew
whenever it is taken up again, since the gate may have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import fx

from qatflow.errors import CaptureError, RunFolderError
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.saved import finite, load, save
from qatflow.results.gate import Measurement
from qatflow.results.record import Record
from qatflow.results.result import CandidateRecord, Note
from qatflow.results.store import META, check_digests, digests, read_json, write_json
from qatflow.tasks.evaluate import Evaluation
from qatflow.tasks.evaluation_data import measurement_from_json, measurement_to_json

TEST = "test.json"
"""What was measured of a candidate on the test part; it comes later, so that it has a key of its own."""
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


class Meta(Record):
    """What `meta.json` of a candidate's folder holds."""

    key: str
    files: dict[str, str]
    id: str
    stage: Stage
    steps: tuple[str, ...]
    notes: dict[str, Note]
    seconds: float
    unchanged: str
    evaluation: dict[str, Any]


class Outputs(Record):
    """Name and signal to noise ratio of every output, as they are stored."""

    outputs: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Stored:
    """A candidate as it lies in the run folder: all of it but what is decided anew."""

    work: Work
    network: Network
    encodings: Mapping[str, Encoding]
    evaluation: Evaluation


def store(folder: Path, base: fx.GraphModule, candidate: Candidate) -> None:
    """Write a candidate to its folder; `meta.json` comes last, so that what it speaks of is there."""
    with suppress(NotADirectoryError):  # which is told when the first file is written
        if recall_test(folder, candidate.key) is None:
            (folder / TEST).unlink(missing_ok=True)  # of what stood here before
    save(folder, base, candidate.network, candidate.encodings)
    work = candidate.work
    meta = {
        "key": candidate.key,
        "files": digests(folder),
        "id": work.id,
        "stage": work.stage,
        "steps": list(work.steps),
        "notes": dict(work.notes),
        "seconds": work.seconds,
        "unchanged": work.unchanged,
        "evaluation": to_json(candidate.evaluation),
    }
    write_json(folder / META, meta)


def recall(folder: Path, base: Network, key: str) -> Stored | str:
    """Return what an earlier start stored in `folder`; a sentence where it cannot be used, empty if it is another's.

    Args:
        folder: of the candidate.
        base: the captured network.
        key: what it must have been stored under.
    """
    if not (folder / META).exists():
        return ""
    try:
        stored = read_json(folder / META)
        if isinstance(stored, dict) and stored.get("key") not in (None, key):
            return ""
        meta = Meta.taken(stored)
        check_digests(folder, meta.files)
        network, encodings = load(folder, base)
        work = Work(meta.id, meta.stage, meta.steps, meta.notes, meta.seconds, meta.unchanged, resumed=True)
        return Stored(work, network, encodings, from_json(meta.evaluation))
    except (RunFolderError, CaptureError, ValueError, OSError) as error:
        return f"{folder} cannot be used again ({error}): doing that rung anew"


def recall_test(folder: Path, key: str) -> Evaluation | None:
    """Return what an earlier start measured of a candidate on the test part; None where that cannot be used."""
    try:
        stored = read_json(folder / TEST)
        return from_json(stored["evaluation"]) if stored["key"] == key else None
    except (RunFolderError, LookupError, TypeError, ValueError):
        return None


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return what was measured as plain values; null is what is not a finite number."""
    outputs = [[name, finite(ratio)] for name, ratio in evaluation.outputs]
    return {**measurement_to_json(evaluation.measurement), "outputs": outputs}


def from_json(value: Any) -> Evaluation:
    """Undo `to_json`.

    Raises:
        ValueError: it is of another form.
    """
    measurement, stored = measurement_from_json(value), Outputs.taken({"outputs": value.get("outputs")})
    outputs = tuple((name, math.nan if ratio is None else ratio) for name, ratio in stored.outputs)
    return Evaluation(measurement, outputs, measurement.samples)
