"""The Optuna study over QAT's hyper-parameters.

The space is AIMET's guide: the learning rate on a log scale around the FP32 model's final one, 15 to 20 epochs, the
rate divided by 10 every 5 to 10 epochs, range learning on or off. The guide's own recommendation is the first trial,
TPE (Bergstra et al. 2011) proposes the others, and a median pruner ends those that lag behind. The study lives in the
run folder; a second start of the same command goes on with it. Every finished trial that is the best so far is stored
at once.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from qatflow.bench import Bench, Candidate
from qatflow.errors import RunFolderError
from qatflow.gate import Measurement
from qatflow.qat.losses import choose_loss
from qatflow.qat.train import Outcome, Settings, Training, train
from qatflow.quant.saved import finite, load, save
from qatflow.recipe import Recipe
from qatflow.result import EpochRecord, TrialRecord
from qatflow.store import key_of, read_json, write_json
from qatflow.tasks.evaluate import Evaluator

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def search(bench: Bench, start: Candidate, folder: Path) -> Candidate | None:
    """Search, and return the best trial's model measured on the evaluation part; None if every trial failed.

    Args:
        bench: the run's.
        start: the candidate that every trial starts from; it is epoch 0 of all of them.
        folder: the run folder; `study.db` is made in it, or continued.

    Raises:
        DataError: the data has no training or no validation part.
    """
    bench.task.require_training_parts()
    key = key_of(start.key, bench.recipe.model_dump(mode="json", include={"qat", "search", "model"}))
    study = _open_study(bench, key, folder)
    training = _training(bench)
    bench.progress.stage(f"qat: {bench.recipe.search.trials} trials from {start.record.id}")
    for trial in bench.progress.track(_finished(study), "qat: trials taken over", len(_finished(study))):
        bench.progress.trial(_trial_record(trial))
    while len(_finished(study)) < bench.recipe.search.trials:
        _run_trial(bench, start, study, training)
    return _winner(bench, start, study, key)


def _open_study(bench: Bench, key: str, folder: Path) -> optuna.Study:
    """Return the study of this work, its sampler seeded by how far it has come."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{(folder / 'study.db').resolve()}"
    study = optuna.create_study(
        storage=storage,
        study_name=key,
        load_if_exists=True,
        direction="maximize" if bench.task.metric.higher_is_better else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params, skip_if_exists=False)
    done = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=bench.recipe.seed + done, n_startup_trials=4)
    if done == 0:
        study.enqueue_trial(recommended(bench.recipe))
    return study


def recommended(recipe: Recipe) -> dict[str, Any]:
    """Return the guide's own recommendation as Optuna parameters, moved into the recipe's space where it is not."""
    low, high = rate_span(recipe)
    return {
        "lr": min(max(recipe.model.final_lr, low), high),
        "epochs": recipe.search.epochs[1],
        "decay_period": recipe.search.decay_period[0],
        **({"range_learning": True} if recipe.qat.range_learning is None else {}),
    }


def rate_span(recipe: Recipe) -> tuple[float, float]:
    """Return the lowest and highest learning rate of the search."""
    return recipe.search.lr or (recipe.model.final_lr / 10, recipe.model.final_lr * 10)


def _suggest(trial: optuna.Trial, recipe: Recipe) -> Settings:
    low, high = rate_span(recipe)
    fixed = recipe.qat.range_learning
    return Settings(
        lr=trial.suggest_float("lr", low, high, log=True),
        epochs=trial.suggest_int("epochs", *recipe.search.epochs),
        decay_period=trial.suggest_int("decay_period", *recipe.search.decay_period),
        range_learning=trial.suggest_categorical("range_learning", [True, False]) if fixed is None else fixed,
    )


def _training(bench: Bench) -> Training:
    """Return what all trials train with."""
    task, recipe = bench.task, bench.recipe
    evaluator = Evaluator(bench.base.graph, task.validation, task.metric, task.device)
    train_batches = task.train(recipe.qat.batch_size, recipe.seed)
    name, loss = choose_loss(recipe, next(iter(train_batches)).target)
    bench.progress.note(f"QAT trains on {name}")

    def validate(model: Any) -> Measurement:
        return evaluator.evaluate(model).measurement

    fp32 = bench.base.graph if name == "distillation" else None
    return Training(train_batches, validate, loss, fp32, recipe.qat, task.device)


