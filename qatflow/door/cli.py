"""The command line: check everything, then let Hydra compose and launch, and turn outcomes into exit codes.

0 is a met gate, 2 a missed one, 1 an error that the user can mend, 3 a defect of qatflow, 130 and 143 a run that Ctrl-C
or SIGTERM stopped. Hydra drops a job's return value and exits with 1 on any exception, and its argparse with 2. So a
job notes its outcome in a `_Session`, and nothing but an interruption leaves the job as an exception.
"""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from qatflow import __version__
from qatflow.door import config, listing
from qatflow.door.overrides import take_trust
from qatflow.door.preflight import Plan, plan
from qatflow.errors import Mistake, QatflowError, RecipeError, Terminated
from qatflow.recipe import Recipe
from qatflow.report.console import deployed_line, drop_text, number, say, shown_on
from qatflow.results import commands
from qatflow.results.result import RunResult
from qatflow.results.signals import terminated_like_interrupted
from qatflow.results.unfinished import unfinished
from qatflow.users_code import anywhere

MET, ERROR, MISSED, DEFECT, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
FLAGS = ("cfg", "package", "resolve", "run", "multirun", "shell_completion", "info", "hydra_help", "config_dir")
OWN_TREE = ("config_name", "config_path", "experimental_rerun")


@dataclass
class _Session:
    """One command line under way: what it was told and what has become of its jobs."""

    checked: Plan
    trust: tuple[str, ...]
    multirun: bool
    arguments: list[str]
    """As they were given, but for the folder."""
    folders: list[Path] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def code(self) -> int:
        """The exit code: a defect outweighs an error, that a missed gate, and no outcome at all is an error."""
        return next((code for code in (DEFECT, ERROR, MISSED, MET) if code in self.codes), ERROR)

    def again(self, key: str, folder: Path) -> str:
        """Return the whole command that goes on in a folder; `key` is what the folder is given by."""
        return commands.shell([*self.arguments, commands.setting(key, folder)])


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line (that of the process unless given) and return its exit code."""
    try:
        return guarded(lambda: _command(list(sys.argv[1:] if argv is None else argv)))
    except KeyboardInterrupt as stop:
        return _stopped(stop)


def _stopped(stop: KeyboardInterrupt) -> int:
    """Say what stopped a command, and return its exit code: 128 and the signal's number, as shells have it."""
    terminated = isinstance(stop, Terminated)
    say(Console(stderr=True), f"stopped by {'SIGTERM' if terminated else 'Ctrl-C'}")
    return TERMINATED if terminated else INTERRUPTED


def guarded(work: Callable[[], int]) -> int:
    """Return `work`'s exit code.

    A mistake, and what code of the user's raised, is told in sentences; a defect of ours with its traceback.
    """
    try:
        with anywhere():
            return work()
    except QatflowError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        else:
            say(Console(stderr=True), f"error: {error}")
        return ERROR
    except Exception:  # noqa: BLE001 - the door: every defect ends here, and in a sweep the next job goes on
        traceback.print_exc()
        say(Console(stderr=True), "error: this is a defect of qatflow's own; please report it with the lines above")
        return DEFECT


def _command(argv: list[str]) -> int:
    console = Console()
    if "--version" in argv:
        say(console, f"qatflow {__version__}")
        return MET
    args, unknown = parsed(argv)
    folder = config_dir(args, unknown)
    if args.help:
        listing.show_help(console, folder)
        return MET
    if args.hydra_help or args.shell_completion:
        config.register(config.find_recipes(folder), folder)
        return _hydra(args, args.overrides if args.shell_completion else [], lambda _: None)
    if not (args.overrides or args.cfg or args.info or args.multirun):
        listing.show_recipes(console, folder)
        return MET
    trust, overrides = take_trust(args.overrides)
    multirun = args.multirun or "hydra.mode=MULTIRUN" in overrides
    checked = plan(overrides, multirun, folder, trust)
    if args.cfg or args.info:
        return _hydra(args, [*checked.lines, *(f"~steps.{step}" for step in checked.dropped[0])], lambda _: None)
    return _launch(args, _Session(checked, trust, multirun, _arguments(args)))


def _arguments(args: Namespace) -> list[str]:
    """Return what a command line says, but for the folder that its run or sweep is to go to."""
    given = [line for line in args.overrides if not line.startswith(("run.dir=", "hydra.sweep.dir="))]
    folder = ["--config-dir", args.config_dir] if args.config_dir is not None else []
    return [*(["-m"] if args.multirun else []), *folder, *given]


def parsed(argv: list[str]) -> tuple[Namespace, list[str]]:
    """Read flags as Hydra does, but let overrides stand on both sides of them.

    Raises:
        RecipeError: a flag has a value that it cannot have; argparse itself would exit with 2.
    """
    try:
        return get_args_parser().parse_known_intermixed_args(argv)
    except SystemExit as error:
        raise RecipeError([Mistake("command line", "cannot be read", "see --help")]) from error


