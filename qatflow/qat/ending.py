"""When a search is over: enough trials, no time left, a trial that meets the gate, or trials that fail alike.

All of it follows from the study, so that every worker comes to the same answer.
"""

from __future__ import annotations

import time
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from qatflow.qat import notes, stored
from qatflow.recipe import Gate, Recipe
from qatflow.results.gate import Measurement, meets
from qatflow.results.result import CandidateRecord
from qatflow.results.store import key_of

START, DEADLINE, FP32, MISSED = "start", "deadline", "fp32", "missed_on_test"
MOST_ERRORS = 3
"""Trials that raised exceptions, each another one, after which a search ends; two that raise the same suffice."""


def begin(study: optuna.Study, max_time: float | None) -> None:
    """Begin anew: with the time that all workers have, and with neither errors nor damaged models so far."""
    now = time.time()
    study.set_user_attr(START, now)
    study.set_user_attr(DEADLINE, None if max_time is None else now + max_time)
    study.set_user_attr(stored.DAMAGED, [])


def done(study: optuna.Study, recipe: Recipe, *, begun: bool) -> bool:
    """Tell whether no further trial is wanted; with `begun`, those that are under way count as well."""
    trials = notes.begun(study) if begun else notes.finished(study)
    if len(trials) >= recipe.search.max_trials or early(study, recipe):
        return True
    return recipe.search.stop_at_gate and met(study, recipe.gate) is not None


def early(study: optuna.Study, recipe: Recipe) -> str:
    """Return what ends the search before all trials are over, whatever they come to; an empty string for nothing."""
    if len(notes.finished(study)) >= recipe.search.max_trials:
        return ""
    return failing(study) or (f"search.max_time, {recipe.search.max_time:g} s, is over" if late(study) else "")


def late(study: optuna.Study) -> bool:
    """Tell whether the study's time is up."""
    deadline = study.user_attrs.get(DEADLINE)
    return deadline is not None and time.time() > deadline


def note_fp32(study: optuna.Study, fp32: Measurement) -> None:
    """Note FP32's value on the validation part, which trials are compared with."""
    study.set_user_attr(FP32, fp32.value)


def met(study: optuna.Study, gate: Gate) -> FrozenTrial | None:
    """Return the best trial that has a model if it meets the gate on the validation part, by point estimate.

    None as well where it was judged on the test part since, by the same gate, and missed.
    """
    trial, fp32 = stored.best(study), study.user_attrs.get(FP32)
    if trial is None or fp32 is None or _has_missed(study, gate, trial.number):
        return None
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert trial.value is not None
    return trial if meets(gate, Measurement(fp32, None, higher), Measurement(trial.value, None, higher)) else None


def note_missed(study: optuna.Study, gate: Gate, number: int, record: CandidateRecord | None) -> None:
    """Note that a trial misses this gate on the test part, and what is told of that."""
    every, key = study.user_attrs.get(MISSED, {}), _key(gate)
    one = {"trial": number, "record": record and record.model_dump(mode="json")}
    study.set_user_attr(MISSED, {**every, key: [*every.get(key, []), one]})


def missed(study: optuna.Study, gate: Gate) -> list[tuple[int, CandidateRecord]]:
    """Return the trials that missed this gate on the test part, in order, with what was told of them."""
    found = _missed(study, gate)
    return [(one["trial"], CandidateRecord.model_validate(one["record"])) for one in found if one["record"]]


def _missed(study: optuna.Study, gate: Gate) -> list[dict[str, Any]]:
    noted: list[dict[str, Any]] = study.user_attrs.get(MISSED, {}).get(_key(gate), [])
    return noted


def _has_missed(study: optuna.Study, gate: Gate, number: int) -> bool:
    return any(one["trial"] == number for one in _missed(study, gate))


def errors(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that raised exceptions since the search was begun."""
    start = study.user_attrs.get(START)
    ended = notes.to_tell(study)
    return [one for one in ended if notes.ERROR in one.user_attrs and one.user_attrs.get(START) == start]


def failing(study: optuna.Study) -> str:
    """Return what ends a search whose trials raise exceptions: the same one twice, or too many."""
    seen: dict[str, int] = {}
    raised, numbers = errors(study), notes.numbers(study)
    for trial in raised:
        text = trial.user_attrs[notes.ERROR]
        if text in seen:
            return f"trials {seen[text]} and {numbers[trial.number]} failed alike: {text}"
        seen[text] = numbers[trial.number]
    last = raised[-1].user_attrs[notes.ERROR] if raised else ""
    return f"{len(raised)} trials failed, the last one by {last}" if len(raised) >= MOST_ERRORS else ""


def _key(gate: Gate) -> str:
    return key_of(gate.model_dump(mode="json"))
