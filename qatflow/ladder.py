"""The ladder: climb the steps, measure after every rung, stop at the first that meets the gate.

The first rung is `naive`, the captured model quantized as it is: what every step has to beat. A rung that makes things
worse is recorded and left out, so that the next one builds on the last that helped. Steps that only prepare the graph
(folding batch norms) are always kept, and always climbed: they are what the target runs.
"""

from __future__ import annotations

import time

import torch

from qatflow.bench import Bench, Candidate
from qatflow.gate import is_worse
from qatflow.judgement import judge
from qatflow.result import Judgement, Note
from qatflow.step_configs import StepConfig
from qatflow.steps import STEPS
from qatflow.store import key_of

NAIVE = "naive"


def climb(bench: Bench) -> list[Candidate]:
    """Return every rung that was measured, in order.

    A rung found in the run folder is not done again. Rungs that prepare nothing and change nothing are left out of
    the list, and told of.

    Raises:
        StepError: a step cannot run on this model.
    """
    kept = _naive(bench)
    rungs = [kept]
    steps = list(bench.recipe.steps.items())
    judgement: Judgement | None = None
    for position, (name, config) in enumerate(steps):
        if _may_stop(bench, kept, [later for _, later in steps[position:]]):
            break
        if judgement is None and config.rounds_weights and not kept.record.passed and bench.recipe.ladder.judge:
            judgement = judge(bench, kept)
            bench.progress.judgement(judgement)
        rung = _rung(bench, name, config, kept, judgement)
        rungs.append(rung)
        if rung.record.kept:
            kept = rung
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
    """Tell whether the gate is met and nothing that prepares the graph is still to come."""
    return bench.recipe.ladder.stop == "gate" and kept.record.passed and not any(step.always_kept for step in later)


def _naive(bench: Bench) -> Candidate:
    key = key_of(bench.key, NAIVE)
    found = bench.recall(NAIVE, key)
    if found is not None:
        bench.progress.candidate(found.record)
        return found
    bench.progress.stage("naive: quantize the model as it is")
    started = time.perf_counter()
    candidate = bench.measure(bench.base, name=NAIVE, stage="ptq", key=key, steps=(), notes={}, started=started)
    return bench.keep(candidate, kept=True)


def _is_wasted(bench: Bench, config: StepConfig, judgement: Judgement | None) -> bool:
    """Tell whether a step cannot lead to the gate; where QAT is to follow, it still gives that a better start."""
    hopeless = judgement is not None and judgement.hopeless
    return hopeless and config.rounds_weights and bench.recipe.qat.when == "never"


def _rung(bench: Bench, name: str, config: StepConfig, below: Candidate, judgement: Judgement | None) -> Candidate:
    """Apply one step on top of the kept rung below it, and measure."""
    key = key_of(below.key, name, config.model_dump(mode="json"), bench.recipe.ladder.keep_worse)
    found = bench.recall(name, key)
    if found is not None:
        bench.progress.candidate(found.record)
        return found
    started = time.perf_counter()
    if judgement is not None and _is_wasted(bench, config, judgement):
        return _unchanged(bench, name, below, {"reason": judgement.sentence}, key, started)
    bench.progress.stage(f"{name}: {_first_sentence(config)}")
    torch.manual_seed(bench.recipe.seed)
    network, notes = STEPS[name](below.network, config, bench.step_context())
    if network is below.network:
        return _unchanged(bench, name, below, notes, key, started)
    steps = (*below.record.steps, name)
    rung = bench.measure(network, name=name, stage="ptq", key=key, steps=steps, notes=notes, started=started)
    kept, reason = _verdict_on(bench, config, below, rung)
    return bench.keep(rung, kept=kept, reason=reason)


def _verdict_on(bench: Bench, config: StepConfig, below: Candidate, rung: Candidate) -> tuple[bool, str]:
    """Return whether later rungs build on this one, and why not or why all the same."""
    sqnrs = [one.record.sqnr_db if one.record.sqnr_db is not None else float("-inf") for one in (below, rung)]
    if not is_worse(bench.recipe.gate, below.measurement, sqnrs[0], rung.measurement, sqnrs[1]):
        return True, ""
    over = below.record.id
    if config.always_kept:
        return True, f"worse than {over}, kept because the target runs the prepared graph"
    if bench.recipe.ladder.keep_worse:
        return True, f"worse than {over}, kept because of ladder.keep_worse"
    return False, f"left out: worse than {over}"


def _unchanged(
    bench: Bench, name: str, below: Candidate, notes: dict[str, Note], key: str, started: float
) -> Candidate:
    """Record a step that found nothing to do: the scores are those of the rung below."""
    record = below.record.model_copy(
        update={
            "id": name,
            "notes": notes,
            "seconds": time.perf_counter() - started,
            "resumed": False,
        }
    )
    same = Candidate(record, below.network, below.encodings, below.measurement, key)
    return bench.keep(same, kept=False, reason=f"left out: {notes.get('reason', 'it changes nothing')}")


def _first_sentence(config: StepConfig) -> str:
    return (type(config).__doc__ or "").strip().split(".\n")[0].split("\n")[0].rstrip(".")
