"""The bench: everything a candidate is built and measured with, the same for every candidate of a run.

A candidate is a network, quantized, calibrated, measured on the evaluation part beside FP32, and judged by the gate.
It is stored under a key that says all it depends on, and found again by that key.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qatflow.errors import CaptureError, RunFolderError
from qatflow.gate import Decision, Measurement, allowed_drop, best_of, decide
from qatflow.progress import Progress
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, place
from qatflow.quant.saved import finite, load, save
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.result import CandidateRecord, GateRecord, Note, Verdict
from qatflow.steps.context import StepContext
from qatflow.store import code_version, key_of, read_json, write_json
from qatflow.tasks.evaluate import Evaluation, Evaluator
from qatflow.tasks.task import Task


@dataclass(frozen=True)
class Candidate:
    """One quantized model with its provenance and its scores.

    Attributes:
        record: what the result says of it.
        network: the float network it is made of.
        encodings: of every quantized tensor, by its name in the placement.
        measurement: the metric on the evaluation part.
        key: hash of all it depends on.
    """

    record: CandidateRecord
    network: Network
    encodings: Mapping[str, Encoding]
    measurement: Measurement
    key: str


class Bench:
    """Builds and measures candidates.

    Args:
        recipe: the run.
        task: its model, data and metric, on the run's device.
        base: the captured FP32 network.
        folder: the run folder.
        progress: who is told of every candidate.
    """

    def __init__(self, recipe: Recipe, task: Task, base: Network, folder: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.task = task
        self.base = base
        self.folder = folder / "candidates"
        self.progress = progress
        self.target = TARGETS[recipe.target]
        self.evaluator = Evaluator(base.graph, task.test, task.metric, task.device)
        self.fp32: Measurement
        self.samples = 0
        self.key = key_of(
            code_version(),
            task.fingerprint,
            recipe.model_dump(mode="json", include={"precision", "target", "calibration", "seed"}),
        )

    def baseline(self) -> CandidateRecord:
        """Measure FP32, which every candidate is compared with; returns its record, null where it is not finite."""
        start = time.perf_counter()
        evaluation = self.evaluator.evaluate(self.base.graph)
        self.fp32, self.samples = evaluation.measurement, evaluation.samples
        value = finite(self.fp32.value)
        record = CandidateRecord(
            id="fp32",
            stage="fp32",
            value=value,
            fp32=value,
            drop=0.0 if value is not None else None,
            drop_low=None,
            drop_high=None,
            verdict=Verdict.BASELINE,
            passed=value is not None,
            sqnr_db=None,
            kept=True,
            seconds=time.perf_counter() - start,
        )
        self.progress.candidate(record)
        return record

    @property
    def gate_record(self) -> GateRecord:
        """The gate as it is applied; FP32 must have been measured."""
        gate = self.recipe.gate
        return GateRecord(
            metric=self.task.metric.name,
            higher_is_better=self.task.metric.higher_is_better,
            max_drop=allowed_drop(gate.max_drop, self.fp32.value),
            max_drop_text=str(gate.max_drop),
            strict=gate.strict,
            confidence=gate.confidence,
            samples=self.samples,
        )

    def step_context(self) -> StepContext:
        """Return what the ladder's steps work with."""
        return StepContext(
            inputs=self.task.calibration_inputs,
            target=self.target,
            precision=self.recipe.precision,
            calibration=self.recipe.calibration,
            seed=self.recipe.seed,
            progress=self.progress,
        )

    def placement(self, network: Network) -> Placement:
        """Return which tensors of a network are quantized.

        Raises:
            PlacementError: the target quantizes no weighted layer.
            RecipeError: a pattern of the recipe's overrides matches no layer.
        """
        return place(network.graph, self.target, self.recipe.precision)

    def simulate(self, network: Network, encodings: Mapping[str, Encoding] | None = None) -> Simulation:
        """Return a network's simulation, with these encodings or else calibrated."""
        simulation = Simulation(network, self.target, self.recipe.precision)
        if encodings is not None:
            simulation.load_encodings(encodings)
        else:
            inputs = self.task.calibration_inputs(self.recipe.calibration.samples)
            simulation.calibrate(inputs, self.recipe.calibration)
        return simulation

    def measure(
        self,
        network: Network,
        *,
        name: str,
        stage: str,
        key: str,
        steps: tuple[str, ...],
        notes: Mapping[str, Note],
        started: float,
        encodings: Mapping[str, Encoding] | None = None,
    ) -> Candidate:
        """Quantize, calibrate and measure a network, and judge it; nothing is stored yet.

        Args:
            network: the candidate's float network.
            name: its id.
            stage: `ptq` or `qat`.
            key: hash of all it depends on.
            steps: those it stands on, its own last.
            notes: what its step counted and measured.
            started: `time.perf_counter()` when its work began.
            encodings: those to use; None calibrates.
        """
        simulation = self.simulate(network, encodings)
        evaluation = self.evaluator.evaluate(simulation.model)
        decision = decide(self.recipe.gate, self.fp32, evaluation.measurement, self.recipe.seed)
        if encodings is None and self.recipe.calibration.activations == "auto":
            notes = {**notes, "calibrated_by": simulation.calibrated_by}
        if encodings is None and self.recipe.calibration.weights == "auto":
            notes = {**notes, "weights_by": simulation.weights_by}
        record = _record(name, stage, steps, self.fp32, evaluation, decision, notes, time.perf_counter() - started)
        return Candidate(record, network, simulation.encodings(), evaluation.measurement, key)

    def deployed_record(self, evaluation: Evaluation, winner: Candidate, seconds: float) -> CandidateRecord:
        """Judge what the winner's exported file measured in a runtime."""
        decision = decide(self.recipe.gate, self.fp32, evaluation.measurement, self.recipe.seed)
        steps, notes = winner.record.steps, {"of": winner.record.id}
        return _record("deployed", "deployed", steps, self.fp32, evaluation, decision, notes, seconds)

    def keep(self, candidate: Candidate, *, kept: bool, reason: str = "") -> Candidate:
        """Settle whether later rungs build on a candidate, store it and tell of it; returns it with that record."""
        record = candidate.record.model_copy(update={"kept": kept, "reason": reason})
        candidate = replace(candidate, record=record)
        folder = self.folder / record.id
        save(folder, self.base.graph, candidate.network, candidate.encodings)
        per_sample = candidate.measurement.per_sample
        write_json(
            folder / "meta.json",
            {
                "key": candidate.key,
                "record": json.loads(record.model_dump_json()),
                "value": finite(candidate.measurement.value),
                "per_sample": None if per_sample is None else [finite(score) for score in per_sample.tolist()],
            },
        )
        self.progress.candidate(record)
        return candidate

    def recall(self, name: str, key: str) -> Candidate | None:
        """Return a candidate that an earlier run of the same work stored in this folder; None where there is none.

        It is judged anew, since the gate may have changed; nothing is computed.
        """
        folder = self.folder / name
        if not (folder / "meta.json").exists():
            return None
        try:
            meta = read_json(folder / "meta.json")
            if meta["key"] != key:
                return None
            network, encodings = load(folder, self.base.graph)
        except (RunFolderError, CaptureError, KeyError, OSError) as error:
            self.progress.note(f"{folder} cannot be used again ({error}): doing that rung anew")
            return None
        measurement = _measurement(meta, self.fp32.higher_is_better)
        decision = decide(self.recipe.gate, self.fp32, measurement, self.recipe.seed)
        record = CandidateRecord.model_validate(meta["record"]).model_copy(
            update={"verdict": decision.verdict, "passed": decision.passed, "resumed": True}
        )
        return Candidate(record, network, encodings, measurement, key)

    def best(self, candidates: Iterable[Candidate]) -> Candidate:
        """Return the best of some candidates: one that passes first, then the metric, then the SQNR."""
        by_id = {candidate.record.id: candidate for candidate in candidates}
        ranked = [
            (name, one.measurement, one.record.passed, _or_nan(one.record.sqnr_db)) for name, one in by_id.items()
        ]
        return by_id[best_of(ranked)]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _measurement(meta: Mapping[str, Any], higher_is_better: bool) -> Measurement:
    """Return a stored measurement; null was not a finite number."""
    scores = meta["per_sample"]
    per_sample = None if scores is None else np.array([_or_nan(score) for score in scores], dtype=np.float64)
    return Measurement(_or_nan(meta["value"]), per_sample, higher_is_better)


def _record(
    name: str,
    stage: str,
    steps: tuple[str, ...],
    fp32: Measurement,
    evaluation: Evaluation,
    decision: Decision,
    notes: Mapping[str, Note],
    seconds: float,
) -> CandidateRecord:
    return CandidateRecord.model_validate(
        {
            "id": name,
            "stage": stage,
            "steps": steps,
            "value": finite(evaluation.measurement.value),
            "fp32": finite(fp32.value),
            "drop": finite(decision.drop),
            "drop_low": finite(decision.low),
            "drop_high": finite(decision.high),
            "verdict": decision.verdict,
            "passed": decision.passed,
            "sqnr_db": finite(evaluation.sqnr_db),
            "kept": True,
            "seconds": seconds,
            "notes": dict(notes),
        }
    )
