"""What the search over QAT's hyper-parameters finds beside the guide's fixed recommendation, which is its first trial.

The shipped recipe `quickstart_qat` (digits, weights of two bits), run twice on one folder: with a single trial, whose
model is then the one that is measured on the test part, and on to all trials, of which the best one is.
"""

from __future__ import annotations

from pathlib import Path

import qatflow
from qatflow.door.composing import plan
from qatflow.recipe import Recipe
from qatflow.results.result import RunResult, TrialRecord

RECIPE = "quickstart_qat"
Row = dict[str, object]


def recipe_of(trials: int, epochs: int | None, seed: int) -> Recipe:
    """Return the shipped recipe with a study that ends after so many trials and not before."""
    overrides = [f"recipe={RECIPE}", f"name={RECIPE}", f"seed={seed}", "qat.when=always"]
    overrides += [f"search.max_trials={trials}", "search.stop_at_gate=false"]
    if epochs is not None:
        overrides.append(f"search.epochs=[{epochs},{epochs}]")
    return plan(overrides).jobs[0].recipe


def rows(folder: Path, trials: int, epochs: int | None, seed: int) -> list[Row]:
    """Return FP32, the ladder's best, and of both the recommendation and the search the best trial."""
    first = qatflow.run(recipe_of(1, epochs, seed), folder)
    whole = qatflow.run(recipe_of(trials, epochs, seed), folder)
    rungs = [one for one in whole.candidates if one.stage == "ptq" and one.value is not None]
    ladder = max(rungs, key=lambda one: one.value)
    return [
        {"what": "FP32", "test": whole.fp32},
        {"what": f"best rung of the ladder: {ladder.id}", "test": ladder.value},
        _row("recommended: trial 0", first, first.trials[0]),
        _row(f"best of {len(whole.trials)} trials", whole, _best(whole)),
    ]


def trials_of(folder: Path) -> list[Row]:
    """Return all trials of a finished run."""
    result = RunResult.model_validate_json((folder / "result.json").read_text())
    return [{**_settings(trial), "state": trial.state, "validation": trial.value} for trial in result.trials]


def _row(what: str, result: RunResult, trial: TrialRecord) -> Row:
    trained = next(one for one in reversed(result.candidates) if one.stage == "qat")
    return {"what": what, "test": trained.value, "validation": trial.value, **_settings(trial)}


def _settings(trial: TrialRecord) -> Row:
    names = ("number", "lr", "epochs", "decay_period", "range_learning", "best_epoch", "seconds")
    return {name: getattr(trial, name) for name in names}


def _best(result: RunResult) -> TrialRecord:
    """Return the best trial; of equal ones the first, as the study does."""
    done = [trial for trial in result.trials if trial.state == "complete" and trial.value is not None]
    return max(done, key=lambda trial: (trial.value, -trial.number))
