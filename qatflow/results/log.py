"""A run's log file: it ends no run, and has environment variables as the recipe has them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qatflow.recipe import Recipe
from qatflow.recipe.variables import as_written
from qatflow.results.store import reason, unwritable


class _Log(logging.FileHandler):
    """A log file that ends no run, and prints nothing, where it cannot be written; what hindered it is kept."""

    hindered: str = ""

    def handleError(self, record: logging.LogRecord) -> None:
        """Note what hindered it."""
        error = sys.exc_info()[1]
        self.hindered = "" if error is None else reason(error)

    def close(self) -> None:
        """Close the file, on a full disk without the last lines."""
        try:
            super().close()
        except OSError as error:
            self.hindered = reason(error)


class _AsWritten(logging.Formatter):
    """Writes lines, tracebacks as well, with a recipe's environment variables as the recipe has them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._recipe = recipe.model_dump(mode="json")

    def format(self, record: logging.LogRecord) -> str:
        """Return one entry."""
        return as_written(super().format(record), self._recipe)


@contextmanager
def logged(path: Path, recipe: Recipe, tell: Callable[[str], None]) -> Iterator[None]:
    """Add what qatflow logs to a file, while the block runs.

    Args:
        path: of the file.
        recipe: of the run.
        tell: is told where the file is not complete.

    Raises:
        RunFolderError: the file cannot be opened.
    """
    try:
        handler = _Log(path, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error
    handler.setFormatter(_AsWritten(recipe))
    logger = logging.getLogger("qatflow")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
        if handler.hindered:
            tell(f"{path} is not complete: {handler.hindered}")
