"""Run the jobs of a command line: here, one after the other, or by one of Hydra's plugins.

A launcher plugin runs jobs in processes of its own. What became of them is read from their run folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from qatflow.door.command_line import Flags, for_hydra
from qatflow.door.composing import Plan, recipe_of
from qatflow.door.endings import DEFECT, ERROR, GATES, MET, MISSED, TOO_SLOW, code_of, guarded, worst
from qatflow.door.hydra_parts import PRIMARY
from qatflow.errors import QatflowError, RunFolderError
from qatflow.recipe import Recipe
from qatflow.report.console import say, shown_on, tell_result, tell_unfinished
from qatflow.results import commands
from qatflow.results.lock import holder, require_free
from qatflow.results.result import RunResult
from qatflow.results.signals import stopped, terminated_like_interrupted
from qatflow.results.store import made_folder, unwritable
from qatflow.users_code import said

SWEEP_DIR = "hydra.sweep.dir"
OUTCOMES = {
    MET: "gate met",
    MISSED: "gate missed",
    TOO_SLOW: "too slow",
    MISSED | TOO_SLOW: "gate missed, and too slow",
    ERROR: "did not finish",
}
"""What is said of a run that another process carried out."""


@dataclass
class Session:
    """One command line under way: what it was told and what has become of its jobs, as far as this process knows.

    Called by Hydra with each job, also in a process that a plugin started.
    """

    flags: Flags
    jobs: list[tuple[Recipe, Path]]
    """Each job's recipe and its file; none where a sweeper plugin chooses the jobs while it runs."""
    sweep: Path | None = None
    """The folder of a sweep."""
    folders: list[Path] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def again(self, key: str, folder: Path) -> str:
        """Return the whole command that goes on in a folder; `key` is what the folder is given by."""
        args = self.flags.hydra
        given = [line for line in args.overrides if not line.startswith(("run.dir=", f"{SWEEP_DIR}="))]
        flags = ["-m"] * args.multirun + (["--config-dir", args.config_dir] if args.config_dir is not None else [])
        return commands.shell([*flags, *given, commands.setting(key, folder)])

    def __call__(self, cfg: DictConfig) -> float | None:
        """Carry out one job, and return its drop."""
        hydra, trust, file = HydraConfig.get(), self.flags.trust, None
        if self.jobs:
            recipe, file = self.jobs[hydra.job.num if self.sweep is not None else 0]
        else:
            recipe = recipe_of(cfg, trust)
        if self.sweep is not None:
            say(Console(), f"\njob {hydra.job.num}: {' '.join(hydra.overrides.task)}")
            folder = Path(hydra.runtime.output_dir)
            origin = commands.again(folder, trust, recipe.search.storage), file
        else:
            folder = Path(recipe.run.dir) if recipe.run.dir else _new_folder(recipe.name)
            origin = self.again("run.dir", folder), file
        self.folders.append(folder)
        with terminated_like_interrupted():
            self.codes.append(guarded(partial(_run, recipe, folder, trust, origin)))
        result = _read(folder)
        if self.codes[-1] in (ERROR, DEFECT) and holder(folder) is None:  # else it is another's
            tell_unfinished(result, folder)
        return result.winner.drop if result is not None and result.winner is not None else None


def launch(flags: Flags, checked: Plan) -> int:
    """Run the job or jobs, say how to go on where that is stopped, and return the exit code."""
    chosen_later = checked.plugin.startswith("hydra/sweeper")
    session = Session(flags, [] if chosen_later else [(job.recipe, job.file) for job in checked.jobs])
    if not flags.multirun:
        return _stoppable(session, checked)
    with _sweep_folder(checked) as session.sweep:
        code = _stoppable(session, checked)
        if session.folders:
            guarded(partial(_summary, session.sweep, session.folders))  # one that fails is told, and changes no outcome
            if code not in (*GATES, ERROR, DEFECT):
                say(Console(stderr=True), f"go on    {session.again('hydra.sweep.dir', session.sweep)}")
    return code


