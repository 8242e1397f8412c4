"""From a command line to its jobs: each composed once, checked once, and told of with all its mistakes.

Hydra composes what a job chooses; jobs that choose the same share it. The values that a job sets are put in here, a key
that does not exist as well, for the recipe check to name its neighbours.
"""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from packaging.requirements import Requirement
from yaml import YAMLError

from qatflow.door.command_line import is_choice, read_overrides
from qatflow.door.files import GROUP, find_recipes, hidden_options
from qatflow.door.hydra_parts import (
    ENDLESS,
    PRIMARY,
    Findings,
    Loader,
    Prepared,
    hydra_at,
    is_elsewhere,
    with_overrides,
)
from qatflow.door.plain_values import plain, unresolved, variables_kept
from qatflow.errors import Mistake, RecipeError, allowed_values, near_match
from qatflow.recipe import Recipe
from qatflow.recipe.check import check
from qatflow.recipe.limits import link_problem
from qatflow.recipe.places import place_mistakes
from qatflow.recipe.sentences import shown
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.targets import TARGETS
from qatflow.recipe.variables import WRITTEN

STAND_IN = "quickstart"
"""The recipe that is taken where none or an unknown one is given, so that the rest can still be checked."""
LOST = (
    *(HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError),
    *(AttributeError, LookupError, AssertionError, RecursionError),
)
"""What Hydra raises where it cannot compose a tree at all, or trips over what it does not expect."""
KEY = re.compile(r"\[(.*?)\]|([^.\[]+)")
"""One part of a key such as `steps[my_package.steps:prune].amount`."""


@dataclass(frozen=True)
class Job:
    """One job of a command line, free of mistakes."""

    recipe: Recipe
    file: Path
    """Where its recipe is written."""
    cfg: DictConfig
    """As Hydra composes it, with Hydra's own node."""


@dataclass(frozen=True)
class Plan:
    """A command line, found free of mistakes."""

    hydra: Prepared
    jobs: list[Job]
    """Those of a sweeper plugin, which chooses them while it runs, are one here, with what they have in common."""
    overrides: list[Override]
    plugin: str
    """Hydra's launcher or sweeper that runs the jobs, such as `hydra/launcher=joblib`; empty where qatflow does."""


def plan(
    lines: Sequence[str], multirun: bool = False, config_dir: Path | None = None, trust: Sequence[str] = ()
) -> Plan:
    """Read, compose and check every job of a command line.

    Args:
        lines: its overrides.
        multirun: whether it asks for a sweep.
        config_dir: a folder with options and recipes of the user's.
        trust: packages, besides the well-known ones, whose functions recipes may name.

    Raises:
        RecipeError: there are mistakes; all of them are in the error, each once.
    """
    recipes = find_recipes(config_dir)
    hydra = hydra_at(config_dir, recipes)
    command = read_overrides(lines, hydra.config_loader, multirun)
    recipes |= command.files
    mistakes = [*command.mistakes, *(hidden_options(config_dir) if config_dir else [])]
    planner = _Planner(hydra, recipes, trust, mistakes)
    jobs = [planner.job(job, number if multirun else None) for number, job in enumerate(command.jobs)]
    if mistakes:
        raise RecipeError(dict.fromkeys(mistakes))
    return Plan(hydra, [job for job in jobs if job is not None], command.read, planner.plugin)


def recipe_of(cfg: DictConfig, trust: Sequence[str]) -> Recipe:
    """Return the recipe that Hydra composed for a job which a plugin has started.

    Raises:
        RecipeError: it has mistakes; all of them are in the error.
    """
    mapping = plain(cfg)
    stated = dict(line.lstrip("+~").partition("=")[::2] for line in HydraConfig.get().overrides.task)
    if stated.get("target") in TARGETS:
        mapping["target"] = stated["target"]
    recipe, mistakes = check(mapping, trust)
    mistakes += place_mistakes(mapping, set(stated))
    if recipe is None or mistakes:
        raise RecipeError(mistakes)
    return _with_absolute_paths(recipe)


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    if recipe.model.weights is None or WRITTEN.match(recipe.model.weights):
        return recipe
    weights = str(Path(os.path.expanduser(recipe.model.weights)).absolute())  # noqa: PTH111 - as it was checked
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": weights})})


