"""Settle by a few samples of the data how a task's metric reads the model's outputs, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from qatflow.graph.called import called
from qatflow.tasks.data import batches
from qatflow.tasks.metrics import fitted
from qatflow.tasks.splits import naming
from qatflow.tasks.task import Task

LOOKED_AT = 64
"""Samples, spread over the part that candidates are chosen by."""


@torch.no_grad()
def with_fitted_metric(task: Task, fp32: Callable[..., Any]) -> Task:
    """Return the task with a metric that reads all outputs alike, as FP32's are to be read.

    Raises:
        DataError: the metric cannot read the model's outputs or the data's targets.
    """
    if task.metric.fit is None:
        return task
    part = task.choosing_part
    looked = batches(getattr(task.splits, part), task.recipe.data, limit=LOOKED_AT, part=part)
    outputs, targets = [], []
    for number, batch in enumerate(looked, start=1):
        moved = batch.to(task.device)
        with naming(part, number):
            outputs.append(called(fp32, moved.args, moved.kwargs))
        targets.append(moved.target)
    with naming(part):
        return replace(task, metric=fitted(task.metric, outputs, targets))
