"""The Optuna study over QAT's hyper-parameters.

The space is AIMET's guide: the learning rate on a log scale around the FP32 model's final one, 15 to 20 epochs, the
rate divided by 10 every 5 to 10 epochs, range learning on or off. The guide's own recommendation is the first trial,
after short probes where the recipe does not say around which rate to search; TPE (Bergstra et al. 2011) proposes the
others, and a median pruner ends those that lag behind. Trials are trained here, one after another, or by workers. The
study lives in the run folder or in a database; a second start of the same command goes on with it. The models of the
best trials so far are stored at once, and only a trial whose model is stored can win.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from qatflow.errors import CaptureError, QatflowError, RunFolderError
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate, Work
from qatflow.qat import ending, notes, space, stored
from qatflow.qat import study as studies
from qatflow.qat.crew import Crew
from qatflow.qat.launch import ENGINES
from qatflow.qat.trial import POLL, Start, Worker
from qatflow.quant import fused
from qatflow.results.result import Note
from qatflow.results.store import key_of, write_json
from qatflow.users_code import said

SPACE = {"lr", "epochs", "decay_period", "distillation"}
"""Keys of `search` that say what is searched; the others say how long and where, and a study outlives a change."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        winner: the best trial's model, measured; None where no trial left one, which was told of.
        error: the failure that ended the search early; empty where none did.
    """

    winner: Candidate | None
    error: str = ""


def search(bench: Bench, start: Candidate, folder: Path, judged: Callable[[Candidate], bool]) -> Found:
    """Search, and return the best trial's model.

    An exception that a trial raises is noted with it, and the trial tried once more. Whatever ends the search early,
    the best of what it found until then is returned.

    Args:
        bench: the run's.
        start: the candidate that every trial starts from; it is epoch 0 of all of them.
        folder: the run folder; `study.db` is made in it, or continued.
        judged: tells whether a trial's model, which meets the gate on the validation part, meets it where the run is
            judged. That ends the search where `search.stop_at_gate` wants it; otherwise it goes on.

    Raises:
        DataError: the data has no training part, or no validation part and none can be split off.
        RecipeError: the storage cannot be opened.
        RunFolderError: `study.db` is damaged.
        QatflowError: trials or workers fail, and none was finished.
    """
    config, key = bench.recipe.search, study_key(bench, start)
    storage = studies.open_storage(studies.storage_url(config.storage, folder), config.lost_after)
    try:
        study = studies.open_study(storage, key, bench.task.metric.higher_is_better)
        return _Search(bench, start, folder, study).run(judged)
    finally:
        studies.close(storage)


def study_key(bench: Bench, start: Candidate) -> str:
    """Return a hash of all that trials from a candidate depend on, but how many and where."""
    recipe = bench.recipe
    searched = recipe.search.model_dump(mode="json", include=SPACE)
    settings = recipe.qat.model_dump(mode="json", exclude={"when"}), searched
    return key_of(start.key, bench.task.training_key, settings, recipe.model.final_lr)


class _Search:
    """One start of a search."""

    def __init__(self, bench: Bench, start: Candidate, folder: Path, study: optuna.Study) -> None:
        self.bench = bench
        self.recipe = bench.recipe
        self.start = start
        self.folder = folder
        self.study = study
        self.told = _Told(bench, study)
        self.worker: Worker | None = None
        self.broken = ""
        self.measured: dict[int, Candidate] = {}

    def run(self, judged: Callable[[Candidate], bool]) -> Found:
        self._begin()
        if why := self._train_until(judged):
            self.bench.progress.note(f"the search ended early: {why}")
        found = self._best()
        if found is None:
            self._tell_nothing()
        return Found(found and self._keep(found), self.broken or ending.failing(self.study))

    def _begin(self) -> None:
        config, study = self.recipe.search, self.study
        study.set_user_attr("folder", str(self.folder.resolve()))
        ending.begin(study, config.max_time)
        if not study.get_trials(deepcopy=False):
            studies.set_probes(study, space.probed_rates(self.recipe))
        stored_as = {"study": study.study_name, "start": self.start.record.id, "bench": self.bench.key}
        write_json(self.folder / "study.json", stored_as)
        self.bench.progress.stage(f"qat: up to {config.max_trials} trials from {self.start.record.id}")
        _tell_ways(self.bench, notes.compiled(study, self.bench.task.device.type))
        self.told()
        for number, record in ending.missed(study, self.recipe.gate):
            self.bench.judged_before(self._key(study.trials[number]), record)

    def _train_until(self, judged: Callable[[Candidate], bool]) -> str:
        """Train until no trial is wanted, and have those judged that meet the gate; returns what ended it early."""
        while True:
            self._train()
            trial = ending.met(self.study, self.recipe.gate) if self.recipe.search.stop_at_gate else None
            if self.broken or trial is None or self._is_over():
                return self.broken or ending.early(self.study, self.recipe)
            found = self._best()
            if found is None or found is not self.measured.get(trial.number):
                continue  # its model was damaged: another one is the best now
            said = f"trial {found.record.notes['trial']} meets the gate on the validation part"
            if judged(found):
                return said
            ending.note_missed(self.study, self.recipe.gate, trial.number, self.bench.judged(found.key))
            self.bench.progress.note(f"{said}, but misses it where it is judged: the search goes on")

    def _is_over(self) -> bool:
        trials = len(notes.finished(self.study))
        return trials >= self.recipe.search.max_trials or bool(ending.early(self.study, self.recipe))

    def _train(self) -> None:
        """Train trials here or with workers; what breaks that is told, and loses nothing that is finished."""
        config = self.recipe.search
        try:
            if config.workers == 1 and config.devices_per_trial == 1 and config.engine == "local":
                self._alone()
            else:
                self._with_workers()
        except Exception as error:
            if stored.best(self.study) is None:
                raise
            self.broken = said(error)

    def _alone(self) -> None:
        """Train all trials in this process, and wait for those that other machines have begun."""
        while not self._done():
            if self.worker is None:
                self.worker = Worker(self.bench, Start(self.start.network, self.start.encodings), self.study)
                self.bench.progress.note(f"QAT trains on {self.worker.training.objective.name}")
            self.worker.work(self.told)
            if not self._done():
                time.sleep(POLL)
            self.told()

    def _with_workers(self) -> None:
        """Let workers train, and wait for trials that other machines have begun.

        Raises:
            QatflowError: the workers fail, and trials are left.
        """
        config, bench = self.recipe.search, self.bench
        start = ENGINES[config.engine](config, self.folder, bench.task.trust)
        crew = Crew(start, config.workers, self.folder, lambda: _progress(self.study), bench.progress.note)
        while not self._done():
            failure = crew.work(self.told)
            if failure and not self._done():
                raise QatflowError(failure)
            while not self._done() and notes.running(self.study):
                time.sleep(POLL)
                studies.take_over_abandoned(self.study)
                self.told()

    def _done(self) -> bool:
        return ending.done(self.study, self.recipe, begun=False)

    def _best(self) -> Candidate | None:
        """Measure the best trial's model; of one that is missing or damaged is told, and the next best is taken."""
        for trial in stored.ranked(self.study)[: stored.KEPT]:
            if trial.number in self.measured:
                return self.measured[trial.number]
            key = self._key(trial)
            found = self.bench.recall("qat", key)
            try:
                self.measured[trial.number] = found if found is not None else self._measure(trial, key)
            except (RunFolderError, CaptureError) as error:
                number = notes.numbers(self.study)[trial.number]
                self.bench.progress.note(f"the model of trial {number} cannot be used: {error}")
                stored.leave_out(self.study, trial.number)
                continue
            return self.measured[trial.number]
        return None

    def _key(self, trial: optuna.trial.FrozenTrial) -> str:
        """Return the key of the candidate that a trial's model is."""
        return key_of(self.study.study_name, trial.number, trial.user_attrs[stored.STORED])

    def _measure(self, trial: optuna.trial.FrozenTrial, key: str) -> Candidate:
        folder = stored.folder_of(self.bench.folder, trial)
        network, encodings = stored.recall(trial, folder, self.bench.base)
        best_epoch, started_from = trial.user_attrs["best_epoch"], self.start.record.id
        number = notes.numbers(self.study)[trial.number]
        told: dict[str, Note] = {"trial": number, "best_epoch": best_epoch, "started_from": started_from}
        work = Work("qat", "qat", (*self.start.work.steps, "qat"), told, 0.0)
        return self.bench.measure(network, work, key=key, started=time.perf_counter(), encodings=encodings)

    def _keep(self, found: Candidate) -> Candidate:
        """Store the winner, with the time that all trials took."""
        if not found.work.resumed:
            trained = sum(one.user_attrs.get("seconds", 0.0) for one in notes.finished(self.study))
            work = replace(found.work, seconds=found.work.seconds + trained)
            record = found.record.model_copy(update={"seconds": work.seconds})
            found = replace(found, work=work, record=record)
        return self.bench.keep(found, kept=True)

    def _tell_nothing(self) -> None:
        """Tell why there is no winner.

        Raises:
            QatflowError: a trial raised an exception, and none was completed.
        """
        states = {trial.state for trial in notes.finished(self.study)}
        if optuna.trial.TrialState.COMPLETE in states:
            why = "no trial's model can be used"
        elif raised := ending.errors(self.study):
            number = notes.numbers(self.study)[raised[0].number]
            message = f"QAT: trial {number} failed: {raised[0].user_attrs[notes.ERROR]}"
            raise QatflowError(message)
        else:
            why = "every QAT trial failed" if states else "no trial was finished"
        self.bench.progress.note(f"{why}: the best rung of the ladder stays the winner")


