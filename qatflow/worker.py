"""`python -m qatflow.worker RUN_FOLDER_OR_STORAGE`: train trials of a study that a run has begun, on any machine.

The run folder has to be reachable: trials start from its candidates, and the best models are left there.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from qatflow.results.signals import carried_out, end_early, end_with

if __name__ == "__main__":
    end_early()  # what follows takes its time to import

import torch
from rich.console import Console

from qatflow.door.endings import MET, guarded
from qatflow.errors import RunFolderError
from qatflow.ladder.bench import Bench
from qatflow.ladder.lookup import complete, target_of
from qatflow.qat import study as studies
from qatflow.qat.devices import local_rank, processes
from qatflow.qat.trial import Start, Worker
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.saved import load
from qatflow.recipe.check import recipe_from
from qatflow.recipe.places import place_mistakes
from qatflow.recipe.yaml_file import read_yaml
from qatflow.report.console import say
from qatflow.results.lock import require_own
from qatflow.results.progress import Silent
from qatflow.results.record import Record
from qatflow.results.result import TrialRecord
from qatflow.results.store import read_json
from qatflow.tasks.task import load_task


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line (that of the process unless given) and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m qatflow.worker", description=__doc__)
    parser.add_argument("place", metavar="RUN_FOLDER_OR_STORAGE", help="the run folder, or the study's storage URL")
    parser.add_argument("--trust", action="append", default=[], help="a package that the recipe may import from")
    parser.add_argument("--storage", help="the study's storage URL, as the run was given it")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input does, as a run's own do")
    args = parser.parse_args(argv)
    if args.with_parent:
        end_with(sys.stdin.fileno())
    training = partial(work, args.place, tuple(args.trust), args.storage)
    return carried_out(lambda: guarded(training), "the trial can be gone on with")


def work(place: str, trust: tuple[str, ...] = (), storage_url: str | None = None) -> int:
    """Join the study of a run and train trials until it needs no more; returns the exit code.

    Args:
        place: the run folder, or the study's storage.
        trust: packages that the recipe may import from.
        storage_url: the study's storage; None is what the recipe says.

    Raises:
        QatflowError: there is no such study, or this machine's code or data are not those of the run.
    """
    folder = _folder_of(place) if "://" in place else Path(place)
    if not (folder / "study.json").exists():
        message = f"{folder} has no study yet: it is made when the run comes to QAT"
        raise RunFolderError(message)
    require_own(folder)
    known = _known(folder)
    recipe = complete(recipe_from(read_yaml(folder / "recipe.yaml") or {}, trust), trust)
    url = place if "://" in place else storage_url or _harmless(recipe.search.storage, folder)
    if processes() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    task = load_task(recipe, trust)
    design = Design(target_of(recipe.target, trust), recipe.precision, recipe.calibration)
    base = captured_network(task.model, *task.example(), design, recipe.data.mask, recipe.data.free)
    bench = Bench(recipe, task, base, folder, _Lines())
    bench.baseline()
    if bench.key != known.bench:
        message = f"this machine's qatflow, model or data are not those of the run in {folder}: make them the same"
        raise RunFolderError(message)
    start = Start(*load(bench.folder / known.start, base))
    leads = local_rank() == 0
    if not leads:
        Worker(bench, start, None).work()
        return MET
    search = recipe.search
    storage = studies.open_storage(studies.storage_url(url, folder), search.lost_after)
    try:
        Worker(bench, start, studies.open_study(storage, known.study, task.metric.higher_is_better)).work()
    finally:
        studies.close(storage)
    return MET


def _harmless(url: str | None, folder: Path) -> str | None:
    """Return what a recipe says of the study's storage, where that is a file below the current folder.

    Raises:
        RunFolderError: it is another one.
    """
    mistake = next(place_mistakes({"search": {"storage": url}}, ()), None)
    if mistake is not None:
        message = f"{folder / 'recipe.yaml'}: {mistake.path}: {mistake.problem}; if you trust it, add --storage '{url}'"
        raise RunFolderError(message)
    return url


class Known(Record):
    """What `study.json` of a run folder holds."""

    study: str
    start: str
    """The candidate that trials start from."""
    bench: str


def _known(folder: Path) -> Known:
    """Return what a run noted of its study.

    Raises:
        RunFolderError: that is damaged.
    """
    path = folder / "study.json"
    try:
        known = Known.taken(read_json(path))
    except ValueError as error:
        message = f"{path} is damaged ({error}); start the run again on this folder, which writes it anew"
        raise RunFolderError(message) from error
    if Path(known.start).name != known.start:
        message = f"{path} names no candidate: {known.start!r}; start the run again on this folder"
        raise RunFolderError(message)
    return known


def _folder_of(url: str) -> Path:
    """Return the run folder of the newest study in a storage that still wants trials.

    Raises:
        RunFolderError: there is none, or its folder cannot be reached from here.
    """
    storage = studies.open_storage(url)
    newest = studies.newest(storage)
    studies.close(storage)
    if newest is None:
        message = f"no run has begun a study in {url}: start one with search.storage={url}"
        raise RunFolderError(message)
    folder = Path(newest.user_attrs["folder"])
    if not folder.is_dir():
        message = (
            f"the study's run folder {folder} cannot be reached from here: share it with this machine, and give the "
            "path that it has here instead of the storage"
        )
        raise RunFolderError(message)
    return folder


class _Lines(Silent):
    """Tells of trials in plain lines."""

    def trial(self, record: TrialRecord) -> None:
        """Say what a trial came to."""
        said = f"trial {record.number}: {record.state}, value {record.value}"
        say(Console(), f"{said}; {record.reason}" if record.reason else said)

    def note(self, text: str) -> None:
        """Say it."""
        say(Console(), text)


if __name__ == "__main__":
    sys.exit(main())
