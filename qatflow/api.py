"""The whole from Python: carry out a recipe, or quantize live objects, and write the report."""

from __future__ import annotations

import itertools
import logging
import shlex
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from qatflow import engine
from qatflow.errors import Mistake, RecipeError
from qatflow.graph.caches import graphs_forgotten
from qatflow.ladder.environment import Origin
from qatflow.recipe import Data, Recipe
from qatflow.recipe.check import session_recipe
from qatflow.report.console import shown_on
from qatflow.report.write import write
from qatflow.results.lock import held
from qatflow.results.log import logged
from qatflow.results.progress import Progress, Silent
from qatflow.results.result import RunResult
from qatflow.results.signals import undisturbed
from qatflow.results.store import made_folder
from qatflow.tasks.live import Live, Parts, batch_size_of, live_name, live_splits
from qatflow.users_code import said

logger = logging.getLogger(__name__)

STEPS = ("fold_batch_norms", "equalize", "adaround", "mixed_precision")


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
        trust: packages that factories may be imported from, besides what `qatflow.recipe.trust.OPEN` opens to all.
        progress: who is told how it gets on.
        origin: how it was asked for; None where it was from Python.

    Raises:
        UserCodeError: code of the user's raised. The report of what was finished is written all the same.
        QatflowError: the recipe, model or data cannot be used; likewise.
    """
    return _carried_out(recipe, Path(folder or recipe.run.dir or new_folder(recipe.name)), trust, progress, origin)


def quantize(
    model: nn.Module,
    data: Mapping[str, Any],
    *,
    metric: Any = "accuracy",
    loss: Any = "auto",
    target: str = "onnxruntime",
    precision: Any = "w8a8",
    steps: str | Sequence[str] | Mapping[str, Any] | None = STEPS,
    gate: Any = None,
    labels: bool = True,
    name: str | None = None,
    folder: Path | str | None = None,
    trust: str | Sequence[str] = (),
    progress: Progress | None = None,
    **sections: Any,
) -> RunResult:
    """Quantize a live module: the whole run, with gate, search, verification and report.

    A second call with the same `folder` goes on from what the first finished, where model, data, metric and loss can be
    told to be the same; a note says of which that is not so.

    Args:
        model: the trained FP32 model; it is left as it is.
        data: `calibration` and `test`, and for QAT `train` and `validation`: loaders, datasets or lists of
            `(inputs, target)`, that share no sample.
        metric: a name of ours, `package.module:function`, a torchmetrics metric, or a function
            `(outputs, target) -> one score per sample`, with FP32's outputs as a third argument if it has to have one;
            of a function, `gate={"direction": "higher"}` or `"lower"` says which is better.
        loss: for QAT: a name of ours, `package.module:function`, or a function `(outputs, target) -> scalar`.
        target: name of a target.
        precision: such as `w8a8` or `w4a8_per_tensor`, or what a recipe's section holds.
        steps: names in order, or a mapping from each to its options; None is none.
        gate: the largest drop, such as 0.01 or `1%`, or what a recipe's section holds.
        labels: false where a sample is the inputs alone.
        name: of the run; None is the model's class.
        folder: the run folder; None makes a new one under `reports/`.
        trust: packages that functions may be named from.
        progress: who is told how it gets on; None shows it on the terminal or in the notebook.
        sections: other sections and values of a recipe, such as `qat="never"`, `search={"max_trials": 4}` or
            `seed=1`; `data_options` and `model_options` hold further keys of `data` and `model`.

    Raises:
        RecipeError: some of it cannot be used; all mistakes are in the error.
        UserCodeError: code of the user's raised.
        QatflowError: the model or the data cannot be used.
    """
    if not isinstance(model, nn.Module):
        found = f"{model.__name__} is a class" if isinstance(model, type) else f"it is a {type(model).__name__}"
        raise RecipeError([Mistake("model", found, "give a torch.nn.Module, the trained FP32 model")])
    parts = Parts(model, live_splits(data), _live(metric, "metric"), _live(loss, "loss"))
    trust = (trust,) if isinstance(trust, str) else tuple(trust)
    qat = sections.pop("qat", None)
    mapping: dict[str, Any] = {
        "name": name or type(model).__name__,
        "model": {"factory": live_name(model), **sections.pop("model_options", {})},
        "data": {
            "batch_size": batch_size_of(data) or Data.model_fields["batch_size"].default,
            "labels": labels,
            **sections.pop("data_options", {}),
        },
        "target": target,
        "precision": precision,
        "steps": _steps(steps),
        "gate": {**({"max_drop": gate} if not isinstance(gate, Mapping) else gate), "metric": _named(metric)},
        **sections,
        "qat": {
            "when": "missed" if "train" in data else "never",
            **(qat if isinstance(qat, Mapping) else {} if qat is None else {"when": qat}),
            "loss": _named(loss),
        },
    }
    recipe = session_recipe(mapping, trust)
    home = Path(folder or new_folder(recipe.name))
    again = f"qatflow.quantize(..., folder={str(home)!r})"
    with shown_on(Console()) if progress is None else nullcontext(progress) as shown:
        return _carried_out(recipe, home, trust, shown, Origin(again), parts)


def _live(value: Any, what: str) -> Live | None:
    return None if isinstance(value, str) else Live.of(value, what)


def _steps(steps: str | Sequence[str] | Mapping[str, Any] | None) -> Any:
    """Return steps as a recipe has them.

    Raises:
        RecipeError: they are something else, or one is there twice.
    """
    if steps is None or isinstance(steps, Mapping):
        return steps
    names = [steps] if isinstance(steps, str) else list(steps)
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        fix = "write a mapping from names to options, as in {'adaround': {'samples': 64}}"
        raise RecipeError([Mistake("steps", f"{odd[0]!r} is not a name", fix)])
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise RecipeError([Mistake("steps", f"{twice[0]!r} is there twice", "a step runs once: list it once")])
    return dict.fromkeys(names)


def _named(value: Any) -> str:
    return value if isinstance(value, str) else live_name(value)


def _carried_out(
    recipe: Recipe,
    home: Path,
    trust: tuple[str, ...],
    progress: Progress | None,
    origin: Origin | None,
    parts: Parts | None = None,
) -> RunResult:
    made_folder(home)
    tell = (progress or Silent()).note
    logging_to = logged(home / "log.txt", recipe, partial(_tell, progress))
    with held(home, tell), graphs_forgotten(), logging_to:
        try:
            return engine.run(recipe, home, trust, progress, origin, parts).in_folder(home)
        finally:
            if (home / "result.json").exists():
                _report(home, recipe, progress)


def _report(home: Path, recipe: Recipe, progress: Progress | None) -> None:
    """Write the report; a failure of it is told, and changes nothing of what became of the run."""
    try:
        with undisturbed():
            write(home, html=recipe.report.html)
    except Exception as error:
        logger.exception("the report failed")
        message = (
            f"the report could not be written: {said(error)}; what the run found is in {home / 'result.json'}, and "
            f"`{shlex.join(['python', '-m', 'qatflow.report', str(home)])}` writes it again"
        )
        _tell(progress, message)


def _tell(progress: Progress | None, message: str) -> None:
    """Tell something after a run, when its journal is closed."""
    if progress is None:
        warnings.warn(message, stacklevel=4)
    else:
        progress.note(message)


def new_folder(name: str, root: Path | None = None) -> Path:
    """Make a folder `reports/<name>/<time>` that was not there yet, and return it."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    parent = (root or Path("reports")) / name
    for count in itertools.count(1):
        folder = parent / (stamp if count == 1 else f"{stamp}-{count}")
        made_folder(parent)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError
