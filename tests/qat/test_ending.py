"""What ends a search before its trials are over, and what is left of it then."""

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qatflow.errors import QatflowError, RunFolderError, UserCodeError
from qatflow.ladder.candidates import Candidate
from qatflow.qat import ending, stored
from qatflow.qat import study as studies
from qatflow.qat.check import check_training
from qatflow.qat.search import search
from qatflow.recipe import Gate, Recipe
from qatflow.results.gate import Measurement
from tests.qat.test_search import HERE, Watching, prepare, proposals, recipe, run, without_seconds
from tests.qat.tiny_task import Breakable, breakable_loss

MEETS = Gate(metric="accuracy", max_drop=1.0)


def trial_of(candidate: Candidate | None) -> object:
    assert candidate is not None
    return candidate.record.notes["trial"]


def best_of(progress: Watching) -> int:
    return max(
        (one for one in progress.trials if one.value is not None), key=lambda one: (one.value, -one.number)
    ).number


def test_a_trial_that_misses_where_it_is_judged_does_not_end_the_search(tmp_path: Path) -> None:
    easy = recipe().model_copy(update={"gate": MEETS})
    asked: list[Candidate] = []

    def judged(candidate: Candidate) -> bool:
        asked.append(candidate)
        return False

    winner, progress = run(easy, tmp_path, judged=judged)
    assert [one.number for one in progress.trials] == [0, 1, 2, 3]
    assert trial_of(winner) == best_of(progress)
    numbers = [trial_of(one) for one in asked]
    firsts = [one for one in progress.trials if all(one.value > other.value for other in progress.trials[: one.number])]
    assert numbers == [one.number for one in firsts if one.number < 3]  # the last one leaves nothing to decide
    told = [note for note in progress.notes if "misses it where it is judged: the search goes on" in note]
    assert len(told) == len(numbers)
    again, _ = run(easy, tmp_path, judged=lambda one: pytest.fail("every trial is over"))
    assert trial_of(again) == trial_of(winner)


def test_what_missed_one_gate_is_judged_by_another(tmp_path: Path) -> None:
    easy = recipe(max_trials=1).model_copy(update={"gate": MEETS})
    run(easy, tmp_path)
    more = easy.model_copy(update={"search": easy.search.model_copy(update={"max_trials": 2})})
    asked: list[float] = []
    for amount in (0.9, 0.9, 0.8):
        gate = Gate(metric="accuracy", max_drop=amount)

        def judged(candidate: Candidate, amount: float = amount) -> bool:
            asked.append(amount)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(more.model_copy(update={"gate": gate}), tmp_path, judged=judged)
    assert asked == [0.9, 0.9, 0.8]
    winner, progress = run(more, tmp_path, judged=lambda one: True)
    assert trial_of(winner) == 0
    assert progress.notes[-1] == "the search ended early: trial 0 meets the gate on the validation part"


def breakable(folder: Path, **search: object) -> tuple[Recipe, Path]:
    switch = folder / "broken"
    qat = {"loss": f"{HERE}:breakable_loss", "loss_kwargs": {"switch": str(switch)}}
    return recipe(qat=qat, stop_at_gate=False, epochs=(2, 3), **search), switch


class Breaking(Watching):
    """Breaks the loss while a trial is trained, for so many batches."""

    def __init__(self, switch: Path, trial: int, times: int) -> None:
        super().__init__()
        self.switch, self.number, self.times = switch, trial, times

    def track(self, items, description, total=None):
        for item in items:
            if description == f"qat: trial {self.number}" and item == 0:
                self.switch.write_text(str(self.times))
            yield item


def broken_run(recipe: Recipe, folder: Path, breaking: Breaking) -> Candidate | None:
    bench, start = prepare(recipe, folder, breaking)
    return search(bench, start, folder, lambda one: False).winner


