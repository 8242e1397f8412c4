"""What the command line says about itself: the recipes there are, how to run one, and what a run leaves."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from qatflow.door.files import GROUP, find_recipes, load_recipe
from qatflow.door.hydra_parts import groups, hydra_at
from qatflow.errors import RecipeError
from qatflow.report.console import say

HOW = """\
Run one:
  python -m qatflow recipe=NAME
  python -m qatflow recipe=NAME precision=w4a8 gate.max_drop=0.005     other options and values
  python -m qatflow recipe=NAME 'steps=[fold_batch_norms,adaround]'    other steps, in this order
  python -m qatflow -m recipe=NAME precision=w8a8,w4a8,w4a4            a sweep, with one summary
  python -m qatflow recipe=NAME run.dir=FOLDER                         a folder of your choice; an old one is resumed
  python -m qatflow recipe=NAME --cfg job                              show the complete recipe
  python -m qatflow.inspect recipe=NAME                                show what would be quantized, and how
  python -m qatflow.sensitivity recipe=NAME                            show which tensors cost most, and why
  python -m qatflow --config-dir my_project recipe=mine trust=[my_package]
                              your own my_project/recipes/mine.yaml, my_project/model/*.yaml, ...

A run leaves reports/<recipe>/<time>/ with report.html, results.csv, the candidates, and the winner in export/.

Exit codes: 0 gate met, 2 gate missed (the best candidate is exported all the same), 4 slower than gate.min_speedup
asks, 6 both, 1 an error that you can mend, 3 a defect of qatflow, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""
FLAGS = """\
Flags:
  --cfg job             show the complete recipe instead of running it
  -m, --multirun        run every combination of the values that are given as a,b,c
  --config-dir FOLDER   also look for recipes and options in FOLDER
  --info [WHAT]         show how Hydra composes: defaults, defaults-tree, searchpath, ...
  --hydra-help          Hydra's own flags
  --version             qatflow's version
  trust=[a,b]           let recipes name functions of these packages (constructors of torch, torchvision, timm,
                        transformers and torchmetrics are open to all); remote_code: run code beside weights
"""


def show_recipes(console: Console, config_dir: Path | None) -> None:
    """List the recipes with a line about each, and say how to run one."""
    recipes = find_recipes(config_dir)
    width = max(map(len, recipes))
    say(console, "Recipes:")
    for name, path in recipes.items():
        say(console, f"  {name:<{width}}  {description(path)}")
    say(console, f"\n{HOW}")


def show_help(console: Console, config_dir: Path | None) -> None:
    """Show recipes, flags, and the options of every group."""
    show_recipes(console, config_dir)
    say(console, f"{FLAGS}\nOptions (group=option):")
    loader = hydra_at(config_dir, {}).config_loader
    for group in sorted(groups() - {GROUP}):
        say(console, f"  {group:<12} {', '.join(loader.get_group_options(group))}")


def description(path: Path) -> str:
    """Return the one line that a recipe says about itself."""
    try:
        said = OmegaConf.to_container(load_recipe(path))  # as written: nothing in it is looked up
    except RecipeError as error:
        return str(error.mistakes[0])
    assert isinstance(said, dict)
    return " ".join(str(said.get("description") or "").split())
