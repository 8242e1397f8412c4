"""Losses on labels: outputs and targets are brought into the form that a loss takes, and labels that do not count
are left out, as they are by metrics (`tasks/labels.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qatflow.errors import DataError
from qatflow.graph.tree import tree_leaves
from qatflow.tasks.classes import (
    AUTOMATIC,
    Reading,
    beside_every_value,
    classes_second,
    is_distribution,
    logits,
    same_shape,
)
from qatflow.tasks.labels import IGNORED, ignored_numbers, read_labels

OnLabels = Callable[[Any, Any], Tensor]
"""`(outputs, target) -> loss`, a scalar."""

BINARY = "qat.loss: torch.nn:BCEWithLogitsLoss (torch.nn:BCELoss where the model gives probabilities)"
YES_NO = (nn.BCEWithLogitsLoss, nn.BCELoss)
OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
OF_REAL_NUMBERS = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)


def float_scores(outputs: Any) -> Tensor:
    """Return the scores that a loss reads, in single precision at least.

    Raises:
        DataError: they are whole numbers, which have no gradient.
    """
    values = logits(outputs)
    if not values.is_floating_point():
        message = (
            f"the model's first output is of {str(values.dtype).removeprefix('torch.')}, class ids it seems, and a "
            "loss needs scores: let the model return its logits first, or write qat.loss: distillation"
        )
        raise DataError(message)
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class OfClasses:
    """A loss of class scores and class ids, over the labels that count; 0 where none does.

    Attributes:
        compute: `(scores [batch, classes, ...], labels [batch, ...]) -> loss`, which leaves out labels of `ignored`.
        ignored: the number that `compute` leaves out.
        reading: on which axis the classes are.
        ignore_index: `data.ignore_index`.
    """

    compute: OnLabels = functional.cross_entropy
    ignored: int = IGNORED
    reading: Reading = AUTOMATIC
    ignore_index: int | None = None

    def __call__(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss; targets of the outputs' shape are shares of the classes (soft labels).

        Raises:
            DataError: the outputs are one score, the targets are several labels a sample or do not fit, or a label is
                none of the classes.
        """
        values = float_scores(outputs)
        axis = self.reading.axis((values, target))
        if axis is None or values.shape[axis] == 1:
            raise DataError(_one_score(values, target))
        scores = classes_second(values, axis)
        if beside_every_value(values, target):
            return self.compute(scores, classes_second(_soft(target), axis).to(scores.dtype))
        labels, counts = self.read(same_shape(scores[:, 0], target, "best classes"), scores.shape[1])
        if not bool(counts.any()):
            return scores.sum() * 0
        return self.compute(scores, labels.where(counts, self.ignored))

    def read(self, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Return labels, and which of them count.

        Raises:
            DataError: one is none of the classes.
        """
        return read_labels(target, classes, self.ignore_index, self.ignored if self.ignored != IGNORED else None)


@dataclass(frozen=True)
class OfDecisions:
    """A binary cross entropy of scores and targets in 0 to 1, over the labels that count."""

    module: nn.Module
    ignore_index: int | None = None

    def __call__(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss; targets may differ from the scores by dimensions of size 1.

        Raises:
            DataError: they do not fit otherwise, or one is neither in 0 to 1 nor ignored.
        """
        values = float_scores(outputs)
        wanted, counts = self.read(same_shape(values, target, "scores"))
        wanted = wanted.to(values.dtype)
        if bool(counts.all()):
            return _called(self.module, values, wanted)
        each = copy.copy(self.module)
        each.reduction = "none"  # type: ignore[assignment]  # a string, which nn.Module's annotations do not know
        losses = torch.where(counts, _called(each, values, wanted.where(counts, 0)), 0)
        total = losses.sum()
        return total if self.module.reduction == "sum" else total / counts.sum().clamp(min=1)

    def read(self, target: Tensor, classes: int = 2) -> tuple[Tensor, Tensor]:
        """Return targets, and which of them count.

        Raises:
            DataError: one that counts is outside 0 to 1.
        """
        ignored = ignored_numbers(classes, self.ignore_index, dense=True)
        counts = ~torch.isin(target.double(), torch.tensor(ignored, device=target.device).double())
        outside = target[counts & ~((target >= 0) & (target <= 1))]
        if outside.numel():
            message = (
                f"a label is {float(outside[0]):g}, and a binary cross entropy takes 0 to 1, or "
                f"{' or '.join(map(str, ignored))} for what does not count: correct the labels, or write "
                f"data.ignore_index: {float(outside[0]):g}"
            )
            raise DataError(message)
        return target, counts


@dataclass(frozen=True)
class OfRealNumbers:
    """A loss of values and real-valued targets in one shape."""

    compute: OnLabels = functional.mse_loss

    def __call__(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss; targets may differ from the values by dimensions of size 1.

        Raises:
            DataError: they do not fit otherwise.
        """
        values = float_scores(outputs)
        return self.compute(values, same_shape(values, target, "values").to(values.dtype))


def loss_of_module(module: nn.Module, reading: Reading, ignore_index: int | None) -> OnLabels:
    """Return a loss that takes a model's outputs and the data's targets as they are.

    The tensors of `torch.nn`'s (class weights) follow the scores to their device and dtype, those of the user's to the
    device.
    """

    def called(values: Any, target: Any) -> Tensor:
        return _called(module, values, target)

    def of_scores(outputs: Any, target: Any) -> Tensor:
        return _called(module, logits(outputs), target)

    if type(module) in OF_CLASSES:
        return OfClasses(called, int(module.ignore_index), reading, ignore_index)  # type: ignore[arg-type]
    if type(module) in YES_NO:
        return OfDecisions(module, ignore_index)
    if type(module) in OF_REAL_NUMBERS:
        return OfRealNumbers(called)
    return of_scores if _is_torchs(module) else called


def cross_entropy(reading: Reading, ignore_index: int | None) -> OnLabels:
    """Return the cross entropy of class scores and labels, read in this way."""
    return replace(OfClasses(), reading=reading, ignore_index=ignore_index)


def with_tensors(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loss's arguments with `weight` and `pos_weight`, written as lists of numbers, as tensors."""
    return {
        name: torch.tensor(value, dtype=torch.float32)
        if name in ("weight", "pos_weight") and isinstance(value, (list, tuple))
        else value
        for name, value in kwargs.items()
    }


def _called(module: nn.Module, values: Any, target: Any) -> Tensor:
    found = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    if found and _is_torchs(module) and found[0].is_floating_point():
        module.to(found[0])
    elif found:
        module.to(found[0].device)
    return module(values, target)  # type: ignore[no-any-return]  # a loss of torch.nn, or like one


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _soft(target: Tensor) -> Tensor:
    if target.is_floating_point() and is_distribution(target):
        return target
    message = (
        f"the targets have the outputs' own shape {list(target.shape)}, and cross entropy takes class ids, or shares "
        f"of the classes as real numbers: let the data give them, or for several labels a sample write {BINARY}"
    )
    raise DataError(message)


def _one_score(values: Tensor, target: Any) -> str:
    if beside_every_value(values, target):
        return f"the targets have a label for every output, shape {list(values.shape)}: write {BINARY}"
    return f"cross entropy of one score a sample, shape {list(values.shape)}, is always 0: write {BINARY}"
