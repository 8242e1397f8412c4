"""Many processes on one study: local workers, a killed run, a database server, Ray, and several devices a trial."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
import yaml

import qatflow
from qatflow.errors import RecipeError, RunFolderError
from qatflow.qat import stored
from qatflow.qat import study as studies
from qatflow.qat.launch import command, environment
from qatflow.qat.search import search
from qatflow.qat.space import PROBED_RATES
from qatflow.recipe import Model, Recipe, Search
from qatflow.results.result import RunResult, TrialRecord
from qatflow.results.store import read_json
from qatflow.worker import work
from tests.qat import test_search

HERE = "tests.qat.tiny_task"
TRUST = ("tests",)
PATIENCE = 300
"""Seconds that a process may take."""


def recipe(data: str = "data", **search: object) -> Recipe:
    space = {"max_trials": 3, "lr": (1e-3, 1e-1), "epochs": (2, 4), "decay_period": (1, 2), "stop_at_gate": False}
    return Recipe(
        model={"factory": f"{HERE}:model", "final_lr": 1e-2},
        data={"factory": f"{HERE}:{data}", "batch_size": 32},
        precision={"weights": 2, "activations": 3},
        calibration={"samples": 64},
        ladder={"judge": False},
        qat={"when": "always"},
        search={**space, **search},
        export={"verify": False, "onnx": False},
        device="cpu",
    )


def summary(trial: TrialRecord) -> tuple[object, ...]:
    values = tuple(None if record.value is None else round(record.value, 6) for record in trial.history)
    return trial.lr, trial.epochs, trial.range_learning, values


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> RunResult:
    return qatflow.run(recipe(), tmp_path_factory.mktemp("alone"), trust=TRUST)


def test_two_workers_share_a_study(alone: RunResult, tmp_path: Path) -> None:
    result = qatflow.run(recipe(workers=2, max_trials=5), tmp_path, trust=TRUST)
    assert len(result.trials) == 5
    assert len({trial.number for trial in result.trials}) == 5
    first = next(trial for trial in result.trials if trial.number == 0)
    assert summary(first) == summary(alone.trials[0])
    best = max(result.trials, key=lambda one: (one.value, -one.number))
    assert result.winner is not None
    assert next(one for one in result.candidates if one.stage == "qat").notes["trial"] == best.number
    assert {path.name for path in tmp_path.glob("worker-*.log")} == {"worker-0.log", "worker-1.log"}
    assert len(list((tmp_path / "candidates").glob("qat-trial-*"))) <= stored.KEPT
    assert not list(tmp_path.rglob("checkpoint.pt"))
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout


def trials_in(url: str) -> list[optuna.trial.FrozenTrial]:
    storage = studies.open_storage(url)
    try:
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).trials
    finally:
        studies.close(storage)


def trained_in(url: str) -> list[optuna.trial.FrozenTrial]:
    """Without one that two workers began at the same moment, of which the later one gave it up."""
    return [trial for trial in trials_in(url) if trial.intermediate_values]


def wait_for(condition, seconds: float = 90.0) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def test_a_killed_run_goes_on_and_loses_the_running_epoch_only(tmp_path: Path) -> None:
    slow = recipe("slow_data", max_trials=1, epochs=(4, 4), decay_period=(2, 2))
    folder, url = tmp_path / "run", f"sqlite:///{tmp_path / 'run' / 'study.db'}"
    (tmp_path / "recipe.json").write_text(slow.model_dump_json())
    code = (
        "import json, sys, qatflow; from qatflow.recipe import Recipe; "
        "qatflow.run(Recipe(**json.load(open(sys.argv[1]))), sys.argv[2], trust=('tests',))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "recipe.json", folder])

    def epochs() -> int:
        if not (folder / "candidates" / "qat-trial-0" / "checkpoint.pt").exists():
            return 0
        return len(trials_in(url)[0].intermediate_values)

    wait_for(lambda: epochs() >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = trials_in(url)[0]
    assert before.state == optuna.trial.TrialState.RUNNING
    reached = torch.load(folder / "candidates" / "qat-trial-0" / "checkpoint.pt", weights_only=True)["outcome"]
    assert len(reached["history"]) - 1 >= max(before.intermediate_values) - 1
    result = qatflow.run(slow, folder, trust=TRUST)
    (trial,) = result.trials
    assert trial.number == 0, "to Optuna it is another trial, to people the same"
    for record, earlier in zip(trial.history, reached["history"], strict=False):
        assert record.seconds == earlier["seconds"]  # not done again
    uninterrupted = qatflow.run(slow, tmp_path / "other", trust=TRUST)
    assert summary(trial) == summary(uninterrupted.trials[0])
    ran = [one for run in (result, uninterrupted) for one in run.candidates if one.stage == "qat"]
    qat = [one for one in ran if one.part == "validation"]
    assert qat[0].value == qat[1].value
    assert qat[0].sqnr_db == pytest.approx(qat[1].sqnr_db)


def idle(**search: object) -> Recipe:
    """A recipe whose trials all end on epoch 0, and so with the same value."""
    return recipe(**{"lr": (1e-12, 1e-12), "epochs": (1, 3), "max_trials": 5, **search})


class Overtaken(test_search.Watching):
    """While the first trial is trained, another process trains all the others."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def track(self, items, description, total=None):
        for item in items:
            if description == "qat: trial 0" and item == 0:
                assert len(trials_in(f"sqlite:///{self.folder / 'study.db'}")) == 1
                subprocess.run(command(self.folder, TRUST, Search()), check=True, timeout=PATIENCE)
            yield item