def place(source: Callable[..., object], line: str) -> str:
    """Where a line of the user's code is, as it is told: file, line, function."""
    lines, start = inspect.getsourcelines(source)
    (number,) = [start + number for number, one in enumerate(lines) if line in one]
    return f"{inspect.getsourcefile(source)}:{number}, in "


WRONG_CLASS = place(breakable_loss, "raise ValueError") + "cross_entropy: ValueError: no such class: in this batch"
GONE = (
    place(Breakable.__getitem__, "raise OSError")
    + "__getitem__: OSError: the disk is gone (reading the data; the data's train part, batch 1)"
)


def test_an_exception_of_the_users_is_noted_with_its_trial_which_is_gone_on_with(tmp_path: Path) -> None:
    own, switch = breakable(tmp_path)
    undisturbed_winner, undisturbed = run(own, tmp_path / "whole")
    progress = Breaking(switch, trial=1, times=1)
    winner = broken_run(own, tmp_path / "run", progress)
    assert [one.number for one in progress.trials] == [0, 1, 2, 3, 4]
    failed = progress.trials.pop(1)
    assert (failed.state, failed.reason) == ("failed", WRONG_CLASS)
    assert proposals(progress.trials) == proposals(undisturbed.trials)
    assert [one.value for one in progress.trials] == [one.value for one in undisturbed.trials]
    assert winner is not None
    assert undisturbed_winner is not None
    assert winner.record.value == undisturbed_winner.record.value


def test_the_same_exception_again_ends_the_search_with_what_is_there(tmp_path: Path) -> None:
    own, switch = breakable(tmp_path)
    progress = Breaking(switch, trial=1, times=99)
    winner = broken_run(own, tmp_path / "run", progress)
    assert [one.state for one in progress.trials] == ["complete", "failed", "complete"]
    kept = progress.trials[2]
    assert kept.reason == WRONG_CLASS
    assert len(kept.history) == 2, "the start and the one epoch that was over"
    assert kept.value == kept.history[kept.best_epoch].value
    assert trial_of(winner) == best_of(progress)
    why = f"trials 1 and 2 failed alike: {WRONG_CLASS}"
    assert progress.notes[-1] == f"the search ended early: {why}"
    switch.unlink()  # repaired
    again, progress = run(own, tmp_path / "run")
    assert [one.number for one in progress.trials if one.state != "failed"] == [0, 2, 3, 4]
    assert trial_of(again) == best_of(progress)


def test_where_nothing_was_finished_the_first_cause_is_raised(tmp_path: Path) -> None:
    own, switch = breakable(tmp_path, max_trials=1)
    switch.write_text("99")
    with pytest.raises(QatflowError, match=f"^QAT: trial 0 failed: {re.escape(WRONG_CLASS)}$"):
        run(own, tmp_path / "run")


def test_data_that_cannot_be_read_any_more_loses_nothing_that_is_finished(tmp_path: Path) -> None:
    switch = tmp_path / "gone"
    data = {"factory": f"{HERE}:breakable_data", "kwargs": {"switch": str(switch)}, "batch_size": 32}
    own = Recipe(**{**recipe(max_trials=1, stop_at_gate=False).model_dump(), "data": data})
    winner, _ = run(own, tmp_path / "run")
    progress = Watching()
    more = own.model_copy(update={"search": own.search.model_copy(update={"max_trials": 3})})
    bench, start = prepare(more, tmp_path / "run", progress)
    check_training(bench)
    switch.touch()
    again = search(bench, start, tmp_path / "run", lambda one: False)
    assert trial_of(again.winner) == trial_of(winner) == 0
    assert again.error == GONE
    assert progress.notes[-1] == f"the search ended early: {GONE}"
    switch.unlink()
    bench, start = prepare(more, tmp_path / "new", Watching())
    switch.touch()
    with pytest.raises(UserCodeError, match=re.escape(GONE.removesuffix(", batch 1)"))):
        search(bench, start, tmp_path / "new", lambda one: False)


