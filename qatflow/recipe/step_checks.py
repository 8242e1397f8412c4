"""Check a recipe's steps: their names, their options, and their order.

A step of ours is checked in full before torch is imported. Of a step from outside only the name can be: its options
are kept as they are written until its module is imported (`qatflow.ladder.lookup`), which then comes back here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from qatflow.errors import Mistake, allowed_values
from qatflow.recipe.sentences import mistake_of, shown
from qatflow.recipe.steps import STEP_CONFIGS, StepConfig, UntypedStep
from qatflow.recipe.trust import is_outside, outside_mistakes


def typed_steps(steps: Any, trust: Sequence[str], mistakes: list[Mistake]) -> dict[str, StepConfig]:
    """Return the steps that a recipe names, in its order, telling what is wrong with them."""
    if steps is None:
        return {}
    if not isinstance(steps, Mapping):
        fix = f"write `override /steps: {shown(steps, quote=False)}` under `defaults`, or one key per step"
        mistakes.append(Mistake("steps", "is a mapping from each step's name to its options", fix))
        return {}
    typed: dict[str, StepConfig] = {}
    for name, options in steps.items():
        config = UntypedStep if is_outside(name) else STEP_CONFIGS.get(name)
        if config is None:
            mistakes.append(Mistake(f"steps.{name}", "unknown step", allowed_values(str(name), STEP_CONFIGS)))
            continue
        if config is UntypedStep:
            mistakes += outside_mistakes(f"steps.{name}", name, trust, "step")
        typed[name] = typed_step(name, config, options, mistakes)
    return typed


def typed_step(name: str, config: type[StepConfig], options: Any, mistakes: list[Mistake]) -> StepConfig:
    """Return a step's options as its config; where they have mistakes, those are told, and its place still counts."""
    try:
        return config.model_validate({} if options is None else options)
    except ValidationError as error:
        found = error.errors(include_url=False)
        mistakes += [mistake_of(one, config, options, prefix=f"steps.{name}") for one in found]
        return config.model_construct()


def order_mistakes(steps: Mapping[str, StepConfig]) -> Iterator[Mistake]:
    """Tell of each step that stands after one that needs it done before."""
    names = list(steps)
    order = ", ".join(right_order(steps))
    for index, name in enumerate(names):
        early = [other for other in names[:index] if other in steps[name].not_after]
        if early:
            problem = f"stands after {' and '.join(early)}, and must come before"
            yield Mistake(f"steps.{name}", problem, f"write steps: [{order}]")


def right_order(steps: Mapping[str, StepConfig]) -> list[str]:
    """Return the names of steps in an order that all of them allow: ours as in the table, others near where they stand.

    Where two steps each want to be the first of both there is none, and they stay as they stand.
    """
    ours = iter(name for name in STEP_CONFIGS if name in steps)
    waiting = [next(ours) if name in STEP_CONFIGS else name for name in steps]
    order: list[str] = []
    while waiting:
        free = [one for one in waiting if not any(one in steps[other].not_after for other in waiting)]
        order.append((free or waiting)[0])
        waiting.remove(order[-1])
    return order
