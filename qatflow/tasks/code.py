"""A hash of the code behind a factory of the user's: a changed metric is another metric.

Of the user's own modules their source files count, from the factory's on to all that they import or have among their
globals; installed packages count by their version. What has no file, as in a notebook, counts
by its source text, or else by its compiled code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from qatflow.graph.fingerprint import plain_text
from qatflow.results.store import key_of

OURS = "qatflow"
SITE = {"site-packages", "dist-packages"}
STANDARD = Path(sysconfig.get_path("stdlib"))


def code_fingerprint(function: Any) -> str:
    """Return a hash of the code of a function, class or object of the user's, and of what it refers to."""
    found: dict[str, str] = {}
    waiting = [function]
    while waiting:
        one = waiting.pop()
        module = _module_of(one)
        name = getattr(module, "__name__", "")
        if module is None or name.partition(".")[0] in (OURS, "builtins", ""):
            continue
        path = _file_of(module)
        if path is not None and _is_installed(path):
            package = name.partition(".")[0]
            if package not in sys.stdlib_module_names:
                found[package] = found.get(package) or _version(package, path)
        elif path is not None:
            if name not in found:
                found[name] = _hash(path.read_bytes())
                waiting += [*_defined_elsewhere(vars(module), name), *_imported(module, path)]
        elif not isinstance(one, ModuleType):
            label = f"{name}.{getattr(one, '__qualname__', type(one).__qualname__)}"
            if label not in found:
                found[label], used = _definition(one)
                waiting += used
    return key_of(found)


def _module_of(value: Any) -> ModuleType | None:
    """Return the module that a module, function, class or object is from."""
    if isinstance(value, ModuleType):
        return value
    while isinstance(value, functools.partial):
        value = value.func
    name = getattr(value, "__module__", None) or type(value).__module__
    return sys.modules.get(name) if isinstance(name, str) else None


def _file_of(module: ModuleType) -> Path | None:
    """Return a module's file; None where it has none, and for a script, of which the rest is about other things."""
    path = Path(getattr(module, "__file__", None) or "")
    return path if path.is_file() and module.__name__ != "__main__" else None


def _is_installed(path: Path) -> bool:
    return bool(SITE & set(path.parts)) or STANDARD in path.parents


def _version(package: str, path: Path) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", None) or _hash(path.read_bytes()))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _defined_elsewhere(names: Mapping[str, Any], own: str) -> Iterator[Any]:
    """Return the modules, functions, classes and objects among some values that are of another module than `own`."""
    for key, value in names.items():
        module = None if key.startswith("__") else _module_of(value)
        if module is not None and module.__name__ != own:
            yield value


def _imported(module: ModuleType, path: Path) -> Iterator[Any]:
    """Yield what a module's source imports, within functions as well, as far as it was imported by now.

    That is a module, function or class by itself, and of a constant the module that it is from.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # compiled
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (sys.modules[alias.name] for alias in node.names if alias.name in sys.modules)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            for alias in node.names if base in sys.modules else ():
                value = sys.modules.get(f"{base}.{alias.name}", getattr(sys.modules[base], alias.name, None))
                own = isinstance(value, ModuleType) or inspect.isroutine(value) or inspect.isclass(value)
                yield value if own else sys.modules[base]


def _absolute(node: ast.ImportFrom, module: ModuleType) -> str:
    """Return the name of the module that something is imported from."""
    package = (module.__package__ or "").split(".")
    above = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


def _definition(value: Any) -> tuple[str, list[Any]]:
    """Return a hash of a function or class that has no file, and what it refers to by name."""
    value = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    members = vars(value).values() if inspect.isclass(value) else [value]
    functions = [one for one in members if inspect.isfunction(one)]
    try:
        text = inspect.getsource(value)
    except (OSError, TypeError):
        text = "".join(_code_text(one.__code__) for one in functions)
    used = [one.__globals__[name] for one in functions for name in _names(one.__code__) if name in one.__globals__]
    plain = [plain_text(one) for one in used if isinstance(one, (bool, int, float, str, tuple))]
    return key_of(text, plain), used


def _names(code: CodeType) -> list[str]:
    """Return the names that a function and those within it look up."""
    within = [one for one in code.co_consts if isinstance(one, CodeType)]
    return [*code.co_names, *(name for one in within for name in _names(one))]


def _code_text(code: CodeType) -> str:
    constants = [_code_text(one) if isinstance(one, CodeType) else plain_text(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