def damage(folder: Path, number: int) -> None:
    weights = folder / "candidates" / f"qat-trial-{number}" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x80  # the sign of a weight
    weights.write_bytes(content)


def test_of_a_damaged_model_is_told_and_the_next_best_is_taken(tmp_path: Path) -> None:
    own = recipe(stop_at_gate=False)
    winner, progress = run(own, tmp_path)
    shutil.rmtree(tmp_path / "candidates" / "qat")
    ranked = sorted(progress.trials, key=lambda one: (-one.value, one.number))
    assert trial_of(winner) == ranked[0].number
    damage(tmp_path, ranked[0].number)
    second, progress = run(own, tmp_path)
    assert trial_of(second) == ranked[1].number
    (told,) = (note for note in progress.notes if "cannot be used" in note)
    assert told.startswith(f"the model of trial {ranked[0].number} cannot be used: ")
    assert "model.safetensors is not what was written there" in told
    shutil.rmtree(tmp_path / "candidates" / "qat")
    shutil.rmtree(tmp_path / "candidates" / f"qat-trial-{ranked[1].number}")
    third, progress = run(own, tmp_path)
    assert third is None
    assert progress.notes[-1] == "no trial's model can be used: the best rung of the ladder stays the winner"
    assert sum("cannot be used" in note for note in progress.notes) == 2


def test_a_model_of_another_study_is_not_taken(tmp_path: Path) -> None:
    one, other = (recipe(max_trials=1, epochs=(1, 1), lr=(rate, rate)) for rate in (1e-3, 1e-2))
    run(one, tmp_path / "one")
    run(other, tmp_path / "other")
    place = Path("candidates") / "qat-trial-0"
    shutil.rmtree(tmp_path / "one" / "candidates" / "qat")
    shutil.rmtree(tmp_path / "one" / place)
    shutil.copytree(tmp_path / "other" / place, tmp_path / "one" / place)
    winner, progress = run(one, tmp_path / "one")
    assert winner is None
    assert any("has not the model that trial 0 stored" in note for note in progress.notes)


def test_a_checkpoint_of_another_study_is_not_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe(max_trials=1, epochs=(3, 3), lr=(1e-3, 1e-3)), tmp_path, interrupt=0)
    assert (tmp_path / "candidates" / "qat-trial-0" / stored.CHECKPOINT).exists()
    other = recipe(max_trials=1, epochs=(3, 3), lr=(1e-2, 1e-2))
    _, progress = run(other, tmp_path)
    _, alone = run(other, tmp_path / "alone")
    assert without_seconds(progress.trials) == without_seconds(alone.trials)


def test_a_damaged_checkpoint_is_told_of_and_the_trial_begins_anew(tmp_path: Path) -> None:
    own = recipe(max_trials=1, epochs=(3, 3))
    with pytest.raises(KeyboardInterrupt):
        run(own, tmp_path, interrupt=0)
    (tmp_path / "candidates" / "qat-trial-0" / stored.CHECKPOINT).write_bytes(b"half")
    _, progress = run(own, tmp_path)
    assert any("is damaged" in note and "trained from its beginning" in note for note in progress.notes)
    assert [len(one.history) for one in progress.trials] == [4]


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    own = recipe(max_trials=1, epochs=(1, 1))
    run(own, tmp_path)
    (tmp_path / "study.db").write_bytes(b"not a database, but long enough to be looked at " * 50)
    with pytest.raises(RunFolderError, match=r"study.db cannot be read as an Optuna study \(.*\); remove it and run"):
        run(own, tmp_path)


def test_nothing_meets_the_gate_before_fp32_is_known(tmp_path: Path) -> None:
    storage = studies.open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = studies.open_study(storage, "one", True)
    assert ending.met(study, MEETS) is None
    ending.note_fp32(study, Measurement(0.9, None, True))
    assert ending.met(study, MEETS) is None
    studies.close(storage)
