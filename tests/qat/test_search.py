"""The study as a whole: a real bench, real training, a real database."""

import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch

from qatflow.errors import DataError
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate, Work
from qatflow.qat import stored
from qatflow.qat.search import search
from qatflow.qat.space import rate_span, recommended
from qatflow.quant import fused
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Gate, Model, Precision, Recipe
from qatflow.results.progress import Silent
from qatflow.results.result import CandidateRecord, TrialRecord
from qatflow.tasks.task import load_task

HERE = "tests.qat.tiny_task"


def recipe(data: str = "data", qat: dict[str, object] | None = None, **search: object) -> Recipe:
    space = {"max_trials": 4, "lr": (1e-4, 1e-1), "epochs": (1, 3), "decay_period": (1, 2)}
    return Recipe(
        model={"factory": f"{HERE}:model", "final_lr": 1e-3},
        data={"factory": f"{HERE}:{data}", "batch_size": 32},
        precision={"weights": 2, "activations": 3},
        calibration={"samples": 64},
        qat=qat or {},
        search={**space, **search},
        device="cpu",
    )


class Watching(Silent):
    """Remembers trials; interrupts the run in an epoch of one of them."""

    def __init__(self, interrupt: int | None = None) -> None:
        self.interrupt = interrupt
        self.trials: list[TrialRecord] = []
        self.candidates: list[CandidateRecord] = []
        self.notes: list[str] = []

    def track(self, items, description, total=None):
        for item in items:
            if self.interrupt is not None and description == f"qat: trial {self.interrupt}" and item == 1:
                raise KeyboardInterrupt
            yield item

    def trial(self, record: TrialRecord) -> None:
        self.trials.append(record)

    def candidate(self, record: CandidateRecord) -> None:
        self.candidates.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)


def prepare(recipe: Recipe, folder: Path, progress: Silent | None = None) -> tuple[Bench, Candidate]:
    torch.manual_seed(123)
    task = load_task(recipe, ("tests",))
    design = Design(precision=recipe.precision, calibration=recipe.calibration)
    base = captured_network(task.model, *task.example(), design)
    bench = Bench(recipe, task, base, folder, progress or Silent())
    bench.baseline()
    start = bench.measure(base, Work("naive", "ptq"), key="start", started=time.perf_counter())
    return bench, bench.keep(start, kept=True)


def run(
    recipe: Recipe, folder: Path, interrupt: int | None = None, judged: Callable[[Candidate], bool] = lambda one: True
) -> tuple[Candidate | None, Watching]:
    progress = Watching(interrupt)
    bench, start = prepare(recipe, folder, progress)
    return search(bench, start, folder, judged).winner, progress


def study_of(folder: Path) -> optuna.Study:
    storage = f"sqlite:///{folder / 'study.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def proposals(trials: list[TrialRecord]) -> list[tuple[object, ...]]:
    return [(one.lr, one.epochs, one.decay_period, one.range_learning) for one in trials]


def without_seconds(trials: list[TrialRecord]) -> list[dict[str, object]]:
    return [
        one.model_dump(exclude={"seconds": True, "history": {"__all__": {"seconds"}}}, mode="json") for one in trials
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Candidate, Watching]:
    folder = tmp_path_factory.mktemp("finished")
    winner, progress = run(recipe(), folder)
    assert winner is not None
    return folder, winner, progress


def test_the_recommendation_is_the_first_trial(finished) -> None:
    _, _, progress = finished
    first = progress.trials[0]
    assert (first.number, first.lr, first.epochs, first.decay_period, first.range_learning) == (0, 1e-3, 3, 1, True)
    assert recommended(recipe(lr=(1e-2, 1e-1)))["lr"] == 1e-2
    assert "range_learning" not in recommended(recipe(qat={"range_learning": False}))


def test_without_a_span_the_rate_is_searched_around_the_final_one() -> None:
    assert rate_span(recipe(lr=None)) == pytest.approx((1e-4, 1e-2))


def test_every_trial_is_in_the_space_and_told_once(finished) -> None:
    _, _, progress = finished
    assert [one.number for one in progress.trials] == [0, 1, 2, 3]
    assert progress.notes == ["QAT trains on cross_entropy"]
    for one in progress.trials:
        assert one.state in ("complete", "pruned")
        assert 1e-4 <= one.lr <= 1e-1
        assert 1 <= one.epochs <= 3
        assert 1 <= one.decay_period <= 2
        assert [record.epoch for record in one.history] == list(range(len(one.history)))
        assert one.value == max(record.value for record in one.history)
        assert one.value >= progress.trials[0].history[0].value
    assert len(set(proposals(progress.trials))) == 4


