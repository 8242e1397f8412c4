"""The bench: everything a candidate is built and measured with, the same for every candidate of a run.

A candidate is a network, quantized, calibrated and measured beside FP32. Candidates are compared with one another on
the choosing part of the data: `validation` where there is one, else `test`. The gate judges on `test`: every candidate
that it is asked about there is a look, and each further look is taken at less risk, since whoever looks often enough
finds a candidate that is lucky. Candidates and looks are stored under a key that says all they depend on, and found
again by that key.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qatflow.errors import DataError
from qatflow.ladder import candidates as shelf
from qatflow.ladder.candidates import Candidate, Work
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding
from qatflow.quant.kernel_bits import bits_without_kernels
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.saved import finite
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Recipe
from qatflow.results.gate import Measurement, allowed_drop, best_of, decide, meets
from qatflow.results.progress import Progress
from qatflow.results.result import CandidateRecord, GateRecord, OutputRecord, Part, Verdict
from qatflow.results.store import key_of, read_usable, write_json
from qatflow.results.tables import write_rows
from qatflow.steps.context import StepContext, Trial
from qatflow.steps.set_precision import designs_of
from qatflow.tasks.data import Batch
from qatflow.tasks.evaluate import Evaluation, Evaluator
from qatflow.tasks.evaluation_data import EvaluationData
from qatflow.tasks.fitting import with_fitted_metric
from qatflow.tasks.splits import naming
from qatflow.tasks.task import Task

SAME_SAMPLES = "It was chosen on the same samples, since the data has no validation part."


@dataclass
class Ground:
    """One part of the data that candidates are measured on, and FP32's measurement there."""

    part: Part
    evaluator: Evaluator
    fp32: Measurement
    resumed: bool = False
    """Whether an earlier start measured FP32."""

    @property
    def samples(self) -> int:
        """How many there are that count: one whose labels are all ignored does not."""
        return self.fp32.size