class _Planner:
    """Makes jobs of their overrides, and gathers their mistakes."""

    def __init__(
        self, hydra: Prepared, recipes: dict[str, Path], trust: Sequence[str], mistakes: list[Mistake]
    ) -> None:
        self._hydra, self._recipes, self._trust, self._mistakes = hydra, recipes, trust, mistakes
        assert isinstance(hydra.config_loader, Loader)
        self._loader = hydra.config_loader
        self._done: dict[tuple[str, ...], tuple[DictConfig, Findings]] = {}
        self.plugin = ""

    def job(self, overrides: list[Override], number: int | None) -> Job | None:
        """Return a job, or None where it has mistakes."""
        name = self._recipe(overrides)
        choices, values = self._told_apart(overrides)
        lines = (*choices, f"{GROUP}={name}")
        if lines not in self._done:
            self._done[lines] = self._composed(name, lines)
        cfg, found = copy.deepcopy(self._done[lines])
        with_overrides(cfg, overrides, number)
        for override in (*[one for one in overrides if _chooses_target(one)], *values):
            self._set(cfg, override, "steps" in found.broken)
        if too_many := link_problem(unresolved(cfg)):
            self._mistakes.append(Mistake(f"recipe {name}", too_many))
            return None
        mapping, lost = _mapping(cfg)
        recipe, mistakes = check(mapping | found.lists, self._trust)
        run = mapping.get("run")
        if number is not None and isinstance(run, dict) and run.get("dir") is not None:
            fix = "drop it; hydra.sweep.dir=FOLDER says where the whole sweep goes"
            mistakes.append(Mistake("run.dir", "is one folder, and each job of a sweep has its own", fix))
        mistakes += place_mistakes(mapping, {override.key_or_group for override in values})
        told = found.broken | {mistake.path for mistake in lost}
        self._mistakes += [*lost, *(mistake for mistake in mistakes if mistake.path not in told)]
        if number is not None:
            self._note_plugin(cfg)
        return Job(_with_absolute_paths(recipe), self._recipes[name], cfg) if recipe is not None else None

    def _note_plugin(self, cfg: DictConfig) -> None:
        """Note which of Hydra's plugins the jobs are for, and tell of one that does not fit what is installed."""
        if OmegaConf.select(cfg, "hydra.sweeper.params", throw_on_missing=False):
            self.plugin = "hydra.sweeper.params"
        for group in ("hydra/launcher", "hydra/sweeper"):
            choice = cfg.hydra.runtime.choices.get(group)
            if choice not in (None, "basic"):
                self.plugin = f"{group}={choice}"
        if self.plugin == "hydra/sweeper=optuna":
            version = metadata.version("optuna")
            fix = "search with qatflow's own, as in qat.when=always search=standard, or sweep, as in -m seed=1,2,3"
            for needed in map(Requirement, metadata.requires("hydra-optuna-sweeper") or ()):
                if needed.name == "optuna" and not needed.specifier.contains(version):
                    problem = f"optuna: hydra-optuna-sweeper needs {needed}, and optuna {version} is installed"
                    self._mistakes.append(Mistake("hydra/sweeper", problem, fix))

    def _recipe(self, overrides: list[Override]) -> str:
        """Return the chosen recipe, or another in its place."""
        chosen = [override.value() for override in overrides if override.key_or_group == GROUP]
        known = f"there are: {', '.join(self._recipes)}"
        if not chosen:
            self._mistakes.append(Mistake(GROUP, "none is given", f"write {GROUP}=NAME; {known}"))
            return STAND_IN
        name = chosen[-1]
        if not isinstance(name, str):
            self._mistakes.append(Mistake(GROUP, f"{shown(name)} is not one recipe", known))
            return STAND_IN
        if name in self._recipes:
            return name
        self._mistakes.append(Mistake(GROUP, f"{name!r} is not a recipe", allowed_values(name, self._recipes)))
        return next((recipe for recipe in self._recipes if near_match(name, [recipe])), STAND_IN)

    def _told_apart(self, overrides: list[Override]) -> tuple[list[str], list[Override]]:
        """Return the lines that choose options, Hydra's own settings among them, and the overrides that set values."""
        choices: list[str] = []
        values: list[Override] = []
        for override in overrides:
            group, value, line = override.key_or_group, override.value(), str(override.input_line)
            if group == GROUP:
                continue
            if override.is_hydra_override():
                choices.append(line)
            elif is_choice(override) and isinstance(value, (str, list)):
                choices.append(line.lstrip("+"))
            elif is_choice(override) and not override.is_delete():
                known = self._loader.get_group_options(group)
                mistake = Mistake(group, f"{shown(value)} is not an option", allowed_values(str(value), known))
                self._mistakes.append(mistake)
            else:
                values.append(override)
        return choices, values

    def _composed(self, recipe: str, lines: Sequence[str]) -> tuple[DictConfig, Findings]:
        """Compose; where that is impossible, without the choices and the recipe's defaults, and then without the rest.

        Raises:
            RecipeError: even that is impossible.
        """
        for bare in range(3):
            found = self._loader.options.found = Findings(bare)
            lost: list[Mistake] = []
            try:
                cfg = self._hydra.compose_config(PRIMARY, list(lines[-1:] if bare else lines), RunMode.RUN)
            except LOST as error:
                text = str(error) or str(error.__cause__ or type(error).__name__)
                if isinstance(error, RecursionError):
                    text = ENDLESS
                lost.append(Mistake(f"recipe {recipe}", f"cannot be composed: {' '.join(text.split())}"))
            selected = () if lost else self._loader.selected
            self._mistakes += [*_doubles(selected), *self._told(found), *lost]
            if lost:
                continue
            if selected and "steps" not in found.broken and not any(line.startswith("steps=") for line in lines):
                self._mistakes += _without_unselected(cfg.get("steps"), selected)
            return cfg, found
        raise RecipeError(dict.fromkeys(self._mistakes))

    def _told(self, found: Findings) -> Iterator[Mistake]:
        """Tell of files that cannot be composed, and of options that are not there."""
        yield from found.mistakes.values()
        for path in found.absent:
            if is_elsewhere(path):
                group, _, option = path.partition("/")
                yield Mistake(group, f"{shown(option)} is outside of the folders of options", "write the option's name")
                continue
            group, _, option = path.rpartition("/")
            problem = f"unknown step {option!r}" if group == "steps" else f"{option!r} is not an option"
            yield Mistake(group, problem, allowed_values(option, self._loader.get_group_options(group)))

    def _set(self, cfg: DictConfig, override: Override, steps_are_wrong: bool) -> None:
        """Set one value, whether or not its key exists."""
        key, value = override.key_or_group, override.value()
        parts = [bracketed or plain for bracketed, plain in KEY.findall(key)] or [key]
        step = parts[1] if parts[0] == "steps" and len(parts) > 1 else ""
        chosen = list(cfg.get("steps") or {})
        there = OmegaConf.select(cfg, key, throw_on_missing=False) if override.is_delete() else None
        if parts[0] not in Recipe.model_fields:
            fix = allowed_values(parts[0], [*Recipe.model_fields, GROUP, "trust"])
            self._mistakes.append(Mistake(key or "''", "unknown key", fix))
        elif override.is_delete() and there is None:
            self._mistakes.append(Mistake(key, "cannot be removed, for it is not there"))
        elif override.is_delete() and value is not None and there != value:
            problem = f"cannot be removed, for it is not {shown(value)}"
            self._mistakes.append(Mistake(key, problem, f"write ~{key} to remove whatever it is"))
        elif (step in STEP_CONFIGS or ":" in step) and step not in chosen:
            in_order = [*(one for one in STEP_CONFIGS if one in {*chosen, step}), *({*chosen, step} - {*STEP_CONFIGS})]
            fix = f"select it: steps=[{','.join(in_order)}]"
            if not steps_are_wrong:
                self._mistakes.append(Mistake(f"steps.{step}", "the recipe does not select this step", fix))
        else:
            try:
                with open_dict(cfg):
                    if override.is_delete():
                        del functools.reduce(lambda node, part: node[part], parts[:-1], cfg)[parts[-1]]
                    else:
                        OmegaConf.update(cfg, key, value, merge=True, force_add=True)
            except (OmegaConfBaseException, ValueError, TypeError, AttributeError):
                problem = f"cannot be set to {shown(value)}"
                self._mistakes.append(Mistake(key, problem, f"`{key.rpartition('.')[0]}` has no keys"))


