"""Metrics of classes: one score per sample, over the labels that count.

For dense outputs (pixels, tokens) a sample's score is the share of its labels, padded positions not counted; a sample
none of whose labels count has no score and is left out of the mean, for FP32 and candidates alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qatflow.errors import DataError
from qatflow.tasks.classes import AUTOMATIC, Reading, beside_every_value, is_distribution, logits, same_shape
from qatflow.tasks.labels import read_labels

FIVE = 5


@dataclass(frozen=True)
class ClassScores:
    """Scores of class decisions, read in one way.

    Attributes:
        reading: how outputs become classes.
        ignore_index: `data.ignore_index`.
    """

    reading: Reading = AUTOMATIC
    ignore_index: int | None = None

    def fitted(self, outputs: Sequence[Any], targets: Sequence[Any]) -> ClassScores:
        """Return the scores with the reading settled by some batches of FP32's outputs.

        Raises:
            DataError: nothing says how to read them.
        """
        looks = [(logits(one), target) for one, target in zip(outputs, targets, strict=True)]
        return replace(self, reading=self.reading.fitted(looks))

    def accuracy(self, outputs: Any, target: Any, fp32_outputs: Any, mask: Tensor | None = None) -> Tensor:
        """Return 1 where the decision is the target's class; for pixels and tokens, the share of those that count.

        Raises:
            DataError: the targets are no class ids that fit the outputs, or one is none of the classes.
        """
        values = logits(outputs)
        _refuse_several(values, target)
        found = self.reading.decisions(values, target)
        labels, counts = self._labels(values, found, target)
        return share(found == labels, counts, mask)

    def top5_accuracy(self, outputs: Any, target: Any, fp32_outputs: Any, mask: Tensor | None = None) -> Tensor:
        """Return 1 where the target's class is among the five highest scores.

        Raises:
            DataError: as for accuracy, and where there are too few classes for five to mean anything.
        """
        values = logits(outputs)
        _refuse_several(values, target)
        axis = self.reading.axis((values, target)) if values.is_floating_point() else None
        if axis is None or values.shape[axis] <= FIVE:
            what = "class ids" if not values.is_floating_point() else f"{values.shape[axis] if axis else 1} classes"
            message = f"top5_accuracy needs more than {FIVE} classes, and the model gives {what}: gate.metric: accuracy"
            raise DataError(message)
        best = values.movedim(axis, 1).topk(FIVE, dim=1).indices
        labels, counts = self._labels(values, best[:, 0], target)
        return share((best == labels.unsqueeze(1)).any(1), counts, mask)

    def agreement(self, outputs: Any, target: Any, fp32_outputs: Any, mask: Tensor | None = None) -> Tensor:
        """Return 1 where the decision is FP32's; for several in a sample, the share of them. Needs no labels.

        Raises:
            DataError: nothing says how to read the outputs as classes.
        """
        one, other = (self.reading.decisions(logits(each), target) for each in (outputs, fp32_outputs))
        return share(one == other, None, mask)

    def counts(self, outputs: Any, target: Any, mask: Tensor | None = None) -> Tensor:
        """Return which samples have a label that counts, shape `[batch]`."""
        values = logits(outputs)
        _, counts = self._labels(values, self.reading.decisions(values, target), target)
        real = real_elements(counts, mask)
        counts = counts if real is None else counts & real
        return counts.flatten(1).any(1) if counts.dim() > 1 else counts

    def _labels(self, values: Tensor, found: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Return the labels in the shape of the decisions, and which of them count."""
        fitting = same_shape(found, target, "best classes")
        return read_labels(fitting, self.reading.classes(values, target), self.ignore_index)


def real_elements(values: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return which elements of values `[batch, positions, ...]` are real, in their shape; None where all are.

    Args:
        values: one for every position, or for none.
        mask: true where a position is real, shape `[batch, positions]`.
    """
    if mask is None or values.shape[:2] != mask.shape:
        return None
    return mask.reshape(*mask.shape, *[1] * (values.dim() - 2)).expand(values.shape)


def share(values: Tensor, counts: Tensor | None, mask: Tensor | None) -> Tensor:
    """Return the mean of every sample's values, among those that count and are real; NaN where none is."""
    share, real = values.double(), real_elements(values, mask)
    if counts is not None and real is not None:
        counts = counts & real
    counts = real if counts is None else counts
    if counts is None:
        return share.flatten(1).mean(1) if share.dim() > 1 else share
    if share.dim() == 1:
        return share.where(counts, float("nan"))
    return share.where(counts, 0).flatten(1).sum(1) / counts.flatten(1).sum(1)


def _refuse_several(values: Tensor, target: Any) -> None:
    """Tell of targets that are several labels a sample, one-hot or soft.

    Raises:
        DataError: they are.
    """
    if not beside_every_value(values, target):
        return
    shape = list(values.shape)
    if is_distribution(target):
        message = (
            f"the targets are one-hot or soft labels, of the outputs' own shape {shape}, and accuracy compares class "
            f"ids: let the data give target.argmax() of every sample, shape {[shape[0], *shape[2:]]}"
        )
        raise DataError(message)
    message = (
        f"the targets have a label for every output, shape {shape}, and accuracy is of one class a sample: write "
        "gate.metric: torchmetrics.classification:MultilabelF1Score with gate.metric_kwargs: {num_labels: "
        f"{shape[1]}}}, or gate.metric: agreement"
    )
    raise DataError(message)