class Bench:
    """Builds, measures, judges and keeps candidates.

    Args:
        recipe: the run.
        task: its model, data and metric, on the run's device.
        base: the captured FP32 network.
        folder: the run folder.
        progress: who is told of every candidate.
    """

    choosing: Ground
    testing: Ground
    hashes: dict[str, str]
    """Of the captured model with its weights, and of the samples of every part that is used; there with `key`."""
    key: str
    """Hash of all that a candidate depends on but its steps; there once FP32 is measured, which hashes the data."""

    def __init__(self, recipe: Recipe, task: Task, base: Network, folder: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.task = task = with_fitted_metric(task, base.graph)
        self.base = base
        self.run_folder = folder
        self.folder = folder / "candidates"
        self.progress = progress
        self.evaluation = EvaluationData(folder, task.evaluation_parts, recipe.data, progress.note)
        self.looks = 0
        self._judged: dict[str, CandidateRecord] = {}

    def baseline(self) -> CandidateRecord:
        """Measure FP32, which every candidate is compared with; returns its record on the choosing part.

        Raises:
            DataError: it is not finite.
        """
        self.hashes = self.task.hashes(self.base.graph, self.progress.note)
        key = self.task.key(self.hashes)
        self.choosing = self._ground(self.task.choosing_part, key)
        self.testing = self.choosing if self.task.choosing_part == "test" else self._ground("test", key)
        self.hashes |= {part: self.evaluation.hash(part) for part in self.task.evaluation_parts}
        self.key = key_of(
            key, self.base.design.target.fingerprint, self.hashes[self.choosing.part], self.hashes["test"]
        )
        return self._tell_fp32(self.choosing)

    def _ground(self, part: Part, key: str) -> Ground:
        """Measure FP32 on a part and hash its samples, or recall both where an earlier start did that."""
        data, task = self.evaluation, self.task
        evaluator = Evaluator(
            self.base.graph, lambda: data.recording(part, task.part(part)), task.metric, task.device, part
        )
        with naming(part):
            data.known(part)
        found = data.fp32(part, key)
        if found is not None:
            return Ground(part, evaluator, found, resumed=True)
        measurement = evaluator.evaluate(self.base.graph).measurement
        if finite(measurement.value) is None:
            message = f"FP32's {task.metric.name} is not finite on the {part} part: check model, data and metric"
            raise DataError(message)
        data.keep_fp32(part, key, measurement)
        return Ground(part, evaluator, measurement)

    def _tell_fp32(self, ground: Ground) -> CandidateRecord:
        value = ground.fp32.value
        record = CandidateRecord(
            id="fp32",
            stage="fp32",
            part=ground.part,
            samples=ground.samples,
            value=value,
            fp32=value,
            drop=0.0,
            drop_low=None,
            drop_high=None,
            verdict=Verdict.BASELINE,
            passed=True,
            sqnr_db=None,
            kept=True,
            seconds=0.0,
            resumed=ground.resumed,
        )
        self.progress.candidate(record)
        return record

    @property
    def gate_record(self) -> GateRecord:
        """The gate as it is applied; FP32 must have been measured."""
        gate, testing = self.recipe.gate, self.testing
        return GateRecord(
            metric=self.task.metric.name,
            higher_is_better=self.task.metric.higher_is_better,
            max_drop=finite(allowed_drop(gate, testing.fp32.value)),
            max_drop_text=str(gate.drop_limit or ""),
            max_drop_share=gate.drop_limit.amount if gate.drop_limit and gate.drop_limit.relative else None,
            worst_value=gate.worst_value,
            strict=gate.strict,
            confidence=gate.confidence,
            samples=testing.samples,
            chosen_on=self.choosing.part,
            chosen_samples=self.choosing.samples,
        )

    def step_context(self, refit: Callable[[Network], Network] | None = None) -> StepContext:
        """Return what the ladder's steps work with."""
        return StepContext(
            inputs=self.task.calibration_inputs,
            seed=self.recipe.seed,
            progress=self.progress,
            measure=self.try_out,
            refit=refit,
            table=lambda name, rows: write_rows(self.run_folder / f"{name}.csv", rows),
        )

    def try_out(self, simulation: Simulation) -> Trial:
        """Return what the gate says of a simulation on the choosing part; nothing is stored of it but the look."""
        evaluation = self.choosing.evaluator.evaluate(simulation.model)
        if self.choosing is self.testing:
            self._look(key_of(self.key, "trial", simulation.design.to_record().model_dump(mode="json")))
        value, sqnr = evaluation.measurement.value, evaluation.sqnr_db
        ordered = value if self.task.metric.higher_is_better else -value
        passed = meets(self.recipe.gate, self.choosing.fp32, evaluation.measurement)
        return Trial(passed, value, (_number(ordered), _number(sqnr)))

    def announce(self) -> None:
        """Tell what is known of the recipe's bits and layers before anything is measured.

        Raises:
            PlacementError: the target quantizes no weighted layer.
            RecipeError: a pattern of the recipe's overrides, or of its step `set_precision`, matches nothing.
        """
        told: dict[str, None] = {}
        for network in designs_of(self.recipe, self.base):
            told |= dict.fromkeys(bits_without_kernels(place(network), network.design.target))
        for sentence in told:
            self.progress.note(sentence)

    def simulate(self, network: Network, encodings: Mapping[str, Encoding] | None = None) -> Simulation:
        """Return a network's simulation, with these encodings or else calibrated."""
        simulation = Simulation(network)
        if encodings is not None:
            simulation.load_encodings(encodings)
        else:
            simulation.calibrate(self.task.calibration_inputs(network.design.calibration.samples))
        return simulation

    def measure(
        self,
        network: Network,
        work: Work,
        *,
        key: str,
        started: float,
        encodings: Mapping[str, Encoding] | None = None,
    ) -> Candidate:
        """Quantize, calibrate and measure a network on the choosing part; nothing is stored yet.

        Args:
            network: the candidate's float network.
            work: what was done for it; the time is added.
            key: hash of all it depends on.
            started: `time.perf_counter()` when its work began.
            encodings: those to use; None calibrates.
        """
        simulation = self.simulate(network, encodings)
        evaluation = self.choosing.evaluator.evaluate(simulation.model)
        done = replace(work, seconds=work.seconds + time.perf_counter() - started)
        return self.candidate(done, network, simulation.encodings(), evaluation, key)

    def candidate(
        self, work: Work, network: Network, encodings: Mapping[str, Encoding], evaluation: Evaluation, key: str
    ) -> Candidate:
        """Return a candidate with its record on the choosing part, where it passes by its point estimate."""
        record = self._record(work, network.design, evaluation, self.choosing)
        passed = meets(self.recipe.gate, self.choosing.fp32, evaluation.measurement)
        record = record.model_copy(update={"passed": passed})
        return Candidate(record, work, network, encodings, evaluation, key)

    def keep(self, candidate: Candidate, *, kept: bool, reason: str = "") -> Candidate:
        """Settle whether later rungs build on a candidate, store it if it is new, and tell of it; returns it so."""
        settled = replace(candidate, record=candidate.record.model_copy(update={"kept": kept, "reason": reason}))
        if not candidate.work.resumed:
            shelf.store(self.folder / candidate.work.id, self.base.graph, settled)
        if self.choosing is self.testing:
            self._look(candidate.key)
        self.progress.candidate(settled.record)
        return settled

    def recall(self, name: str, key: str) -> Candidate | None:
        """Return a candidate that an earlier start of the same work stored in this folder; None where there is none.

        Nothing is computed, and nothing that was decided then is taken over.
        """
        found = shelf.recall(self.folder / name, self.base, key)
        if isinstance(found, str):
            if found:
                self.progress.note(found)
            return None
        return self.candidate(found.work, found.network, found.encodings, found.evaluation, key)

    def judge(self, candidate: Candidate) -> CandidateRecord:
        """Return what the gate says of a candidate on the test part; a second question is no second look."""
        if candidate.key not in self._judged:
            look = self._look(candidate.key)
            evaluation = candidate.evaluation if self.choosing is self.testing else self._on_test(candidate)
            record = self._record(candidate.work, candidate.network.design, evaluation, self.testing, look)
            if self.choosing is self.testing:
                record = record.model_copy(update={"sentence": f"{record.sentence} {SAME_SAMPLES}".strip()})
            self._judged[candidate.key] = record
            self.progress.candidate(record)
        return self._judged[candidate.key]

    def judged(self, key: str) -> CandidateRecord | None:
        """Return what the gate said of a candidate on the test part; None where it was not asked."""
        return self._judged.get(key)

    def judged_before(self, key: str, record: CandidateRecord) -> None:
        """Take over what the gate said of a candidate at an earlier start, and tell of it as then."""
        self._judged[key] = record.model_copy(update={"resumed": True})
        self._look(key)
        self.progress.candidate(self._judged[key])

    def _on_test(self, candidate: Candidate) -> Evaluation:
        """Measure a candidate on the test part, or recall what an earlier start measured."""
        folder = self.folder / candidate.work.id
        found = shelf.recall_test(folder, candidate.key)
        if found is not None:
            return found
        self.progress.stage(f"judge: {candidate.work.id} on the test part")
        simulation = self.simulate(candidate.network, candidate.encodings)
        evaluation = self.testing.evaluator.evaluate(simulation.model)
        write_json(folder / shelf.TEST, {"key": candidate.key, "evaluation": shelf.to_json(evaluation)})
        return evaluation

    def _look(self, key: str) -> int:
        """Return which look at the test part a candidate is, from 1; earlier starts on this folder have looked as well.

        Where candidates are chosen on the test part, every one that was measured is a look.
        """
        path = self.run_folder / "looks.json"
        stored = found if isinstance(found := read_usable(path, self.progress.note), dict) else {}
        known = stored.get("looks") if stored.get("key") == self.key else None
        looks = known if isinstance(known, list) else []
        if key not in looks:
            looks.append(key)
            write_json(path, {"key": self.key, "looks": looks})
        self.looks = len(looks)
        return looks.index(key) + 1

    def deployed(self, evaluation: Evaluation, winner: Candidate, seconds: float, ground: Ground) -> CandidateRecord:
        """Judge what the winner's exported file measured: no further chance to pass, and so no further look."""
        work = Work("deployed", "deployed", winner.work.steps, {"of": winner.work.id}, seconds)
        return self._record(work, winner.network.design, evaluation, ground, self.judge(winner).look)

    def first_of_test(self, most: int | None) -> Ground:
        """Return the test part, or so many of its samples and some to the end of the batch, measured with FP32."""
        if most is None or self.testing.samples <= most:
            return self.testing
        task = self.task
        evaluator = Evaluator(self.base.graph, lambda: _first(task.test(), most), task.metric, task.device, "test")
        return Ground("test", evaluator, evaluator.evaluate(self.base.graph).measurement)

    def choose(self, candidates: Iterable[Candidate]) -> Candidate:
        """Return the candidate to ship: the best on the choosing part, unless it misses on test and another has passed.

        It is judged on the test part if it was not yet.
        """
        every = list(candidates)
        best = self.best(every)
        if self.judge(best).passed:
            return best
        passed = [one for one in every if one.key in self._judged and self._judged[one.key].passed]
        return self.best(passed) if passed else best

    def best(self, candidates: Iterable[Candidate]) -> Candidate:
        """Return the best of some on the choosing part: one that meets the gate, then the metric, then the SQNR."""
        by_id = {candidate.record.id: candidate for candidate in candidates}
        ranked = [(name, one.measurement, one.record.passed, one.evaluation.sqnr_db) for name, one in by_id.items()]
        return by_id[best_of(ranked)]

    def _record(
        self, work: Work, design: Design, evaluation: Evaluation, ground: Ground, look: int | None = None
    ) -> CandidateRecord:
        decision = decide(self.recipe.gate, ground.fp32, evaluation.measurement, self.recipe.seed, looks=look or 1)
        return CandidateRecord(
            id=work.id,
            stage=work.stage,
            steps=work.steps,
            design=design.to_record(),
            part=ground.part,
            look=look,
            samples=ground.samples,
            value=finite(evaluation.measurement.value),
            fp32=finite(ground.fp32.value),
            drop=finite(decision.drop),
            drop_low=finite(decision.low),
            drop_high=finite(decision.high),
            confidence=finite(decision.confidence),
            lost=decision.lost,
            gained=decision.gained,
            needed=decision.needed,
            verdict=decision.verdict,
            passed=decision.passed,
            sentence=decision.sentence,
            sqnr_db=finite(evaluation.sqnr_db),
            outputs=_outputs(evaluation),
            kept=True,
            seconds=work.seconds,
            resumed=work.resumed,
            notes=dict(work.notes),
        )


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _first(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Yield batches until they have so many samples."""
    for batch in batches:
        yield batch
        most -= batch.size
        if most <= 0:
            return


def _outputs(evaluation: Evaluation) -> tuple[OutputRecord, ...]:
    """Return a record of every output, where there are several."""
    if len(evaluation.outputs) < 2:
        return ()
    return tuple(OutputRecord(name=name, sqnr_db=finite(ratio)) for name, ratio in evaluation.outputs)
