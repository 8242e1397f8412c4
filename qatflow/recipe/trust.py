"""What a recipe may name besides our own things: `package.module:name`, of a package that is trusted.

A recipe is data and may come from anyone. So it may name things of a few well-known packages only; any other package
has to be trusted by whoever runs the recipe. Nothing is imported here: a recipe is checked before torch is imported,
and the packages that it names import torch.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from qatflow.errors import Mistake, near_match

OPEN_PACKAGES = ("qatflow", "torchvision", "timm", "transformers", "torchmetrics")
"""Top packages whose things a recipe may name without being trusted on the command line."""

LIVE = "live"
"""Stands for a package where a recipe names an object of a Python session: `live:ResNet`."""


def is_outside(name: object) -> bool:
    """Tell `package.module:name` from a name of ours."""
    return isinstance(name, str) and ":" in name


def form_mistakes(path: str, written: str, what: str = "function") -> Iterator[Mistake]:
    """Tell whether something is not written as `package.module:name`."""
    module, _, name = written.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        yield Mistake(path, f"{written!r} names no {what}", f"write it as package.module:{what}")


def trust_mistakes(path: str, written: str, trust: Iterable[str]) -> Iterator[Mistake]:
    """Tell whether the package of `package.module:name` is neither well known nor trusted."""
    package = written.split(":")[0].split(".")[0]
    if package not in OPEN_PACKAGES and package not in trust:
        hint = near_match(package, OPEN_PACKAGES)
        trusting = f"if you trust it, add trust=[{package}] on the command line"
        fix = f"{hint or trusting}; open to all: {', '.join(OPEN_PACKAGES)}"
        yield Mistake(path, f"the package {package!r} is not trusted", fix)


def package_mistakes(path: str, written: str, trust: Iterable[str]) -> Iterator[Mistake]:
    """Tell whether the package of `package.module:name` is unknown or not trusted, without importing it."""
    package = written.split(":")[0].split(".")[0]
    if package == LIVE:
        if LIVE not in trust:
            problem = f"{written!r} was an object of a Python session, which no command line has"
            yield Mistake(path, problem, "call qatflow.quantize with folder=FOLDER again, or name a factory")
        return
    yield from trust_mistakes(path, written, trust)
    here = importlib.machinery.PathFinder.find_spec(package, [str(Path.cwd())])
    if here is None and importlib.util.find_spec(package) is None:
        fix = "install it, or run qatflow in the folder that holds it"
        yield Mistake(path, f"the package {package!r} is not installed", fix)


def outside_mistakes(path: str, written: str, trust: Iterable[str], what: str) -> list[Mistake]:
    """Return what is wrong with `package.module:name`, as far as it shows without importing it."""
    return list(form_mistakes(path, written, what)) or list(package_mistakes(path, written, trust))
