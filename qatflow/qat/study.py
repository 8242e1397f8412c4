"""The Optuna study: where it is stored, what it proposes, and who runs its trials.

Many processes may work on one study. A trial notes who runs it and shows signs of life; one whose process is gone is
closed and enqueued again, and whoever takes it up goes on from its last checkpoint. What is proposed depends on the
seed and on the trials that count, not on those that were cut off: a study that is killed and continued proposes what
one that nobody disturbs does.
"""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from qatflow.errors import Mistake, RecipeError, RunFolderError
from qatflow.qat import notes
from qatflow.qat.ending import START
from qatflow.recipe import Search
from qatflow.recipe.variables import read
from qatflow.results.store import unwritable
from qatflow.users_code import lacking

BEATS = 6
"""Signs of life that have to be missing before another machine takes a trial over."""
TRIES, PAUSE = 20, 0.25
"""Processes that make the tables of a new storage at the same moment are in each other's way."""
OWNER, ALIVE, PROBES = "owner", "alive", "probes"
STARTUP = 4
"""Trials before TPE has enough to go by, and before any is pruned."""


def storage_url(configured: str | None, folder: Path) -> str:
    """Return the storage of a run: the recipe's, or a file in its folder."""
    return read(configured, "search.storage") if configured else f"sqlite:///{(folder / 'study.db').resolve()}"


def open_storage(url: str, lost_after: float = Search().lost_after) -> RDBStorage:
    """Return an Optuna storage in which running trials show signs of life.

    Args:
        url: of the storage.
        lost_after: seconds without a sign of life after which another machine's trial is taken over.

    Raises:
        RecipeError: it cannot be reached, or its driver is not installed.
        RunFolderError: it is a file, and damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with _experimental():
            _make_whole(url)
            return _opened(url, lost_after)
    except Exception as error:  # SQLAlchemy's, Optuna's, or the driver's own
        file = Path(url.partition("///")[2])
        if url.startswith("sqlite") and lacking(error):
            raise unwritable(file, error) from error
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if url.startswith("sqlite") and file.is_file():
            message = f"{file} cannot be read as an Optuna study ({said}); remove it and run again"
            raise RunFolderError(message) from error
        fix = "check the URL, that the server answers, and its driver (pip install 'qatflow[postgresql]')"
        raise RecipeError([Mistake("search.storage", f"cannot be opened: {said}", fix)]) from error


def _opened(url: str, lost_after: float) -> RDBStorage:
    options: dict[str, Any] = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    for left in reversed(range(TRIES)):
        try:
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, **options},
                heartbeat_interval=max(1, math.ceil(lost_after / BEATS)),
                grace_period=math.ceil(lost_after),
                heartbeat_stale_trial_callback=_again,
            )
        except (SQLAlchemyError, AssertionError) as error:
            others = isinstance(error, (IntegrityError, ProgrammingError, AssertionError))
            if not left or not (others or re.search("already exists|no such table", str(error))):
                raise
            time.sleep(PAUSE)
    raise AssertionError


def _make_whole(url: str) -> None:
    """Let a new SQLite file appear with all its tables.

    In one that was made table by table by a process that was killed, names of studies need not be unique.
    """
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or "?" in url or path.name == ":memory:" or path.exists():
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        close(RDBStorage(f"sqlite:///{aside}"))
        os.link(aside, path)
    except FileExistsError:
        return  # another process was quicker
    except OSError:  # a file system without links
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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
        sampler=_tpe(0),
    )


def newest(storage: RDBStorage) -> optuna.study.StudySummary | None:
    """Return the study of this storage that was begun last, of those that know their run folder."""
    found = [one for one in optuna.get_all_study_summaries(storage) if "folder" in one.user_attrs]
    return max(found, key=lambda one: (one.datetime_start is not None, one.datetime_start, one._study_id), default=None)


def ask(study: optuna.Study) -> optuna.Trial:
    """Return the next trial, owned by this process; nothing is proposed yet.

    It is enqueued with its owner, so that a process that is killed here leaves no running trial that is nobody's.
    """
    study.sampler = _tpe(0)
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial({}, user_attrs={OWNER: _this_process()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Heartbeat of storage")  # `alive` beats where `optimize` would
        trial = study.ask()
    trial.set_user_attr(OWNER, _this_process())
    return trial


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def propose(study: optuna.Study, seed: int, fixed: Mapping[str, Any]) -> None:
    """Settle what the study suggests from now on: `fixed` parameters as they are, and TPE's, by this seed, else.

    Proposals of trials that run elsewhere count as mediocre, so that workers do not all try the same.
    """
    with _experimental():
        study.sampler = optuna.samplers.PartialFixedSampler(dict(fixed), _tpe(seed)) if fixed else _tpe(seed)
    startup = STARTUP + len(study.user_attrs.get(PROBES, []))  # probes are too short to be compared with
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=3)


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    """Return TPE, one parameter at a time: with so few trials there is nothing to be learned of how they hang together.

    It is also what proposes the same in Optuna 4, whose default it was, and 5.
    """
    with _experimental():
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=False, constant_liar=True)


def place(study: optuna.Study, number: int) -> int:
    """Return how many trials that count, or are under way, were begun before this one."""
    return sum(other.number < number for other in notes.begun(study))


def is_first(study: optuna.Study, number: int) -> bool:
    """Tell whether all trials that count, or are under way, and were begun before this one are probes."""
    return all(one.user_attrs.get(notes.PROBE) for one in notes.begun(study) if one.number < number)


def set_probes(study: optuna.Study, rates: Sequence[float]) -> None:
    """Let the first trials of a new study be probes at these rates."""
    study.set_user_attr(PROBES, list(rates))


def probe_rate(study: optuna.Study, place: int) -> float | None:
    """Return the rate that the trial in this place probes; None where it is no probe."""
    rates = study.user_attrs.get(PROBES, [])
    return rates[place] if place < len(rates) else None


def probes_left(study: optuna.Study) -> bool:
    """Tell whether there are probes that are not over: what comes after them depends on them."""
    return len(_probes(study)) < len(study.user_attrs.get(PROBES, []))


def must_wait(study: optuna.Study) -> bool:
    """Tell whether others train the last probes, and there is nothing to be begun before they are over."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    all_begun = len(notes.begun(study)) >= len(study.user_attrs.get(PROBES, []))
    return probes_left(study) and all_begun and not waiting


