"""`python -m qatflow.sensitivity recipe=NAME ...`: which tensors cost the outputs most when quantized, and why.

Takes the overrides, `--config-dir` and `trust=[...]` of a run; with `run.dir=FOLDER` of one that has begun, its best
candidate is measured, and `sensitivity.csv` is left there, else in `reports/<recipe>/sensitivity/`. One pass estimates.

  --exact        measure one by one as well: only this quantized, and all but this
  --metric       likewise the recipe's metric, on the part that candidates are chosen on
  --samples N    calibration samples (32)
  --top N        rows to show (20); the file has all

A second start goes on with what is not measured yet. Exit codes: 0, 1 for an error, and those of signals.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from qatflow.results.signals import carried_out, end_early

if __name__ == "__main__":
    end_early()  # what follows takes its time to import

from rich.console import Console

from qatflow.door import listing
from qatflow.door.command_line import read_flags
from qatflow.door.composing import plan
from qatflow.door.endings import MET, guarded
from qatflow.errors import Mistake, RecipeError
from qatflow.recipe import Recipe
from qatflow.report.console import say, say_columns, shown_on

COLUMNS = ("tensor", "kind", "bits", "estimated_db", "alone_db", "without_db", "alone_metric", "without_metric", "why")


def main(argv: list[str] | None = None) -> int:
    """Measure the recipe of a command line (that of the process unless given) and return the exit code."""
    return carried_out(lambda: guarded(lambda: _command(list(sys.argv[1:] if argv is None else argv))))


def _command(argv: list[str]) -> int:
    own, rest = _own_flags(argv)
    flags = read_flags(rest)
    args = flags.hydra
    if args.multirun or args.cfg or args.info or args.run:
        fix = "give one recipe and its overrides"
        raise RecipeError([Mistake("flags", "sensitivity takes --config-dir and its own only", fix)])
    if args.help or not args.overrides:
        say(Console(), f"{(__doc__ or '').strip()}\n")
        listing.show_recipes(Console(), flags.config_dir)
        return MET
    (job,) = plan(flags.overrides, False, flags.config_dir, flags.trust).jobs
    _measure(job.recipe, flags.trust, own)
    return MET


def _own_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own flags, and what is left for Hydra's.

    Raises:
        RecipeError: a number is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--metric", action="store_true")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--top", type=int, default=20)
    try:
        own, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise RecipeError([Mistake("flags", str(error), "see --help")]) from error
    for name in ("samples", "top"):
        if getattr(own, name) < 1:
            raise RecipeError([Mistake(f"--{name}", f"{getattr(own, name)} is too few", "write 1 or more")])
    return own, rest


def _measure(recipe: Recipe, trust: tuple[str, ...], own: argparse.Namespace) -> None:
    from qatflow.door.measuring import NAME, measured  # imports torch

    console = Console()
    folder = Path(recipe.run.dir) if recipe.run.dir else Path("reports") / recipe.name / NAME
    with shown_on(console) as progress:
        found = measured(recipe, folder, progress, trust, samples=own.samples, exact=own.exact, metric=own.metric)
    for note in found.notes:
        say(console, f"note: {note}")
    say(console, f"\nall quantized: {found.together_db:.1f} dB at the outputs; what costs most comes first")
    rows = [
        {name: _cell(name, row.get(name)) for name in COLUMNS if name in found.frame}
        for row in found.frame.to_dict("records")
    ]
    say_columns(console, [list(rows[0]), *([*row.values()] for row in rows[: own.top])])
    if len(rows) > own.top:
        say(console, f"... {len(rows) - own.top} more")
    for row in found.frame.to_dict("records")[: min(own.top, 5)]:
        if row["helps"]:
            say(console, f"against {row['tensor']}: {row['helps']}")
    if not math.isnan(found.rank_correlation):
        say(console, f"rank correlation of estimate and measurement: {found.rank_correlation:.3f}")
    if found.resumed:
        say(console, f"{found.resumed} of {len(rows)} were measured by an earlier start")
    say(console, f"file     {found.path}")


def _cell(column: str, value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}" if column.endswith("metric") else f"{value:.1f}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
