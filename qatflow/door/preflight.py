"""Find every mistake on a command line and in its recipe before Hydra composes it in earnest.

Hydra stops at the first mistake, in words that send a newcomer to `+key`. So each job is composed here once before,
leniently: a key that does not exist is forced in, for the recipe check to name its neighbours; an option that does
not exist is told and an empty one put in its place; a recipe whose defaults cannot be composed is taken without them.
What is left goes through `recipe_check`, and all mistakes are told together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from qatflow.door import config
from qatflow.door.config import GROUP
from qatflow.door.lenient import Composed, LenientComposer
from qatflow.door.overrides import is_choice, read
from qatflow.errors import Mistake, RecipeError, allowed_values, near_match
from qatflow.recipe import Recipe
from qatflow.recipe.check import check
from qatflow.recipe.sentences import shown
from qatflow.recipe.steps import STEP_CONFIGS

STAND_IN_RECIPE = "quickstart"
"""Taken where none or an unknown one is given, so that the rest of the command line can still be checked."""


@dataclass(frozen=True)
class Plan:
    """A command line, found free of mistakes."""

    lines: list[str]
    """Its overrides as Hydra is to read them."""
    dropped: list[tuple[str, ...]]
    """For each job, the steps that its recipe's body mentions and the command line left out."""
    recipes: dict[str, Path]
    """The files of all recipes, by name."""


def plan(lines: Sequence[str], multirun: bool, config_dir: Path | None, trust: Sequence[str] = ()) -> Plan:
    """Check every job of a command line, and leave its recipes registered with Hydra.

    The jobs of a sweeper plugin, which chooses them while it runs, are checked as far as they are alike.

    Raises:
        RecipeError: there are mistakes; all of them are in the error, each once.
    """
    recipes = config.find_recipes(config_dir)
    config.register(recipes, config_dir)
    with config.hydra_at(config_dir) as loader:
        command = read(lines, loader, multirun)
        recipes |= command.files
        config.register(recipes, config_dir)
        composer = LenientComposer(loader)
        mistakes = [*command.mistakes, *(config.hidden_options(config_dir) if config_dir else [])]
        jobs = [_Check(job, recipes, config_dir, composer, trust, multirun) for job in command.jobs]
        dropped = [job.run(mistakes) for job in jobs]
    if mistakes:
        raise RecipeError(dict.fromkeys(mistakes))
    return Plan(command.lines, [] if command.sweeps_itself else dropped, recipes)


@dataclass
class _Check:
    """The check of one job."""

    overrides: list[Override]
    recipes: dict[str, Path]
    config_dir: Path | None
    composer: LenientComposer
    trust: Sequence[str]
    multirun: bool

    def run(self, mistakes: list[Mistake]) -> tuple[str, ...]:
        """Tell the job's mistakes, and return the steps that it drops."""
        name, node = self._recipe(mistakes)
        lists = {str(key): node.pop(key) for key in list(node) if _is_list(node, key)}
        choices, values = self._told_apart(mistakes)
        composed = self.composer.compose(name, node, [str(choice.input_line) for choice in choices])
        mistakes += composed.mistakes
        dropped = _unselected(composed, any(choice.key_or_group == "steps" for choice in choices), mistakes)
        for override in values:
            _set(composed, override, mistakes)
        mapping = _mapping(composed, mistakes) | {key: OmegaConf.to_container(value) for key, value in lists.items()}
        _, found = check(mapping, self.trust)
        mistakes += [mistake for mistake in found if mistake.path not in composed.broken]
        run = mapping.get("run")
        if self.multirun and isinstance(run, dict) and run.get("dir") is not None:
            fix = "drop it; hydra.sweep.dir=FOLDER says where the whole sweep goes"
            mistakes.append(Mistake("run.dir", "is one folder, and each job of a sweep has its own", fix))
        return dropped

    def _told_apart(self, mistakes: list[Mistake]) -> tuple[list[Override], list[Override]]:
        """Return the overrides that choose options, Hydra's own among them, and those that set values."""
        choices: list[Override] = []
        values: list[Override] = []
        for override in self.overrides:
            group, value = override.key_or_group, override.value()
            if group == GROUP:
                continue
            if override.is_hydra_override() or (is_choice(override) and isinstance(value, (str, list))):
                choices.append(override)
            elif is_choice(override) and not override.is_delete():
                known = self.composer.options(group)
                mistakes.append(Mistake(group, f"{shown(value)} is not an option", allowed_values(str(value), known)))
            else:
                values.append(override)
        return choices, values

    def _recipe(self, mistakes: list[Mistake]) -> tuple[str, DictConfig]:
        """Return the chosen recipe, or another in its place."""
        chosen = [override.value() for override in self.overrides if override.key_or_group == GROUP]
        known = f"there are: {', '.join(self.recipes)}"
        if not chosen:
            mistakes.append(Mistake(GROUP, "none is given", f"write {GROUP}=NAME; {known}"))
        name = chosen[-1] if chosen else STAND_IN_RECIPE
        if not isinstance(name, str):
            mistakes.append(Mistake(GROUP, f"{shown(name)} is not one recipe", known))
            name = STAND_IN_RECIPE
        if name not in self.recipes:
            mistakes.append(Mistake(GROUP, f"{name!r} is not a recipe", allowed_values(name, self.recipes)))
            close = [recipe for recipe in self.recipes if near_match(name, [recipe])]
            name = close[0] if close else STAND_IN_RECIPE
        path = self.recipes[name]
        try:
            node = config.load_recipe(path)
        except RecipeError as error:
            mistakes += error.mistakes
            return name, DictConfig(
                {"defaults": [{"override /model": "digits_mobilenet"}, {"override /data": "digits"}]}
            )
        if self.config_dir and path.parent == self.config_dir / GROUP and not config.HEADER.search(path.read_text()):
            fix = "or move the file to recipes/, where none is needed"
            problem = "its keys would land under `recipe`: write `# @package _global_` as its first line"
            mistakes.append(Mistake(str(path), problem, fix))
        return name, node


