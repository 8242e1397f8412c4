"""Make what a recipe names: look a name up in our table, or import and call a user's factory.

What may be imported is said in `qatflow.recipe.trust`. A well-known package may not lend out what it merely imports
either: `package.module:run` is refused where `run` is subprocess's.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from qatflow.errors import Mistake, QatflowError, RecipeError, allowed_values, near_match
from qatflow.recipe import Source
from qatflow.recipe.trust import OPEN_PACKAGES, form_mistakes, trust_mistakes
from qatflow.users_code import blame_machine, said

Made = TypeVar("Made")


def make(source: Source, section: str, table: Mapping[str, Callable[..., Made]], trust: Iterable[str]) -> Made | Any:
    """Return what a section of the recipe names, made with its `kwargs`.

    Args:
        source: the section.
        section: its name in the recipe, for messages.
        table: our own names and the functions behind them.
        trust: packages that may be imported besides the well-known ones.

    Raises:
        RecipeError: the name or factory is unknown, not trusted, does not take the arguments, or fails.
    """
    if source.factory is not None:
        path, called = f"{section}.factory", source.factory
        function = load_factory(source.factory, trust, path)
    else:
        path, called = f"{section}.name", source.name or ""
        if called not in table:
            raise RecipeError([Mistake(path, f"unknown name {called!r}", allowed_values(called, table))])
        function = table[called]
    return call(function, source.kwargs, f"{section}.kwargs", path, called)


def call(
    function: Callable[..., Made], kwargs: Mapping[str, Any], kwargs_path: str, path: str, called: str
) -> Made | Any:
    """Return what `function(**kwargs)` makes.

    Args:
        function: the user's, or ours.
        kwargs: its arguments, from the recipe.
        kwargs_path: where they stand in the recipe, for messages.
        path: where the function stands in it.
        called: its name there.

    Raises:
        RecipeError: it does not take the arguments, or fails.
    """
    _check_arguments(function, kwargs, kwargs_path, called)
    try:
        return function(**kwargs)
    except QatflowError:
        raise
    except Exception as error:  # a factory raises whatever the user's code does
        blame_machine(error)
        fix = f"call it in Python with {kwargs_path} to see the whole traceback"
        raise RecipeError([Mistake(path, f"{called!r} failed: {said(error)}", fix)]) from error


def load_factory(factory: str, trust: Iterable[str] = (), path: str = "factory") -> Callable[..., Any]:
    """Return the function or class that `package.module:function` names.

    Args:
        factory: `package.module:function`.
        trust: top packages to trust besides `OPEN_PACKAGES`.
        path: where in the recipe it stands, for messages.

    Raises:
        RecipeError: see `load_object`; or it cannot be called.
    """
    function = load_object(factory, trust, path, callable)
    if not callable(function):
        problem = f"{factory!r} is a {type(function).__name__} and cannot be called"
        raise RecipeError([Mistake(path, problem, "name a function or a class")])
    return function  # type: ignore[no-any-return]  # callable() says so


def load_object(
    written: str, trust: Iterable[str], path: str, fits: Callable[[Any], bool], what: str = "function"
) -> Any:
    """Return what `package.module:name` names, whether or not it fits.

    Its module is imported only if its top package is well known or in `trust`. The current directory is a place to
    import trusted packages from, after all others.

    Args:
        written: `package.module:name`.
        trust: top packages to trust besides `OPEN_PACKAGES`.
        path: where in the recipe it stands, for messages.
        fits: tells what could have been meant, where the name is not there.
        what: what it should be, for messages.

    Raises:
        RecipeError: it is not so written, not trusted, cannot be imported, or is not there.
    """
    trusted = (*OPEN_PACKAGES, *trust)
    mistakes = list(form_mistakes(path, written, what)) or list(trust_mistakes(path, written, trusted))
    if mistakes:
        raise RecipeError(mistakes)
    module_name, _, name = written.partition(":")
    module, package = _import(module_name, path), module_name.split(".")[0]
    if not hasattr(module, name):
        problem = f"the module {module_name!r} has no {name!r}"
        raise RecipeError([Mistake(path, problem, _what_it_has(module, name, fits, what))])
    found = getattr(module, name)
    home = str(getattr(found, "__module__", None)).split(".")[0]
    if package in OPEN_PACKAGES and home not in trusted:
        problem = f"{written!r} is not {package}'s own but comes from {home!r}, which is not trusted"
        raise RecipeError([Mistake(path, problem, f"if you trust it, add trust=[{home}] on the command line")])
    return found


def _import(module: str, path: str) -> ModuleType:
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
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


def _what_it_has(module: ModuleType, name: str, fits: Callable[[Any], bool], what: str) -> str:
    """Return a near match among those of a module's names that fit, or else the first few of them."""
    names = [key for key, value in vars(module).items() if fits(value) and not key.startswith("_")]
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
