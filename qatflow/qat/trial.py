"""One trial from proposal to record: ask Optuna, train, keep the model if it is among the best, tell Optuna.

The processes that train one trial together all run this; the first of them, the leader, speaks to Optuna and writes
files, and the others learn from it what to do.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import optuna
from lightning_fabric import Fabric
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from qatflow.ladder.bench import Bench
from qatflow.qat import ending, notes, space, stored
from qatflow.qat import study as studies
from qatflow.qat.check import objective_of
from qatflow.qat.devices import fabric_of
from qatflow.qat.features import feature_nodes
from qatflow.qat.optimizers import choose_optimizer
from qatflow.qat.schedule import Settings
from qatflow.qat.train import Outcome, Training, train
from qatflow.quant import fused
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.recipe.steps import ReestimateBatchNorms
from qatflow.results.result import EpochRecord
from qatflow.steps.reestimate_batch_norms import reestimate_batch_norms
from qatflow.tasks.evaluate import Evaluator
from qatflow.users_code import said

logger = logging.getLogger(__name__)
POLL = 0.5
"""Seconds between two looks at what others have finished."""
Wait = Literal["wait"]


@dataclass(frozen=True)
class Start:
    """What every trial starts from."""

    network: Network
    encodings: Mapping[str, Encoding]


@dataclass(frozen=True)
class _Plan:
    """What the leader tells the other processes of a trial."""

    settings: Settings
    number: int
    checkpoint: Path
    """That of the trial that this one goes on with; its own if it is new."""
    compiled: bool
    """Whether it trains with compiled kernels, where there are any."""


class Worker:
    """Trains trials of one study, one after another.

    Args:
        bench: the run's.
        start: what trials start from.
        study: on the leader; None on other processes.

    Raises:
        RecipeError: a loss, optimizer or feature of the recipe cannot be used.
        DataError: the data lacks a part, or a batch cannot be shared by the processes.
    """

    def __init__(self, bench: Bench, start: Start, study: optuna.Study | None) -> None:
        self.bench = bench
        self.start = start
        self.study = study
        self.fabric: Fabric = fabric_of(bench.task.device, bench.recipe.qat)
        task, recipe = bench.task, bench.recipe
        if bench.choosing.part == "validation":
            self.evaluator, self.fp32 = bench.choosing.evaluator, bench.choosing.fp32
        else:  # a part is split off the training part for it
            self.evaluator = Evaluator(bench.base.graph, task.validation, task.metric, task.device, "validation")
            self.fp32 = self.evaluator.evaluate(bench.base.graph).measurement
        self.untrained = self.evaluator.evaluate(bench.simulate(start.network, start.encodings).model)
        batches = task.train(recipe.seed, (self.fabric.global_rank, self.fabric.world_size))
        self.first = next(iter(batches))
        self.training = Training(
            train=batches,
            validate=lambda model: self.evaluator.evaluate(model).measurement,
            objective=objective_of(bench, self.first)[1],
            fp32=bench.base.graph,
            qat=recipe.qat,
            optimizer=choose_optimizer(recipe.qat, task.trust),
            fabric=self.fabric,
            seed=recipe.seed,
            features=tuple(feature_nodes(bench.base.graph, recipe.qat.features)),
            start=self.untrained.measurement,
            note=bench.progress.note,
        )
        if study is not None:
            ending.note_fp32(study, self.fp32)

    def fresh_training(self) -> Training:
        """Return what a trial trains with: its loss may have a state, which is no other trial's."""
        return replace(self.training, objective=objective_of(self.bench, self.first)[1])

    def work(self, told: Callable[[], None] = lambda: None) -> None:
        """Train trials until the study needs no more; `told` is called after each."""
        while True:
            trial, found = self._next()
            plan = self.fabric.broadcast(found)
            if plan is None:
                return
            if plan == "wait":
                time.sleep(POLL)
            elif trial is None:
                self._train(plan, lambda record: "")
            else:
                with studies.alive(trial):
                    self._carry_out(trial, plan)
            told()

    def _next(self) -> tuple[optuna.Trial | None, _Plan | Wait | None]:
        """Return the leader's next trial with its plan; no plan where none is wanted any more."""
        study, recipe = self.study, self.bench.recipe
        if study is None:
            return None, None
        studies.take_over_abandoned(study)
        if ending.done(study, recipe, begun=True):
            return None, None
        if studies.must_wait(study):
            return None, "wait"
        trial = studies.ask(study)
        place = studies.place(study, trial.number)
        goes_on = notes.CONTINUES in trial.user_attrs
        early = not goes_on and studies.probe_rate(study, place) is None and studies.probes_left(study)
        if early or place >= recipe.search.max_trials:
            study.tell(trial, state=TrialState.FAIL)  # another worker began the last one at the same moment
            return None, "wait"
        return trial, self._plan(trial, place, goes_on)

    def _plan(self, trial: optuna.Trial, place: int, goes_on: bool) -> _Plan:
        """Settle what a trial trains with: a probe's, the recommendation, or what Optuna proposes."""
        study, recipe = trial.study, self.bench.recipe
        rate = None if goes_on else studies.probe_rate(study, place)
        fixed: Mapping[str, object] = {}
        if rate is not None:
            trial.set_user_attr(notes.PROBE, True)
            fixed = {"lr": rate}
        elif not goes_on and studies.is_first(study, trial.number):
            fixed = space.recommended(recipe, studies.best_probe(study))
        studies.propose(study, recipe.seed + place, fixed)
        suggest = space.probe if notes.PROBE in trial.user_attrs else space.suggest
        settings = suggest(trial, recipe)
        notes.note_settings(trial, settings)
        if recipe.search.storage is not None and not goes_on:
            trial.set_user_attr(notes.CANDIDATES, str(self.bench.folder.resolve()))
        begun = stored.folder_of(self.bench.folder, trial, trial.user_attrs.get(notes.CONTINUES))
        compiled = notes.compiled(study, self.bench.task.device.type)
        plan = _Plan(settings, trial.number, begun / stored.CHECKPOINT, compiled)
        if not goes_on:
            plan.checkpoint.unlink(missing_ok=True)  # of another study, which had this folder before
        return plan

    def _carry_out(self, trial: optuna.Trial, plan: _Plan) -> None:
        """Train a trial and tell Optuna; an exception that it raises is its own, and told with it."""
        assert self.study is not None
        started = time.perf_counter()
        try:
            self._train_and_tell(trial, plan, started)
        except UpdateFinishedTrialError:
            self.bench.progress.note(f"trial {trial.number}: another process took it over; this one went silent")
            return
        except Exception as error:
            logger.exception("trial %d failed", trial.number)
            if self.fabric.world_size > 1:
                studies.give_up(self.study, trial, error, time.perf_counter() - started)
                raise  # the other processes of this trial wait for this one
            if not self._kept_what_it_found(trial, plan, error, started):
                studies.give_up(self.study, trial, error, time.perf_counter() - started)
                return
        plan.checkpoint.unlink(missing_ok=True)
        stored.drop_outdone(self.study, self.bench.folder)

    def _kept_what_it_found(self, trial: optuna.Trial, plan: _Plan, error: Exception, started: float) -> bool:
        """End a trial that raised once more with the best of its epochs; False where it is to be tried again."""
        if notes.CONTINUES not in trial.user_attrs or not plan.checkpoint.exists():
            return False
        so_far = replace(plan, settings=replace(plan.settings, epochs=0))  # goes no further than the checkpoint
        outcome, simulation = self._train(so_far, lambda record: "")
        if not outcome.epochs or outcome.failed or not math.isfinite(outcome.best):
            return False
        seconds = time.perf_counter() - started
        studies.note_error(trial, error, seconds)
        outcome.stopped = f"ended by {said(error)}"
        self._store(trial, outcome, simulation)
        notes.note_outcome(trial, outcome, seconds)
        trial.study.tell(trial, outcome.best)
        return True

    def _store(self, trial: optuna.Trial, outcome: Outcome, simulation: Simulation) -> None:
        """Keep a trial's model if it is among the best."""
        usable = math.isfinite(outcome.best) and not outcome.failed
        if usable and stored.deserves(trial.study, trial.number, outcome.best):
            folder = stored.folder_of(self.bench.folder, trial)
            stored.store(trial, folder, self.bench.base.graph, simulation.to_network(), simulation.encodings())

    def _train_and_tell(self, trial: optuna.Trial, plan: _Plan, started: float) -> None:
        study = trial.study
        outcome = self._known(study, plan.settings)
        if outcome is None:
            outcome, simulation = self._train(plan, self._reporter(trial, plan))
            self._store(trial, outcome, simulation)
        notes.note_outcome(trial, outcome, time.perf_counter() - started)
        if trial.user_attrs[notes.FAILED]:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, outcome.best)

    def _train(self, plan: _Plan, report: Callable[[EpochRecord], str]) -> tuple[Outcome, Simulation]:
        """Train by a plan, in all processes of the trial alike."""
        simulation = self.bench.simulate(self.start.network, self.start.encodings)
        training = replace(self.fresh_training(), report=lambda record: self.fabric.broadcast(report(record)))
        with fused.choice(plan.compiled):
            outcome = train(simulation, training, plan.settings, plan.checkpoint)
        if self.bench.recipe.qat.batch_norms == "reestimate" and not outcome.failed:
            simulation = self._with_fresh_statistics(simulation, outcome)
        return outcome, simulation

    def _with_fresh_statistics(self, simulation: Simulation, outcome: Outcome) -> Simulation:
        """Return the trained model with re-estimated batch norms if that is no worse on the validation part."""
        context, network = self.bench.step_context(), simulation.to_network()
        fresh, _ = reestimate_batch_norms(network, ReestimateBatchNorms(), context)
        if fresh is network:
            return simulation
        other = self.bench.simulate(fresh, simulation.encodings())
        measured = self.evaluator.evaluate(other.model).measurement
        sign = 1.0 if measured.higher_is_better else -1.0
        if not sign * (measured.value - outcome.best) >= 0:
            return simulation
        outcome.best = measured.value
        return other

    def _reporter(self, trial: optuna.Trial, plan: _Plan) -> Callable[[EpochRecord], str]:
        """Return what tells Optuna of every epoch and hears from it whether to go on."""
        study = trial.study
        ticks = self.bench.progress.track(
            range(plan.settings.epochs), f"qat: trial {trial.number}", plan.settings.epochs
        )

        def report(record: EpochRecord) -> str:
            next(ticks, None)
            if record.value is not None:
                trial.report(record.value, record.epoch)
            if ending.late(study):
                return "the search's time was up"
            return notes.PRUNED if trial.should_prune() else ""

        return report

    def _known(self, study: optuna.Study, settings: Settings) -> Outcome | None:
        """Return what a trial would come to that another one has already gone through: training repeats itself."""
        for other in notes.finished(study):
            if other.state != TrialState.COMPLETE or other.user_attrs["reason"]:
                continue
            if not settings.begins_like(notes.settings_of(other)):
                continue
            history = notes.history_of(other)[: settings.epochs + 1]
            values = [math.nan if record.value is None else record.value for record in history]
            sign = 1.0 if self.fp32.higher_is_better else -1.0
            best = max(range(len(values)), key=lambda epoch: (sign * values[epoch], -epoch))
            same = notes.numbers(study)[other.number]
            return Outcome(history, best, values[best], reason=f"as far as it goes, trial {same} was the same")
        return None
