"""Processes that die while a study is trained: workers, the run itself, another machine, a task of Ray's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

import qatflow
from qatflow.qat import notes
from qatflow.qat import study as studies
from qatflow.qat.crew import MOST_LOST, Crew
from qatflow.qat.launch import command
from qatflow.recipe import Recipe
from qatflow.report.read import read_result
from qatflow.results.lock import holder
from tests.qat.test_workers import PATIENCE, TRUST, postgresql, recipe, summary, trials_in, wait_for
from tests.test_unfinished import ROOT, Told

__all__ = ["postgresql"]
RUN = (
    "import json, sys, qatflow; from qatflow.recipe import Recipe; "
    "qatflow.run(Recipe(**json.load(open(sys.argv[1]))), sys.argv[2], trust=('tests',))"
)
SLOW = {"max_trials": 2, "epochs": (4, 4), "decay_period": (2, 2)}


def begun(own: Recipe, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a run in a process of its own."""
    file = folder.with_suffix(".json")
    file.write_text(own.model_dump_json())
    return subprocess.Popen([sys.executable, "-c", RUN, file, folder], cwd=ROOT)


def caught(url: str, folder: Path, worker: "subprocess.Popen[bytes] | None" = None) -> FrozenTrial:
    """Wait for a trial, of this worker if one is given, that has got through an epoch; its checkpoint is there."""
    found: list[FrozenTrial] = []

    def look() -> bool:
        assert worker is None or worker.poll() is None
        if list(folder.glob("candidates/*/checkpoint.pt")):
            live = [
                one for one in trials_in(url) if one.state == TrialState.RUNNING and len(one.intermediate_values) > 1
            ]
            found.extend(one for one in live if worker is None or worker.pid == one.user_attrs[studies.OWNER]["pid"])
        return bool(found)

    wait_for(look, PATIENCE)
    return found[0]


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def left_of(folder: Path) -> list[str]:
    """Return the processes whose command line names a folder."""
    return subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False).stdout.split()


def gone_on_with(url: str, number: int) -> FrozenTrial:
    """Return the trial that went on with another one, to its end."""
    (found,) = [
        one
        for one in trials_in(url)
        if one.user_attrs.get(notes.CONTINUES) == number and notes.HISTORY in one.user_attrs
    ]
    return found


