"""The Optuna study: where it is stored, whose its trials are, and what of them counts.

Many processes may work on one study. A trial notes who runs it and shows signs of life; one whose process is gone is
closed and enqueued again, and whoever takes it up goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from qatflow.errors import Mistake, RecipeError
from qatflow.qat.schedule import Settings
from qatflow.qat.train import Outcome
from qatflow.quant.saved import finite
from qatflow.result import EpochRecord, TrialRecord

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
BEAT = 30
"""Seconds between two signs of life of a running trial."""
GRACE = 180
"""Seconds without one after which another machine takes a trial over."""
OWNER, CONTINUES, MET, STOP, DEADLINE = "owner", "continues", "met", "stop", "deadline"


def storage_url(configured: str | None, folder: Path) -> str:
    """Return the storage of a run: the recipe's, or a file in its folder."""
    return configured or f"sqlite:///{(folder / 'study.db').resolve()}"


def open_storage(url: str) -> RDBStorage:
    """Return an Optuna storage in which running trials show signs of life.

    Raises:
        RecipeError: it cannot be reached, or its driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options: dict[str, Any] = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    try:
        with _experimental():
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, **options},
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=_again,
            )
    except Exception as error:  # SQLAlchemy's, Optuna's, or the driver's own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "check the URL, that the server answers, and its driver (pip install 'qatflow[postgresql]')"
        raise RecipeError([Mistake("search.storage", f"cannot be opened: {said}", fix)]) from error


def close(storage: RDBStorage) -> None:
    """Close the connections of this process."""
    storage.remove_session()
    storage.engine.dispose()


def open_study(storage: RDBStorage, name: str, higher_is_better: bool) -> optuna.Study:
    """Return the study of this name, made if it is not there."""
    return optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="maximize" if higher_is_better else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
    )


def ask(study: optuna.Study, seed: int) -> optuna.Trial:
    """Return the next trial; what the sampler proposes depends on the seed and how many there are.

    Proposals of trials that run elsewhere count as mediocre, so that workers do not all try the same.
    """
    number = len(study.get_trials(deepcopy=False))
    with _experimental():
        sampler = optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=4, constant_liar=True)
    study.sampler = sampler
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Heartbeat of storage")  # `alive` beats where `optimize` would
        trial = study.ask()
    trial.set_user_attr(OWNER, {"host": socket.gethostname(), "pid": os.getpid()})
    return trial


@contextmanager
def alive(trial: optuna.Trial) -> Iterator[None]:
    """Show signs of life of a trial while the block runs."""
    storage: Any = trial.study._storage  # Optuna's cache before ours, which passes heartbeats on
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            storage.record_heartbeat(trial._trial_id)

    storage.record_heartbeat(trial._trial_id)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def take_over_abandoned(study: optuna.Study) -> None:
    """Close running trials whose process is gone, and enqueue them to be gone on with."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get(OWNER, {})
        if owner.get("host") == socket.gethostname() and not _runs(owner["pid"]):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except ValueError:
                continue  # another process was quicker
            _again(study, trial)


def _again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue a trial that nobody runs any more."""
    if trial.params:
        attrs = {CONTINUES: trial.user_attrs.get(CONTINUES, trial.number)}
        study.enqueue_trial(trial.params, user_attrs=attrs, skip_if_exists=False)


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return False  # of an earlier process with our number, or of a call that was interrupted
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, in order: one that was abandoned has no history and does not."""
    return [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if "history" in trial.user_attrs]


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are being trained."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def best(study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial, of equal ones the first: many end on epoch 0, and only the first of them is stored."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(done, key=lambda trial: (sign * (trial.value or 0.0), -trial.number)) if done else None


def is_best(study: optuna.Study, value: float) -> bool:
    """Tell whether a value beats those of all complete trials."""
    so_far = best(study)
    if so_far is None or so_far.value is None:
        return True
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    return value > so_far.value if higher else value < so_far.value


def remember(trial: optuna.Trial, outcome: Outcome, settings: Settings, seconds: float) -> None:
    """Store with a trial what Optuna has no field for."""
    trial.set_user_attr("best_epoch", outcome.best_epoch)
    trial.set_user_attr("best", finite(outcome.best))
    trial.set_user_attr("seconds", seconds)
    trial.set_user_attr("reason", "; ".join(filter(None, (outcome.reason, outcome.stopped))))
    trial.set_user_attr("range_learning", settings.range_learning)
    trial.set_user_attr("distillation", settings.distillation)
    trial.set_user_attr("pruned", outcome.stopped == PRUNED)
    trial.set_user_attr("history", json.dumps([record.model_dump() for record in outcome.history]))


PRUNED = "pruned: it lagged behind the other trials"


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Return a finished trial as the result has it."""
    notes = trial.user_attrs
    state = "failed" if trial.state == TrialState.FAIL else "pruned" if notes.get("pruned") else "complete"
    return TrialRecord.model_validate(
        {
            "number": trial.number,
            "state": state,
            "lr": trial.params["lr"],
            "epochs": trial.params["epochs"],
            "decay_period": trial.params["decay_period"],
            "range_learning": notes.get("range_learning", trial.params.get("range_learning", False)),
            "distillation": notes.get("distillation", 0.0),
            "value": notes.get("best"),
            "best_epoch": notes.get("best_epoch"),
            "seconds": notes.get("seconds", 0.0),
            "reason": notes.get("reason", ""),
            "history": history_of(trial),
        }
    )


def history_of(trial: FrozenTrial) -> list[EpochRecord]:
    """Return the epochs of a finished trial."""
    return [EpochRecord.model_validate(one) for one in json.loads(trial.user_attrs.get("history", "[]"))]


def stop_at_gate(study: optuna.Study, wanted: bool) -> None:
    """Let no worker begin another trial if one has met the gate on the validation part and that is `wanted`."""
    met = next((trial.number for trial in finished(study) if trial.user_attrs.get(MET)), None)
    reason = f"trial {met} meets the gate on the validation part" if wanted and met is not None else ""
    study.set_user_attr(STOP, reason)


def stopped(study: optuna.Study) -> str:
    """Return why no further trial is begun, or an empty string."""
    return str(study.user_attrs.get(STOP, ""))


def set_deadline(study: optuna.Study, max_time: float | None) -> None:
    """Let all workers end after so many seconds from now."""
    study.set_user_attr(DEADLINE, None if max_time is None else time.time() + max_time)


def late(study: optuna.Study) -> bool:
    """Tell whether the study's time is up."""
    deadline = study.user_attrs.get(DEADLINE)
    return deadline is not None and time.time() > deadline


@contextmanager
def _experimental() -> Iterator[None]:
    """Use what Optuna calls experimental and has kept for years: signs of life, and TPE for several workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