def best_probe(study: optuna.Study) -> float | None:
    """Return the rate of the probe that trained best, of equal ones the one with the lower loss, then the lower rate.

    Epoch 0, which is the same for all, does not count: else every rate that is too high would be as good as one that
    is too low.
    """
    sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0

    def rank(trial: FrozenTrial) -> tuple[float, float, float]:
        epochs = notes.history_of(trial)[1:]
        values = [sign * one.value for one in epochs if one.value is not None]
        loss = epochs[-1].train_loss if epochs else None
        return max(values, default=-math.inf), -math.inf if loss is None else -loss, -trial.params["lr"]

    trained = [trial for trial in _probes(study) if trial.state == TrialState.COMPLETE]
    return float(max(trained, key=rank).params["lr"]) if trained else None


def _probes(study: optuna.Study) -> list[FrozenTrial]:
    """Return the probes that are over."""
    return [trial for trial in notes.finished(study) if trial.user_attrs.get(notes.PROBE)]


@contextmanager
def alive(trial: optuna.Trial) -> Iterator[None]:
    """Show signs of life of a trial while the block runs."""
    storage: Any = trial.study._storage  # Optuna's cache before ours, which passes heartbeats on
    done = threading.Event()

    def beat() -> None:
        while not done.wait(storage.get_heartbeat_interval()):
            with suppress(StorageInternalError):  # the server may be out of reach for a while
                storage.record_heartbeat(trial._trial_id)

    storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr(ALIVE, True)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def take_over_abandoned(study: optuna.Study) -> None:
    """Close running trials whose process is gone, and enqueue them to be gone on with.

    One whose process died before its first sign of life is given one, so that its time runs.
    """
    storage: Any = study._storage
    with _experimental():
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get(OWNER, {})
        is_gone = owner.get("host") == socket.gethostname() and not _runs(owner["pid"])
        if is_gone and _close(study, trial):
            _again(study, trial)
        elif not is_gone and ALIVE not in trial.user_attrs:
            storage.record_heartbeat(trial._trial_id)
            with suppress(UpdateFinishedTrialError):
                storage.set_trial_user_attr(trial._trial_id, ALIVE, True)


def _close(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Let a trial have failed; return False where another process was quicker."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return False
    return True


def _again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Enqueue a trial that nobody runs any more; one that had not all its parameters yet is proposed anew."""
    if notes.SETTINGS not in trial.user_attrs or notes.has_failed(trial):
        return
    kept = (notes.SETTINGS, notes.PROBE, notes.CANDIDATES)
    attrs = {name: trial.user_attrs[name] for name in kept if name in trial.user_attrs}
    attrs[OWNER] = _this_process()
    attrs[notes.CONTINUES] = trial.user_attrs.get(notes.CONTINUES, trial.number)
    settings = asdict(notes.settings_of(trial))
    params = {name: value for name, value in settings.items() if name not in ("schedule", "warmup")}
    study.enqueue_trial(params, user_attrs=attrs, skip_if_exists=False)


def give_up(study: optuna.Study, trial: optuna.Trial, error: Exception, seconds: float) -> None:
    """Close a trial that raised an exception, and enqueue it to be gone on with from its last checkpoint."""
    note_error(trial, error, seconds)
    _again(study, study.tell(trial, state=TrialState.FAIL))


def note_error(trial: optuna.Trial, error: Exception, seconds: float) -> None:
    """Note the exception that ended a trial, and in which start of the search that was."""
    trial.set_user_attr(START, trial.study.user_attrs.get(START))
    notes.note_error(trial, error, seconds)


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return False  # of an earlier process with our number, or of a call that was interrupted
    if sys.platform == "win32":
        return True  # to ask would be to interrupt it: its signs of life say
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _experimental() -> Iterator[None]:
    """Use what Optuna calls experimental and has kept for years: signs of life, and TPE for several workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