def test_of_trials_that_tie_the_first_wins_though_it_ends_last(tmp_path: Path) -> None:
    own, progress = idle(), Overtaken(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(own.model_dump(mode="json")))
    bench, start = test_search.prepare(own, tmp_path, progress)
    winner = search(bench, start, tmp_path, lambda one: False).winner
    trials = trials_in(f"sqlite:///{tmp_path / 'study.db'}")
    assert max(trials, key=lambda one: one.datetime_complete).number == 0
    assert {trial.value for trial in trials} == {trials[0].value}
    assert winner is not None
    assert winner.record.notes["trial"] == 0
    again, _ = test_search.run(own, tmp_path)
    assert again is not None
    assert again.record == winner.record.model_copy(update={"resumed": True})
    assert again.record.value == start.record.value


@pytest.mark.slow
def test_two_workers_whose_trials_tie_never_lose_the_winner(tmp_path: Path) -> None:
    first = qatflow.run(idle(workers=2), tmp_path, trust=TRUST)
    second = qatflow.run(idle(workers=2), tmp_path, trust=TRUST)
    for result in (first, second):
        assert result.status == "finished"
        assert len(result.trials) == 5
        assert {trial.value for trial in result.trials} == {result.trials[0].value}
        assert {one.notes["trial"] for one in result.candidates if one.stage == "qat"} == {0}
    left = {path.name for path in (tmp_path / "candidates").glob("qat-trial-*")}
    assert "qat-trial-0" in left
    assert len(left) <= stored.KEPT


@pytest.mark.slow
def test_workers_probe_every_rate_once_before_they_go_on(tmp_path: Path) -> None:
    own = recipe(lr=None, workers=2, max_trials=6, epochs=(2, 3))
    own = own.model_copy(update={"model": Model(factory=f"{HERE}:model")})
    result = qatflow.run(own, tmp_path, trust=TRUST)
    probes = [trial for trial in result.trials if trial.probe]
    others = [trial for trial in result.trials if not trial.probe]
    assert sorted(trial.lr for trial in probes) == list(PROBED_RATES)
    assert len(others) == 2
    trials = trials_in(f"sqlite:///{tmp_path / 'study.db'}")
    times = {trial.number: (trial.datetime_start, trial.datetime_complete) for trial in trials}
    assert min(times[one.number][0] for one in others) >= max(times[one.number][1] for one in probes)
    first = min(others, key=lambda trial: trial.number)
    assert (first.epochs, first.decay_period) == (3, 1)
    assert first.lr in PROBED_RATES


@pytest.mark.slow
def test_an_exception_in_workers_ends_the_search_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("99")
    loss = {"loss": f"{HERE}:breakable_loss", "loss_kwargs": {"switch": str(tmp_path / "broken"), "where": "worker.py"}}
    own = recipe(workers=2)
    own = own.model_copy(update={"qat": own.qat.model_copy(update=loss)})
    result = qatflow.run(own, tmp_path / "run", trust=TRUST)
    assert re.fullmatch(r"QAT: trial \d failed: .*: ValueError: no such class: in this batch", result.training_error)
    assert (result.status, result.best) == ("finished", "naive")
    assert "Traceback" in "".join(path.read_text() for path in (tmp_path / "run").glob("worker-*.log"))


