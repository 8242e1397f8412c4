"""Find what would stop training before a ladder is climbed for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qatflow.errors import DataError, QatflowError
from qatflow.graph.called import called
from qatflow.graph.tree import tree_leaves
from qatflow.ladder.bench import Bench
from qatflow.qat.features import feature_nodes
from qatflow.qat.label_losses import OfClasses, OfDecisions
from qatflow.qat.losses import Objective, choose_objective
from qatflow.qat.optimizers import choose_optimizer
from qatflow.recipe import Data
from qatflow.tasks.classes import beside_every_value, logits
from qatflow.tasks.data import Batch, Samples, batches
from qatflow.tasks.labels import all_labels
from qatflow.tasks.splits import naming, with_validation
from qatflow.users_code import blame_machine, said

LOOKED_AT = 64
"""Samples of a part whose labels are read, spread over it."""


def check_training(bench: Bench) -> None:
    """Make the loss, the optimizer and the features of a recipe once, and the loss of one batch of FP32's outputs.

    Raises:
        RecipeError: one of them cannot be used.
        DataError: the data lacks a part, a batch cannot be shared by the processes of a trial, the loss cannot take
            the model's outputs and the data's targets, or a label is none of the classes.
    """
    task, recipe = bench.task, bench.recipe
    batch = next(iter(task.train(recipe.seed, (0, recipe.search.devices_per_trial))))
    outputs, objective = objective_of(bench, batch)
    target = batch.to(task.device).target
    _check_loss(objective, outputs, target, recipe.qat.distillation != 0)
    splits, _ = with_validation(task.splits)
    read = _reader(objective, logits(outputs), target)
    for part, samples in (("train", splits.train), ("validation", splits.validation)):
        if samples is not None and read is not None:
            _check_labels(read, part, samples, recipe.data)
    choose_optimizer(recipe.qat, task.trust)
    feature_nodes(bench.base.graph, recipe.qat.features)
    _ = task.training_key  # made while the data can be read: by it a study is found again, whatever becomes of them


def objective_of(bench: Bench, batch: Batch) -> tuple[Any, Objective]:
    """Return FP32's outputs of a training batch, and the objective that reads outputs as they are to be read.

    Raises:
        RecipeError: the loss cannot be made.
        DataError: the model returns nothing that could be trained.
    """
    task, moved = bench.task, batch.to(bench.task.device)
    with torch.no_grad():
        outputs = called(bench.base.graph, moved.args, moved.kwargs)
    if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(outputs)):
        message = (
            "QAT needs outputs that have a gradient, and the model returns none of real numbers (class ids?): let it "
            "return its scores as well, or turn QAT off with qat.when=never"
        )
        raise DataError(message)
    return outputs, choose_objective(bench.recipe, moved.target, task.trust, outputs, task.loss)


@torch.no_grad()
def _check_loss(objective: Objective, outputs: Any, target: Any, distilled: bool) -> None:
    for weight in (0.0, 0.5) if distilled else (0.0,):
        try:
            loss = objective.loss(outputs, target, outputs, weight)
        except QatflowError as error:
            message = f"qat.loss: {objective.name} cannot be computed: {error}"
            raise DataError(message) from error
        except Exception as error:  # a loss raises whatever it likes
            blame_machine(error)
            shapes = f"outputs {_form(outputs)} and targets {_form(target)}"
            message = f"{said(error)} (qat.loss: {objective.name}, given the model's {shapes})"
            raise DataError(message) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            message = f"qat.loss: {objective.name} returned {found}; return a scalar (reduction: mean)"
            raise DataError(message)


def _form(value: Any) -> str:
    shapes = [list(leaf.shape) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return str(shapes[0]) if len(shapes) == 1 else str(shapes or type(value).__name__)


def _reader(objective: Objective, values: Tensor, target: Any) -> Callable[[Tensor], Any] | None:
    """Return what reads labels as the loss does and tells of wrong ones; None where it takes no labels of classes."""
    loss = objective.on_labels
    if isinstance(loss, OfDecisions):
        return loss.read
    if not isinstance(loss, OfClasses) or beside_every_value(values, target):
        return None
    axis = loss.reading.axis((values, target))
    return functools.partial(loss.read, classes=values.shape[axis or 1])


def _check_labels(read: Callable[[Tensor], Any], part: str, samples: Samples, data: Data) -> None:
    """Read labels of a part: some of its samples', and all of them where the dataset has them in a list."""
    looked = [batch.target for batch in batches(samples, data, limit=LOOKED_AT, part=part)]
    seen = [target for target in looked if isinstance(target, Tensor)]
    every = all_labels(samples)
    with naming(part):
        for target in seen:
            read(target)
        if every is not None and seen and _same(every, torch.cat(seen)):
            read(every)


def _same(every: Tensor, seen: Tensor) -> bool:
    """Tell whether a dataset's list of labels is what its samples have: a transform may change them on the way."""
    count = len(seen)
    spread = every[[index * len(every) // count for index in range(count)]]
    return seen.numel() == count and torch.equal(spread.double(), seen.flatten().double())
