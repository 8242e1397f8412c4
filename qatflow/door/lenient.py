"""Compose a tree with Hydra although parts of it are wrong, and tell which.

The recipe is composed from a copy in Hydra's ConfigStore, so that a wrong entry of its defaults can be taken out. An
option that does not exist gets an empty stand-in, wherever it was named. Every mending is one mistake told.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qatflow.door import config
from qatflow.door.config import GROUP, PACKAGE, PRIMARY
from qatflow.door.overrides import groups
from qatflow.errors import Mistake, RecipeError, allowed_values

COPY = "checked_recipe"
UNKNOWN_GROUP = re.compile(rf"In '{GROUP}/{COPY}': Could not override '/?([^'@]+)")
LOST = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError)
"""What Hydra raises where it cannot compose a tree at all."""
MOST_MENDINGS = 50


@dataclass
class Composed:
    """A composed config, and what was wrong on the way to it."""

    cfg: DictConfig
    """With Hydra's own node."""
    selected: tuple[str, ...]
    """The steps that were chosen as options, in order."""
    mistakes: list[Mistake] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Groups whose choice is a mistake that has been told."""


class LenientComposer:
    """Composes job after job; jobs that differ only in values share one composition."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._done: dict[tuple[str, ...], Composed] = {}

    def compose(self, recipe: str, node: DictConfig, choices: Sequence[str]) -> Composed:
        """Compose a recipe's YAML with the choices of a command line.

        Raises:
            RecipeError: nothing can be composed, because of what the command line says about Hydra itself.
        """
        key = (recipe, *choices)
        if key not in self._done:
            with _restored_store():
                self._done[key] = self._mended(recipe, copy.deepcopy(node), list(choices))
        return copy.deepcopy(self._done[key])

    def options(self, group: str) -> list[str]:
        """Return the names of a group's options."""
        return [name for name in self._loader.get_group_options(group) if name != COPY]

    def _mended(self, recipe: str, node: DictConfig, choices: list[str]) -> Composed:
        mistakes: list[Mistake] = []
        broken: set[str] = set()
        for _ in range(MOST_MENDINGS):
            try:
                composed = self._composed(node, choices)
                mistakes = [*_doubles(composed.selected), *mistakes]
                return Composed(composed.cfg, tuple(dict.fromkeys(composed.selected)), mistakes, broken)
            except MissingConfigException as error:
                mistakes.append(self._stand_in(str(error.missing_cfg_file), broken))
            except LOST as error:
                group = _take_out_unknown_group(node, str(error))
                if group:
                    mistakes.append(Mistake(f"defaults of recipe {recipe}", *group))
                    continue
                mistakes.append(_from_hydra(error, recipe))
                broken |= groups()
                if not choices and "defaults" not in node:
                    node = DictConfig({})
                choices = []
                node.pop("defaults", None)
        raise RecipeError(mistakes)

    def _composed(self, node: DictConfig, choices: list[str]) -> Composed:
        ConfigStore.instance().store(group=GROUP, name=COPY, node=node, package=PACKAGE, provider="qatflow")
        lines = [*choices, f"{GROUP}={COPY}"]
        cfg = compose(PRIMARY, overrides=lines, return_hydra_config=True)
        listed = self._loader.compute_defaults_list(PRIMARY, lines, RunMode.RUN)
        paths = [(str(default.config_path), str(default.package)) for default in listed.defaults]
        steps = [package.partition(".")[2] for path, package in paths if path.startswith("steps/")]
        return Composed(cfg, tuple(steps))

    def _stand_in(self, path: str, broken: set[str]) -> Mistake:
        """Put an empty option where one is missing."""
        group, _, option = path.partition("/")
        known = self.options(group)
        store = ConfigStore.instance()
        *folders, name = path.split("/")
        store.store(group="/".join(folders) or None, name=name, node={}, package=PACKAGE, provider="qatflow")
        broken.add(group)
        problem = f"unknown step {option!r}" if group == "steps" else f"{option!r} is not an option"
        return Mistake(group, problem, allowed_values(option, known))


@contextmanager
def _restored_store() -> Iterator[None]:
    """Take stand-ins out of the ConfigStore again."""
    store = ConfigStore.instance()
    before = {name: dict(entry) if isinstance(entry, dict) else entry for name, entry in store.repo.items()}
    try:
        yield
    finally:
        store.repo = before


def _doubles(selected: Sequence[str]) -> Iterator[Mistake]:
    """Tell of steps listed twice: Hydra collapses them silently."""
    for step in dict.fromkeys(selected):
        if selected.count(step) > 1:
            yield Mistake("steps", f"{step!r} is listed {selected.count(step)} times", "a step runs once: list it once")


def _take_out_unknown_group(node: DictConfig, message: str) -> tuple[str, str] | None:
    """Remove the defaults' entry that overrides a group which does not exist; return problem and fix."""
    found = UNKNOWN_GROUP.search(message)
    if not found or "defaults" not in node:
        return None
    group = found[1]
    kept = [item for item in node.defaults if not _overrides(item, group)]
    if len(kept) == len(node.defaults):
        return None
    node.defaults = kept
    return f"there is no group {group!r}", allowed_values(group, sorted(groups() - {GROUP}))


def _overrides(item: object, group: str) -> bool:
    return isinstance(item, DictConfig) and any(str(key).split()[-1].lstrip("/") == group for key in item)


def _from_hydra(error: Exception, recipe: str) -> Mistake:
    """Put what Hydra says into one line."""
    if isinstance(error, YAMLError):
        return config.unreadable(error)
    text = str(error) or str(error.__cause__ or type(error).__name__)
    text = " ".join(line.strip() for line in text.splitlines() if line.strip()).replace(COPY, recipe)
    yaml_words = "quote words such as off, on, yes and no: YAML reads them as true and false"
    return Mistake(f"recipe {recipe}", f"cannot be composed: {text}", yaml_words if "defaults : bool" in text else "")
