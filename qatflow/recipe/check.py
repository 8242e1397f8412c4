"""Check a whole recipe and tell every mistake at once.

pydantic finds most of them; this module puts each into a sentence that names the path, the value, what is allowed and
a near match, and adds what types cannot express: names in our tables, files, packages, and the order of steps. It
imports neither torch nor any package that a recipe names, so that an answer takes well under a second.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qatflow.errors import Mistake, RecipeError, allowed_values
from qatflow.recipe import Recipe
from qatflow.recipe.names import (
    DATASETS,
    FIDELITY_METRICS,
    LABELLED_LOSSES,
    LOSSES,
    LOWER_IS_BETTER,
    METRIC_KWARGS,
    METRICS,
    MODELS,
    OPTIMIZERS,
)
from qatflow.recipe.sentences import mistake_of, shown
from qatflow.recipe.step_checks import order_mistakes, typed_steps
from qatflow.recipe.targets import TARGETS, target_mistakes
from qatflow.recipe.trust import (
    LIVE,
    Role,
    argument_mistakes,
    form_mistakes,
    is_outside,
    outside_mistakes,
    package_mistakes,
)
from qatflow.recipe.variables import WRITTEN, variable_mistakes

SOURCES: dict[Literal["model", "data"], Mapping[str, str]] = {"model": MODELS, "data": DATASETS}
LEFT_OPEN = "???"
FACTORY = "package.module:function"
BITS = ("weights", "activations")
OPSET_OF_FEW_AND_MANY_BITS = 21
"""The first ONNX opset whose QuantizeLinear has 4 and 16 bits."""


def recipe_from(mapping: Mapping[str, Any], trust: Sequence[str] = ()) -> Recipe:
    """Return the recipe that `mapping` declares.

    Args:
        mapping: sections and scalars as in a recipe's YAML, without `defaults`.
        trust: top packages, besides what is open to all, whose functions the recipe may name.

    Raises:
        RecipeError: it has mistakes; all of them are in the error.
    """
    recipe, mistakes = check(mapping, trust)
    if recipe is None:
        raise RecipeError(mistakes)
    return recipe


def session_recipe(sections: Mapping[str, Any], trust: Sequence[str] = ()) -> Recipe:
    """Return a recipe about objects of a Python session; where model and data need no name, none has to be given.

    Raises:
        RecipeError: it has mistakes; all of them are in the error.
    """
    named: dict[str, Any] = {
        section: {"factory": f"{LIVE}:{section}", **sections.get(section, {})} for section in SOURCES
    }
    recipe, mistakes = check({**sections, **named}, (*trust, LIVE))
    mistakes += _process_mistakes(_section(sections, "search"))
    if recipe is None or mistakes:
        raise RecipeError(mistakes)
    return recipe


def _process_mistakes(search: Mapping[str, Any]) -> Iterator[Mistake]:
    """Tell of settings by which objects of a session would have to go to other processes."""
    for key, alone in (("workers", 1), ("devices_per_trial", 1), ("engine", "local")):
        value = search.get(key, alone)
        if value != alone:
            problem = f"{value} processes" if isinstance(value, int) else f"{value} processes elsewhere"
            fix = f"write {alone}, or name factories in a recipe"
            yield Mistake(f"search.{key}", f"{problem} cannot share objects of a Python session", fix)


def check(mapping: Mapping[str, Any], trust: Sequence[str] = ()) -> tuple[Recipe | None, list[Mistake]]:
    """Return the recipe that `mapping` declares, or None, and every mistake in it."""
    mistakes: list[Mistake] = []
    cleaned: dict[str, Any] = _data_only(mapping, "", mistakes)
    if cleaned.pop("trust", None) is not None:
        fix = "put trust=[my_package] on the command line instead"
        mistakes.append(Mistake("trust", "a recipe cannot vouch for packages itself", fix))
    steps = typed_steps(cleaned.pop("steps", None), trust, mistakes)
    mistakes += order_mistakes(steps)
    recipe = _typed_recipe({**cleaned, "steps": steps}, mistakes)
    for section, names in SOURCES.items():
        mistakes += _source_mistakes(section, cleaned.get(section), names, trust)
    mistakes += _metric_mistakes(_section(cleaned, "gate"), _section(cleaned, "data"), trust)
    mistakes += _training_mistakes(cleaned, trust)
    mistakes += _target_mistakes(cleaned, trust)
    mistakes += _program_mistakes(_section(cleaned, "data"), _section(cleaned, "export"))
    mistakes += _opset_mistakes(_section(cleaned, "precision"), _section(cleaned, "export"))
    mistakes.sort(key=lambda mistake: _place(mistake.path))
    return (None, mistakes) if mistakes or recipe is None else (recipe, [])


def _place(path: str) -> int:
    """Return where a path's section stands in a recipe, so that mistakes come in the order of its sections."""
    sections = list(Recipe.model_fields)
    section = path.split(".")[0]
    return sections.index(section) if section in sections else -1


