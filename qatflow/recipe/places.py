"""Where a recipe may write, and to whom it may send what it reads: elsewhere only the command line may say so."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from qatflow.errors import Mistake
from qatflow.recipe.sentences import shown
from qatflow.recipe.variables import WRITTEN

SQLITE = "sqlite:///"


def place_mistakes(recipe: Mapping[str, Any], said: Collection[str]) -> Iterator[Mistake]:
    """Tell of files that a recipe would write outside of the current folder, and of secrets that it would send away.

    Args:
        recipe: as plain values, right or wrong.
        said: the keys that the command line gives, of which nothing is told.
    """
    for section, key in (("run", "dir"), ("search", "storage")):
        path, values = f"{section}.{key}", recipe.get(section)
        value = values.get(key) if isinstance(values, Mapping) else None
        if not isinstance(value, str) or path in said:
            continue
        fix = f"give it on the command line: {path}=..."
        file = value.removeprefix(SQLITE) if path == "search.storage" else value
        if WRITTEN.search(value):
            yield Mistake(path, "a recipe may not name an environment variable here", fix)
        elif path == "search.storage" and (not value.startswith(SQLITE) or "?" in value or file.startswith("file:")):
            problem = f"is no plain {SQLITE}FILE, and a recipe may not choose a server, which gets passwords"
            yield Mistake(path, f"{shown(value)} {problem}", fix)
        elif not Path(os.path.expanduser(file)).resolve().is_relative_to(Path.cwd().resolve()):  # noqa: PTH111
            yield Mistake(path, f"{shown(value)} is outside of the current folder, where no recipe may write", fix)