def _is_list(node: DictConfig, key: Any) -> bool:
    """Tell a list, which OmegaConf cannot merge onto a section, from all else; the recipe check tells of it."""
    return key in Recipe.model_fields and isinstance(node._get_node(key), ListConfig)


def _unselected(composed: Composed, chosen_on_command_line: bool, mistakes: list[Mistake]) -> tuple[str, ...]:
    """Take out the steps that a recipe's body mentions without selecting them, and return them.

    A list on the command line means what it says. A recipe that lists some steps and sets options of another has a
    mistake; one that lists none spells its steps out in its body, as a run folder's `recipe.yaml` does.
    """
    if not isinstance(composed.cfg.get("steps"), DictConfig):
        return ()
    extra = tuple(str(step) for step in composed.cfg.steps if step not in composed.selected)
    if not chosen_on_command_line:
        if not composed.selected or "steps" in composed.broken:
            return ()
        extra = tuple(step for step in extra if step in STEP_CONFIGS)
        for step in extra:
            fix = f"add it to `override /steps: [...]` or drop them; selected: {', '.join(composed.selected)}"
            mistakes.append(Mistake(f"steps.{step}", "the recipe sets its options without selecting it", fix))
    with open_dict(composed.cfg.steps):
        for step in extra:
            del composed.cfg.steps[step]
    return extra if chosen_on_command_line else ()


def _set(composed: Composed, override: Override, mistakes: list[Mistake]) -> None:
    """Set one value, whether or not its key exists."""
    cfg, key, value = composed.cfg, override.key_or_group, override.value()
    top, *rest = key.split(".")
    if top not in Recipe.model_fields:
        mistakes.append(Mistake(key, "unknown key", allowed_values(top, [*Recipe.model_fields, GROUP, "trust"])))
    elif override.is_delete() and OmegaConf.select(cfg, key, throw_on_missing=False) is None:
        mistakes.append(Mistake(key, "cannot be removed, for it is not there"))
    elif top == "steps" and rest and rest[0] in STEP_CONFIGS and rest[0] not in (cfg.get("steps") or {}):
        selected = [*(cfg.get("steps") or {}), rest[0]]
        fix = f"select it: steps=[{','.join(step for step in STEP_CONFIGS if step in selected)}]"
        if "steps" not in composed.broken:
            mistakes.append(Mistake(f"steps.{rest[0]}", "the recipe does not select this step", fix))
    else:
        try:
            with open_dict(cfg):
                _update(cfg, override, key, value)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError):
            mistakes.append(Mistake(key, f"cannot be set to {shown(value)}", f"`{key.rpartition('.')[0]}` has no keys"))


def _update(cfg: DictConfig, override: Override, key: str, value: Any) -> None:
    if override.is_delete():
        parent, _, last = key.rpartition(".")
        del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
    else:
        OmegaConf.update(cfg, key, value, merge=True, force_add=True)


def _mapping(composed: Composed, mistakes: list[Mistake]) -> dict[str, Any]:
    """Return the config as plain values; an interpolation that leads nowhere is told and left as it stands."""
    cfg = composed.cfg
    HydraConfig.instance().set_config(copy.copy(cfg))
    with open_dict(cfg):
        del cfg["hydra"]
    mapping: Any = OmegaConf.to_container(cfg, resolve=False)
    try:
        for key in mapping:
            try:
                value = cfg[key]
                mapping[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException as error:
                path = str(error.full_key or key)
                mistakes.append(Mistake(path, str(error).splitlines()[0], "correct the ${...} in it"))
                composed.broken.add(path)
    finally:
        HydraConfig.instance().cfg = None
    return dict(mapping)
