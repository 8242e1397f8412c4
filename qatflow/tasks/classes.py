"""How a model's outputs are read as classes.

Class scores are on one axis, and the highest is the class. One score alone is a yes or no: its class is whether it
exceeds a threshold, 0 for a logit and 0.5 for a probability. Where targets have one value for every output, every
output is a yes or no of its own (multi-label). Whole numbers are class ids already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qatflow.errors import DataError
from qatflow.graph.tree import tree_leaves

Look = tuple[Tensor, Any]
"""A batch of FP32's outputs and its targets (None without labels)."""


def logits(outputs: Any) -> Tensor:
    """Return the first tensor of a model's outputs: the class scores of a classifier.

    A mapping with `logits` or `out` gives that one.

    Raises:
        DataError: there is none.
    """
    for key in ("logits", "out"):
        if isinstance(outputs, dict) and key in outputs:
            outputs = outputs[key]
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise DataError("the model returns no tensor that a metric could read")
    return tensors[0]


def same_sizes(one: Sequence[int], other: Sequence[int]) -> bool:
    """Tell whether two shapes are alike but for dimensions of size 1."""
    return [size for size in one if size > 1] == [size for size in other if size > 1]


def same_shape(values: Tensor, target: Any, what: str) -> Tensor:
    """Return the target in the shape of `values`; dimensions of size 1 may be left out or added.

    Raises:
        DataError: they do not fit; comparing them all the same would compare every sample with every other.
    """
    if not isinstance(target, Tensor) or not same_sizes(values.shape, target.shape):
        found = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
        message = (
            f"the model's {what} have the shape {list(values.shape)}, and the data's targets {found}: make them fit"
        )
        raise DataError(message)
    return target.reshape(values.shape)


def in_unit_interval(values: Sequence[Tensor]) -> bool:
    """Tell whether all values are probabilities by their size."""
    return all(bool(((one >= 0) & (one <= 1)).all()) for one in values)


def beside_every_value(values: Tensor, target: Any) -> bool:
    """Tell whether the targets have one value for every output of a sample with several."""
    if not isinstance(target, Tensor) or not values.is_floating_point():
        return False
    several = values[:1].numel() > 1
    return several and same_sizes(values.shape, target.shape) and not _axes((values, target))


def is_distribution(target: Tensor) -> bool:
    """Tell whether targets are one-hot or soft: shares of the classes on axis 1, which add up to 1."""
    shares = target.double()
    return bool((shares >= 0).all()) and bool(((shares.sum(1) - 1).abs() < 1e-3).all())


@dataclass(frozen=True)
class Reading:
    """How outputs are read as classes; null is found from the outputs, and from targets where there are any.

    Attributes:
        class_axis: where the scores of the classes are.
        threshold: what one score alone must exceed.
    """

    class_axis: int | None = None
    threshold: float | None = None

    def axis(self, *looks: Look) -> int | None:
        """Return the axis of the classes; None where every value is a decision of its own.

        It is the one without which the outputs have the shape of the labels. Among several, images have it second.

        Raises:
            DataError: nothing says which it is, or the outputs lack the axis that the recipe names.
        """
        values = looks[0][0]
        if self.class_axis is not None:
            return _named(self.class_axis, values)
        if values.dim() < 2:
            return None
        labelled = all(isinstance(target, Tensor) for _, target in looks)
        axes = sorted(set.intersection(*(set(_axes(look)) for look in looks))) if labelled else []
        if axes and (len(axes) == 1 or values.dim() > 3 or all(values.shape[axis] == 1 for axis in axes)):
            return axes[0]
        if not axes and (self.threshold is not None or (labelled and all(_several(*look) for look in looks))):
            return None
        if values.dim() == 3:
            message = (
                f"the model's outputs have the shape {list(values.shape)}, and nothing says on which axis the classes "
                "are: write gate.metric_kwargs.class_axis: 1 or 2"
            )
            raise DataError(message)
        return 1

    def decisions(self, values: Tensor, target: Any) -> Tensor:
        """Return class ids; for one score, or several labels, whether it exceeds the threshold.

        Raises:
            DataError: nothing says how to read the outputs.
        """
        if not values.is_floating_point():
            return values
        axis = self.axis((values, target))
        if axis is None:
            return values > (self.threshold or 0.0)
        if values.shape[axis] == 1:
            return (values > (self.threshold or 0.0)).squeeze(axis)
        if self.threshold is not None:
            message = (
                f"gate.metric_kwargs.threshold: the model's outputs {list(values.shape)} have {values.shape[axis]} "
                "classes, of which the highest score counts; remove it"
            )
            raise DataError(message)
        return values.argmax(axis)

    def classes(self, values: Tensor, target: Any) -> int | None:
        """Return how many classes there are; None where outputs are class ids."""
        if not values.is_floating_point():
            return None
        axis = self.axis((values, target))
        return 2 if axis is None else max(2, values.shape[axis])

    def fitted(self, looks: Sequence[Look]) -> Reading:
        """Return the reading with everything settled by FP32's outputs, so that all batches are read alike.

        Where all values that are to exceed a threshold lie in 0 to 1, they are probabilities.

        Raises:
            DataError: nothing says how to read the outputs, or the recipe asks for what they do not have.
        """
        values = [one for one, _ in looks]
        if not values[0].is_floating_point():
            if self != AUTOMATIC:
                raise DataError("gate.metric_kwargs: the model returns class ids, which need no reading; remove them")
            return self
        axis = self.axis(*looks)
        if axis is not None and values[0].shape[axis] > 1:
            return Reading(axis, self.threshold)
        usual = 0.5 if in_unit_interval(values) else 0.0
        return Reading(axis, usual if self.threshold is None else self.threshold)


AUTOMATIC = Reading()


def classes_second(values: Tensor, axis: int | None) -> Tensor:
    """Return class scores with the classes on axis 1, as PyTorch's losses want them; `[n]` becomes `[n, 1]`."""
    return values.unsqueeze(1) if axis is None else values.movedim(axis, 1)


def _named(axis: int, values: Tensor) -> int:
    found = axis + values.dim() if axis < 0 else axis
    if not 0 < found < values.dim():
        message = f"gate.metric_kwargs.class_axis: {axis} is no axis of the model's outputs {list(values.shape)}"
        raise DataError(message)
    return found


def _axes(look: Look) -> list[int]:
    return class_axes(*look)


def class_axes(values: Tensor, target: Tensor) -> list[int]:
    """Return the axes without which outputs have the shape of their targets."""
    shape = list(values.shape)
    return [axis for axis in range(1, len(shape)) if same_sizes(shape[:axis] + shape[axis + 1 :], target.shape)]


def _several(values: Tensor, target: Tensor) -> bool:
    """Tell whether targets are several labels a sample: neither shares of the classes nor real numbers."""
    if not beside_every_value(values, target) or is_distribution(target):
        return False
    return bool((((target >= 0) & (target <= 1)) | (target == target.round())).all())
