"""One trial from proposal to record: ask Optuna, train, keep the model if it is the best so far, tell Optuna.

The processes that train one trial together all run this; the first of them, the leader, speaks to Optuna and writes
files, and the others learn from it what to do.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from lightning_fabric import Fabric
from optuna.trial import TrialState

from qatflow.bench import Bench
from qatflow.gate import Measurement, decide
from qatflow.qat import study as studies
from qatflow.qat.check import objective_of
from qatflow.qat.devices import fabric_of
from qatflow.qat.features import feature_nodes
from qatflow.qat.optimizers import choose_optimizer
from qatflow.qat.schedule import Settings
from qatflow.qat.space import suggest
from qatflow.qat.train import Outcome, Training, train
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.saved import save
from qatflow.quant.simulation import Simulation
from qatflow.result import EpochRecord
from qatflow.step_configs import ReestimateBatchNorms
from qatflow.steps.reestimate_batch_norms import reestimate_batch_norms
from qatflow.store import write_json
from qatflow.tasks.evaluate import Evaluator


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
    origin: int
    """Number of the trial that this one goes on with; its own if it is new."""


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
        self.evaluator = Evaluator(bench.base.graph, task.validation, task.metric, task.device)
        self.fp32 = self.evaluator.evaluate(bench.base.graph).measurement
        batches = task.train(recipe.seed, (self.fabric.global_rank, self.fabric.world_size))
        self.training = Training(
            train=batches,
            validate=lambda model: self.evaluator.evaluate(model).measurement,
            objective=objective_of(bench, next(iter(batches)))[1],
            fp32=bench.base.graph,
            qat=recipe.qat,
            optimizer=choose_optimizer(recipe.qat, task.trust),
            fabric=self.fabric,
            seed=recipe.seed,
            features=tuple(feature_nodes(bench.base.graph, recipe.qat.features)),
            start=self.evaluator.evaluate(bench.simulate(start.network, start.encodings).model).measurement,
        )

    def work(self, told: Callable[[], None] = lambda: None) -> None:
        """Train trials until the study needs no more; `told` is called after each."""
        while True:
            trial = self._next()
            plan = self._plan(trial)
            if plan is None:
                return
            if trial is None:
                self._train(plan, lambda record: "")
                continue
            with studies.alive(trial):
                self._carry_out(trial, plan)
            told()

    def _next(self) -> optuna.Trial | None:
        """Return the leader's next trial; None where there is none to begin."""
        if self.study is None:
            return None
        studies.take_over_abandoned(self.study)
        if done(self.study, self.bench.recipe.search.max_trials, begun=True):
            return None
        trial = studies.ask(self.study, self.bench.recipe.seed)
        counted = [*studies.finished(self.study), *studies.running(self.study)]
        if sum(other.number < trial.number for other in counted) >= self.bench.recipe.search.max_trials:
            self.study.tell(trial, state=TrialState.FAIL)  # another worker began the last one at the same moment
            return None
        return trial

    def _plan(self, trial: optuna.Trial | None) -> _Plan | None:
        plan = None
        if trial is not None:
            origin = trial.user_attrs.get(studies.CONTINUES, trial.number)
            plan = _Plan(suggest(trial, self.bench.recipe), trial.number, origin)
        return self.fabric.broadcast(plan)

    def _carry_out(self, trial: optuna.Trial, plan: _Plan) -> None:
        assert self.study is not None
        started = time.perf_counter()
        outcome = self._known(self.study, plan.settings)
        if outcome is None:
            outcome, simulation = self._train(plan, self._reporter(trial, plan))
            if math.isfinite(outcome.best) and studies.is_best(self.study, outcome.best) and not outcome.failed:
                folder = self._folder(trial.number)
                save(folder, self.bench.base.graph, simulation.to_network(), simulation.encodings())
                write_json(folder / "meta.json", {"study": self.study.study_name, "trial": trial.number})
                if self._meets_gate(simulation, outcome):
                    trial.set_user_attr(studies.MET, True)
        studies.remember(trial, outcome, plan.settings, time.perf_counter() - started)
        if outcome.failed or not math.isfinite(outcome.best):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, outcome.best)
        studies.stop_at_gate(self.study, self.bench.recipe.search.stop_at_gate)
        self._checkpoint(plan).unlink(missing_ok=True)
        self._drop_outdone(self.study)

    def _train(self, plan: _Plan, report: Callable[[EpochRecord], str]) -> tuple[Outcome, Simulation]:
        """Train by a plan, in all processes of the trial alike."""
        simulation = self.bench.simulate(self.start.network, self.start.encodings)
        training = replace(self.training, report=lambda record: self.fabric.broadcast(report(record)))
        outcome = train(simulation, training, plan.settings, self._checkpoint(plan))
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
            if studies.late(study):
                return "the search's time was up"
            return studies.PRUNED if trial.should_prune() else ""

        return report

    def _known(self, study: optuna.Study, settings: Settings) -> Outcome | None:
        """Return what a trial would come to that another one has already gone through: training repeats itself."""
        for other in studies.finished(study):
            notes = other.user_attrs
            if other.state != TrialState.COMPLETE or notes.get("reason"):
                continue
            theirs = replace(
                settings,
                lr=other.params["lr"],
                epochs=other.params["epochs"],
                decay_period=other.params["decay_period"],
                range_learning=notes["range_learning"],
                distillation=notes["distillation"],
            )
            if not settings.begins_like(theirs):
                continue
            history = studies.history_of(other)[: settings.epochs + 1]
            values = [math.nan if record.value is None else record.value for record in history]
            sign = 1.0 if self.fp32.higher_is_better else -1.0
            best = max(range(len(values)), key=lambda epoch: (sign * values[epoch], -epoch))
            return Outcome(history, best, values[best], reason=f"as far as it goes, trial {other.number} was the same")
        return None

    def _meets_gate(self, simulation: Simulation, outcome: Outcome) -> bool:
        gate, seed = self.bench.recipe.gate, self.bench.recipe.seed
        told = Measurement(outcome.best, None, self.fp32.higher_is_better)
        if not decide(gate, replace(self.fp32, per_sample=None), told, seed).passed and not gate.strict:
            return False
        return decide(gate, self.fp32, self.evaluator.evaluate(simulation.model).measurement, seed).passed

    def _folder(self, number: int) -> Path:
        return trial_folder(self.bench, number)

    def _checkpoint(self, plan: _Plan) -> Path:
        return self._folder(plan.origin) / "checkpoint.pt"

    def _drop_outdone(self, study: optuna.Study) -> None:
        """Remove the models of trials that a later one has beaten; those under way keep their checkpoints."""
        best = studies.best(study)
        kept = {best.number} if best is not None else set()
        for one in studies.running(study):
            kept |= {one.number, one.user_attrs.get(studies.CONTINUES, one.number)}
        for one in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            kept.add(one.user_attrs.get(studies.CONTINUES, one.number))
        for folder in self.bench.folder.glob("qat-trial-*"):
            if int(folder.name.rpartition("-")[2]) not in kept:
                shutil.rmtree(folder, ignore_errors=True)  # another worker may be quicker


def trial_folder(bench: Bench, number: int) -> Path:
    """Return where a trial's best model and its checkpoint are."""
    return bench.folder / f"qat-trial-{number}"


def done(study: optuna.Study, max_trials: int, *, begun: bool) -> bool:
    """Tell whether no further trial is wanted; with `begun`, those that are under way count as well."""
    if studies.stopped(study) or studies.late(study):
        return True
    count = len(studies.finished(study)) + (len(studies.running(study)) if begun else 0)
    return count >= max_trials
