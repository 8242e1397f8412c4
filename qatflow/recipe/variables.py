"""Environment variables in a recipe: `${oc.env:NAME}` is kept as it is written, and read where it is used.

Paths of data and passwords of databases differ from machine to machine and are nobody else's business. So no file of a
run folder, no report and no message has the value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from qatflow.errors import Mistake, RecipeError

WRITTEN = re.compile(r"\$\{oc\.env:\s*(?P<name>[^},\s]+)\s*(?:,(?P<default>[^}]*))?\}")
OPEN_TO_THEM = (
    "model.kwargs",
    "model.weights",
    "data.kwargs",
    "gate.metric_kwargs",
    "qat.loss_kwargs",
    "qat.optimizer_kwargs",
    "search.storage",
)
"""Where a recipe may have one."""
SHORTEST = 4
"""A value that is shorter is no secret, and may well stand in a message by itself."""


def read(value: Any, path: str) -> Any:
    """Return a value of a recipe with what the variables in it stand for, in lists and mappings as well.

    Args:
        value: as the recipe has it.
        path: where it stands, for messages.

    Raises:
        RecipeError: a variable is not set and has no default.
    """
    if isinstance(value, Mapping):
        return {name: read(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(read(item, f"{path}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, str):
        return value
    mistakes = list(_unset(value, path))
    if mistakes:
        raise RecipeError(mistakes)
    return WRITTEN.sub(_value, value)


def _value(found: re.Match[str]) -> str:
    default = found["default"]
    return os.environ.get(found["name"], "" if default is None else default.strip(" '\""))


def variable_mistakes(value: Any, path: str) -> list[Mistake]:
    """Return what is wrong with the variables in a value, which is neither list nor mapping: one is not set, or may not
    stand there.
    """
    if not isinstance(value, str) or not WRITTEN.search(value):
        return []
    if path.startswith(OPEN_TO_THEM):
        return list(_unset(value, path))
    fix = f"write the value itself; they may stand in {', '.join(OPEN_TO_THEM)}"
    return [Mistake(path, f"{value!r} is an environment variable, and none may stand here", fix)]


def _unset(value: str, path: str) -> Iterator[Mistake]:
    for found in WRITTEN.finditer(value):
        if found["default"] is None and found["name"] not in os.environ:
            fix = f"set it, or write a default as in ${{oc.env:{found['name']},value}}"
            yield Mistake(path, f"the environment variable {found['name']!r} is not set", fix)


def as_written(text: str, value: Any) -> str:
    """Return a text in which what a recipe's variables stand for is written as the recipe has it.

    Args:
        text: a message, which may quote what was read.
        value: the recipe, or a part of it, as plain values.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            text = as_written(text, item)
    elif isinstance(value, str):
        for found in WRITTEN.finditer(value):
            kept = found[0].replace("\\", r"\\")
            for secret in _spellings(os.environ.get(found["name"], "")):
                text = re.sub(re.escape(secret), kept, text, flags=re.IGNORECASE)
    return text


def _spellings(value: str) -> list[str]:
    """Return how a value may be quoted in a message, the longest first: whole, escaped, or some of its lines."""
    spelt = {value, value.strip(), repr(value)[1:-1], *(line.strip() for line in value.splitlines())}
    return sorted((one for one in spelt if len(one) >= SHORTEST), key=len, reverse=True)
