"""The run as a story. Start reading here.

Load the task, capture the model, measure FP32, climb the ladder, judge the best rung on the test part, train only if
it misses the gate (and, if the recipe asks, where a forecast says that it is worth it), export the best candidate, run
the exported file. Everything finished is in the run folder at once; a second start on the same folder goes on from
there.
"""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from qatflow.errors import QatflowError, RunFolderError, UserCodeError
from qatflow.export.runtimes import missing
from qatflow.export.speed import sped_up, timed_runtime
from qatflow.export.verify import verify
from qatflow.export.write import export
from qatflow.ladder.batch_memory import check_memory
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.ladder.climb import climb, shippable
from qatflow.ladder.environment import Origin, environment, imported_packages
from qatflow.ladder.lookup import complete, target_of
from qatflow.ladder.suggest import suggestions
from qatflow.ladder.tensor_records import float_tensors, tensors
from qatflow.qat.check import check_training
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Recipe
from qatflow.recipe.trust import LIVE
from qatflow.results import commands
from qatflow.results.journal import Journal
from qatflow.results.progress import Progress, Silent
from qatflow.results.result import SCHEMA_VERSION, CandidateRecord, GateRecord, RunResult, SpeedRecord, Verification
from qatflow.results.store import read_json, write_json, write_text
from qatflow.tasks.doubts import doubts
from qatflow.tasks.live import Parts
from qatflow.tasks.models import weights_file
from qatflow.tasks.task import load_task
from qatflow.users_code import blame_machine, said

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    folder: Path,
    trust: tuple[str, ...] = (),
    progress: Progress | None = None,
    origin: Origin | None = None,
    parts: Parts | None = None,
) -> RunResult:
    """Carry out a recipe and return its result; the run folder holds everything it leaves but the report.

    Args:
        recipe: what to do.
        folder: the run folder; one that an earlier run of the same recipe left is continued.
        trust: packages that factories may be imported from, besides the well-known ones.
        progress: who is told how it gets on.
        origin: how it was asked for; None where it was from Python.
        parts: live objects in the place of those that the recipe calls `live:...`.

    Raises:
        UserCodeError: code of the user's raised; `result.json` says so as well, and `log.txt` has the traceback.
        QatflowError: the recipe, model or data cannot be used; likewise.
    """
    origin = origin or Origin(commands.again(folder, trust, recipe.search.storage))
    journal = Journal(recipe, folder, progress or Silent(), origin.again)
    with journal.to_the_end():
        _tell_older(journal, folder)
        _write_recipe(folder, recipe)
        journal.update()
        journal.stage("load: model, data and metric")
        recipe = complete(recipe, trust)
        _write_recipe(folder, recipe)  # with the defaults of steps from outside
        task = load_task(recipe, trust, parts)
        _tell_unidentified(journal, parts)
        where = environment(recipe, origin, task.device, weights_file(recipe.model))
        write_json(folder / "environment.json", where)
        journal.stage("capture: export the model as one graph")
        design = Design(target_of(recipe.target, trust), recipe.precision, recipe.calibration)
        base = captured_network(task.model, *task.example(), design, recipe.data.mask, recipe.data.free)
        check_memory(task, base)
        bench = Bench(recipe, task, base, folder, journal)
        bench.announce()
        _check_runtime(bench, journal)
        if recipe.qat.when != "never":
            _check_training(bench, journal)
        journal.stage("fp32: measure the model as it is")
        bench.baseline()
        for doubt in doubts(task, base.graph, bench.evaluation):
            journal.note(doubt)
        write_json(folder / "environment.json", {**where, "hashes": bench.hashes})
        journal.update(fp32=bench.testing.fp32.value, gate=bench.gate_record)
        candidates = shippable(bench, climb(bench))
        best = _choose(bench, journal, candidates)
        if _to_be_trained(bench, journal, best):
            trained = _trained(bench, journal, best)
            best = _choose(bench, journal, [*candidates, *trained])
        best = _chosen(bench, journal, sped_up(bench, best))
        shipped = bench.judge(best)
        journal.stage("export: the best candidate as files")
        files = export(bench, best, folder)
        journal.update(artefacts=files.artefacts, export_notes=files.notes)
        if files.to_verify is not None and recipe.export.verify:
            journal.stage("verify: run the exported file in its runtime")
            shipped = _tell_deployed(bench, journal, shipped, *verify(bench, best, files.to_verify))
        _judge_speed(journal, recipe)
        journal.update(tensors=tensors(bench, best), float_tensors=float_tensors(best))
        journal.close_stage()
        write_json(folder / "environment.json", {**where, "hashes": bench.hashes, "packages": imported_packages()})
        _suggest(bench, journal, shipped, trust)
        return journal.update(
            status="finished",
            verdict=shipped.verdict,
            passed=shipped.passed and not journal.result.too_slow,
            metric_passed=shipped.passed,
            remaining=(),
        )


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))


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


def _tell_unidentified(journal: Journal, parts: Parts | None) -> None:
    """Say of which live objects a later session could not tell whether they are the same."""
    for what in parts.unidentified if parts is not None else ():
        journal.note(f"{what} holds what has no text of its own: a later session measures anew instead of resuming")


