"""The ladder: climb the steps, measure after every rung, stop at the first that meets the gate on a prepared graph.

The first rung is `naive`, the captured model quantized as it is: what every step has to beat. A rung that makes things
worse is recorded and left out, so that the next one builds on the last that helped. Steps that only prepare the graph
(folding batch norms) are always kept, and always climbed, even behind a rung that meets the gate: the target runs the
prepared graph, so only rungs from there on can be shipped, a worse one included. Rungs are compared on the choosing
part; one that meets the gate there is judged on the test part, and where it misses there, climbing goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate, Work
from qatflow.ladder.judgement import Judge
from qatflow.ladder.lookup import step_of
from qatflow.quant.network import Network
from qatflow.recipe.steps import FITTING, STEP_CONFIGS, Calibrate, SetPrecision, StepConfig
from qatflow.results.gate import is_worse
from qatflow.results.store import key_of
from qatflow.tasks.randomness import seed_all

NAIVE = "naive"
FOLLOWS = "follows all the same, because the target runs the prepared graph: it or what is built on it is shipped"


def climb(bench: Bench) -> list[Candidate]:
    """Return every rung that was measured, in order.

    A rung found in the run folder is not done again.

    Raises:
        StepError: a step cannot run on this model.
    """
    rungs = [_naive(bench)]
    kept, cured = rungs[0], False
    steps = list(bench.recipe.steps.items())
    for position, (name, config) in enumerate(steps):
        later = [one for _, one in steps[position:]]
        if _may_stop(bench, kept, later):
            return rungs
        if config.rounds_weights and not cured:
            kept, cured = _cured(bench, kept, rungs), True
            if _may_stop(bench, kept, later):
                return rungs
        if _follows(bench, config, kept):
            bench.progress.note(f"{kept.record.id} meets the gate on {kept.record.part}; {name} {FOLLOWS}")
        rungs.append(_rung(bench, name, config, kept))
        kept = rungs[-1] if rungs[-1].record.kept else kept
    if not cured and not _may_stop(bench, kept, []):
        _cured(bench, kept, rungs)
    return rungs


def shippable(bench: Bench, rungs: list[Candidate]) -> list[Candidate]:
    """Return the rungs that may win: those from the last kept preparation on."""
    prepared = [
        position
        for position, rung in enumerate(rungs)
        if (config := bench.recipe.steps.get(rung.record.id)) is not None and config.always_kept and rung.record.kept
    ]
    return rungs[prepared[-1] :] if prepared else rungs


def _may_stop(bench: Bench, kept: Candidate, later: list[StepConfig]) -> bool:
    """Tell whether the gate is met, judged on the test part, and nothing that prepares the graph is still to come."""
    if bench.recipe.ladder.stop != "gate" or any(step.always_kept for step in later):
        return False
    return kept.record.passed and bench.judge(kept).passed


def _follows(bench: Bench, config: StepConfig | None, below: Candidate) -> bool:
    """Tell whether a step is climbed only because the target runs what it prepares: the gate is met without it."""
    prepares = config is not None and config.always_kept
    return prepares and bench.recipe.ladder.stop == "gate" and below.record.passed


def _naive(bench: Bench) -> Candidate:
    key = key_of(bench.key, NAIVE)
    found = bench.recall(NAIVE, key)
    if found is None:
        bench.progress.stage("naive: quantize the model as it is")
        started = time.perf_counter()
        found = bench.measure(bench.base, Work(NAIVE, "ptq"), key=key, started=started)
    return bench.keep(found, kept=True)


def _cured(bench: Bench, kept: Candidate, rungs: list[Candidate]) -> Candidate:
    """Judge activations alone where the gate is missed, and climb what may help them; returns what is built on.

    A step that the recipe has itself is left to it.
    """
    if kept.record.passed or not bench.recipe.ladder.judge:
        return kept
    judge = Judge(bench, kept)
    if _activations_meet(bench, judge):
        return kept
    if "calibrate" not in bench.recipe.steps:
        rungs.append(_rung(bench, "calibrate", Calibrate(), kept))
        if rungs[-1].record.kept:
            kept = rungs[-1]
            judge = Judge(bench, kept)
            if kept.record.passed or _activations_meet(bench, judge):
                return kept
    if not {"set_precision", "mixed_precision"} & {*bench.recipe.steps} and (named := judge.tensors_in_need()):
        rungs.append(_rung(bench, "set_precision", SetPrecision(layers=named), kept))
    return rungs[-1] if rungs[-1].record.kept else kept


def _activations_meet(bench: Bench, judge: Judge) -> bool:
    """Tell whether activations alone meet the gate."""
    judgement = judge.judgement()
    bench.progress.judgement(judgement)
    return judgement.passed


def _rung(bench: Bench, name: str, config: StepConfig, below: Candidate) -> Candidate:
    """Apply one step on top of the kept rung below it, and measure."""
    step = step_of(name, bench.task.trust)
    key = key_of(below.key, name, config.model_dump(mode="json"), step.fingerprint)
    found = bench.recall(name, key)
    if found is None:
        bench.progress.stage(f"{name}: {_first_sentence(config)}")
        started = time.perf_counter()
        seed_all(bench.recipe.seed)
        network, notes = step(below.network, config, bench.step_context(_refit(bench, below)))
        work = Work(name, "ptq", (*below.work.steps, name), notes)
        if network is below.network:
            found = _unchanged(bench, replace(work, steps=below.work.steps), below, key, started)
        else:
            found = bench.measure(network, work, key=key, started=started)
    return _settle(bench, config, below, found)


def _refit(bench: Bench, below: Candidate) -> Callable[[Network], Network] | None:
    """Return what fits weights once more as the steps below did; None where none did, or one that is not ours."""
    fitting = [name for name in below.work.steps if name in FITTING]
    if not fitting or any(name not in STEP_CONFIGS for name in below.work.steps):
        return None

    def refit(network: Network) -> Network:
        for name in fitting:
            seed_all(bench.recipe.seed)
            network, _ = step_of(name, bench.task.trust)(network, bench.recipe.steps[name], bench.step_context())
        return network

    return refit


def _unchanged(bench: Bench, work: Work, below: Candidate, key: str, started: float) -> Candidate:
    """Return the candidate of a step that found nothing to do: the scores are those of the rung below."""
    why = str(work.notes.get("reason", "it changes nothing"))
    work = replace(work, unchanged=why, seconds=time.perf_counter() - started)
    return bench.candidate(work, below.network, below.encodings, below.evaluation, key)


def _settle(bench: Bench, config: StepConfig | None, below: Candidate, rung: Candidate) -> Candidate:
    """Decide whether later rungs build on this one; store and tell of it."""
    if rung.work.unchanged:
        return bench.keep(rung, kept=False, reason=f"left out: {rung.work.unchanged}")
    kept, reason = _verdict_on(bench, config, below, rung)
    return bench.keep(rung, kept=kept, reason=reason)


def _verdict_on(bench: Bench, config: StepConfig | None, below: Candidate, rung: Candidate) -> tuple[bool, str]:
    """Return whether later rungs build on this one, and why not or why all the same."""
    sqnrs = [-math.inf if math.isnan(one.evaluation.sqnr_db) else one.evaluation.sqnr_db for one in (below, rung)]
    if not is_worse(bench.recipe.gate, below.measurement, sqnrs[0], rung.measurement, sqnrs[1]):
        why = f"climbed although {below.record.id} meets the gate: the target runs this graph"
        return True, why if _follows(bench, config, below) else ""
    over = below.record.id
    if config is not None and config.always_kept:
        return True, f"worse than {over}, kept because the target runs the prepared graph"
    if bench.recipe.ladder.keep_worse:
        return True, f"worse than {over}, kept because of ladder.keep_worse"
    return False, f"left out: worse than {over}"


def _first_sentence(config: StepConfig) -> str:
    return (type(config).__doc__ or "").strip().split(".\n")[0].split("\n")[0].rstrip(".")
