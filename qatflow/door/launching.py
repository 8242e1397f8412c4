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
from omegaconf import DictConfig, read_write
from rich.console import Console

from qatflow.door.command_line import Flags, for_hydra
from qatflow.door.composing import Job, Plan, recipe_of
from qatflow.door.endings import DEFECT, ERROR, MET, MISSED, guarded, stopped, worst
from qatflow.door.files import GROUP
from qatflow.door.hydra_parts import PRIMARY, carry_out
from qatflow.errors import QatflowError
from qatflow.recipe import Recipe
from qatflow.report.console import deployed_line, drop_text, number, say, shown_on
from qatflow.results import commands
from qatflow.results.result import RunResult
from qatflow.results.signals import terminated_like_interrupted
from qatflow.results.unfinished import unfinished
from qatflow.users_code import said


@dataclass
class _Session:
    """One command line under way: what it was told and what has become of its jobs."""

    flags: Flags
    sweep: Path | None = None
    """The folder of a sweep."""
    folders: list[Path] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def again(self, key: str, folder: Path) -> str:
        """Return the whole command that goes on in a folder; `key` is what the folder is given by."""
        args = self.flags.hydra
        given = [line for line in args.overrides if not line.startswith(("run.dir=", "hydra.sweep.dir="))]
        flags = ["-m"] * args.multirun + (["--config-dir", args.config_dir] if args.config_dir is not None else [])
        return commands.shell([*flags, *given, commands.setting(key, folder)])


def launch(flags: Flags, checked: Plan) -> int:
    """Run the job or jobs, say how to go on where that is stopped, and return the exit code."""
    session = _Session(flags)
    if not flags.multirun:
        return _stoppable(session, checked)
    with _sweep_folder(checked) as session.sweep:
        code = _stoppable(session, checked)
        if session.folders:
            guarded(partial(_summary, session.sweep, session.folders))  # one that fails is told, and changes no outcome
            if code not in (MET, MISSED, ERROR, DEFECT):
                say(Console(stderr=True), f"go on    {session.again('hydra.sweep.dir', session.sweep)}")
    return code


def _stoppable(session: _Session, checked: Plan) -> int:
    try:
        with terminated_like_interrupted():
            failed = guarded(partial(_by_plugin if checked.plugin else _here, session, checked))
    except KeyboardInterrupt as stop:
        code = stopped(stop)
        if session.folders:
            _tell_unfinished(session.folders[-1])
        return code
    return worst([*session.codes, *([failed] if failed else [])])


@contextmanager
def _sweep_folder(checked: Plan) -> Iterator[Path]:
    """Yield a sweep's folder, which is a new one unless the command line names it, and goes away if it stays empty."""
    from qatflow.api import new_folder  # imports torch

    asked = [override.value() for override in checked.overrides if override.key_or_group == "hydra.sweep.dir"]
    sweep = Path(str(asked[-1])) if asked else new_folder("sweep")
    for job in checked.jobs:
        with read_write(job.cfg.hydra):
            job.cfg.hydra.sweep.dir = str(sweep)
    yield sweep
    if not asked:
        with suppress(OSError):  # where it is not empty
            sweep.rmdir()
            sweep.parent.rmdir()


def _here(session: _Session, checked: Plan) -> int:
    """Run the jobs one after the other in this process."""
    jobs = [(job.cfg, partial(_job, session, job)) for job in checked.jobs]
    carry_out(checked.hydra, jobs, session.flags.multirun)
    return MET


def _job(session: _Session, job: Job, _: DictConfig) -> float | None:
    """Carry out one job, note its outcome, and return its drop."""
    from qatflow.api import new_folder  # imports torch

    if session.sweep is not None:
        hydra = HydraConfig.get()
        say(Console(), f"\njob {hydra.job.num}: {' '.join(hydra.overrides.task)}")
        folder = Path(hydra.runtime.output_dir)
        again = commands.again(folder, session.flags.trust)
    else:
        folder = Path(job.recipe.run.dir) if job.recipe.run.dir else new_folder(job.recipe.name)
        again = session.again("run.dir", folder)
    session.folders.append(folder)
    session.codes.append(_carried_out(job.recipe, folder, again, job.file, session.flags.trust))
    return _drop(folder)