def _stoppable(session: Session, checked: Plan) -> int:
    try:
        with terminated_like_interrupted():
            failed = guarded(partial(_by_plugin if checked.plugin else _here, session, checked))
    except KeyboardInterrupt as stop:
        code = stopped(stop)
        if session.folders:
            tell_unfinished(_read(session.folders[-1]), session.folders[-1])
        return code
    return worst([*session.codes, *([failed] if failed else [])])


@contextmanager
def _sweep_folder(checked: Plan) -> Iterator[Path]:
    """Yield a sweep's folder, which is a new one unless the command line names it, and goes away if it stays empty."""
    asked = [override.value() for override in checked.overrides if override.key_or_group == SWEEP_DIR]
    sweep = made_folder(Path(str(asked[-1])), SWEEP_DIR) if asked else _new_folder("sweep")
    yield sweep
    if not asked:
        with suppress(OSError):  # where it is not empty
            sweep.rmdir()
            sweep.parent.rmdir()


def _new_folder(name: str) -> Path:
    from qatflow.api import new_folder  # imports torch

    return new_folder(name)


def _here(session: Session, checked: Plan) -> int:
    """Run the jobs one after the other in this process.

    Raises:
        RunFolderError: a job's folder cannot be made.
    """
    for job in checked.jobs:
        try:
            checked.hydra.run_prepared(job.cfg, session, session.sweep)
        except RunFolderError:
            raise
        except OSError as error:  # Hydra makes each job's folder; what a job itself raises ends there
            raise unwritable(Path(error.filename or "the folder of a job"), error, SWEEP_DIR) from error
    return MET


def _by_plugin(session: Session, checked: Plan) -> int:
    """Let a plugin run the jobs, and read from their folders what became of them.

    Raises:
        QatflowError: the plugin failed.
    """
    from qatflow.report.sweep import run_folders

    assert session.sweep is not None
    lines = [for_hydra(override) for override in checked.overrides if override.key_or_group != SWEEP_DIR]
    lines += [commands.setting(SWEEP_DIR, session.sweep.absolute()), "hydra.mode=MULTIRUN"]
    try:
        checked.hydra.multirun(PRIMARY, session, lines)
    except Exception as error:
        message = f"{checked.plugin} failed: {said(error)}"
        raise QatflowError(message) from error
    finally:
        session.folders = run_folders(session.sweep) if session.sweep.is_dir() else []
        session.codes = [_code(_read(folder)) for folder in session.folders]
        for folder, code in zip(session.folders, session.codes, strict=True):
            say(Console(), f"{OUTCOMES[code]:<14} {folder}")
        session.codes += [ERROR] * (len(session.jobs) - len(session.folders))
    return MET


def _run(recipe: Recipe, folder: Path, trust: tuple[str, ...], origin: tuple[str, Path | None]) -> int:
    """Carry out one recipe in a folder, say what came out of it, and return its exit code."""
    require_free(folder)
    from qatflow.api import run  # imports torch
    from qatflow.ladder.environment import Origin

    console = Console()
    say(console, f"{recipe.name}: everything goes to {folder}")
    with shown_on(console) as progress:
        result = run(recipe, folder, trust=trust, progress=progress, origin=Origin(*origin))
    tell_result(console, result, folder)
    return code_of(result)


def _read(folder: Path) -> RunResult | None:
    """Return what a run left; None where it left none, or one that cannot be read."""
    from qatflow.report.read import read_result

    try:
        return read_result(folder)
    except (QatflowError, OSError):  # a path that no file can have
        return None


def _code(result: RunResult | None) -> int:
    """Return the exit code of a run that another process carried out."""
    if result is None or result.status != "finished":
        return ERROR
    return code_of(result)


def _summary(sweep: Path, folders: list[Path]) -> int:
    from qatflow.report.sweep import write_sweep

    written = write_sweep(sweep, folders)
    say(Console(), f"\nsweep    {', '.join(map(str, written))}")
    return MET
