"""Hydra in, `Recipe` out.

Hydra composes plain YAML: the groups in `conf/`, the recipes in `recipes/`, and what a user has in `--config-dir`.
The types are pydantic's (`qatflow.recipe`), because pydantic reports every mistake at once where Hydra stops at the
first; their defaults reach Hydra as `base_recipe`, the first entry of `conf/config.yaml`.

Recipes lie in `recipes/` and form the group `recipe`. Hydra knows one folder per group, so each file is put into its
ConfigStore instead, where `# @package` headers are not read: a recipe is always `_global_`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel
from yaml import MarkedYAMLError, YAMLError

from qatflow.errors import Mistake, RecipeError
from qatflow.recipe import Data, Model, Recipe
from qatflow.recipe.check import recipe_from

VERSION_BASE = "1.3"
PRIMARY = "config"
GROUP = "recipe"
PACKAGE = "_global_"
HEADER = re.compile(r"^\s*#\s*@package\s+_global_\s*$", re.MULTILINE)


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
    """Tell of a user's options that have the name of one of ours: Hydra would take ours without a word."""
    mistakes = []
    for path in sorted(config_dir.glob("*/*.yaml")):
        ours = shipped("conf") / path.relative_to(config_dir)
        if ours.is_file() and ours.read_bytes() != path.read_bytes():
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
    place = str(path) if path else "a YAML file"
    reason = str(error).splitlines()[0]
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{path or mark.name}, line {mark.line + 1}"
        reason = error.problem or reason
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return Mistake(place, f"cannot be read: {reason}")


def register(recipes: Mapping[str, Path], config_dir: Path | None = None) -> None:
    """Put `base_recipe` and the readable recipes into Hydra's ConfigStore, replacing those of an earlier call.

    Files in a user's `recipe/` are left to Hydra, which finds them by itself (and would take a stored one of the same
    name for their schema). An unreadable one is left out: it must not stop a run of another.
    """
    store = ConfigStore.instance()
    store.repo.pop(GROUP, None)
    store.store(name="base_recipe", node=base_recipe(), provider="qatflow")
    for name, path in recipes.items():
        if config_dir is not None and path.parent == config_dir / GROUP:
            continue
        try:
            node = load_recipe(path)
        except RecipeError:
            continue
        *folders, stem = [part for part in name.split("/") if part]
        store.store(group="/".join([GROUP, *folders]), name=stem, node=node, package=PACKAGE, provider="qatflow")


def base_recipe() -> dict[str, Any]:
    """Return the defaults of every section, without `steps`: their order is that of first mention."""
    defaults: dict[str, Any] = {"model": _defaults(Model), "data": _defaults(Data)}
    named = {name: field.default for name, field in Recipe.model_fields.items() if name != "steps"}
    for name, value in named.items():
        if name not in defaults:
            defaults[name] = value.model_dump() if isinstance(value, BaseModel) else value
    return {name: defaults[name] for name in named}


def _defaults(section: type[BaseModel]) -> dict[str, Any]:
    return {name: field.get_default(call_default_factory=True) for name, field in section.model_fields.items()}


@contextmanager
def hydra_at(config_dir: Path | None) -> Iterator[ConfigLoader]:
    """Let Hydra search `conf/` and then `config_dir`, as its own command line would, while the context lasts."""
    version.setbase(VERSION_BASE)
    path = create_config_search_path(str(shipped("conf")))
    if config_dir is not None:
        anchor = SearchPathQuery(provider="schema")
        path.prepend(provider="command-line", path=f"file://{config_dir.absolute()}", anchor=anchor)
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name="qatflow", config_search_path=path)
    try:
        yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


def recipe_of(cfg: DictConfig, trust: Sequence[str] = (), dropped: Sequence[str] = ()) -> Recipe:
    """Return the recipe that Hydra composed, with absolute paths.

    Args:
        cfg: the composed config, without its `hydra` node.
        trust: top packages, named on the command line, whose functions the recipe may name.
        dropped: steps that the recipe's body mentions and the command line left out.

    Raises:
        RecipeError: it has mistakes; all of them are in the error.
    """
    mapping = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    for step in dropped:
        mapping["steps"].pop(step, None)
    model = mapping.get("model")
    if isinstance(model, dict) and isinstance(model.get("weights"), str):
        model["weights"] = str(Path(model["weights"]).expanduser().absolute())
    return recipe_from(mapping, trust)
