"""What a metric of torchmetrics is given: outputs and targets in one shape, and scores as probabilities.

torchmetrics takes a batch for logits where one of its values is outside 0 to 1, and for probabilities else. The last
small batch of a set, or a quantized sigmoid that gives 1.004, is then read in another way than the rest; so that is
settled here once, by FP32's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qatflow.errors import DataError
from qatflow.tasks.classes import class_axes, in_unit_interval, logits, same_sizes

CURVES = ("AUROC", "ROC", "AveragePrecision", "PrecisionRecallCurve", "CalibrationError", "HingeLoss")
"""Ends of the names of metrics over many classes that look at more than the highest score."""


@dataclass(frozen=True)
class Arguments:
    """How a metric over all samples is given a batch.

    Attributes:
        torchmetrics: whether it is one of theirs; any other gets outputs and targets as they are.
        classification: whether its targets are class ids.
        multiclass: whether it wants class scores with the classes on axis 1.
        squash: `sigmoid`, `softmax`, or nothing: what makes its scores probabilities.
        are_logits: whether scores are logits; None leaves it to the metric.
    """

    torchmetrics: bool = False
    classification: bool = False
    multiclass: bool = False
    squash: str = ""
    are_logits: bool | None = None

    def fitted(self, outputs: Sequence[Any], targets: Sequence[Any]) -> Arguments:
        """Return the arguments with logits and probabilities told apart by some batches of FP32's outputs."""
        values = [one for one in map(_scores, outputs) if isinstance(one, Tensor) and one.is_floating_point()]
        return replace(self, are_logits=not in_unit_interval(values)) if values and self.squash else self

    def __call__(self, outputs: Any, target: Any) -> tuple[Any, Any]:
        """Return what the metric's `update` is called with: the scores where a model returns them by name."""
        values = _scores(outputs)
        if not self.torchmetrics or not isinstance(values, Tensor) or not isinstance(target, Tensor):
            return values, target
        if values.shape[:1] == target.shape[:1] and same_sizes(values.shape, target.shape):
            shape = min(values.shape, target.shape, key=len)
            values, target = values.reshape(shape), target.reshape(shape)
        if self.classification and target.is_floating_point() and bool((target == target.round()).all()):
            target = target.long()
        if self.multiclass:
            values = _classes_second(values, target)
        if self.are_logits is None or not values.is_floating_point():
            return values, target
        if not self.are_logits:
            return values.clamp(0, 1), target
        return (values.sigmoid() if self.squash == "sigmoid" else values.softmax(1)), target


AS_THEY_ARE = Arguments()


def arguments_of(metric: Any) -> Arguments:
    """Return how a metric object with `update` and `compute` is called."""
    name, module = type(metric).__name__, type(metric).__module__
    if module.split(".")[0] != "torchmetrics":
        return AS_THEY_ARE
    if name.startswith(("Binary", "Multilabel")):
        return Arguments(True, True, squash="sigmoid")
    if name.startswith("Multiclass"):
        return Arguments(True, True, True, squash="softmax" if name.endswith(CURVES) else "")
    return Arguments(True)


def _classes_second(values: Tensor, target: Tensor) -> Tensor:
    """Return class scores with the classes on axis 1: torchmetrics takes them there, whatever the targets' shape.

    Raises:
        DataError: the classes may be on more than one axis.
    """
    if not values.is_floating_point() or values.dim() != target.dim() + 1 or values.dim() < 3:
        return values
    axes = class_axes(values, target)
    if len(axes) > 1 and values.dim() == 3:
        message = (
            f"the model's outputs have the shape {list(values.shape)}, and nothing says on which axis the classes are: "
            "let the model return them on axis 1, or write gate.metric: accuracy with gate.metric_kwargs.class_axis"
        )
        raise DataError(message)
    return values if not axes or 1 in axes else values.movedim(axes[0], 1)


def _scores(outputs: Any) -> Any:
    named = isinstance(outputs, dict) and bool({"logits", "out"} & outputs.keys())
    return logits(outputs) if named else outputs
