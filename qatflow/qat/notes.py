"""What is noted with a trial that Optuna has no field for, and the trial's record made of it."""

from __future__ import annotations

import json
import math
import socket
from dataclasses import asdict

import optuna
from optuna.trial import FrozenTrial, TrialState

from qatflow.qat.schedule import Settings
from qatflow.qat.train import Outcome
from qatflow.quant import fused
from qatflow.quant.saved import finite
from qatflow.results.result import EpochRecord, TrialRecord
from qatflow.users_code import said

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SETTINGS, HISTORY, FAILED, ERROR, PROBE = "settings", "history", "failed", "error", "probe"
CONTINUES = "continues"
"""Number of the trial that this one goes on with: the first one, which has the checkpoint."""
CANDIDATES = "candidates"
"""The folder that has the trial's files, where runs in several folders share a study."""
KERNELS = "kernels"
"""Whether trials train with compiled kernels, by the name of the machine."""
PRUNED = "pruned: it lagged behind the other trials"


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, in order: one that was abandoned, or raised an exception, has no history."""
    return [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if counts(trial)]


def counts(trial: FrozenTrial) -> bool:
    """Tell whether a trial that ended has come to something.

    One that did well and failed all the same was cut off after that was noted and before Optuna was told.
    """
    return HISTORY in trial.user_attrs and (trial.state != TrialState.FAIL or has_failed(trial))


def has_failed(trial: FrozenTrial) -> bool:
    """Tell whether training has noted that it came to nothing, by itself."""
    return bool(trial.user_attrs.get(FAILED)) and HISTORY in trial.user_attrs


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are being trained."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count or are being trained, in order.

    By one look at the study: a trial that ends between two looks would be in neither.
    """
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    return [trial for trial in trials if trial.state == TrialState.RUNNING or counts(trial)]


def to_tell(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that a person is told of: the finished ones, and those that raised an exception."""
    ended = study.get_trials(deepcopy=False, states=FINISHED)
    return [trial for trial in ended if _is_told(trial)]


def numbers(study: optuna.Study) -> dict[int, int]:
    """Return the numbers by which people are told of trials, by Optuna's.

    A trial that was cut off, and the one that goes on with it, are two to Optuna and one to people, so that a study
    that was killed has the numbers of one that nobody disturbed. One that raised an exception counts, and so does the
    one that tries again.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if SETTINGS in trial.user_attrs]
    first: dict[int, int] = {}
    order: dict[int, tuple[int, int]] = {}
    for trial in trials:
        origin = trial.user_attrs.get(CONTINUES, trial.number)
        order[trial.number] = first.setdefault(origin, trial.number), trial.number
        if ERROR in trial.user_attrs:
            del first[origin]
    cut_off = {one.number for one in trials if one.state == TrialState.FAIL and not _is_told(one)}
    return {number: place for place, number in enumerate(sorted(order.keys() - cut_off, key=order.__getitem__))}


def _is_told(trial: FrozenTrial) -> bool:
    return counts(trial) or ERROR in trial.user_attrs


def compiled(study: optuna.Study, device: str) -> bool:
    """Tell whether trials train with compiled kernels on this machine: as its first one did, noted before it began."""
    known, host = study.user_attrs.get(KERNELS, {}), socket.gethostname()
    if host not in known:
        known = {**known, host: isinstance(fused.kernels(device), fused.Kernels)}
        study.set_user_attr(KERNELS, known)
    return bool(known[host])


def note_settings(trial: optuna.Trial, settings: Settings) -> None:
    """Note what a trial trains with, once all of it is settled."""
    trial.set_user_attr(SETTINGS, json.dumps(asdict(settings)))


def settings_of(trial: FrozenTrial) -> Settings:
    """Return what a trial trains, or trained, with."""
    return Settings(**json.loads(trial.user_attrs[SETTINGS]))


def note_outcome(trial: optuna.Trial, outcome: Outcome, seconds: float) -> None:
    """Note what a trial came to; from now on it counts."""
    trial.set_user_attr("best_epoch", outcome.best_epoch)
    trial.set_user_attr("best", finite(outcome.best))
    trial.set_user_attr("seconds", seconds)
    trial.set_user_attr("reason", "; ".join(filter(None, (outcome.reason, outcome.stopped))))
    trial.set_user_attr("pruned", outcome.stopped == PRUNED)
    trial.set_user_attr(FAILED, outcome.failed or not math.isfinite(outcome.best))
    trial.set_user_attr(HISTORY, json.dumps([record.model_dump() for record in outcome.history]))


def note_error(trial: optuna.Trial, error: Exception, seconds: float) -> None:
    """Note the exception that ended a trial."""
    trial.set_user_attr("seconds", seconds)
    trial.set_user_attr(ERROR, said(error))


def history_of(trial: FrozenTrial) -> list[EpochRecord]:
    """Return the epochs of a finished trial."""
    return [EpochRecord.model_validate(one) for one in json.loads(trial.user_attrs.get(HISTORY, "[]"))]


def record_of(trial: FrozenTrial, number: int) -> TrialRecord:
    """Return a trial that ended as the result has it, by its number of `numbers`."""
    notes, settings = trial.user_attrs, settings_of(trial)
    state = "failed" if trial.state == TrialState.FAIL else "pruned" if notes.get("pruned") else "complete"
    return TrialRecord.model_validate(
        {
            "number": number,
            "state": state,
            "probe": bool(notes.get(PROBE)),
            "lr": settings.lr,
            "epochs": settings.epochs,
            "decay_period": settings.decay_period,
            "range_learning": settings.range_learning,
            "distillation": settings.distillation,
            "value": notes.get("best"),
            "best_epoch": notes.get("best_epoch"),
            "seconds": notes.get("seconds", 0.0),
            "reason": notes.get(ERROR) or notes.get("reason", ""),
            "history": history_of(trial),
        }
    )
