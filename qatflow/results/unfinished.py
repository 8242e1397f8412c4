"""What is said of a run that did not finish: its gate is not decided, whatever its best candidate so far is worth."""

from __future__ import annotations

from typing import NamedTuple

from qatflow.results.result import CandidateRecord, RunResult

TITLES = {
    "running": "Unfinished: the gate is not decided",
    "interrupted": "Stopped before the gate was decided",
    "failed": "Failed before the gate was decided",
}
MET_TITLES = {
    "running": "Unfinished: the gate is met so far",
    "interrupted": "Stopped after the gate was met",
    "failed": "Failed after the gate was met",
}
STATUS = {
    "running": "The run was still going when this was written.",
    "interrupted": "The run was stopped.",
    "failed": "The run failed.",
}


class Unfinished(NamedTuple):
    """A run that did not finish, in words; what does not apply is empty."""

    title: str
    status: str
    best: str
    """The best candidate so far, with its value and drop."""
    remaining: str
    command: str
    """What goes on with it, to be pasted."""


def unfinished(result: RunResult) -> Unfinished | None:
    """Return what to say of a run that did not finish; None of one that did."""
    if result.status == "finished":
        return None
    best = result.winner
    met = best is not None and best.look is not None and best.passed
    return Unfinished(
        title=(MET_TITLES if met else TITLES)[result.status],
        status=STATUS[result.status],
        best="No candidate was measured." if best is None else _best(result, best),
        remaining=f"What remains: {', '.join(result.remaining)}." if result.remaining else "",
        command=result.command,
    )


def _best(result: RunResult, best: CandidateRecord) -> str:
    """Return a sentence on the best candidate so far."""
    metric = result.gate.metric if result.gate is not None else "metric"
    said = f"Best so far: {best.id}, {metric} {_number(best.value)} on {best.part}, FP32 {_number(best.fp32)}"
    said += f", drop {_number(best.drop)}"
    if result.gate is not None and result.gate.max_drop_text:
        said += f" (allowed: {result.gate.max_drop_text})"
    return f"{said}; {_judged(best)}."


def _judged(best: CandidateRecord) -> str:
    if best.look is None:
        return "it has not been judged on the test part"
    return "it meets the gate on the test part" if best.passed else "on the test part it is worse than the gate allows"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