@dataclass(frozen=True)
class _Elsewhere:
    """Carries out a job that a plugin starts in a process of its own, and returns its drop."""

    trust: tuple[str, ...]
    recipes: dict[str, Path]

    def __call__(self, cfg: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        file = self.recipes[str(hydra.runtime.choices[GROUP])]
        with terminated_like_interrupted():
            _carried_out(recipe_of(cfg, self.trust), folder, commands.again(folder, self.trust), file, self.trust)
        return _drop(folder)


def _by_plugin(session: _Session, checked: Plan) -> int:
    """Let a plugin run the jobs, and read from their folders what became of them.

    Raises:
        QatflowError: the plugin failed.
    """
    from qatflow.report.sweep import run_folders

    assert session.sweep is not None
    lines = [for_hydra(override) for override in checked.overrides if override.key_or_group != "hydra.sweep.dir"]
    lines += [commands.setting("hydra.sweep.dir", session.sweep.absolute()), "hydra.mode=MULTIRUN"]
    try:
        checked.hydra.multirun(PRIMARY, _Elsewhere(session.flags.trust, checked.recipes), lines)
    except Exception as error:
        message = f"{checked.plugin} failed: {said(error)}"
        raise QatflowError(message) from error
    finally:
        session.folders = run_folders(session.sweep) if session.sweep.is_dir() else []
        session.codes = [_code(folder) for folder in session.folders]
        session.codes += [ERROR] * (len(checked.jobs) - len(session.folders))
    return MET


def _carried_out(recipe: Recipe, folder: Path, again: str, file: Path, trust: tuple[str, ...]) -> int:
    """Carry out one recipe in a folder, say what came out of it, and return its exit code."""
    code = guarded(partial(_run, recipe, folder, again, file, trust))
    if code in (ERROR, DEFECT):
        _tell_unfinished(folder)
    return code


def _run(recipe: Recipe, folder: Path, again: str, file: Path, trust: tuple[str, ...]) -> int:
    from qatflow.api import run  # imports torch
    from qatflow.ladder.environment import Origin

    console = Console()
    say(console, f"{recipe.name}: everything goes to {folder}")
    with shown_on(console) as progress:
        result = run(recipe, folder, trust=trust, progress=progress, origin=Origin(again, file))
    _tell(console, result, folder)
    return MET if result.passed else MISSED


def _read(folder: Path) -> RunResult | None:
    """Return what a run left; None where it left none, or one that cannot be read."""
    from qatflow.report.read import read_result

    try:
        return read_result(folder)
    except QatflowError:
        return None


def _drop(folder: Path) -> float | None:
    result = _read(folder)
    return result.winner.drop if result is not None and result.winner is not None else None


def _code(folder: Path) -> int:
    """Return the exit code of a run that another process carried out."""
    result = _read(folder)
    if result is None or result.status != "finished":
        return ERROR
    return MET if result.passed else MISSED


def _summary(sweep: Path, folders: list[Path]) -> int:
    from qatflow.report.sweep import write_sweep

    written = write_sweep(sweep, folders)
    say(Console(), f"\nsweep    {', '.join(map(str, written))}")
    return MET


def _tell(console: Console, result: RunResult, folder: Path) -> None:
    """Say what came out of a run that finished, and where it is."""
    judged = result.winner.sentence if result.winner is not None else ""
    if result.verdict is not None:
        say(console, f"\n{'Gate met' if result.passed else 'Gate missed'}. {judged or result.verdict.sentence}")
    if result.training_error:
        say(Console(stderr=True), f"training failed: {result.training_error}")
    winner = result.winner
    if winner is not None:
        metric = result.gate.metric if result.gate else "metric"
        say(console, f"best     {winner.id}: {metric} {number(winner.value)}, FP32 {number(winner.fp32)}")
        limit = result.gate.max_drop_text if result.gate else ""
        say(console, f"drop     {drop_text(winner)}" + (f", allowed {limit}" if limit else ""))
    if result.verification is not None:
        say(console, f"deployed {deployed_line(result)}")
    _tell_files(console, folder, "report.html", "export")


def _tell_files(console: Console, folder: Path, *names: str) -> None:
    """Say where those files of a run folder are that are there."""
    for path in (folder / name for name in names):
        if path.exists():
            say(console, f"{path.stem:<8} {path}")


def _tell_unfinished(folder: Path) -> None:
    """Say of a run that did not finish what it has, what remains, and how to go on."""
    console, result = Console(stderr=True), _read(folder)
    found = unfinished(result) if result is not None else None
    if found is not None:
        say(console, f"\n{found.title}. {found.best}" + (f"\n{found.remaining}" if found.remaining else ""))
    _tell_files(console, folder, "report.html", "log.txt")
    if found is not None:
        say(console, f"go on    {found.command}")
