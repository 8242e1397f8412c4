"""What the pictures show, apart from how they are drawn.

Each function turns a `RunResult` into a small value, which `charts` lays out; tests read the value instead of pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from qatflow.results.result import CandidateRecord, RunResult, TrialRecord, Verdict


class Rung(NamedTuple):
    """One candidate of the ladder; bounds are of the metric's value, None where there is no interval."""

    name: str
    stage: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    left_out: bool
    best: bool


class LadderInfo(NamedTuple):
    """The metric of candidates on one part of the data, FP32 first."""

    metric: str
    higher_is_better: bool
    fp32: float | None
    limit: float | None
    """The worst value that the gate accepts."""
    rungs: tuple[Rung, ...]


class TrialLine(NamedTuple):
    """The validation metric of one trial, epoch by epoch; epoch 0 is the PTQ start."""

    number: int
    state: str
    lr: float
    range_learning: bool
    epochs: tuple[int, ...]
    values: tuple[float | None, ...]
    best_epoch: int | None
    value: float | None
    best: bool


class TrialsInfo(NamedTuple):
    """All trials of the study."""

    metric: str
    higher_is_better: bool
    start: float | None
    """The PTQ candidate's value on the validation part."""
    lines: tuple[TrialLine, ...]


def chosen(result: RunResult) -> list[CandidateRecord]:
    """Return the rows on the part that candidates are chosen on, FP32 first."""
    return [one for one in result.candidates if one.look is None and one.stage != "deployed"]


def judged(result: RunResult) -> list[CandidateRecord]:
    """Return the rows that the gate's verdicts are from: winners on the test part, and the exported file there."""
    return [one for one in result.candidates if one.look is not None or one.stage == "deployed"]


def ladder_info(result: RunResult) -> LadderInfo:
    """Return what the picture of the ladder shows, on the part that rungs are chosen on; empty without a value."""
    return _info(result, chosen(result), result.best)


def judged_info(result: RunResult) -> LadderInfo:
    """Return what the picture of the verdicts shows; empty where nothing was judged."""
    return _info(result, judged(result), result.best)


def _info(result: RunResult, rows: list[CandidateRecord], best: str | None) -> LadderInfo:
    gate = result.gate
    higher = gate.higher_is_better if gate else True
    fp32 = next((row.fp32 for row in rows), None)
    limit = gate.limit(fp32) if gate and fp32 is not None else None
    rungs = tuple(_rung(row, 1.0 if higher else -1.0, best) for row in rows)
    return LadderInfo(gate.metric if gate else "metric", higher, fp32, limit, rungs)


def trials_info(result: RunResult) -> TrialsInfo:
    """Return what the picture of the QAT trials shows."""
    gate = result.gate
    higher = gate.higher_is_better if gate else True
    best = best_trial(result)
    lines = tuple(_line(trial, trial.number == best) for trial in result.trials)
    starts = (line.values[0] for line in lines if line.epochs[:1] == (0,))
    start = next((value for value in starts if value is not None), None)
    return TrialsInfo(gate.metric if gate else "metric", higher, start, lines)


def best_trial(result: RunResult) -> int | None:
    """Return the number of the trial that QAT's last candidate came from, or else of the best completed one so far.

    The first among equals; None where no trial was completed.
    """
    for candidate in reversed(result.candidates):
        number = candidate.notes.get("trial")
        if candidate.stage == "qat" and any(trial.number == number for trial in result.trials):
            return int(number) if number is not None else None
    sign = 1.0 if result.gate is None or result.gate.higher_is_better else -1.0
    scored = [(sign * one.value, -one.number) for one in result.trials if one.value is not None and _counts(one)]
    return -max(scored)[1] if scored else None


def has_plots(result: RunResult) -> bool:
    """Tell whether Optuna has anything to plot: it leaves failed trials out."""
    return any(trial.state != "failed" for trial in result.trials)


def _counts(trial: TrialRecord) -> bool:
    return trial.state == "complete"


def _rung(candidate: CandidateRecord, sign: float, best: str | None) -> Rung:
    low = high = None
    if candidate.fp32 is not None and candidate.drop_low is not None and candidate.drop_high is not None:
        bounds = (candidate.fp32 - sign * candidate.drop_low, candidate.fp32 - sign * candidate.drop_high)
        low, high = min(bounds), max(bounds)
    return Rung(
        name=candidate.id,
        stage=candidate.stage,
        value=candidate.value,
        low=low,
        high=high,
        verdict=candidate.verdict,
        left_out=candidate.stage == "ptq" and not candidate.kept,
        best=candidate.id == best,
    )


def _line(trial: TrialRecord, best: bool) -> TrialLine:
    return TrialLine(
        number=trial.number,
        state=trial.state,
        lr=trial.lr,
        range_learning=trial.range_learning,
        epochs=tuple(epoch.epoch for epoch in trial.history),
        values=tuple(epoch.value for epoch in trial.history),
        best_epoch=trial.best_epoch,
        value=trial.value,
        best=best,
    )