def _chooses_target(override: Override) -> bool:
    """Tell whether an override is one of a target: that is one value, which a recipe's body must not take back."""
    return override.key_or_group == "target" and isinstance(override.value(), str)


def _doubles(selected: Sequence[str]) -> Iterator[Mistake]:
    """Tell of steps listed twice: Hydra collapses them silently."""
    for step in dict.fromkeys(selected):
        if selected.count(step) > 1:
            yield Mistake("steps", f"{step!r} is listed {selected.count(step)} times", "a step runs once: list it once")


def _without_unselected(steps: Any, selected: Sequence[str]) -> Iterator[Mistake]:
    """Take out the steps that a recipe's body mentions without selecting them, and tell of each.

    A recipe that lists some steps and sets options of another has a mistake; one that lists none spells its steps out
    in its body, as a run folder's `recipe.yaml` does.
    """
    for step in [step for step in steps or () if step in STEP_CONFIGS and step not in selected]:
        fix = f"add it to `override /steps: [...]` or drop them; selected: {', '.join(dict.fromkeys(selected))}"
        yield Mistake(f"steps.{step}", "the recipe sets its options without selecting it", fix)
        with open_dict(steps):
            del steps[step]


def _mapping(cfg: DictConfig) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the config as plain values; an interpolation that leads nowhere is told and left as it stands."""
    mistakes: list[Mistake] = []
    HydraConfig.instance().set_config(cfg)
    mapping = unresolved(cfg)
    for key in mapping:
        try:
            with variables_kept():
                value = cfg[key]
            mapping[key] = plain(value) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            path = str(error.full_key or key)
            mistakes.append(Mistake(path, str(error).splitlines()[0], "correct the ${...} in it"))
    HydraConfig.instance().cfg = None
    return mapping, mistakes