def told_number(url: str, number: int) -> int:
    """Return the number by which people are told of the trial that went on with another one."""
    storage = studies.open_storage(url)
    try:
        study = optuna.load_study(study_name=None, storage=storage)
        return notes.numbers(study)[gone_on_with(url, number).number]
    finally:
        studies.close(storage)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_takes_its_workers_along(devices: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    own = recipe("slow_data", **SLOW, workers=2 if devices == 1 else 1, devices_per_trial=devices)
    process = begun(own, folder)
    cut = caught(store(folder), folder)
    assert len(left_of(folder)) > 2
    process.kill()
    process.wait()
    wait_for(lambda: not left_of(folder), 10)
    assert holder(folder) is None
    assert read_result(folder).status == "interrupted"
    result = qatflow.run(own, folder, trust=TRUST)
    assert len(result.trials) == 2
    assert not result.training_error
    trial = gone_on_with(store(folder), cut.number)
    records = next(one.history for one in result.trials if one.number == told_number(store(folder), cut.number))
    assert len(records) == 5
    assert next(iter(trial.intermediate_values)) <= 1  # what was trained before is reported again, and not trained


def test_a_worker_that_is_killed_is_replaced_and_its_trial_continued(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begun(recipe("slow_data", **SLOW, workers=2), folder)
    cut = caught(store(folder), folder)
    os.kill(cut.user_attrs[studies.OWNER]["pid"], signal.SIGKILL)
    assert process.wait(PATIENCE) == 0
    result = read_result(folder)
    assert (len(result.trials), result.training_error, result.status) == (2, "", "finished")
    assert told_number(store(folder), cut.number) in {trial.number for trial in result.trials}
    log = (folder / "log.txt").read_text()
    assert log.count("was killed and is replaced: see ") == 1


def test_workers_that_are_killed_every_time_are_replaced_a_few_times(tmp_path: Path) -> None:
    started, told = [], Told()

    class Killed:
        def __init__(self, code: str) -> None:
            self.process = subprocess.Popen([sys.executable, "-c", code])

        def poll(self) -> int | None:
            return self.process.poll()

        def terminate(self) -> None:
            self.process.terminate()

        def close(self) -> None:
            self.process.wait()

    def start(number: int) -> Killed:
        started.append(number)
        return Killed("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    counts = iter(range(100))
    crew = Crew(start, 2, tmp_path, lambda: next(counts), told.note)
    assert crew.work(lambda: None) == f"QAT's workers failed {MOST_LOST + 2} times: see {tmp_path}/worker-0.log"
    assert len(started) == 2 + MOST_LOST
    assert len([note for note in told.notes if "was killed and is replaced" in note]) == MOST_LOST
    assert told.notes[-1].endswith(f"and is not replaced, as {MOST_LOST} were: see {tmp_path}/worker-{started[-1]}.log")
    assert crew.work(lambda: None) == f"QAT's workers failed {MOST_LOST + 4} times: see {tmp_path}/worker-0.log"


def elsewhere(url: str, change: Callable[[optuna.Study], None]) -> None:
    """Change a study behind the back of whoever works on it."""
    storage = studies.open_storage(url)
    try:
        (name,) = optuna.get_all_study_names(storage)
        change(optuna.load_study(study_name=name, storage=storage))
    finally:
        studies.close(storage)


def moved(study: optuna.Study) -> None:
    """Let running trials be another machine's."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_user_attr(trial._trial_id, studies.OWNER, {"host": "another", "pid": 1})


def begun_there(study: optuna.Study) -> None:
    """Let another machine begin a trial, and die before its first sign of life."""
    study.ask().set_user_attr(studies.OWNER, {"host": "another", "pid": 1})


def test_the_trial_of_another_machine_that_died_is_continued(tmp_path: Path) -> None:
    check_another_machine(tmp_path, f"sqlite:///{tmp_path / 'shared.db'}")


@pytest.mark.slow
def test_the_trial_of_another_machine_that_died_is_continued_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    check_another_machine(tmp_path, postgresql)


def check_another_machine(tmp_path: Path, url: str) -> None:
    """A trial that it trained is continued, and one that it had only asked for is proposed anew."""
    folder, patience = tmp_path / "run", 4.0
    own = recipe("slow_data", **SLOW, storage=url, lost_after=patience)
    process = begun(own, folder)
    first = caught(url, folder)
    process.kill()
    process.wait()
    worker = subprocess.Popen([*command(folder, TRUST, own.search)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        cut = caught(url, folder, worker)
    finally:
        worker.kill()
        worker.wait()
    assert cut.user_attrs[notes.CONTINUES] == first.number
    elsewhere(url, moved)
    with pytest.warns(UserWarning, match="Heartbeat of storage"):
        elsewhere(url, begun_there)
    started = time.time()
    result = qatflow.run(own, folder, trust=TRUST)
    assert time.time() - started > patience
    assert (len(result.trials), result.training_error) == (2, "")
    assert told_number(url, first.number) in {trial.number for trial in result.trials}
    assert not [one for one in trials_in(url) if one.state == TrialState.RUNNING]


def test_a_study_that_two_folders_share_is_trained_once_and_both_have_its_winner(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    own = recipe("slow_data", **{**SLOW, "max_trials": 3}, storage=url)
    folders = [tmp_path / name for name in ("one", "two")]
    processes = [begun(own, folder) for folder in folders]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    first, second = (read_result(folder) for folder in folders)
    assert (first.status, second.status, first.training_error, second.training_error) == (
        "finished",
        "finished",
        "",
        "",
    )
    assert [summary(trial) for trial in first.trials] == [summary(trial) for trial in second.trials]
    assert len(first.trials) == 3
    homes = {one.user_attrs[notes.CANDIDATES] for one in trials_in(url) if notes.CANDIDATES in one.user_attrs}
    assert homes and homes <= {str(folder / "candidates") for folder in folders}  # one may be quicker with all three
    winners = [one for run in (first, second) for one in run.candidates if one.stage == "qat" and one.part == "test"]
    assert winners[0].value == winners[1].value
    assert winners[0].notes["trial"] == winners[1].notes["trial"]
    assert (folders[0] / "candidates" / "qat" / "model.safetensors").read_bytes() == (
        folders[1] / "candidates" / "qat" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_task_of_rays_that_dies_is_replaced_and_its_trial_continued(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begun(recipe("slow_data", **SLOW, workers=2, engine="ray"), folder)
    cut = caught(store(folder), folder)
    pid = cut.user_attrs[studies.OWNER]["pid"]
    task = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"ray::" in Path(f"/proc/{task}/cmdline").read_bytes()
    os.kill(task, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert process.wait(PATIENCE) == 0
    result = read_result(folder)
    assert (len(result.trials), result.training_error, result.status) == (2, "", "finished")
    assert told_number(store(folder), cut.number) in {trial.number for trial in result.trials}


@pytest.mark.slow
def test_a_killed_run_takes_its_tasks_on_ray_along(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begun(recipe("slow_data", **SLOW, workers=2, engine="ray"), folder)
    caught(store(folder), folder)
    process.kill()
    process.wait()
    wait_for(lambda: not left_of(folder), 60)
