"""Models of trials on disk: which are there, which is the best of them, and which are of no more use.

Only a trial whose model is really stored can win. Files come first, then the trial's note that they are whole, then
its end; so whoever sees a trial that ended sees whether it has a model, and may remove those that it beats.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import fx

from qatflow.errors import RunFolderError
from qatflow.qat import notes
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.saved import load, save
from qatflow.results.store import check_digests, digests, key_of, read_json, write_json

STORED, DAMAGED = "stored", "damaged"
CHECKPOINT = "checkpoint.pt"
KEPT = 2
"""Models that are kept: the best, and the next best in case that is found damaged."""


def folder_of(candidates: Path, trial: FrozenTrial | optuna.Trial, number: int | None = None) -> Path:
    """Return where a trial's model is, or, of the trial with that number that it goes on with, the checkpoint.

    That is in these candidates, or in those of the run that began the trial, where it has a folder of its own.
    """
    home = Path(trial.user_attrs.get(notes.CANDIDATES, candidates))
    return (home if home.is_dir() else candidates) / f"qat-trial-{trial.number if number is None else number}"


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials whose models are stored, the best first, of equal ones the one begun first."""
    return _ranked(study, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def best(study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial that has a model."""
    return next(iter(ranked(study)), None)


def deserves(study: optuna.Study, number: int, value: float) -> bool:
    """Tell whether a trial that ends with this value is to have its model stored."""
    others = [_rank(study, one.number, one.value) for one in ranked(study)]
    return sum(other > _rank(study, number, value) for other in others) < KEPT


def store(
    trial: optuna.Trial, folder: Path, base: fx.GraphModule, network: Network, encodings: Mapping[str, Encoding]
) -> None:
    """Write a trial's model, and note with the trial that it is there."""
    save(folder, base, network, encodings)
    files = {name: digest for name, digest in digests(folder).items() if name != CHECKPOINT}
    write_json(folder / "meta.json", {"study": trial.study.study_name, "trial": trial.number, "sha256": files})
    trial.set_user_attr(STORED, key_of(files))


def recall(trial: FrozenTrial, folder: Path, base: Network) -> tuple[Network, dict[str, Encoding]]:
    """Return the model that a trial stored.

    Raises:
        RunFolderError: it is missing or damaged, or another study's.
        CaptureError: its graph does not fit that of `base`.
    """
    files = read_json(folder / "meta.json").get("sha256")
    if key_of(files) != trial.user_attrs[STORED]:
        message = f"{folder} has not the model that trial {trial.number} stored"
        raise RunFolderError(message)
    check_digests(folder, files)
    return load(folder, base)


def leave_out(study: optuna.Study, number: int) -> None:
    """Let a trial whose model was found damaged win no more."""
    study.set_user_attr(DAMAGED, sorted({*study.user_attrs.get(DAMAGED, []), number}))


def drop_outdone(study: optuna.Study, candidates: Path) -> None:
    """Remove the models of trials that enough stored ones beat, and the checkpoints of trials that are over.

    All of it is decided by one look at the study, in which a trial is either under way or has ended for good: what
    nothing stored beats then, no worker that ends at the same moment can remove.
    """
    trials = study.get_trials(deepcopy=False)
    kept = {trial.number for trial in _ranked(study, trials)[:KEPT]}
    over = [trial for trial in trials if trial.state in notes.FINISHED and notes.counts(trial)]
    for trial in over:
        for number in {trial.number, trial.user_attrs.get(notes.CONTINUES, trial.number)} - kept:
            shutil.rmtree(folder_of(candidates, trial, number), ignore_errors=True)  # another worker may be quicker


def _ranked(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    damaged = study.user_attrs.get(DAMAGED, [])
    found = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and STORED in trial.user_attrs and trial.number not in damaged
    ]
    return sorted(found, key=lambda trial: _rank(study, trial.number, trial.value), reverse=True)


def _rank(study: optuna.Study, number: int, value: float | None) -> tuple[float, int]:
    sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
    assert value is not None  # Optuna has a value for every complete trial
    return sign * value, -number