def _tell_ways(bench: Bench, compiled: bool) -> None:
    """Say what a user should know before days are spent."""
    split = bench.task.require_training_parts()
    if split:
        bench.progress.note(split)
    kernels = fused.kernels(bench.task.device.type)
    if isinstance(kernels, str):
        bench.progress.note(f"{kernels}; QAT trains op by op, which takes longer")
    elif not compiled:
        bench.progress.note("QAT trains op by op, as it began, since gradients would differ by a bit otherwise")
    if bench.recipe.model.final_lr is None and bench.recipe.search.lr is None:
        probed = space.probed_rates(bench.recipe)
        said = f"model.final_lr is not given: {space.ASSUMED_RATE:g} is assumed"
        if probed:
            rates = ", ".join(f"{rate:g}" for rate in probed)
            said += f", and the first {len(probed)} trials are short probes for a better one, at {rates}"
        bench.progress.note(said)


class _Told:
    """Tells of every finished trial once, whoever trained it."""

    def __init__(self, bench: Bench, study: optuna.Study) -> None:
        self.bench = bench
        self.study = study
        self.known: set[int] = set()

    def __call__(self) -> None:
        ended = notes.to_tell(self.study)
        numbers = notes.numbers(self.study)  # looked at later, so that every trial that ended is among them
        for trial in ended:
            if trial.number not in self.known:
                self.known.add(trial.number)
                self.bench.progress.trial(notes.record_of(trial, numbers[trial.number]))


def _progress(study: optuna.Study) -> tuple[int, int]:
    """Return how many trials ended and how many epochs were reported: what workers leave even if they die."""
    trials = study.get_trials(deepcopy=False)
    return len(notes.to_tell(study)), sum(len(trial.intermediate_values) for trial in trials)