@pytest.mark.slow
def test_a_study_that_is_killed_twice_proposes_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    slow = recipe("slow_data", max_trials=7, epochs=(2, 4))
    slow = slow.model_copy(update={"qat": slow.qat.model_copy(update={"distillation": None})})
    folder = tmp_path / "run"
    (tmp_path / "recipe.json").write_text(slow.model_dump_json())
    code = (
        "import json, sys, qatflow; from qatflow.recipe import Recipe; "
        "qatflow.run(Recipe(**json.load(open(sys.argv[1]))), sys.argv[2], trust=('tests',))"
    )

    def under_way() -> int:
        """Return how many trials had ended where one is in its second epoch, else -1."""
        if not (folder / "study.json").exists():
            return -1
        trials = trials_in(f"sqlite:///{folder / 'study.db'}")
        live = [one for one in trials if one.state == optuna.trial.TrialState.RUNNING and one.intermediate_values]
        return sum("history" in trial.user_attrs for trial in trials) if live else -1

    for finished in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "recipe.json", folder])
        wait_for(lambda finished=finished: under_way() >= finished)
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = qatflow.run(slow, folder, trust=TRUST)
    undisturbed = qatflow.run(slow, tmp_path / "other", trust=TRUST)
    assert [trial.number for trial in killed.trials] == list(range(7))
    assert [summary(trial) for trial in killed.trials] == [summary(trial) for trial in undisturbed.trials]
    assert [one.distillation for one in killed.trials] == [one.distillation for one in undisturbed.trials]
    assert [one.decay_period for one in killed.trials] == [one.decay_period for one in undisturbed.trials]
    values = [run.winner.value for run in (killed, undisturbed) if run.winner is not None]
    assert values[0] == values[1]


def test_a_worker_that_dies_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no such device')"]
    monkeypatch.setattr("qatflow.qat.launch.command", lambda *_: broken)
    result = qatflow.run(recipe(workers=2), tmp_path, trust=TRUST)
    log = re.escape(str(tmp_path / "worker-0.log"))
    said = rf"QAT's workers ended without training anything: see {log} \(no such device\)"
    assert re.fullmatch(said, result.training_error)
    assert (result.status, result.best) == ("finished", "naive")
    assert "no such device" in (tmp_path / "worker-0.log").read_text()


def test_a_worker_joins_by_folder_and_by_storage(alone: RunResult, tmp_path: Path) -> None:
    qatflow.run(recipe(max_trials=1), tmp_path, trust=TRUST)
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("max_trials: 1", "max_trials: 2"))
    assert work(str(tmp_path), TRUST) == 0
    url = f"sqlite:///{tmp_path / 'study.db'}"
    assert len(trained_in(url)) == 2
    (tmp_path / "recipe.yaml").write_text(text.replace("max_trials: 1", "max_trials: 3"))
    assert work(url, TRUST) == 0
    assert len(trained_in(url)) == 3
    result = qatflow.run(recipe(), tmp_path, trust=TRUST)
    assert [summary(trial) for trial in result.trials] == [summary(trial) for trial in alone.trials]


def test_a_worker_says_what_it_misses(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="has no study yet"):
        work(str(tmp_path))
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    with pytest.raises(RunFolderError, match="no run has begun a study"):
        work(url)
    folder = tmp_path / "run"
    qatflow.run(recipe(max_trials=1), folder, trust=TRUST)
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    with pytest.raises(RunFolderError, match="cannot be reached from here: share it"):
        work(f"sqlite:///{moved / 'study.db'}", TRUST)
    written = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(
        written.replace("storage: null", "storage: postgresql://${oc.env:HOME}@theirs/db")
    )
    with pytest.raises(
        RunFolderError, match=r"may not name an environment variable here; if you trust it, add --storage"
    ):
        work(str(moved), TRUST)
    (moved / "recipe.yaml").write_text(written)
    stored = read_json(moved / "study.json")
    (moved / "study.json").write_text(json.dumps({**stored, "bench": "another"}))
    with pytest.raises(RunFolderError, match="are not those of the run"):
        work(str(moved), TRUST)
    with pytest.raises(RecipeError, match=r"search.storage: cannot be opened: .*check the URL"):
        studies.open_storage("postgresql://nobody@localhost:1/none")


