"""A study that was killed ends like one that nobody disturbed: numbers, judgements, and whatever draws at random."""

import copy
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from torch import Tensor, nn

from qatflow.qat import notes
from qatflow.qat import study as studies
from qatflow.qat.losses import FROM_TEACHER, Objective, choose_objective
from qatflow.qat.search import search
from qatflow.qat.train import train
from qatflow.quant import fused
from qatflow.recipe import Recipe
from qatflow.results.result import EpochRecord
from qatflow.tasks.data import Batch
from tests.qat.test_ending import MEETS
from tests.qat.test_search import Watching, prepare, recipe, run, study_of, without_seconds
from tests.qat.test_train import SETTINGS, Data, replace_seconds, simulation, training, uncalibrated

__all__ = ["simulation"]  # a fixture


def trial(state: TrialState, **attrs: object) -> optuna.trial.FrozenTrial:
    value = 0.5 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, user_attrs={notes.SETTINGS: "{}", **attrs})


def numbers(*trials: optuna.trial.FrozenTrial) -> dict[int, int]:
    study = optuna.create_study()
    study.add_trials(trials)
    return notes.numbers(study)


OVER = trial(TrialState.COMPLETE, history="[]")
CUT_OFF = trial(TrialState.FAIL)
OWN = recipe(epochs=(3, 3))


def test_a_trial_that_was_cut_off_and_the_one_that_goes_on_with_it_are_one_to_people() -> None:
    goes_on = trial(TrialState.COMPLETE, history="[]", continues=1)
    assert numbers(OVER, CUT_OFF, trial(TrialState.FAIL, continues=1), goes_on, OVER) == {0: 0, 3: 1, 4: 2}


def test_another_machine_has_ended_later_trials_meanwhile() -> None:
    waits = trial(TrialState.WAITING, continues=0)
    assert numbers(trial(TrialState.RUNNING), OVER, OVER) == {0: 0, 1: 1, 2: 2}
    assert numbers(CUT_OFF, OVER, OVER, waits) == {3: 0, 1: 1, 2: 2}


def test_a_trial_that_raised_and_the_one_that_tries_again_are_two() -> None:
    raised = trial(TrialState.FAIL, error="no")
    cut_off, last = trial(TrialState.FAIL, continues=0), trial(TrialState.COMPLETE, history="[]", continues=0)
    assert numbers(raised, OVER, cut_off, last) == {0: 0, 1: 1, 3: 2}


def test_trials_that_were_cut_off_before_they_were_settled_do_not_count() -> None:
    unsettled, failed = create_trial(state=TrialState.FAIL), trial(TrialState.FAIL, history="[]", failed=True)
    assert numbers(unsettled, CUT_OFF, OVER, failed) == {2: 0, 3: 1}


def test_kernels_are_those_that_the_study_began_with() -> None:
    study = optuna.create_study()
    assert notes.compiled(study, "meta") is False  # on which nothing is compiled
    assert notes.compiled(study, "cpu") is False
    other = optuna.create_study()
    assert notes.compiled(other, "cpu") is isinstance(fused.kernels("cpu"), fused.Kernels)
    with fused.choice(False):
        assert fused.usable(torch.zeros(fused.SMALLEST)) is None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return without_seconds(run(OWN, tmp_path_factory.mktemp("undisturbed"))[1].trials)


def interrupted(folder: Path, number: int) -> optuna.Study:
    """Return a study whose trial of that number was cut off after its first epoch."""
    with pytest.raises(KeyboardInterrupt):
        run(OWN, folder, interrupt=number)
    study = study_of(folder)
    assert study.trials[number].state == TrialState.RUNNING
    return study


def note(study: optuna.Study, number: int, **attrs: object) -> None:
    for name, value in attrs.items():
        study._storage.set_trial_user_attr(study.trials[number]._trial_id, name, value)


def test_a_trial_that_was_cut_off_before_optuna_was_told_of_its_end_is_gone_on_with(
    undisturbed: list[dict[str, object]], tmp_path: Path
) -> None:
    note(interrupted(tmp_path, 2), 2, best=0.5, failed=False, reason="", history="[]")
    assert without_seconds(run(OWN, tmp_path)[1].trials) == undisturbed


def test_one_that_had_failed_then_is_over(tmp_path: Path) -> None:
    study = interrupted(tmp_path, 2)
    note(study, 2, best=None, failed=True, reason="given up", history="[]")
    studies.take_over_abandoned(study)
    states = [(one.state, notes.counts(one)) for one in study.trials]
    assert states == [(TrialState.COMPLETE, True), (TrialState.COMPLETE, True), (TrialState.FAIL, True)]


