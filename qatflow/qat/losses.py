"""Losses of quantization-aware training: from labels, or from the FP32 model where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from qatflow.recipe import Recipe
from qatflow.tasks.metrics import fitting_target, logits

Loss = Callable[[Any, Any, Any], Tensor]
"""`(outputs, target, fp32_outputs) -> loss`, a scalar."""


def cross_entropy(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return the cross entropy of class scores, shape `[batch, classes, ...]`, and class labels."""
    return functional.cross_entropy(logits(outputs), target)


def mean_squared_error(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return the mean squared difference from a real-valued target."""
    return functional.mse_loss(*fitting_target(outputs, target))


def distillation(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return the mean squared difference from FP32's float outputs, each relative to FP32's mean square."""
    losses = []
    for got, wanted in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(fp32_outputs), strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            losses.append(functional.mse_loss(got, wanted) / wanted.square().mean().clamp(min=1e-12))
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mean_squared_error": mean_squared_error,
    "distillation": distillation,
}


def choose_loss(recipe: Recipe, target: Any) -> tuple[str, Loss]:
    """Return the loss that `qat.loss` names; `auto` looks at a target of the data.

    Class labels (whole numbers) mean cross entropy, real numbers mean squared error, and no labels, or labels in
    another form than one tensor, distillation.
    """
    name = recipe.qat.loss
    if name == "auto":
        if not recipe.data.labels or not isinstance(target, Tensor):
            name = "distillation"
        else:
            name = "mean_squared_error" if target.is_floating_point() else "cross_entropy"
    return name, LOSSES[name]
