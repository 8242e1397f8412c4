"""The command line: read it, compose and check its jobs, and run them.

Exit codes: 0 is a met gate, 2 a missed one, 4 a file that is slower than `gate.min_speedup` asks, 6 both, 1 an error
that the user can mend, 3 a defect of qatflow; 129, 130 and 143 are a command that SIGHUP, Ctrl-C or SIGTERM stopped.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from rich.console import Console

from qatflow import __version__
from qatflow.door import listing
from qatflow.door.command_line import Flags, for_hydra, read_flags
from qatflow.door.composing import LOST, plan
from qatflow.door.endings import MET, guarded
from qatflow.door.files import find_recipes
from qatflow.door.hydra_parts import PRIMARY, get_args_parser, hydra_at
from qatflow.door.launching import launch
from qatflow.door.plain_values import variables_kept
from qatflow.errors import Mistake, RecipeError
from qatflow.report.console import say
from qatflow.results.signals import carried_out


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line (that of the process unless given) and return its exit code."""
    return carried_out(lambda: guarded(lambda: _command(list(sys.argv[1:] if argv is None else argv))))


def _command(argv: list[str]) -> int:
    if "--version" in argv:
        say(Console(), f"qatflow {__version__}")
        return MET
    flags = read_flags(argv)
    args = flags.hydra
    if args.help:
        listing.show_help(Console(), flags.config_dir)
    elif args.shell_completion:
        _complete(flags)
    elif args.hydra_help:
        args.overrides = []
        hydra_at(flags.config_dir, find_recipes(flags.config_dir)).hydra_help(None, get_args_parser(), args)
    elif not (args.overrides or args.cfg or args.info or args.multirun):
        listing.show_recipes(Console(), flags.config_dir)
    else:
        checked = plan(flags.overrides, flags.multirun, flags.config_dir, flags.trust)
        if not (args.cfg or args.info):
            return launch(flags, checked)
        if args.cfg:
            checked.hydra.prepared = checked.jobs[0].cfg
            with variables_kept():
                checked.hydra.show_cfg(PRIMARY, [], args.cfg, args.package, args.resolve)
        else:
            checked.hydra.show_info(args.info, PRIMARY, [for_hydra(override) for override in checked.overrides])
    return MET


def _complete(flags: Flags) -> None:
    """Install tab completion or answer its query, which has the line as typed, `--config-dir` and all, in COMP_LINE.

    Raises:
        RecipeError: what is asked for is neither.
    """
    folder = flags.config_dir
    typed = os.environ.get("COMP_LINE", "").split()
    for flag, value in itertools.pairwise(typed):
        if flag in ("--config-dir", "-cd") and Path(value).is_dir():
            folder = Path(value)
    try:
        hydra_at(folder, find_recipes(folder)).shell_completion(PRIMARY, flags.overrides)
    except (*LOST, SystemExit) as error:  # Hydra reads the line with argparse, which exits
        said = "the line cannot be read" if isinstance(error, SystemExit) else " ".join(str(error).split())
        raise RecipeError([Mistake("--shell-completion", said, "see --hydra-help")]) from error