def test_a_trial_has_an_owner_from_its_first_moment_on(undisturbed: list[dict[str, object]], tmp_path: Path) -> None:
    study = interrupted(tmp_path, 1)
    studies.take_over_abandoned(study)
    (waits,) = study.get_trials(states=(TrialState.WAITING,))
    assert waits.user_attrs["owner"]["pid"] == os.getpid()
    begun = studies.ask(study)
    assert (begun.number, begun.user_attrs["owner"]["pid"]) == (waits.number, os.getpid())
    new = optuna.create_study()
    assert studies.ask(new).number == 0
    assert [one.system_attrs["fixed_params"] for one in new.trials] == [{}], "enqueued with its owner"
    assert without_seconds(run(OWN, tmp_path)[1].trials) == undisturbed


STORAGE = """
import sys, time
from qatflow.qat import study
print("ready", flush=True)
study.open_storage(sys.argv[1])
"""


def test_a_new_study_appears_with_all_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    line = [sys.executable, "-c", STORAGE, f"sqlite:///{path}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None and not path.exists():
            time.sleep(0.001)
        with closing(sqlite3.connect(path)) as seen:
            names = {name for (name,) in seen.execute("SELECT name FROM sqlite_master")}
            assert {"studies", "ix_studies_study_name", "alembic_version"} <= names
            assert len(seen.execute("SELECT * FROM alembic_version").fetchall()) == 1
    assert process.returncode == 0
    assert [one.name for one in tmp_path.iterdir()] == ["study.db"]


def judged(recipe: Recipe, folder: Path, interrupt: int | None = None) -> Watching:
    progress = Watching(interrupt)
    bench, start = prepare(recipe, folder, progress)
    search(bench, start, folder, lambda one: bench.judge(one) is None)
    assert bench.looks == len([one for one in progress.candidates if one.look is not None])
    return progress


def test_what_was_judged_while_the_search_went_on_is_told_again_in_its_place(tmp_path: Path) -> None:
    easy = recipe().model_copy(update={"gate": MEETS})
    undisturbed = judged(easy, tmp_path / "undisturbed")
    looks = [one.look for one in undisturbed.candidates if one.look is not None]
    assert looks
    with pytest.raises(KeyboardInterrupt):
        judged(easy, tmp_path / "killed", interrupt=3)
    told = [judged(easy, tmp_path / "killed"), judged(easy, tmp_path / "undisturbed")]
    for again in told:
        assert [_without_times(one) for one in again.candidates] == [
            _without_times(one) for one in undisturbed.candidates
        ]


def _without_times(record: object) -> dict[str, object]:
    return record.model_dump(exclude={"seconds", "resumed"})


class Drawing(Data):
    """Batches that are disturbed by all three generators, as augmentation does."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            (x,) = batch.args
            by = random.random() + float(np.random.rand()) + float(torch.rand(()))
            yield replace(batch, args=(x * (1 + 0.1 * by),))


class Remembering(nn.Module):
    """A loss that weighs by what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.seen += 1
        return nn.functional.cross_entropy(outputs, target) * (1 + self.seen)


def remembering() -> Objective:
    module = Remembering()
    return Objective("remembering", module, FROM_TEACHER["distillation"], module)


@pytest.mark.parametrize("what", ["data", "loss"])
def test_a_trial_that_is_taken_up_draws_and_remembers_as_if_it_had_not_stopped(
    simulation, what: str, tmp_path: Path
) -> None:
    def own():
        return training(Drawing()) if what == "data" else replace(training(), objective=remembering())

    whole, first = uncalibrated(), copy.deepcopy(simulation)
    whole.load_encodings(simulation.encodings())
    undisturbed = train(whole, own(), SETTINGS, tmp_path / "whole.pt")

    def stop(record: EpochRecord) -> str:
        if record.epoch == 2:
            raise KeyboardInterrupt
        return ""

    with pytest.raises(KeyboardInterrupt):
        train(first, replace(own(), report=stop), SETTINGS, tmp_path / "part.pt")
    random.seed(5)
    np.random.seed(6)
    resumed = train(simulation, own(), SETTINGS, tmp_path / "part.pt")
    assert [replace_seconds(one) for one in resumed.history] == [replace_seconds(one) for one in undisturbed.history]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(simulation.model.state_dict()[name], value), name


def test_the_state_of_a_users_loss_is_kept() -> None:
    own = recipe(qat={"loss": f"{__name__}:Remembering"})
    objective = choose_objective(own, torch.tensor([1, 0]), ("tests",))
    objective.loss(torch.zeros(2, 3), torch.tensor([1, 0]), None, 0.0)
    assert objective.state() == {"seen": torch.ones(())}
    other = choose_objective(own, torch.tensor([1, 0]), ("tests",))
    other.load_state(objective.state())
    assert other.state() == {"seen": torch.ones(())}
    assert choose_objective(recipe(), torch.tensor([1, 0])).state() == {}
