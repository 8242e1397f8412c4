"""Where a recipe's names of steps and targets become code: ours from their tables, a user's from a trusted package.

A step from outside is one function `prune(network, config: Prune, context) -> (network, notes)`, and a target one value
of `qatflow.quant.target.Target`. Their modules import torch, so that the recipe's check could only look at their names;
`complete` checks the rest when a run starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_type_hints

from qatflow.errors import Mistake, RecipeError, StepError, allowed_values
from qatflow.quant.network import Network
from qatflow.quant.target import Target
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.recipe.step_checks import order_mistakes, typed_step
from qatflow.recipe.steps import STEP_CONFIGS, StepConfig, UntypedStep
from qatflow.recipe.targets import target_mistakes
from qatflow.recipe.trust import is_outside
from qatflow.results.result import Note
from qatflow.steps import STEPS, Step
from qatflow.steps.context import StepContext
from qatflow.tasks.code import code_fingerprint
from qatflow.tasks.factory import load_factory, load_object
from qatflow.users_code import users_code

SHAPE = "write it as `def step(network, config: Config, context)`"


@dataclass(frozen=True)
class NamedStep:
    """A step as a recipe names it.

    Attributes:
        name: in the recipe.
        function: behind it.
    """

    name: str
    function: Step

    def __call__(self, network: Network, config: StepConfig, context: StepContext) -> tuple[Network, dict[str, Note]]:
        """Apply the step.

        Raises:
            StepError: what it returns is no network with notes, or it cannot run on this model.
            UserCodeError: it is a user's, and raised.
        """
        with users_code(f"steps: {self.name}") if is_outside(self.name) else nullcontext():
            found: Any = self.function(network, config, context)
        parts = [type(one).__name__ for one in found] if isinstance(found, tuple) else [type(found).__name__]
        if len(parts) != 2 or not isinstance(found[0], Network) or not isinstance(found[1], dict):
            message = f"{self.name} returns {' and '.join(parts)}, and a step returns a Network and a dict of notes"
            raise StepError(message)
        nested = [key for key, value in found[1].items() if type(value) not in (bool, int, float, str)]
        if nested:
            message = f"{self.name}: its note {nested[0]!r} is neither a number nor text nor a truth value"
            raise StepError(message)
        return found[0], found[1]

    @property
    def fingerprint(self) -> str:
        """A hash of the code of a user's step; of ours, `code_version` speaks."""
        return code_fingerprint(self.function)

    @property
    def config(self) -> type[StepConfig]:
        """The class of its options: of a user's step, the annotation of its second parameter.

        Raises:
            RecipeError: it is no function of three, or its options are no `StepConfig`.
        """
        return _config_of(self.function, self.name) if self.name not in STEPS else STEP_CONFIGS[self.name]


def step_of(name: str, trust: Collection[str] = ()) -> NamedStep:
    """Return a step by its name in a recipe.

    Raises:
        RecipeError: there is none, or it is not trusted.
    """
    path = f"steps.{name}"
    if is_outside(name):
        return NamedStep(name, load_factory(name, trust, path, "step"))
    if name not in STEPS:
        raise RecipeError([Mistake(path, "unknown step", allowed_values(name, STEPS))])
    return NamedStep(name, STEPS[name])


def target_of(name: str, trust: Collection[str] = ()) -> Target:
    """Return the table of a target, by its name in a recipe.

    Raises:
        RecipeError: there is none, it is not trusted, or it is something else.
    """
    if not is_outside(name):
        if name not in TARGETS:
            raise RecipeError([Mistake("target", f"{name!r} is not an option", allowed_values(name, TARGETS))])
        return TARGETS[name]
    found = load_object(name, trust, "target", "target", lambda value: isinstance(value, Target), "TABLE")
    if not isinstance(found, Target):
        problem = f"{name!r} is a {type(found).__name__}, and a target is a qatflow.quant.target.Target"
        raise RecipeError([Mistake("target", problem, "name the table itself, as in my_package.npu:TABLE")])
    return found


def complete(recipe: Recipe, trust: Collection[str] = ()) -> Recipe:
    """Return a recipe whose steps from outside have their options typed, defaults included.

    Raises:
        RecipeError: a step or target from outside cannot be imported or is none, or options, order or what is asked of
            the target are wrong; all mistakes are in the error.
    """
    mistakes: list[Mistake] = []
    steps = {name: _typed(name, config, trust, mistakes) for name, config in recipe.steps.items()}
    mistakes += order_mistakes(steps)
    try:
        entry = target_of(recipe.target, trust).entry
    except RecipeError as error:
        mistakes += error.mistakes
    else:
        sections = (one.model_dump() for one in (recipe.precision, recipe.export, recipe.gate))
        mistakes += target_mistakes(recipe.target, entry, *sections)
    if mistakes:
        raise RecipeError(mistakes)
    return recipe.model_copy(update={"steps": steps})


def _typed(name: str, config: StepConfig, trust: Collection[str], mistakes: list[Mistake]) -> StepConfig:
    """Return a step's config as the step wants it."""
    if not is_outside(name):
        return config
    try:
        wanted = step_of(name, trust).config
    except RecipeError as error:
        mistakes += error.mistakes
        return config
    if type(config) is wanted:
        return config
    options = config.options if isinstance(config, UntypedStep) else config.model_dump()
    return typed_step(name, wanted, options, mistakes)


def _config_of(step: Step, name: str) -> type[StepConfig]:
    """Return the annotation of a function's second parameter; without one, the step has no options."""
    path = f"steps.{name}"
    parameters = list(inspect.signature(step).parameters.values())
    required = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if inspect.isclass(step) or len(parameters) < 3 or len(required) > 3:
        raise RecipeError([Mistake(path, f"{name!r} does not take a network, its options and a context", SHAPE)])
    found = _annotation(step, parameters[1], path)
    if found is inspect.Parameter.empty:
        return StepConfig
    if not (inspect.isclass(found) and issubclass(found, StepConfig)):
        problem = f"the options of {name!r} are {getattr(found, '__name__', found)}, and not a StepConfig"
        fix = "let their class inherit from qatflow.recipe.steps.StepConfig"
        raise RecipeError([Mistake(path, problem, fix)])
    unknown = [other for other in found.not_after if not is_outside(other) and other not in STEP_CONFIGS]
    if unknown:
        problem = f"not_after of its options names {unknown[0]!r}, which is no step"
        raise RecipeError([Mistake(path, problem, allowed_values(unknown[0], STEP_CONFIGS))])
    return found


def _annotation(step: Step, parameter: inspect.Parameter, path: str) -> Any:
    """Return the annotation of one parameter, which may be written as text."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    alone: Any = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(alone, getattr(inspect.unwrap(step), "__globals__", {}))[parameter.name]
    except NameError as error:
        problem = f"the annotation of its second parameter cannot be read: {error}"
        raise RecipeError([Mistake(path, problem, "import it outside of `if TYPE_CHECKING`")]) from error
