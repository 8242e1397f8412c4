"""Losses of quantization-aware training: from labels, from the FP32 model, or from both."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from qatflow.errors import DataError
from qatflow.graph.padding import Padding
from qatflow.recipe import Recipe
from qatflow.tasks.factory import call, load_factory
from qatflow.tasks.metrics import fitting_target, logits

OnLabels = Callable[[Any, Any], Tensor]
"""`(outputs, target) -> loss`, a scalar."""
FromTeacher = Callable[..., Tensor]
"""`(outputs, fp32_outputs, padding=None) -> loss`, a scalar; padded positions do not count."""


def cross_entropy(outputs: Any, target: Any) -> Tensor:
    """Return the cross entropy of class scores, shape `[batch, classes, ...]`, and class labels."""
    return functional.cross_entropy(logits(outputs), target)


def mean_squared_error(outputs: Any, target: Any) -> Tensor:
    """Return the mean squared difference from a real-valued target."""
    return functional.mse_loss(*fitting_target(outputs, target))


def distillation(outputs: Any, fp32_outputs: Any, padding: Padding | None = None) -> Tensor:
    """Return the mean squared difference from FP32's float outputs, each relative to FP32's mean square."""
    losses = []
    pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(fp32_outputs), strict=True)
    for leaf, (got, wanted) in enumerate(pairs):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            real = None if padding is None else padding.real(leaf, wanted)
            if real is not None:
                got, wanted = (one[real.expand(wanted.shape)] for one in (got, wanted))
            losses.append(functional.mse_loss(got, wanted) / wanted.square().mean().clamp(min=1e-12))
    return torch.stack(losses).sum()


def soft_targets(outputs: Any, fp32_outputs: Any, temperature: float = 4.0, padding: Padding | None = None) -> Tensor:
    """Return the divergence of class probabilities from FP32's, both softened (Hinton, Vinyals and Dean 2015).

    It carries the factor `temperature ** 2`, so that its gradient does not shrink as the temperature grows.
    """
    got = functional.log_softmax(logits(outputs) / temperature, 1)
    wanted = functional.log_softmax(logits(fp32_outputs) / temperature, 1)
    divergence = functional.kl_div(got, wanted, reduction="none", log_target=True).sum(1)
    if padding is not None and divergence.shape == padding.mask.shape:
        divergence = divergence[padding.mask]
    return divergence.mean() * temperature**2


ON_LABELS: dict[str, OnLabels] = {
    "cross_entropy": cross_entropy,
    "mean_squared_error": mean_squared_error,
}
FROM_TEACHER: dict[str, FromTeacher] = {
    "distillation": distillation,
    "soft_targets": soft_targets,
}


@dataclass(frozen=True)
class Objective:
    """What training brings down: a loss on labels, one from FP32's outputs, or a mixture.

    Attributes:
        name: what it is called, for people.
        on_labels: None where there is nothing but FP32 to learn from.
        from_teacher: the loss from FP32's outputs.
    """

    name: str
    on_labels: OnLabels | None
    from_teacher: FromTeacher

    def needs_fp32(self, weight: float) -> bool:
        """Tell whether FP32's outputs are looked at where distillation has this weight."""
        return self.on_labels is None or weight > 0

    def loss(
        self, outputs: Any, target: Any, fp32_outputs: Any, weight: float, padding: Padding | None = None
    ) -> Tensor:
        """Return the loss, a scalar; `weight` in 0 to 1 is distillation's beside the labels'."""
        if self.on_labels is None:
            return self.from_teacher(outputs, fp32_outputs, padding=padding)
        if weight == 0:
            return self.on_labels(outputs, target)
        taught = self.from_teacher(outputs, fp32_outputs, padding=padding)
        return (1 - weight) * self.on_labels(outputs, target) + weight * taught


def choose_objective(recipe: Recipe, target: Any, trust: tuple[str, ...] = ()) -> Objective:
    """Return what `qat.loss` names; `auto` looks at a target of the data.

    Class labels (whole numbers) mean cross entropy, real numbers mean squared error, and no labels, or labels in
    another form than one tensor, distillation. Beside class labels, and beside a loss of the user's, FP32 teaches with
    soft targets where its labels are classes, else with its outputs.

    Raises:
        RecipeError: a factory is not trusted, not there, or fails.
        DataError: it returned no function.
    """
    qat, name = recipe.qat, recipe.qat.loss
    classes = isinstance(target, Tensor) and not target.is_floating_point()
    if name == "auto":
        if not recipe.data.labels or not isinstance(target, Tensor):
            name = "distillation"
        else:
            name = "cross_entropy" if classes else "mean_squared_error"
    soft = functools.partial(soft_targets, temperature=qat.temperature)
    if name in FROM_TEACHER:
        return Objective(name, None, soft if name == "soft_targets" else distillation)
    teacher = soft if classes else distillation
    if name in ON_LABELS:
        return Objective(name, ON_LABELS[name], teacher)
    trusted = (*trust, "torch") if name.startswith("torch.nn:") else trust
    made = call(load_factory(name, trusted, "qat.loss"), qat.loss_kwargs, "qat.loss_kwargs", "qat.loss", name)
    if not callable(made):
        message = f"qat.loss: {name} returned a {type(made).__name__}; return a function (outputs, target) -> a scalar"
        raise DataError(message)
    return Objective(name, made, teacher)