def test_the_winner_is_the_best_trial_measured_on_the_evaluation_part(finished) -> None:
    folder, winner, progress = finished
    best = max(progress.trials, key=lambda one: (one.value, -one.number))
    assert winner.record.notes["trial"] == best.number
    assert winner.record.notes["best_epoch"] == best.best_epoch
    assert (winner.record.id, winner.record.stage, winner.record.steps) == ("qat", "qat", ("qat",))
    bench, _ = prepare(recipe(), folder / "again")
    simulation = bench.simulate(winner.network, winner.encodings)
    measured = bench.choosing.evaluator.evaluate(simulation.model)
    assert measured.measurement.value == winner.record.value
    assert measured.sqnr_db == winner.record.sqnr_db
    assert best.value > best.history[0].value
    assert winner.record.seconds >= sum(one.seconds for one in progress.trials)
    ranked = sorted(progress.trials, key=lambda one: (-one.value, one.number))
    left = {path.name for path in (folder / "candidates").glob("qat-trial-*")}
    assert left == {f"qat-trial-{one.number}" for one in ranked[: stored.KEPT]}


def test_the_same_seed_gives_the_same_study(finished, tmp_path: Path) -> None:
    _, winner, progress = finished
    again, other = run(recipe(), tmp_path)
    assert without_seconds(other.trials) == without_seconds(progress.trials)
    assert again is not None
    assert again.record.value == winner.record.value
    _, third = run(recipe().model_copy(update={"seed": 5}), tmp_path / "seeded")
    assert proposals(third.trials)[0] == proposals(progress.trials)[0]
    assert proposals(third.trials)[1:] != proposals(progress.trials)[1:]


def test_a_second_start_does_nothing_again(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, winner, progress = finished
    monkeypatch.setattr("qatflow.qat.trial.train", None)
    again, other = run(recipe(), folder)
    assert other.trials == progress.trials
    assert again is not None
    assert again.record == winner.record.model_copy(update={"resumed": True})


def test_stopped_half_way_it_goes_on_and_redoes_the_abandoned_trial(tmp_path: Path) -> None:
    stopped = recipe(epochs=(3, 3))
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path, interrupt=2)
    abandoned = study_of(tmp_path).trials[2]
    assert abandoned.state == optuna.trial.TrialState.RUNNING
    winner, progress = run(stopped, tmp_path)
    assert winner is not None
    assert len(progress.trials) == 4
    assert [one.number for one in progress.trials] == [0, 1, 2, 3]
    trials = study_of(tmp_path).trials
    assert trials[2].state == optuna.trial.TrialState.FAIL
    assert trials[3].params == abandoned.params
    _, undisturbed = run(stopped, tmp_path / "undisturbed")
    assert without_seconds(progress.trials) == without_seconds(undisturbed.trials)
    values = [trial.intermediate_values for trial in trials if trial.number != 2]
    assert values == [trial.intermediate_values for trial in study_of(tmp_path / "undisturbed").trials]


def test_interrupted_before_anything_was_trained(tmp_path: Path) -> None:
    stopped = recipe(epochs=(2, 2), max_trials=2)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path, interrupt=0)
    winner, progress = run(stopped, tmp_path)
    assert winner is not None
    assert [one.number for one in progress.trials] == [0, 1]
    assert progress.trials[0].lr == pytest.approx(1e-3)


def test_where_no_trial_beats_the_start_the_first_one_is_shipped(tmp_path: Path) -> None:
    idle = recipe(lr=(1e-12, 1e-12), epochs=(1, 1), max_trials=3)
    winner, progress = run(idle, tmp_path)
    assert winner is not None
    assert winner.record.notes["trial"] == 0
    assert [one.best_epoch for one in progress.trials] == [0, 0, 0]


def test_where_every_trial_fails_there_is_no_winner(tmp_path: Path) -> None:
    winner, progress = run(recipe("data_that_spoils_training", max_trials=2, epochs=(2, 3)), tmp_path)
    assert winner is None
    assert [one.state for one in progress.trials] == ["failed", "failed"]
    assert all("given up" in one.reason for one in progress.trials)
    assert "every QAT trial failed" in progress.notes[-1]