def _data_only(value: Any, path: str, mistakes: list[Mistake]) -> Any:
    """Copy a value without its `_target_`s, what it leaves open, and variables that cannot be read, telling of all."""
    if isinstance(value, (list, tuple)):
        return [_data_only(item, f"{path}[{index}]", mistakes) for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        mistakes += variable_mistakes(value, path)
        return value
    cleaned: dict[str, Any] = {}
    for key, item in value.items():
        place = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            problem = "a recipe is data, and a `_target_` would let it call any code"
            fix = "name a function as `factory: package.module:function`; its package must be a trusted one"
            mistakes.append(Mistake(place, problem, fix))
        elif isinstance(item, str) and item == LEFT_OPEN:
            mistakes.append(Mistake(place, "is left open (???)", f"give it on the command line as {place}=VALUE"))
        elif unread := variable_mistakes(item, place):
            mistakes += unread
        else:
            cleaned[key] = _data_only(item, place, mistakes)
    return cleaned


def _section(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section, or nothing where something else stands in its place (pydantic tells of that)."""
    section = mapping.get(name)
    return section if isinstance(section, Mapping) else {}


def _typed_recipe(mapping: dict[str, Any], mistakes: list[Mistake]) -> Recipe | None:
    try:
        return Recipe.model_validate(mapping)
    except ValidationError as error:
        found = error.errors(include_url=False)
        mistakes += [mistake_of(one, Recipe, mapping) for one in found if not _is_told_elsewhere(one)]
        return None


def _is_told_elsewhere(error: ErrorDetails) -> bool:
    """Tell whether a model or data is missing or ambiguous, or a target unknown, which is said in more detail here."""
    if error["loc"] == ("target",):
        return error["type"] == "value_error"
    is_source = len(error["loc"]) == 1 and error["loc"][0] in SOURCES
    return is_source and (error["type"] in {"missing", "value_error"} or error["input"] is None)


def _source_mistakes(
    section: Literal["model", "data"], value: Any, names: Mapping[str, str], trust: Sequence[str]
) -> Iterator[Mistake]:
    """Tell what is wrong with where the model or the data come from."""
    if value is not None and not isinstance(value, Mapping):
        return
    source = value or {}
    name, factory, weights = (source.get(key) for key in ("name", "factory", "weights"))
    if name is None and factory is None:
        fix = f"choose one of {', '.join(names)} ({section}=NAME), or give `factory: package.module:function`"
        yield Mistake(section, "is missing", fix)
    elif name is not None and factory is not None:
        problem = f"has both a name ({shown(name)}) and a factory ({shown(factory)})"
        yield Mistake(section, problem, f"keep one, for instance with {section}.name=null")
    if isinstance(name, str) and name not in names:
        yield Mistake(f"{section}.name", f"unknown name {shown(name)}", allowed_values(name, names))
    if isinstance(factory, str):
        yield from _factory_mistakes(f"{section}.factory", factory, trust, section, f"{section}.kwargs", source)
    is_file = isinstance(weights, str) and os.path.isfile(os.path.expanduser(weights))  # noqa: PTH111, PTH113 - no raise
    if isinstance(weights, str) and not WRITTEN.search(weights) and not is_file:
        fix = f"relative paths start at {Path.cwd()}"
        yield Mistake(f"{section}.weights", f"there is no file {shown(weights)}", fix)


def _metric_mistakes(gate: Mapping[str, Any], data: Mapping[str, Any], trust: Sequence[str]) -> Iterator[Mistake]:
    metric = gate.get("metric", "accuracy")
    if not isinstance(metric, str):
        return
    if ":" in metric:
        yield from _factory_mistakes("gate.metric", metric, trust, "metric", "gate.metric_kwargs", gate)
    elif metric not in METRICS:
        fix = f"{allowed_values(metric, METRICS)}, or package.module:function"
        yield Mistake("gate.metric", f"unknown metric {shown(metric)}", fix)
        return
    elif isinstance(gate.get("metric_kwargs"), Mapping):
        yield from metric_kwargs_mistakes(metric, gate["metric_kwargs"])
    if metric in METRICS and data.get("labels") is False and metric not in FIDELITY_METRICS:
        fix = f"allowed without labels: {', '.join(FIDELITY_METRICS)}"
        yield Mistake("gate.metric", f"{metric!r} needs labels, and data.labels is false", fix)
    yield from _value_mistakes(gate, metric)


def _value_mistakes(gate: Mapping[str, Any], metric: str) -> Iterator[Mistake]:
    """Tell of a least or largest value that is on the wrong side of a metric whose direction is known."""
    direction = gate.get("direction", "auto")
    if direction == "auto" and metric in METRICS:
        direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    sides = {"lower": ("min_value", "max_value"), "higher": ("max_value", "min_value")}
    wrong, right = sides.get(direction, ("", "")) if isinstance(direction, str) else ("", "")
    if wrong and gate.get(wrong) is not None and gate.get(right) is None:
        problem = f"{shown(gate[wrong])}, but a {direction} {metric} is better"
        yield Mistake(f"gate.{wrong}", problem, f"write gate.{right}")


def metric_kwargs_mistakes(metric: str, kwargs: Mapping[str, Any]) -> Iterator[Mistake]:
    """Tell what a metric of ours cannot be told."""
    allowed = METRIC_KWARGS.get(metric, ())
    if kwargs and not allowed:
        problem = f"{metric!r} is a metric of ours and takes no arguments"
        yield Mistake("gate.metric_kwargs", problem, "remove them, or name a factory as gate.metric")
        return
    for name, value in kwargs.items():
        path, kind = f"gate.metric_kwargs.{name}", type(value)
        if name not in allowed:
            yield Mistake(path, f"{metric!r} has no such argument", allowed_values(str(name), allowed))
        elif name == "threshold" and kind not in (int, float, type(None)):
            yield Mistake(path, f"{shown(value)} is not a number", "write 0 for a logit, 0.5 for a probability")
        elif name == "class_axis" and (kind not in (int, type(None)) or value == 0):
            yield Mistake(path, f"{shown(value)} is no axis of classes", "write 1, 2 or -1; 0 is the batch")


def _training_mistakes(cleaned: Mapping[str, Any], trust: Sequence[str]) -> Iterator[Mistake]:
    """Tell of losses, optimizers and engines that are not there, before a ladder is climbed for them."""
    qat, search = _section(cleaned, "qat"), _section(cleaned, "search")
    labels = _section(cleaned, "data").get("labels")
    named: tuple[tuple[Literal["loss", "optimizer"], tuple[str, ...]], ...]
    named = (("loss", ("auto", *LOSSES)), ("optimizer", OPTIMIZERS))
    for key, names in named:
        value = qat.get(key, names[0])
        if not isinstance(value, str):
            continue
        if ":" in value:
            yield from _factory_mistakes(f"qat.{key}", value, trust, key, f"qat.{key}_kwargs", qat)
        elif value not in names:
            fix = f"{allowed_values(value, names)}, or {FACTORY}"
            yield Mistake(f"qat.{key}", f"unknown {key} {shown(value)}", fix)
        elif key == "loss" and qat.get("loss_kwargs"):
            yield Mistake("qat.loss_kwargs", f"{value!r} is a loss of ours and takes no arguments", "remove them")
    if labels is False and (qat.get("loss") in LABELLED_LOSSES or ":" in str(qat.get("loss"))):
        fix = "remove it, or write distillation or soft_targets"
        yield Mistake("qat.loss", f"{qat['loss']!r} needs labels, and data.labels is false", fix)
    if search.get("engine") == "ray" and importlib.util.find_spec("ray") is None:
        yield Mistake("search.engine", "the package 'ray' is not installed", "pip install 'qatflow[ray]'")


def _target_mistakes(cleaned: Mapping[str, Any], trust: Sequence[str]) -> Iterator[Mistake]:
    """Tell of a target that is not there, and of what it does not have; one from outside is not looked into here."""
    target = cleaned.get("target", Recipe.model_fields["target"].default)
    if is_outside(target):
        yield from outside_mistakes("target", target, trust, "target", "TABLE")
    elif isinstance(target, str) and target not in TARGETS:
        yield Mistake("target", f"{shown(target)} is not an option", allowed_values(target, TARGETS))
    elif isinstance(target, str):
        sections = (_section(cleaned, name) for name in ("precision", "export", "gate"))
        yield from target_mistakes(target, TARGETS[target], *sections)


def _program_mistakes(data: Mapping[str, Any], export: Mapping[str, Any]) -> Iterator[Mistake]:
    if export.get("pte") and data.get("free"):
        problem = "an ExecuTorch program takes one size of all but the batch, and data.free leaves more free"
        yield Mistake("export.pte", problem, "remove one of both: without data.free its sizes are those of calibration")


def _opset_mistakes(precision: Mapping[str, Any], export: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find types that an opset does not have, before hours are spent on what goes into the file."""
    opset, fix = export.get("opset"), "remove it, or write 21"
    if isinstance(opset, int) and opset < OPSET_OF_FEW_AND_MANY_BITS:
        widest = max((one for one in (precision.get(key) for key in BITS) if isinstance(one, int)), default=8)
        if widest > 8:
            yield Mistake("export.opset", f"{opset} has no Q/DQ of {widest} bits", fix)
        if export.get("packed_int4"):
            yield Mistake("export.opset", f"{opset} has no INT4, which export.packed_int4 asks for", fix)


def _factory_mistakes(
    path: str, factory: str, trust: Sequence[str], role: Role, kwargs_path: str, section: Mapping[str, Any]
) -> Iterator[Mistake]:
    """Tell whether `package.module:function` is not trusted, or given what it may not be, without importing it."""
    module, _, function = factory.partition(":")
    misformed = list(form_mistakes(path, factory))
    if misformed and (path == "gate.metric" or (module and function and ":" not in function)):
        yield from misformed  # what else is wrong with the form, the types tell
    elif not misformed:
        yield from package_mistakes(path, factory, trust, role)
        kwargs = section.get(kwargs_path.partition(".")[2])
        if isinstance(kwargs, Mapping):
            yield from argument_mistakes(kwargs_path, factory, kwargs, trust, role)
