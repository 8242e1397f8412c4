"""What is told of the data though a run goes through with it: samples that `test` shares with another part, and
inputs that never vary while ranges are found.

Samples are compared by content. Of a part that candidates are not measured on some are looked at, spread over it, as
`digests_in_looks` says; one whose samples are random (augmentation) shares none in this sense.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from qatflow.errors import QatflowError, UserCodeError
from qatflow.graph.tree import flat_inputs
from qatflow.tasks.evaluation_data import EvaluationData
from qatflow.tasks.fingerprint import digests_in_looks
from qatflow.tasks.splits import naming
from qatflow.tasks.task import Task


def doubts(task: Task, graph: fx.GraphModule, data: EvaluationData) -> Iterator[str]:
    """Yield what a user should know of the data.

    Args:
        task: the run's.
        graph: the captured model.
        data: the parts that models are measured on; all were gone through.

    Raises:
        UserCodeError: the calibration part cannot be read.
    """
    yield from _constant_inputs(task, graph)
    test = data.digests("test")
    if not test:
        return
    for part in ("calibration", "validation", "train"):
        found = [digest in test for digest in _looked_at(task, data, part)]
        if any(found):
            yield (
                f"{sum(found)} of {len(found)} {part} samples that were looked at are in the test part as well, which "
                "the gate is judged on: what is fitted to them or chosen by them looks better there than it is; give "
                "`test` samples of its own"
            )


def _looked_at(task: Task, data: EvaluationData, part: str) -> list[str]:
    """Return the hashes of samples of a part: all that are known, or some."""
    if known := data.digests(part):
        return list(known)
    samples = getattr(task.splits, part)
    if samples is None or (part == "train" and task.recipe.qat.when == "never"):
        return []
    try:
        with naming(part):
            return [digest for _, digest in digests_in_looks(samples, task.recipe.data)]
    except QatflowError as error:
        if part == "train" and isinstance(error, UserCodeError):
            return []  # that the training part cannot be read is told of where training is checked
        raise


def _constant_inputs(task: Task, graph: fx.GraphModule) -> Iterator[str]:
    """Yield which inputs of real numbers have one value in all samples that ranges are found on."""
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    bounds: dict[str, tuple[float, float]] = {}
    samples = 0
    for args, kwargs in task.calibration_inputs(task.recipe.calibration.samples):
        given = zip(names, flat_inputs(graph, args, dict(kwargs)), strict=False)
        floats = {name: value for name, value in given if isinstance(value, Tensor) and value.is_floating_point()}
        for name, value in floats.items():
            low, high = map(float, torch.aminmax(value.float()))
            before = bounds.get(name, (low, high))
            bounds[name] = min(before[0], low), max(before[1], high)
        samples += max((len(value) for value in floats.values()), default=0)
        if not any(low == high for low, high in bounds.values()):
            return
    for name, (low, high) in bounds.items():
        if low == high:
            yield (
                f"the model's input {name} is {low + 0.0:g} in all {samples} calibration samples, so that the "
                "quantized model will know it as nothing else; give samples like those that it will be used for"
            )