def test_a_lower_metric_is_searched_for_where_lower_is_better(tmp_path: Path) -> None:
    lower = recipe(max_trials=2, epochs=(1, 2)).model_copy(
        update={"gate": recipe().gate.model_copy(update={"metric": f"{HERE}:loss", "direction": "lower"})}
    )
    winner, progress = run(lower, tmp_path)
    assert winner is not None
    assert all(one.value == min(record.value for record in one.history) for one in progress.trials)
    assert winner.record.notes["trial"] == min(progress.trials, key=lambda one: one.value).number


def test_the_first_trial_that_meets_the_gate_ends_the_study(tmp_path: Path) -> None:
    easy = recipe().model_copy(update={"gate": Gate(metric="accuracy", max_drop=1.0)})
    winner, progress = run(easy, tmp_path / "stops")
    assert winner is not None
    assert len(progress.trials) == 1
    assert progress.notes[-1] == "the search ended early: trial 0 meets the gate on the validation part"
    goes_on = easy.model_copy(update={"search": easy.search.model_copy(update={"stop_at_gate": False})})
    _, progress = run(goes_on, tmp_path / "stops")  # the same study, continued
    assert [one.number for one in progress.trials] == [0, 1, 2, 3]
    assert not [note for note in progress.notes if "ended early" in note]


def test_when_the_time_is_up_no_epoch_is_begun(tmp_path: Path) -> None:
    winner, progress = run(recipe("slow_data", max_time=1.5, epochs=(20, 30), decay_period=(5, 10)), tmp_path)
    assert winner is not None
    (trial,) = progress.trials
    assert 1 <= len(trial.history) - 1 < 10  # an epoch takes a second
    assert progress.notes[-1] == "the search ended early: search.max_time, 1.5 s, is over"


def test_a_trial_that_begins_like_another_is_not_trained_again(tmp_path: Path) -> None:
    _, first = run(recipe(max_trials=1, qat={"range_learning": True}), tmp_path)
    study_of(tmp_path).enqueue_trial({"lr": 1e-3, "epochs": 2, "decay_period": 1})
    _, second = run(recipe(max_trials=2, qat={"range_learning": True}), tmp_path)
    whole, part = second.trials
    assert whole == first.trials[0]
    assert (part.lr, part.epochs) == (whole.lr, 2)
    assert part.history == whole.history[:3]
    assert part.reason == "as far as it goes, trial 0 was the same"
    assert part.value == max(record.value for record in whole.history[:3])
    assert part.seconds < min(record.seconds for record in whole.history[1:]) + 0.1


def test_without_a_validation_part_one_is_split_off_and_told_of(tmp_path: Path) -> None:
    winner, progress = run(recipe("data_without_validation", max_trials=1), tmp_path / "split")
    assert winner is not None
    assert progress.notes[0] == (
        "the data has no validation part: QAT takes every tenth training sample for it, 10 in all"
    )
    with pytest.raises(DataError, match="only 19 training samples"):
        run(recipe("data_too_small_to_split"), tmp_path / "small")


def test_a_machine_without_a_compiler_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "kernels", lambda device: "torch.compile failed on this machine: no compiler")
    winner, progress = run(recipe(max_trials=1), tmp_path)
    assert winner is not None
    assert progress.notes[0].startswith("torch.compile failed on this machine: no compiler; QAT trains op by op")


def test_stale_statistics_are_taken_anew_after_training(tmp_path: Path) -> None:
    def best_value(batch_norms: str) -> tuple[float, torch.Tensor]:
        stale = recipe("labelled_by_mean", max_trials=1, qat={"batch_norms": batch_norms})
        model = Model(factory=f"{HERE}:model_with_stale_statistics", final_lr=1e-4)
        stale = stale.model_copy(update={"model": model, "precision": Precision()})
        winner, progress = run(stale, tmp_path / batch_norms)
        assert winner is not None
        (mean,) = (value for name, value in winner.network.graph.named_buffers() if name.endswith("running_mean"))
        return progress.trials[0].value, mean

    (frozen, old), (fresh, new) = best_value("frozen"), best_value("reestimate")
    assert bool((old == 0.8).all())
    assert not bool((new == 0.8).any())
    assert fresh > frozen
