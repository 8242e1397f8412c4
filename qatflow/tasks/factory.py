"""Make what a recipe names: look a name up in our table, or import and call a factory.

What may be imported is said in `qatflow.recipe.trust`. No package lends out what it merely imports:
`package.module:run` is refused where `run` is subprocess's.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from qatflow.errors import Mistake, QatflowError, RecipeError, allowed_values, near_match
from qatflow.recipe import Source
from qatflow.recipe.trust import (
    Role,
    argument_mistakes,
    form_mistakes,
    is_trusted,
    lies_here,
    opening_of,
    package_of,
    trust_mistakes,
    trusting,
)
from qatflow.recipe.variables import read
from qatflow.tasks.openings import is_open, opened
from qatflow.users_code import blame_machine, said

Made = TypeVar("Made")


def make(
    source: Source,
    section: Literal["model", "data"],
    table: Mapping[str, Callable[..., Made]],
    trust: Collection[str],
) -> Made | Any:
    """Return what a section of the recipe names, made with its `kwargs`.

    Args:
        source: the section.
        section: its name in the recipe.
        table: our own names and the functions behind them.
        trust: packages that may be imported besides what is open to every recipe.

    Raises:
        RecipeError: the name or factory is unknown, not trusted, does not take the arguments, or fails.
    """
    kwargs_path = f"{section}.kwargs"
    if source.factory is not None:
        path, called = f"{section}.factory", source.factory
        function = load_factory(source.factory, trust, path, section, source.kwargs, kwargs_path)
    else:
        path, called = f"{section}.name", source.name or ""
        if called not in table:
            raise RecipeError([Mistake(path, f"unknown name {called!r}", allowed_values(called, table))])
        function = table[called]
    return call(function, source.kwargs, kwargs_path, path, called)


def call(
    function: Callable[..., Made], kwargs: Mapping[str, Any], kwargs_path: str, path: str, called: str
) -> Made | Any:
    """Return what `function(**kwargs)` makes.

    Args:
        function: the user's, or ours.
        kwargs: its arguments, from the recipe, as they are written there.
        kwargs_path: where they stand in the recipe, for messages.
        path: where the function stands in it.
        called: its name there.

    Raises:
        RecipeError: it does not take the arguments, or fails.
    """
    _check_arguments(function, kwargs, kwargs_path, called)
    arguments = read(kwargs, kwargs_path)
    try:
        return function(**arguments)
    except QatflowError:
        raise
    except Exception as error:  # a factory raises whatever the user's code does
        blame_machine(error)
        fix = f"call it in Python with {kwargs_path} to see the whole traceback"
        raise RecipeError([Mistake(path, f"{called!r} failed: {said(error)}", fix)]) from error


def load_factory(
    factory: str,
    trust: Collection[str],
    path: str,
    role: Role,
    kwargs: Mapping[str, Any] | None = None,
    kwargs_path: str = "kwargs",
) -> Callable[..., Any]:
    """Return the function or class that `package.module:function` names.

    Args:
        factory: `package.module:function`.
        trust: top packages to trust besides what is open to every recipe.
        path: where in the recipe it stands, for messages.
        role: what it makes.
        kwargs: the arguments that it is to be given; None where it is not going to be called.
        kwargs_path: where they stand.

    Raises:
        RecipeError: see `load_object`; or it cannot be called, or may not be given these arguments.
    """
    mistakes = list(argument_mistakes(kwargs_path, factory, kwargs or {}, trust, role))
    if mistakes:
        raise RecipeError(mistakes)
    function: Any = load_object(factory, trust, path, role, callable)
    if not callable(function):
        problem = f"{factory!r} is a {type(function).__name__} and cannot be called"
        raise RecipeError([Mistake(path, problem, "name a function or a class")])
    if not is_trusted(factory, trust):
        return opened(function)
    passed_on = _open_name(function, trust, role)
    if passed_on is None:
        return function  # type: ignore[no-any-return]  # callable() said so
    mistakes = list(argument_mistakes(kwargs_path, passed_on, {**_stored(function), **(kwargs or {})}, trust, role))
    if mistakes:
        raise RecipeError(mistakes)
    return opened(function)


def load_object(
    written: str, trust: Collection[str], path: str, role: Role, fits: Callable[[Any], bool], what: str = "function"
) -> Any:
    """Return what `package.module:name` names, whether or not it fits.

    Its module is imported only if its package is in `trust`, or the name is open to every recipe. The current directory
    is a place to import trusted packages from, after all others.

    Args:
        written: `package.module:name`, or `package.module:Class.method`.
        trust: top packages to trust besides what is open to every recipe.
        path: where in the recipe it stands, for messages.
        role: what it is for.
        fits: tells what could have been meant, where the name is not there.
        what: what it should be, for messages.

    Raises:
        RecipeError: it is not so written, not trusted, cannot be imported, or is not there.
    """
    mistakes = list(form_mistakes(path, written, what)) or list(trust_mistakes(path, written, trust, role))
    if mistakes:
        raise RecipeError(mistakes)
    module_name, _, name = written.partition(":")
    trusted = is_trusted(written, trust)
    found: Any = _import(module_name, path, trusted)
    for part in name.split("."):
        if not hasattr(found, part):
            problem = f"{_called(found)} has no {part!r}"
            raise RecipeError([Mistake(path, problem, _what_it_has(found, part, fits, what))])
        found = getattr(found, part)
    if trusted and role != "target" and fits(found):
        _check_home(found, written, trust, path, role)
    opening = opening_of(written, role)
    if not trusted and opening is not None and not is_open(found, opening, written):
        fix = trusting("it", package_of(written))
        raise RecipeError([Mistake(path, f"{written!r} is not {opening.kind}", fix)])
    return found


def _called(found: Any) -> str:
    kind = "module" if isinstance(found, ModuleType) else "class" if inspect.isclass(found) else type(found).__name__
    return f"the {kind} {getattr(found, '__name__', found)!r}"


def _check_home(found: Any, written: str, trust: Collection[str], path: str, role: Role) -> None:
    """Check that a trusted package does not lend out what is another package's, unless that is open to all.

    Raises:
        RecipeError: it does.
    """
    home = _module_of(_unwrapped(found)).split(".")[0]
    if home in trust or _open_name(found, trust, role) is not None:
        return
    problem = f"{written!r} is not {package_of(written)}'s own but comes from {home!r}, which is not trusted"
    raise RecipeError([Mistake(path, problem, trusting("it", home))])


def _open_name(found: Any, trust: Collection[str], role: Role) -> str | None:
    """Return the name by which what is of an untrusted package is open to every recipe; None where it is not.

    Its package may have it in another place than where it is written.
    """
    found = _unwrapped(found)
    module, name = _module_of(found), str(getattr(found, "__qualname__", ""))
    if module.split(".")[0] in trust:
        return None
    owner = getattr(found, "__self__", None)
    if inspect.isclass(owner):
        module, name = owner.__module__, f"{owner.__qualname__}.{found.__name__}"
    for written in (f"{module}:{name}", f"{module.split('.')[0]}:{name}"):
        opening = opening_of(written, role)
        if opening is not None and is_open(found, opening, written):
            return written
    return None


def _unwrapped(found: Any) -> Any:
    while isinstance(found, functools.partial):
        found = found.func
    return found


def _stored(found: Any) -> dict[str, Any]:
    """Return the arguments that a partial brings."""
    return {**_stored(found.func), **found.keywords} if isinstance(found, functools.partial) else {}


def _module_of(found: Any) -> str:
    return str(getattr(found, "__module__", None) or type(found).__module__)


def _import(module: str, path: str, trusted: bool) -> ModuleType:
    here = str(Path.cwd())
    if trusted and lies_here(package_of(module)) and not {here, ""} & set(sys.path):
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            fix = f"install {error.name!r}"
            raise RecipeError([Mistake(path, f"{module!r} needs a package that is missing: {error}", fix)]) from error
        fix = f"check its spelling, install it, or run in the folder that holds it (now {here})"
        raise RecipeError([Mistake(path, f"there is no module {error.name!r}", fix)]) from error
    except Exception as error:
        blame_machine(error)
        problem = f"importing {module!r} failed: {said(error)}"
        raise RecipeError([Mistake(path, problem, f"make `python -c 'import {module}'` work")]) from error


def _what_it_has(place: Any, name: str, fits: Callable[[Any], bool], what: str) -> str:
    """Return a near match among those of a module's or class's names that fit, or else the first few of them."""
    names = [key for key, value in vars(place).items() if fits(value) and not key.startswith("_")]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return near_match(name, names) or (f"it has: {shown}" if names else f"it has no {what} at all")


def _check_arguments(function: Callable[..., Any], kwargs: Mapping[str, Any], path: str, called: str) -> None:
    """Tell of arguments that a function does not take, or lacks, before it is called."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # some functions written in C do not tell theirs
    takes = [
        name for name, one in signature.parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    if not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
        unknown = [name for name in kwargs if name not in takes]
        if unknown:
            raise RecipeError(
                [
                    Mistake(f"{path}.{name}", f"{called!r} has no such argument", allowed_values(name, takes))
                    for name in unknown
                ]
            )
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        fix = "add it here"
        if takes[:1] == ["outputs"]:
            fix = "name a function that returns it instead of the metric or loss itself"
        raise RecipeError([Mistake(path, f"{called!r} cannot be called with them: {error}", fix)]) from error
