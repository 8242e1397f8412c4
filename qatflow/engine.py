"""The run as a story. Start reading here.

Load the task, capture the model, measure FP32, climb the ladder, train only if no rung meets the gate, export the best
candidate, run the exported file. Everything finished is in the run folder at once; a second start on the same folder
goes on from there.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from qatflow.bench import Bench, Candidate
from qatflow.environment import environment
from qatflow.errors import DataError
from qatflow.export.verify import verify
from qatflow.export.write import export
from qatflow.graph.capture import capture
from qatflow.journal import Journal
from qatflow.ladder import climb, shippable
from qatflow.progress import Progress, Silent
from qatflow.qat.check import check_training
from qatflow.quant.network import Network
from qatflow.quant.prepare import prepare
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.result import CandidateRecord, RunResult, Verification
from qatflow.store import write_json, write_text
from qatflow.tasks.task import load_task
from qatflow.tensor_records import float_tensors, tensors


def run(recipe: Recipe, folder: Path, trust: tuple[str, ...] = (), progress: Progress | None = None) -> RunResult:
    """Carry out a recipe and return its result; the run folder holds everything it leaves but the report.

    Args:
        recipe: what to do.
        folder: the run folder; one that an earlier run of the same recipe left is continued.
        trust: packages that factories may be imported from, besides the well-known ones.
        progress: who is told how it gets on.

    Raises:
        QatflowError: the recipe, model or data cannot be used; `result.json` says so as well.
    """
    journal = Journal(recipe, folder, progress or Silent())
    try:
        write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        journal.stage("load: model, data and metric")
        task = load_task(recipe, trust)
        write_json(folder / "environment.json", environment(str(task.device), recipe.seed))
        journal.stage("capture: export the model as one graph")
        base = Network(prepare(capture(task.model, *task.example()), TARGETS[recipe.target]))
        bench = Bench(recipe, task, base, folder, journal)
        bench.placement(base)  # tells mistakes about layers before anything is measured
        if recipe.qat.when != "never":
            check_training(bench)
        journal.stage("fp32: measure the model as it is")
        fp32 = bench.baseline()
        if fp32.value is None:
            message = f"FP32's {task.metric.name} is not finite: check the model, its weights and the data"
            raise DataError(message)
        journal.update(fp32=fp32.value, gate=bench.gate_record)
        rungs = climb(bench)
        candidates = shippable(bench, rungs)
        best = bench.best(candidates)
        _tell_best(journal, best)
        if recipe.qat.when == "always" or (recipe.qat.when == "missed" and not best.record.passed):
            from qatflow.qat.search import search  # Lightning Fabric takes seconds to import

            trained = search(bench, best, folder)
            best = bench.best([*candidates, *([trained] if trained is not None else [])])
            _tell_best(journal, best)
        journal.stage("export: the best candidate as files")
        shipped = export(bench, best, folder)
        journal.update(artefacts=shipped.artefacts, export_notes=shipped.notes)
        if shipped.to_verify is not None and recipe.export.verify:
            journal.stage("verify: run the exported file in its runtime")
            _tell_deployed(journal, best, folder, *verify(bench, best, shipped.to_verify))
        journal.close_stage()
        return journal.update(
            status="finished",
            tensors=tensors(bench, best),
            float_tensors=float_tensors(bench, best),
        )
    except BaseException as error:
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        journal.close_stage()
        journal.update(status="interrupted" if interrupted else "failed", error=str(error) or type(error).__name__)
        raise


def _tell_deployed(
    journal: Journal, best: Candidate, folder: Path, deployed: CandidateRecord, found: Verification
) -> None:
    """Record what the exported file does; one that misses the gate is no success, whatever the simulation promised."""
    write_json(folder / "export" / "verification.json", {**found.model_dump(mode="json"), "verdict": found.verdict})
    artefacts = {**journal.result.artefacts, "verification": "export/verification.json"}
    journal.candidate(deployed)
    journal.update(deployed=deployed.value, verification=found, artefacts=artefacts)
    if found.verdict != "verified":
        journal.note(found.sentence)
    if best.record.passed and not deployed.passed:
        journal.update(verdict=deployed.verdict, passed=False)


def _tell_best(journal: Journal, best: Candidate) -> None:
    journal.update(best=best.record.id, verdict=best.record.verdict, passed=best.record.passed)
