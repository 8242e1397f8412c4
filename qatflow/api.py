"""The whole from Python: carry out a recipe and write its report."""

from __future__ import annotations

import itertools
import logging
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from qatflow import engine
from qatflow.ladder.environment import Origin
from qatflow.recipe import Recipe
from qatflow.report.write import write
from qatflow.results.progress import Progress
from qatflow.results.result import RunResult
from qatflow.results.signals import workers_may_die
from qatflow.users_code import said

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    folder: Path | str | None = None,
    trust: tuple[str, ...] = (),
    progress: Progress | None = None,
    origin: Origin | None = None,
) -> RunResult:
    """Carry out a recipe; everything it leaves is in the run folder, the report included.

    Args:
        recipe: what to do.
        folder: the run folder; None takes `recipe.run.dir`, or makes `reports/<recipe>/<time>`.
        trust: packages that factories may be imported from, besides torchvision, timm, transformers and torchmetrics.
        progress: who is told how it gets on.
        origin: how it was asked for; None where it was from Python.

    Raises:
        UserCodeError: code of the user's raised. The report of what was finished is written all the same.
        QatflowError: the recipe, model or data cannot be used; likewise.
    """
    home = Path(folder or recipe.run.dir or new_folder(recipe.name))
    home.mkdir(parents=True, exist_ok=True)
    with _log_to(home / "log.txt"):
        try:
            return engine.run(recipe, home, trust, progress, origin)
        finally:
            if (home / "result.json").exists():
                _report(home, recipe, progress)


def _report(home: Path, recipe: Recipe, progress: Progress | None) -> None:
    """Write the report; a failure of it is told, and changes nothing of what became of the run."""
    try:
        with workers_may_die():
            write(home, html=recipe.report.html)
    except Exception as error:
        logger.exception("the report failed")
        message = (
            f"the report could not be written: {said(error)}; what the run found is in {home / 'result.json'}, and "
            f"`{shlex.join(['python', '-m', 'qatflow.report', str(home)])}` writes it again"
        )
        if progress is None:
            warnings.warn(message, stacklevel=3)
        else:
            progress.note(message)


def new_folder(name: str, root: Path | None = None) -> Path:
    """Make a folder `reports/<name>/<time>` that was not there yet, and return it."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    parent = (root or Path("reports")) / name
    for count in itertools.count(1):
        folder = parent / (stamp if count == 1 else f"{stamp}-{count}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Add what qatflow logs to a file, while the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
