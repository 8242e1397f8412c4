"""Which labels count: the one place that says so, for metrics and losses alike.

Unlabelled pixels and padded tokens carry a number that is no class: -100 by PyTorch's custom, 255 in segmentation
masks of one byte. `data.ignore_index` names another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qatflow.errors import DataError

IGNORED = -100
"""What `torch.nn.CrossEntropyLoss` leaves out unless told otherwise."""
UNLABELLED_BYTE = 255


def ignored_numbers(classes: int | None, ignore_index: int | None, dense: bool) -> tuple[int, ...]:
    """Return the labels that do not count.

    Args:
        classes: how many there are; None where only ids are known.
        ignore_index: of the recipe; None is -100, and 255 where that is no class.
        dense: whether a sample has many labels; among ids, 255 is taken for unlabelled only there.
    """
    if ignore_index is not None:
        return (ignore_index,)
    byte_is_free = dense if classes is None else classes <= UNLABELLED_BYTE
    return (IGNORED, UNLABELLED_BYTE) if byte_is_free else (IGNORED,)


def read_labels(
    target: Tensor, classes: int | None, ignore_index: int | None, also: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return labels as whole numbers, and which of them count, both in the shape of `target`.

    Args:
        target: class ids, of any dtype.
        classes: how many there are; None where only ids are known, and then every number may be one.
        ignore_index: of the recipe.
        also: one more label that does not count, as a loss has it.

    Raises:
        DataError: a label that counts is no whole number, or none of the classes.
    """
    if target.is_floating_point() and not bool((target == target.round()).all()):
        odd = float(target[target != target.round()].flatten()[0])
        message = (
            f"a label is {odd:g}, and class labels are whole numbers: give class ids, or write gate.metric: "
            "mean_squared_error (qat.loss: mean_squared_error) for real-valued targets"
        )
        raise DataError(message)
    labels = target.long()
    ignored = [*ignored_numbers(classes, ignore_index, labels.dim() > 1), *([] if also is None else [also])]
    counts = ~torch.isin(labels, torch.tensor(ignored, device=labels.device))
    if classes is not None:
        outside = labels[counts & ((labels < 0) | (labels >= classes))]
        if outside.numel():
            raise DataError(_outside(int(outside[0]), classes, ignore_index))
    return labels, counts


def _outside(label: int, classes: int, ignore_index: int | None) -> str:
    ignored = " or ".join(map(str, ignored_numbers(classes, ignore_index, dense=True)))
    return (
        f"a label is {label}, and this model has {classes} classes: labels are 0 to {classes - 1}, or {ignored} for "
        f"what does not count; correct the labels, or write data.ignore_index: {label}"
    )


def all_labels(samples: Any) -> Tensor | None:
    """Return a dataset's class labels where it has them in one place, so that no sample need be read; else None.

    That is `targets` or `labels` as torchvision's datasets have them, or the last tensor of a `TensorDataset`, shape
    `[len(samples)]`. A subset (`dataset` or `whole`, with `indices`) is followed to the dataset behind it.
    """
    if hasattr(samples, "indices") and (hasattr(samples, "dataset") or hasattr(samples, "whole")):
        labels = all_labels(samples.dataset if hasattr(samples, "dataset") else samples.whole)
        return None if labels is None else labels[torch.as_tensor(list(samples.indices), dtype=torch.long)]
    tensors = getattr(samples, "tensors", None)
    found = tensors[-1] if tensors else getattr(samples, "targets", getattr(samples, "labels", None))
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None  # names of files, say
    return labels if labels.shape == (len(samples),) and not labels.is_complex() else None
