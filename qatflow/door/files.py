"""Where options and recipes lie: in `conf/` and `recipes/`, and in a user's `--config-dir`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import MarkedYAMLError, YAMLError

from qatflow.errors import Mistake, RecipeError
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.targets import TARGETS

GROUP = "recipe"
TABLES: dict[str, Mapping[str, object]] = {"steps": STEP_CONFIGS, "target": TARGETS}
"""Groups whose options are made from a table."""


def shipped(name: str) -> Path:
    """Return the folder `conf` or `recipes`: in the package where a wheel puts it, beside it in a checkout.

    Raises:
        FileNotFoundError: it is in neither place, so the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    message = f"qatflow was installed without its folder {name!r}: install it again"
    raise FileNotFoundError(message)


def find_recipes(config_dir: Path | None = None) -> dict[str, Path]:
    """Return recipe files by name: ours, then a user's `recipes/` and `recipe/`, later ones hiding earlier ones."""
    folders = [shipped("recipes")]
    if config_dir is not None:
        folders += [config_dir / "recipes", config_dir / GROUP]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def hidden_options(config_dir: Path) -> list[Mistake]:
    """Tell of a user's options that have the name of one of ours: Hydra would take only one of them."""
    mistakes = []
    for path in sorted(config_dir.glob("*/*.yaml")):
        ours = shipped("conf") / path.relative_to(config_dir)
        known = ours.is_file() and ours.read_bytes() != path.read_bytes()
        if known or path.stem in TABLES.get(path.parent.name, ()):
            problem = "has the name of one of qatflow's own options, which would be taken instead"
            mistakes.append(Mistake(str(path), problem, "rename it"))
    return mistakes


def load_recipe(path: Path) -> DictConfig:
    """Return a recipe's YAML, `defaults` and all.

    Raises:
        RecipeError: it cannot be read, or is not a mapping; the error names file and line.
    """
    try:
        node = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise RecipeError([unreadable(error, path)]) from error
    if not isinstance(node, DictConfig):
        raise RecipeError([Mistake(str(path), "is a list, and a recipe is a mapping", "write `key: value` lines")])
    return node


def unreadable(error: Exception, path: Path | None = None) -> Mistake:
    """Return the mistake behind a YAML file that cannot be read, with file and line where they are known."""
    place, reason = str(path or "a YAML file"), str(error).splitlines()[0]
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{path or mark.name}, line {mark.line + 1}"
        reason = error.problem or reason
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return Mistake(place, f"cannot be read: {reason}")