def _run_trial(bench: Bench, start: Candidate, study: optuna.Study, training: Training) -> None:
    """Train one trial, store it if it is the best so far, and tell Optuna."""
    trial = study.ask()
    settings = _suggest(trial, bench.recipe)
    torch.manual_seed(bench.recipe.seed)
    simulation = bench.simulate(start.network, start.encodings)
    ticks = bench.progress.track(range(settings.epochs), f"qat: trial {trial.number}", settings.epochs)

    def report(epoch: int, value: float) -> bool:
        next(ticks, None)
        trial.report(value, epoch)
        return trial.should_prune()

    own = replace(training, train=bench.task.train(bench.recipe.qat.batch_size, bench.recipe.seed), report=report)
    started = time.perf_counter()
    outcome = train(simulation, own, settings)
    for _ in ticks:
        pass
    seconds = time.perf_counter() - started
    failed = outcome.failed or not math.isfinite(outcome.best)
    if not failed and _is_best(study, outcome.best):
        folder = _trial_folder(bench, trial.number)
        save(folder, bench.base.graph, simulation.to_network(), simulation.encodings())
        write_json(folder / "meta.json", {"study": study.study_name, "trial": trial.number})
    _remember(trial, outcome, settings, seconds)
    if failed:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, outcome.best)
    _drop_outdone(bench, study)
    bench.progress.trial(_trial_record(study.get_trials(deepcopy=False)[trial.number]))


def _trial_folder(bench: Bench, number: int) -> Path:
    return bench.folder / f"qat-trial-{number}"


def _drop_outdone(bench: Bench, study: optuna.Study) -> None:
    """Remove the models of trials that a later one has beaten."""
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        best = _trial_folder(bench, _best(study).number)
        for folder in bench.folder.glob("qat-trial-*"):
            if folder != best:
                shutil.rmtree(folder)


def _is_best(study: optuna.Study, value: float) -> bool:
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return True
    best = _best(study).value
    assert best is not None
    return value > best if study.direction == optuna.study.StudyDirection.MAXIMIZE else value < best


def _best(study: optuna.Study) -> FrozenTrial:
    """Return the best trial, of equal ones the first: many end on epoch 0, and only the first of them is stored."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(done, key=lambda trial: (sign * (trial.value or 0.0), -trial.number))


def _remember(trial: optuna.Trial, outcome: Outcome, settings: Settings, seconds: float) -> None:
    """Store with the trial what Optuna has no field for."""
    trial.set_user_attr("history", json.dumps([record.model_dump() for record in outcome.history]))
    trial.set_user_attr("best_epoch", outcome.best_epoch)
    trial.set_user_attr("best", finite(outcome.best))
    trial.set_user_attr("seconds", seconds)
    trial.set_user_attr("reason", outcome.reason)
    trial.set_user_attr("range_learning", settings.range_learning)
    trial.set_user_attr("pruned", outcome.pruned)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: one that a killed run left behind has no history and does not."""
    return [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if "history" in trial.user_attrs]


def _trial_record(trial: FrozenTrial) -> TrialRecord:
    notes = trial.user_attrs
    state = "failed" if trial.state == TrialState.FAIL else "pruned" if notes.get("pruned") else "complete"
    return TrialRecord.model_validate(
        {
            "number": trial.number,
            "state": state,
            "lr": trial.params["lr"],
            "epochs": trial.params["epochs"],
            "decay_period": trial.params["decay_period"],
            "range_learning": notes.get("range_learning", trial.params.get("range_learning", False)),
            "value": notes.get("best"),
            "best_epoch": notes.get("best_epoch"),
            "seconds": notes.get("seconds", 0.0),
            "reason": notes.get("reason", ""),
            "history": [EpochRecord.model_validate(one) for one in json.loads(notes.get("history", "[]"))],
        }
    )


def _winner(bench: Bench, start: Candidate, study: optuna.Study, key: str) -> Candidate | None:
    """Measure the best trial's model on the evaluation part."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        bench.progress.note("every QAT trial failed: the best rung of the ladder stays the winner")
        return None
    trial = _best(study)
    own_key = key_of(key, trial.number)
    found = bench.recall("qat", own_key)
    if found is not None:
        bench.progress.candidate(found.record)
        return found
    folder = _trial_folder(bench, trial.number)
    stored = read_json(folder / "meta.json")
    if stored != {"study": study.study_name, "trial": trial.number}:
        message = f"{folder} is not the model of the study's best trial {trial.number}; remove study.db and run again"
        raise RunFolderError(message)
    network, encodings = load(folder, bench.base.graph)
    candidate = bench.measure(
        network,
        name="qat",
        stage="qat",
        key=own_key,
        steps=(*start.record.steps, "qat"),
        notes={"trial": trial.number, "best_epoch": trial.user_attrs["best_epoch"], "started_from": start.record.id},
        started=time.perf_counter(),
        encodings=encodings,
    )
    seconds = sum(one.user_attrs.get("seconds", 0.0) for one in _finished(study))
    record = candidate.record.model_copy(update={"seconds": candidate.record.seconds + seconds})
    return bench.keep(replace(candidate, record=record), kept=True)