def test_the_commands_of_workers() -> None:
    line = command(Path("/runs/one"), ("mine", "yours"), Search())
    assert line[1:] == ["-m", "qatflow.worker", "/runs/one", "--trust", "mine", "--trust", "yours"]
    assert environment(2)["PYTHONSAFEPATH"] == "1"
    secret = command(Path("/runs/one"), (), Search(storage="postgresql://${oc.env:PASSWORD}@host/db"))
    assert secret[4:] == ["--storage", "postgresql://${oc.env:PASSWORD}@host/db"]
    several = command(Path("/runs/one"), (), Search(devices_per_trial=4))
    assert several[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The URL of a database of a real server, in a folder of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
    place = os.environ.get("POSTGRESQL_BIN") or (str(found[-1]) if found else None)
    if place is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    home, port = tmp_path / "server", 20_000 + os.getpid() % 20_000
    home.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(home, "postgres")
        for parent in [tmp_path, *tmp_path.parents]:
            if parent.stat().st_uid == 0 and parent != Path("/") and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(*line: str, check: bool = True) -> None:
        subprocess.run([*as_user, *line], check=check, capture_output=True, cwd="/")

    data, options = str(home / "data"), f"-p {port} -c listen_addresses=localhost -k {home}"
    call(f"{place}/initdb", "-D", data, "-U", "qatflow", "--auth=trust")
    call(f"{place}/pg_ctl", "-D", data, "-l", str(home / "log"), "-o", options, "-w", "start")
    try:
        yield f"postgresql://qatflow@localhost:{port}/postgres"
    finally:
        # On a busy machine the server may be gone before it is looked for, which pg_ctl calls a failure.
        call(f"{place}/pg_ctl", "-D", data, "-m", "immediate", "stop", check=False)


@pytest.mark.slow
def test_a_study_on_postgresql(alone: RunResult, postgresql: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = qatflow.run(recipe(storage=postgresql, workers=2), folder, trust=TRUST)
    assert len(result.trials) == 3
    assert summary(min(result.trials, key=lambda one: one.number)) == summary(alone.trials[0])
    assert not (folder / "study.db").exists()
    assert len(trained_in(postgresql)) == 3
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text().replace("max_trials: 3", "max_trials: 4"))
    line = [sys.executable, "-m", "qatflow.worker", postgresql, "--trust", "tests"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert len(trained_in(postgresql)) == 4


@pytest.mark.slow
def test_ray_trains_the_trials(alone: RunResult, tmp_path: Path) -> None:
    code = (
        "import json, sys, qatflow; from qatflow.recipe import Recipe; "
        "qatflow.run(Recipe(**json.load(open(sys.argv[1]))), sys.argv[2], trust=('tests',))"
    )
    (tmp_path / "recipe.json").write_text(recipe(engine="ray", workers=2).model_dump_json())
    line = [sys.executable, "-c", code, tmp_path / "recipe.json", tmp_path / "run"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    result = RunResult.model_validate_json((tmp_path / "run" / "result.json").read_text())
    assert len(result.trials) == 3
    assert summary(min(result.trials, key=lambda one: one.number)) == summary(alone.trials[0])


def test_two_processes_train_one_trial_as_one_does(tmp_path: Path) -> None:
    one = recipe(max_trials=1)
    alone = qatflow.run(one, tmp_path / "one", trust=TRUST)
    together = qatflow.run(recipe(max_trials=1, devices_per_trial=2), tmp_path / "two", trust=TRUST)
    (first,), (second,) = alone.trials, together.trials
    assert (first.lr, first.epochs) == (second.lr, second.epochs)
    for record, other in zip(first.history[1:], second.history[1:], strict=True):
        assert record.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert record.value == pytest.approx(other.value, abs=0.02)


def test_all_ranks_have_the_same_weights_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json")))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for processes in (1, 2):
        line = [sys.executable, *torchrun, str(processes), "-m", "tests.qat.ranks", str(tmp_path)]
        done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
    single, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first.keys() == second.keys() == single.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in first:
        torch.testing.assert_close(first[name], single[name], rtol=1e-4, atol=1e-5)
    start = torch.load(tmp_path / "start.pt", weights_only=True)
    assert sum(not torch.equal(start[name], single[name]) for name in start) > len(start) / 3
