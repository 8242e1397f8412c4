"""The Optuna study over QAT's hyper-parameters.

The space is AIMET's guide: the learning rate on a log scale around the FP32 model's final one, 15 to 20 epochs, the
rate divided by 10 every 5 to 10 epochs, range learning on or off. The guide's own recommendation is the first trial,
TPE (Bergstra et al. 2011) proposes the others, and a median pruner ends those that lag behind. Trials are trained
here, one after another, or by workers. The study lives in the run folder or in a database; a second start of the same
command goes on with it. Every finished trial that is the best so far is stored at once.
"""

from __future__ import annotations

import time
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from qatflow.bench import Bench
from qatflow.candidates import Candidate, Work
from qatflow.errors import QatflowError, RunFolderError
from qatflow.qat import study as studies
from qatflow.qat.launch import ENGINES, Started, log_path
from qatflow.qat.space import recommended
from qatflow.qat.trial import Start, Worker, done, trial_folder
from qatflow.quant import fused
from qatflow.quant.saved import load
from qatflow.store import key_of, read_json, write_json

SPACE = {"lr", "epochs", "decay_period", "distillation"}
"""Keys of `search` that say what is searched; the others say how long and where, and a study outlives a change."""
POLL = 0.5
"""Seconds between two looks at what workers have finished."""


def search(bench: Bench, start: Candidate, folder: Path) -> Candidate | None:
    """Search, and return the best trial's model measured on the evaluation part; None if every trial failed.

    Args:
        bench: the run's.
        start: the candidate that every trial starts from; it is epoch 0 of all of them.
        folder: the run folder; `study.db` is made in it, or continued.

    Raises:
        DataError: the data has no training part, or no validation part and none can be split off.
        RecipeError: the storage cannot be opened.
        QatflowError: workers end without having trained anything.
    """
    config, recipe = bench.recipe.search, bench.recipe
    settings = recipe.qat.model_dump(mode="json", exclude={"when"}), config.model_dump(mode="json", include=SPACE)
    key = key_of(start.key, bench.task.training_key(), settings, recipe.model.final_lr)
    storage = studies.open_storage(studies.storage_url(config.storage, folder))
    try:
        return _search(bench, start, folder, key, storage)
    finally:
        studies.close(storage)


def _search(bench: Bench, start: Candidate, folder: Path, key: str, storage: RDBStorage) -> Candidate | None:
    config = bench.recipe.search
    study = studies.open_study(storage, key, bench.task.metric.higher_is_better)
    study.set_user_attr("folder", str(folder.resolve()))
    studies.set_deadline(study, config.max_time)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(recommended(bench.recipe))
    write_json(folder / "study.json", {"study": key, "start": start.record.id, "bench": bench.key})
    bench.progress.stage(f"qat: up to {config.max_trials} trials from {start.record.id}")
    _tell_ways(bench)
    told = _Told(bench, study)
    told()
    studies.stop_at_gate(study, config.stop_at_gate)
    if config.workers == 1 and config.devices_per_trial == 1 and config.engine == "local":
        _alone(bench, start, study, told)
    else:
        _with_workers(bench, study, told, folder)
    if why := studies.stopped(study):
        bench.progress.note(f"the search ended early: {why}")
    elif studies.late(study):
        bench.progress.note(f"the search ended early: search.max_time, {config.max_time:g} s, is over")
    return _winner(bench, start, study, key)


def _tell_ways(bench: Bench) -> None:
    """Say what a user should know before days are spent."""
    split = bench.task.require_training_parts()
    if split:
        bench.progress.note(split)
    kernels = fused.kernels(bench.task.device.type)
    if isinstance(kernels, str):
        bench.progress.note(f"{kernels}; QAT trains op by op, which takes longer")


class _Told:
    """Tells of every finished trial once, whoever trained it."""

    def __init__(self, bench: Bench, study: optuna.Study) -> None:
        self.bench = bench
        self.study = study
        self.numbers: set[int] = set()

    def __call__(self) -> None:
        for trial in studies.finished(self.study):
            if trial.number not in self.numbers:
                self.numbers.add(trial.number)
                self.bench.progress.trial(studies.record_of(trial))


def _alone(bench: Bench, start: Candidate, study: optuna.Study, told: _Told) -> None:
    """Train all trials in this process, and wait for those that other machines have begun."""
    trials = bench.recipe.search.max_trials
    if done(study, trials, begun=False):
        return
    worker = Worker(bench, Start(start.network, start.encodings), study)
    bench.progress.note(f"QAT trains on {worker.training.objective.name}")
    while not done(study, trials, begun=False):
        worker.work(told)
        if not done(study, trials, begun=False):
            time.sleep(POLL)
        told()


def _with_workers(bench: Bench, study: optuna.Study, told: _Told, folder: Path) -> None:
    """Let workers train, and tell of what they finish; those that are cut off are replaced while there is progress."""
    config, trust = bench.recipe.search, bench.task.trust
    while not done(study, config.max_trials, begun=False):
        before = _progress(study)
        workers = ENGINES[config.engine](config, folder, trust)
        _wait(workers, told)
        failed = [number for number, one in enumerate(workers) if one.poll()]
        if failed:
            logs = ", ".join(log_path(folder, number).name for number in failed)
            bench.progress.note(f"{len(failed)} of {len(workers)} workers failed: see {logs}")
        if failed and _progress(study) == before:
            message = f"QAT's workers ended without training anything: see {log_path(folder, failed[0])}"
            raise QatflowError(message)
        while not done(study, config.max_trials, begun=False) and studies.running(study):
            time.sleep(POLL)  # another machine trains the last ones
            studies.take_over_abandoned(study)
            told()


def _progress(study: optuna.Study) -> tuple[int, int]:
    """Return how many trials are finished and how many epochs were reported: what workers leave even if they die."""
    trials = study.get_trials(deepcopy=False)
    return len(studies.finished(study)), sum(len(trial.intermediate_values) for trial in trials)


def _wait(workers: list[Started], told: _Told) -> None:
    """Wait for all workers; where that is interrupted, none outlives this process."""
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(POLL)
            told()
        told()
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()


def _winner(bench: Bench, start: Candidate, study: optuna.Study, key: str) -> Candidate | None:
    """Measure the best trial's model on the evaluation part."""
    trial = studies.best(study)
    if trial is None:
        why = "no trial was finished" if not studies.finished(study) else "every QAT trial failed"
        bench.progress.note(f"{why}: the best rung of the ladder stays the winner")
        return None
    own_key = key_of(key, trial.number)
    found = bench.recall("qat", own_key)
    if found is not None:
        return bench.keep(found, kept=True)
    folder = trial_folder(bench, trial.number)
    stored = read_json(folder / "meta.json")
    if stored != {"study": study.study_name, "trial": trial.number}:
        message = f"{folder} is not the model of the study's best trial {trial.number}; remove study.db and run again"
        raise RunFolderError(message)
    network, encodings = load(folder, bench.base.graph)
    seconds = sum(one.user_attrs.get("seconds", 0.0) for one in studies.finished(study))
    notes = {"trial": trial.number, "best_epoch": trial.user_attrs["best_epoch"], "started_from": start.record.id}
    work = Work("qat", "qat", (*start.work.steps, "qat"), notes, seconds)
    candidate = bench.measure(network, work, key=own_key, started=time.perf_counter(), encodings=encodings)
    return bench.keep(candidate, kept=True)