def _check_runtime(bench: Bench, journal: Journal) -> None:
    """Say at once where the exported file will not be run in the target's own runtime, though it could be.

    Raises:
        RecipeError: the recipe asks for a speed that nothing here can measure.
    """
    if bench.recipe.gate.min_speedup is not None:
        timed_runtime(bench)
    lacking = missing(bench.base.design.target.road) if bench.recipe.export.verify else ""
    if lacking:
        journal.note(f"{lacking}; until then a stand-in runs the exported file node by node, and nothing is timed")


def _check_training(bench: Bench, journal: Journal) -> None:
    """Find what would stop training while nothing is lost by it; a failure of the user's loader is told early.

    Raises:
        QatflowError: the recipe or the data have a mistake.
    """
    try:
        check_training(bench)
    except Exception as error:
        blame_machine(error)
        if isinstance(error, QatflowError) and not isinstance(error, UserCodeError):
            raise
        logger.exception("training cannot work")
        journal.note(f"training cannot work as it is: {said(error)}; the ladder is climbed all the same")


def _choose(bench: Bench, journal: Journal, candidates: list[Candidate]) -> Candidate:
    """Return the candidate to ship, and record what the gate says of it."""
    return _chosen(bench, journal, bench.choose(candidates))


def _chosen(bench: Bench, journal: Journal, best: Candidate) -> Candidate:
    judged = bench.judge(best)
    journal.update(best=judged.id, looks=bench.looks)
    return best


def _to_be_trained(bench: Bench, journal: Journal, best: Candidate) -> bool:
    """Tell whether QAT is begun; a forecast that fails is told of, and keeps nobody from training."""
    when = bench.recipe.qat.when
    if when in ("always", "never") or bench.judge(best).passed:
        return when == "always"
    if when == "missed":
        return True
    from qatflow.qat.forecast import forecast  # as Lightning Fabric below

    try:
        found = forecast(bench, best)
    except Exception as error:  # what QAT fails by as well: the user's loader and loss
        logger.exception("the forecast failed")
        journal.note(f"what QAT may come to cannot be forecast, so it is begun: {said(error)}")
        return True
    journal.forecast(found)
    return found.worthwhile


def _trained(bench: Bench, journal: Journal, start: Candidate) -> list[Candidate]:
    """Return what QAT makes of a candidate; where it fails, that is told, and what the ladder found is shipped."""
    from qatflow.qat.search import search  # Lightning Fabric takes seconds to import

    try:
        found = search(bench, start, bench.run_folder, judged=lambda one: bench.judge(one).passed)
    except Exception as error:  # the user's loader and loss, Optuna, its database: any of them
        logger.exception("QAT failed")
        journal.update(training_error=said(error))
        journal.note(f"QAT failed, and the best rung of the ladder is shipped: {said(error)}")
        return []
    if found.error:
        journal.update(training_error=found.error)
    return [] if found.winner is None else [found.winner]


def _suggest(bench: Bench, journal: Journal, shipped: CandidateRecord, trust: tuple[str, ...]) -> None:
    """Record what to try next; objects of a Python session have no command line."""
    recipe, target = bench.recipe, bench.base.design.target
    if any(f"{LIVE}:" in (one.factory or "") for one in (recipe.model, recipe.data)):
        return
    again = commands.again(bench.run_folder, trust, recipe.search.storage)
    told, checked = journal.result.forecast, journal.result.verification
    untrained = recipe.qat.when == "never" or (told is not None and not told.worthwhile)
    found = suggestions(
        recipe,
        shipped,
        target,
        again,
        passed=shipped.passed,
        trains=bench.task.splits.train is not None and untrained,
        slower=checked is not None and checked.slower,
        trust=trust,
    )
    journal.update(suggestions=found)


def _tell_deployed(
    bench: Bench, journal: Journal, judged: CandidateRecord, deployed: CandidateRecord, found: Verification
) -> CandidateRecord:
    """Record what the exported file does, and return what the run is judged by.

    A file that misses the gate is no success, whatever the simulation promised.
    """
    write_json(
        bench.run_folder / "export" / "verification.json", {**found.model_dump(mode="json"), "verdict": found.verdict}
    )
    artefacts = {**journal.result.artefacts, "verification": "export/verification.json"}
    journal.candidate(deployed)
    journal.update(deployed=deployed.value, verification=found, artefacts=artefacts)
    if found.verdict != "verified":
        journal.note(found.sentence)
    return deployed if judged.passed and _misses(deployed, found, journal.result.gate) else judged


def _judge_speed(journal: Journal, recipe: Recipe) -> None:
    """Hold the exported file's latency against the recipe's second gate, where it has one."""
    wanted, checked = recipe.gate.min_speedup, journal.result.verification
    if wanted is not None:
        latency = checked.latency if checked is not None else None
        journal.update(speed=SpeedRecord.of(latency, wanted, strict=recipe.gate.strict))


def _misses(deployed: CandidateRecord, found: Verification, gate: GateRecord | None) -> bool:
    """Tell whether a file misses the gate; on some of the samples only, where that is beyond chance."""
    if found.of_samples is None or deployed.passed:
        return not deployed.passed
    limit = gate.max_drop if gate is not None else None
    return limit is not None and deployed.drop_low is not None and deployed.drop_low > limit
