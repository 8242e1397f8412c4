"""What is searched: the space, its first trials, and that a table shows all of it."""

from pathlib import Path

import optuna
import pytest

from qatflow.qat import stored
from qatflow.qat.space import PROBED_RATES, probe, probed_rates, rate_span, recommended, suggest
from qatflow.recipe import Model, Recipe
from qatflow.results.result import TrialRecord
from qatflow.results.tables import TRIALS
from tests.qat.test_search import HERE, Watching, proposals, recipe, run, without_seconds


def without_rate(**search: object) -> Recipe:
    """A recipe that says nothing of the learning rate."""
    own = recipe(**{"lr": None, "epochs": (3, 4), "stop_at_gate": False, **search})
    return own.model_copy(update={"model": Model(factory=f"{HERE}:model")})


@pytest.mark.parametrize(("trials", "probes"), [(1, 0), (2, 0), (3, 2), (4, 3), (5, 4), (8, 4), (50, 4)])
def test_probes_leave_a_trial_for_the_recommendation(trials: int, probes: int) -> None:
    assert probed_rates(without_rate(max_trials=trials)) == PROBED_RATES[:probes]


def test_there_are_none_where_the_recipe_says_around_which_rate_to_search() -> None:
    assert probed_rates(recipe(lr=None)) == ()
    assert probed_rates(without_rate(lr=(1e-5, 1e-2))) == ()
    assert rate_span(recipe(lr=None)) == pytest.approx((1e-4, 1e-2))
    assert rate_span(without_rate()) == (1e-7, 1e-3)
    assert recommended(without_rate())["lr"] == 1e-6
    assert recommended(without_rate(), 1e-4)["lr"] == 1e-4
    assert recommended(without_rate(lr=(1e-5, 1e-2)))["lr"] == 1e-5


def test_every_part_of_the_space_is_a_column() -> None:
    open_space = recipe(qat={"range_learning": None, "distillation": None})
    values = {"lr": 1e-3, "epochs": 2, "decay_period": 1, "range_learning": False, "distillation": 0.25}
    trial = optuna.trial.FixedTrial(values)
    settings = suggest(trial, open_space)
    assert trial.params == values
    assert trial.params.keys() <= TRIALS.keys()
    assert trial.params.keys() <= TrialRecord.model_fields.keys()
    assert {name: getattr(settings, name) for name in values} == values


def test_a_probe_is_short_and_stays_at_its_rate() -> None:
    cosine = without_rate().model_copy(
        update={"qat": recipe(qat={"schedule": "cosine", "warmup": 1.0, "distillation": None}).qat}
    )
    settings = probe(optuna.trial.FixedTrial({"lr": 1e-5}), cosine)
    assert [settings.rate(done) for done in (0, 0.5, 1.9)] == [1e-5] * 3
    assert (settings.epochs, settings.range_learning, settings.distillation) == (2, True, 0.0)
    shorter = probe(optuna.trial.FixedTrial({"lr": 1e-5}), without_rate(epochs=(1, 1)))
    assert shorter.epochs == 1


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> tuple[Path, Watching]:
    folder = tmp_path_factory.mktemp("probed")
    winner, progress = run(without_rate(max_trials=7), folder)
    assert winner is not None
    best = max(progress.trials, key=lambda one: (one.value, -one.number))
    assert winner.record.notes["trial"] == best.number
    return folder, progress


def best_rate(probes: list[TrialRecord]) -> float:
    def rank(one: TrialRecord) -> tuple[float, float]:
        return max(epoch.value for epoch in one.history[1:]), -one.history[-1].train_loss

    return max(probes, key=rank).lr


def test_probes_come_first_and_the_recommendation_takes_the_best_ones_rate(probed) -> None:
    _, progress = probed
    assert [one.probe for one in progress.trials] == [True] * 4 + [False] * 3
    probes, others = progress.trials[:4], progress.trials[4:]
    assert tuple(one.lr for one in probes) == PROBED_RATES
    assert all(len(one.history) == 3 for one in probes)
    assert (others[0].lr, others[0].epochs, others[0].decay_period) == (best_rate(probes), 4, 1)
    assert all(1e-7 <= one.lr <= 1e-3 and 3 <= one.epochs <= 4 for one in others)
    assert progress.notes[0] == (
        "model.final_lr is not given: 1e-06 is assumed, and the first 4 trials are short probes for a better one, at "
        "1e-06, 1e-05, 0.0001, 0.001"
    )


@pytest.mark.parametrize("interrupted", [1, 4])
def test_probes_that_are_interrupted_are_gone_on_with(probed, tmp_path: Path, interrupted: int) -> None:
    _, undisturbed = probed
    with pytest.raises(KeyboardInterrupt):
        run(without_rate(max_trials=7), tmp_path, interrupt=interrupted)
    _, progress = run(without_rate(max_trials=7), tmp_path)
    assert proposals(progress.trials) == proposals(undisturbed.trials)
    same = [one.model_copy(update={"number": number}) for number, one in enumerate(progress.trials)]
    assert without_seconds(same) == without_seconds(undisturbed.trials)


def test_more_trials_later_are_no_more_probes(tmp_path: Path) -> None:
    run(without_rate(max_trials=3), tmp_path)
    _, progress = run(without_rate(max_trials=5), tmp_path)
    assert [one.probe for one in progress.trials] == [True, True, False, False, False]


def test_a_probe_may_win(tmp_path: Path) -> None:
    """Where nothing is better than the start, the first trial is the winner, and that is a probe."""
    idle = without_rate(max_trials=3).model_copy(update={"qat": recipe(qat={"max_gradient_norm": 1e-30}).qat})
    idle = idle.model_copy(update={"qat": idle.qat.model_copy(update={"optimizer": "sgd"})})
    winner, progress = run(idle, tmp_path)
    assert winner is not None
    assert winner.record.notes["trial"] == 0
    assert progress.trials[0].probe
    assert len(list((tmp_path / "candidates").glob("qat-trial-*"))) == stored.KEPT