def config_dir(args: Namespace, unknown: list[str]) -> Path | None:
    """Return the folder given as `--config-dir`.

    Raises:
        RecipeError: it does not exist, or there are flags that we do not know or do not support.
    """
    mistakes = [Mistake(flag, "unknown flag", "see --help; values are given as key=value") for flag in unknown]
    for name in OWN_TREE:
        if getattr(args, name) is not None:
            mistakes.append(Mistake(f"--{name.replace('_', '-')}", "is not supported", "use --config-dir and recipe="))
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        mistakes.append(Mistake("--config-dir", f"there is no folder {args.config_dir!r}"))
    if sum(map(bool, (args.run, args.multirun, args.cfg, args.info))) > 1:
        mistakes.append(Mistake("flags", "only one of --run, --multirun, --cfg and --info can be given"))
    if mistakes:
        raise RecipeError(mistakes)
    return Path(args.config_dir) if args.config_dir is not None else None


def _hydra(args: Namespace, overrides: list[str], job: Callable[[DictConfig], Any]) -> int:
    """Hand a command line that has been read to Hydra; returns 0, or Hydra's own exit code.

    Raises:
        RecipeError: Hydra itself refuses it.
    """
    flags: list[str] = []
    for name in FLAGS:
        value = getattr(args, name)
        if value:
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    start = hydra.main(str(config.shipped("conf")), config.PRIMARY, version_base=config.VERSION_BASE)
    before = sys.argv
    sys.argv = [before[0], *flags, "--", *overrides]
    try:
        start(job)()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else ERROR
    except HydraException as error:
        raise RecipeError([Mistake("Hydra", " ".join(str(error).split()))]) from error
    finally:
        sys.argv = before
    return MET


def _launch(args: Namespace, session: _Session) -> int:
    """Run the job or jobs, and say how to go on where that is stopped."""
    lines, sweep = session.checked.lines, None
    if session.multirun:
        lines, sweep = _with_sweep_folder(lines)
    try:
        with terminated_like_interrupted():
            code = _hydra(args, lines, lambda cfg: _job(cfg, session))
    except KeyboardInterrupt as stop:
        code = _stopped(stop)
        if session.folders:
            _tell_unfinished(session)
    if sweep is not None and session.folders:
        guarded(lambda: _summary(sweep, session.folders))  # one that fails is told, and changes no outcome
        if code:
            say(Console(stderr=True), f"go on    {session.again('hydra.sweep.dir', sweep)}")
    return code or session.code


def _with_sweep_folder(lines: list[str]) -> tuple[list[str], Path]:
    """Return the overrides of a sweep with its folder, which is a new one unless they name it."""
    from qatflow.api import new_folder  # imports torch

    asked = [line.partition("=")[2].strip("'\"") for line in lines if line.startswith("hydra.sweep.dir=")]
    sweep = Path(asked[-1]) if asked else new_folder("sweep")
    return lines if asked else [*lines, commands.setting("hydra.sweep.dir", sweep)], sweep


def _summary(sweep: Path, folders: list[Path]) -> int:
    from qatflow.report.sweep import write_sweep

    written = write_sweep(sweep, folders)
    say(Console(), f"\nsweep    {', '.join(map(str, written))}")
    return MET


def _job(cfg: DictConfig, session: _Session) -> None:
    """Carry out one job that Hydra composed, and note its outcome."""
    hydra_config = HydraConfig.get()
    index = hydra_config.job.num if session.multirun else 0
    dropped = session.checked.dropped[index] if index < len(session.checked.dropped) else ()
    if session.multirun:
        say(Console(), f"\njob {index}: {' '.join(hydra_config.overrides.task)}")
    folder = Path(hydra_config.runtime.output_dir) if session.multirun else None
    recipe_file = session.checked.recipes.get(str(hydra_config.runtime.choices.get(config.GROUP)))
    code = guarded(lambda: _run(config.recipe_of(cfg, session.trust, dropped), folder, session, recipe_file))
    session.codes.append(code)
    if code in (ERROR, DEFECT) and session.folders:
        _tell_unfinished(session)


def _run(recipe: Recipe, folder: Path | None, session: _Session, recipe_file: Path | None) -> int:
    """Carry out one recipe in `folder`, or in one of its own, and say what came out of it."""
    from qatflow.api import new_folder, run  # imports torch
    from qatflow.ladder.environment import Origin

    folder = folder or (Path(recipe.run.dir) if recipe.run.dir else new_folder(recipe.name))
    session.folders.append(folder)
    again = commands.again(folder, session.trust) if session.multirun else session.again("run.dir", folder)
    console = Console()
    say(console, f"{recipe.name}: everything goes to {folder}")
    with shown_on(console) as progress:
        result = run(recipe, folder, trust=session.trust, progress=progress, origin=Origin(again, recipe_file))
    _tell(console, result, folder)
    return MET if result.passed else MISSED


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


def _tell_unfinished(session: _Session) -> None:
    """Say of the last run, which did not finish, what it has, what remains, and how to go on."""
    from qatflow.report.read import read_result

    folder, console = session.folders[-1], Console(stderr=True)
    try:
        found = unfinished(read_result(folder))
    except QatflowError:
        found = None  # it left none, or one that cannot be read: what stopped it has been told
    if found is not None:
        say(console, f"\n{found.title}. {found.best}" + (f"\n{found.remaining}" if found.remaining else ""))
    _tell_files(console, folder, "report.html", "log.txt")
    if found is not None:
        say(console, f"go on    {found.command}")
