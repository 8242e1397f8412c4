"""Where options and recipes lie: in `conf/` and `recipes/`, and in a user's `--config-dir`."""

from __future__ import annotations

import filecmp
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qatflow.errors import Mistake, RecipeError
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.targets import TARGETS
from qatflow.recipe.yaml_file import unreadable, yaml_text

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
        known = ours.is_file() and path.is_file() and not filecmp.cmp(ours, path, shallow=False)
        if known or path.stem in TABLES.get(path.parent.name, ()):
            problem = "has the name of one of qatflow's own options, which would be taken instead"
            mistakes.append(Mistake(str(path), problem, "rename it"))
    return mistakes


def load_recipe(path: Path) -> DictConfig:
    """Return a recipe's YAML, `defaults` and all.

    Raises:
        RecipeError: it cannot be read, is not a mapping, or holds more than any recipe; the error names file and line.
    """
    with built_of(path):
        node = OmegaConf.load(io.StringIO(yaml_text(path)))
    assert isinstance(node, DictConfig)  # a mapping, or nothing
    return node


@contextmanager
def built_of(path: Path) -> Iterator[None]:
    """Tell of what OmegaConf cannot build of a file, in here.

    Raises:
        RecipeError: it cannot.
    """
    try:
        yield
    except RecipeError:
        raise
    except YAMLError as error:
        raise RecipeError([unreadable(error, str(path))]) from error
    except (OmegaConfBaseException, ValueError, ArithmeticError) as error:
        raise RecipeError([Mistake(str(path), f"cannot be read: {' '.join(str(error).split())}")]) from error
