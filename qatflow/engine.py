"""The run as a story. Start reading here.

Load the task, capture the model, measure FP32, climb the ladder, judge the best rung on the test part, train only if
it misses the gate, export the best candidate, run the exported file. Everything finished is in the run folder at once;
a second start on the same folder goes on from there.
"""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from qatflow.bench import Bench
from qatflow.candidates import Candidate
from qatflow.environment import environment
from qatflow.errors import QatflowError, RunFolderError
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
from qatflow.result import SCHEMA_VERSION, CandidateRecord, RunResult, Verification
from qatflow.store import read_json, write_json, write_text
from qatflow.tasks.task import load_task
from qatflow.tensor_records import float_tensors, tensors

logger = logging.getLogger(__name__)


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
        _tell_older(journal, folder)
        write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        journal.stage("load: model, data and metric")
        task = load_task(recipe, trust)
        write_json(folder / "environment.json", environment(str(task.device), recipe.seed))
        journal.stage("capture: export the model as one graph")
        base = Network(prepare(capture(task.model, *task.example(), recipe.data.mask), TARGETS[recipe.target]))
        bench = Bench(recipe, task, base, folder, journal)
        bench.announce()
        if recipe.qat.when != "never":
            _check_training(bench, journal)
        journal.stage("fp32: measure the model as it is")
        bench.baseline()
        journal.update(fp32=bench.testing.fp32.value, gate=bench.gate_record)
        candidates = shippable(bench, climb(bench))
        best = _choose(bench, journal, candidates)
        if recipe.qat.when == "always" or (recipe.qat.when == "missed" and not bench.judge(best).passed):
            trained = _trained(bench, journal, best)
            best = _choose(bench, journal, [*candidates, *trained])
        journal.stage("export: the best candidate as files")
        shipped = export(bench, best, folder)
        journal.update(artefacts=shipped.artefacts, export_notes=shipped.notes)
        if shipped.to_verify is not None and recipe.export.verify:
            journal.stage("verify: run the exported file in its runtime")
            _tell_deployed(journal, bench.judge(best).passed, folder, *verify(bench, best, shipped.to_verify))
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


def _tell_older(journal: Journal, folder: Path) -> None:
    """Say so where the folder holds results of another schema, of which nothing is taken over."""
    try:
        version = read_json(folder / "result.json")["schema_version"]
    except (RunFolderError, LookupError, TypeError):
        return  # there is none yet, or it is damaged and written anew
    if version != SCHEMA_VERSION:
        journal.note(
            f"{folder} holds results of schema {version}, and this qatflow writes schema {SCHEMA_VERSION}: all is done "
            "anew; trials of an older study stay in its study.db and are not used"
        )


def _check_training(bench: Bench, journal: Journal) -> None:
    """Find what would stop training while nothing is lost by it; a failure of the user's own code is told early.

    Raises:
        QatflowError: the recipe or the data have a mistake.
    """
    try:
        check_training(bench)
    except QatflowError:
        raise
    except Exception as error:  # noqa: BLE001  # the user's loader or loss raises whatever it likes
        journal.note(f"training cannot work as it is: {_said(error)}; the ladder is climbed all the same")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _choose(bench: Bench, journal: Journal, candidates: list[Candidate]) -> Candidate:
    """Return the candidate to ship, and record what the gate says of it."""
    best = bench.choose(candidates)
    judged = bench.judge(best)
    journal.update(best=judged.id, verdict=judged.verdict, passed=judged.passed, looks=bench.looks)
    return best


def _trained(bench: Bench, journal: Journal, start: Candidate) -> list[Candidate]:
    """Return what QAT makes of a candidate; where it fails, that is told, and what the ladder found is shipped."""
    from qatflow.qat.search import search  # Lightning Fabric takes seconds to import

    try:
        found = search(bench, start, bench.run_folder, judged=lambda one: bench.judge(one).passed)
    except Exception as error:  # the user's loader and loss, Optuna, its database: any of them
        said = str(error) if isinstance(error, QatflowError) else _said(error)
        logger.exception("QAT failed")
        journal.update(training_error=said)
        journal.note(f"QAT failed, and the best rung of the ladder is shipped: {said}")
        return []
    if found.error:
        journal.update(training_error=found.error)
    return [] if found.winner is None else [found.winner]


def _tell_deployed(
    journal: Journal, passed: bool, folder: Path, deployed: CandidateRecord, found: Verification
) -> None:
    """Record what the exported file does; one that misses the gate is no success, whatever the simulation promised."""
    write_json(folder / "export" / "verification.json", {**found.model_dump(mode="json"), "verdict": found.verdict})
    artefacts = {**journal.result.artefacts, "verification": "export/verification.json"}
    journal.candidate(deployed)
    journal.update(deployed=deployed.value, verification=found, artefacts=artefacts)
    if found.verdict != "verified":
        journal.note(found.sentence)
    if passed and not deployed.passed:
        journal.update(verdict=deployed.verdict, passed=False)
