"""A recipe's text as flat dotted keys: what a sweep compares and what the report looks one value up in.

Only the text in the run folder is read. A recipe of an older version, or one that is damaged, must still give a
report, so nothing is validated here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from qatflow.errors import RecipeError
from qatflow.recipe.yaml_file import loaded

NOT_COMPARED = ("name", "description", "run.dir")


def flatten(recipe_yaml: str) -> dict[str, str]:
    """Return `{"gate.max_drop": "0.01", ...}`; empty where the text is not a YAML mapping.

    Lists are one value, and so are the names of the steps, under `steps`: their order counts.
    """
    try:
        recipe = loaded(recipe_yaml, "recipe.yaml")
    except RecipeError:
        return {}
    flat = dict(_leaves("", recipe))
    steps = recipe.get("steps")
    if isinstance(steps, dict):
        flat["steps"] = ", ".join(map(str, steps))
    return flat


def differing(recipes: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all flattened recipes, in order of appearance.

    An empty recipe (a run that left none) says nothing. A step's own settings are compared only between the recipes
    that have the step: whether they have it shows in `steps`.
    """
    known = [recipe for recipe in recipes if recipe]
    keys = dict.fromkeys(key for recipe in known for key in recipe)
    return [key for key in keys if key not in NOT_COMPARED and _differs(key, known)]


def _differs(key: str, recipes: Sequence[dict[str, str]]) -> bool:
    if key.startswith("steps."):
        recipes = [recipe for recipe in recipes if key in recipe]
    return len({recipe.get(key) for recipe in recipes}) > 1


def _leaves(prefix: str, node: dict[Any, Any]) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(f"{path}.", value)
        else:
            yield path, _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
