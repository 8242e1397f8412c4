"""`python -m qatflow.inspect recipe=NAME ...`: what would be quantized and how, without running the recipe.

Takes the overrides, `--config-dir` and `trust=[...]` of a run; with `run.dir=FOLDER` of one that has begun, its best
candidate is shown. Exit codes: 0, 1 for an error, and those of signals, as a run has them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

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
from qatflow.report.console import say, say_columns


def main(argv: list[str] | None = None) -> int:
    """Inspect the recipe of a command line (that of the process unless given) and return the exit code."""
    return carried_out(lambda: guarded(lambda: _command(list(sys.argv[1:] if argv is None else argv))))


def _command(argv: list[str]) -> int:
    flags = read_flags(argv)
    args = flags.hydra
    if args.multirun or args.cfg or args.info or args.run:
        raise RecipeError([Mistake("flags", "inspect takes --config-dir only", "give one recipe and its overrides")])
    if args.help or not args.overrides:
        say(Console(), f"{(__doc__ or '').strip()}\n")
        listing.show_recipes(Console(), flags.config_dir)
        return MET
    (job,) = plan(flags.overrides, False, flags.config_dir, flags.trust).jobs
    _show(Console(), job.recipe, flags.trust)
    return MET


def _show(console: Console, recipe: Recipe, trust: tuple[str, ...]) -> None:
    from qatflow.door.inspection import inspect_recipe  # imports torch

    found = inspect_recipe(recipe, trust)
    target = found.target
    quantized = sum(row.how == "quantized" for row in found.layers)
    say(
        console,
        f"{found.model}: {found.parameters:,} parameters, {len(found.layers)} weighted layers, {quantized} quantized",
    )
    bias = target.bias.replace("_", " ")
    say(console, f"target {target.name}: quantizers stand at each tensor's {target.at}, biases are {bias}")
    say(console, f"design: {found.design}")
    say(console, "batch norms are folded, as the recipe's steps do" if found.folded else "batch norms are not folded")
    for note in found.notes:
        say(console, f"note: {note}")
    _table(console, "Layers", [(row.name, row.kind, "x".join(map(str, row.shape)), row.how) for row in found.layers])
    chains = [(" -> ".join(chain),) for chain in found.chains]
    _table(console, "Chains that equalize would take", chains)
    on_grids = [row for row in found.tensors if not row.how.startswith("float: ")]
    _table(console, "Tensors, in the order of the graph", [(row.tensor, row.op, row.how) for row in on_grids])
    floats = [row for row in found.tensors if row.how.startswith("float: ")]
    _table(console, "Left in float", [(row.tensor, row.op, row.how.removeprefix("float: ")) for row in floats])


def _table(console: Console, title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Show aligned columns under a title with the number of rows."""
    say(console, f"\n{title} ({len(rows)})")
    say_columns(console, rows)


if __name__ == "__main__":
    sys.exit(main())
