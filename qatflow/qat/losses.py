"""Losses of quantization-aware training: from labels, from the FP32 model, or from both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qatflow.errors import DataError
from qatflow.graph.padding import Padding
from qatflow.graph.tree import tree_leaves
from qatflow.qat.label_losses import (
    BINARY,
    OfClasses,
    OfRealNumbers,
    OnLabels,
    cross_entropy,
    float_scores,
    loss_of_module,
    with_tensors,
)
from qatflow.recipe import Qat, Recipe
from qatflow.recipe.trust import package_of
from qatflow.tasks.classes import AUTOMATIC, Reading, classes_second, logits
from qatflow.tasks.factory import call, load_factory
from qatflow.tasks.live import Live
from qatflow.tasks.metrics import METRICS

FromTeacher = Callable[..., Tensor]
"""`(outputs, fp32_outputs, padding=None) -> loss`, a scalar; padded positions do not count."""
FEWEST_DECISIONS = 8
"""Real-valued targets that are all 0 or 1 are taken for labels from so many on."""


def distillation(outputs: Any, fp32_outputs: Any, padding: Padding | None = None) -> Tensor:
    """Return the mean squared difference from FP32's float outputs, each relative to FP32's mean square."""
    losses = []
    pairs = zip(tree_leaves(outputs), tree_leaves(fp32_outputs), strict=True)
    for leaf, (got, wanted) in enumerate(pairs):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            real = None if padding is None else padding.real(leaf, wanted)
            if real is not None:
                got, wanted = (one[real.expand(wanted.shape)] for one in (got, wanted))
            losses.append(functional.mse_loss(got, wanted) / wanted.square().mean().clamp(min=1e-12))
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class SoftTargets:
    """The divergence of class probabilities from FP32's, both softened (Hinton, Vinyals and Dean 2015).

    It carries the factor `temperature ** 2`, so that its gradient does not shrink as the temperature grows. One score
    alone, and every one of several labels, is a logit beside that of its opposite, which is 0.
    """

    temperature: float = 4.0
    reading: Reading = AUTOMATIC

    def __call__(self, outputs: Any, fp32_outputs: Any, padding: Padding | None = None) -> Tensor:
        """Return the mean over samples and positions that are no padding.

        Raises:
            DataError: nothing says on which axis the classes are, or the model returns class ids.
        """
        values, wanted = float_scores(outputs), float_scores(fp32_outputs)
        axis = self.reading.axis((wanted, None))
        got, soft = (self._log_probabilities(one, axis) for one in (values, wanted))
        divergence = functional.kl_div(got, soft, reduction="none", log_target=True).sum(1)
        if padding is not None and divergence.shape == padding.mask.shape:
            divergence = divergence[padding.mask]
        return divergence.mean() * self.temperature**2

    def _log_probabilities(self, values: Tensor, axis: int | None) -> Tensor:
        scores = values / self.temperature
        if axis is None or scores.shape[axis] == 1:
            return functional.log_softmax(torch.stack([torch.zeros_like(scores), scores], 1), 1)
        return functional.log_softmax(classes_second(scores, axis), 1)


ON_LABELS: dict[str, OnLabels] = {
    "cross_entropy": OfClasses(),
    "mean_squared_error": OfRealNumbers(),
}
FROM_TEACHER: dict[str, FromTeacher] = {
    "distillation": distillation,
    "soft_targets": SoftTargets(),
}


@dataclass(frozen=True)
class Objective:
    """What training brings down: a loss on labels, one from FP32's outputs, or a mixture.

    Attributes:
        name: what it is called, for people.
        on_labels: None where there is nothing but FP32 to learn from.
        from_teacher: the loss from FP32's outputs.
        module: the user's module behind the loss on labels, which may have a state of its own; None where it is none.
    """

    name: str
    on_labels: OnLabels | None
    from_teacher: FromTeacher
    module: nn.Module | None = None

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

    def state(self) -> dict[str, Any]:
        """Return what the loss keeps from batch to batch; nothing where it is no module."""
        return {} if self.module is None else self.module.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        if self.module is not None:
            self.module.load_state_dict(state, strict=False)  # it may make a buffer in its first call


def choose_objective(
    recipe: Recipe, target: Any, trust: tuple[str, ...] = (), outputs: Any = None, live: Live | None = None
) -> Objective:
    """Return what `qat.loss` names; `auto` looks at a target of the data.

    Class labels (whole numbers) mean cross entropy, real numbers mean squared error, and no labels, or labels in
    another form than one tensor, distillation. Beside class labels, and beside a loss of the user's, FP32 teaches with
    soft targets where its labels are classes, else with its outputs.

    Args:
        recipe: the run's.
        target: of one batch.
        trust: packages that a factory may come from.
        outputs: FP32's of the same batch, which settle how all outputs are read; None reads each for itself.
        live: the loss as an object, copied for every objective; None where the recipe names it.

    Raises:
        RecipeError: a factory is not trusted, not there, or fails.
        DataError: it returned no function, or `auto` cannot tell.
    """
    qat, data = recipe.qat, recipe.data
    classes = isinstance(target, Tensor) and not target.is_floating_point()
    name = _automatic(data.labels, target) if qat.loss == "auto" else qat.loss
    reading = _reading(recipe, target, outputs)
    soft = SoftTargets(qat.temperature, reading)
    if name in FROM_TEACHER:
        return Objective(name, None, soft if name == "soft_targets" else distillation)
    teacher = soft if classes else distillation
    if name == "cross_entropy":
        return Objective(name, cross_entropy(reading, data.ignore_index), teacher)
    if name in ON_LABELS:
        return Objective(name, ON_LABELS[name], teacher)
    made = _made(qat, name, trust) if live is None else copy.deepcopy(live.value)
    if not isinstance(made, nn.Module):
        return Objective(name, made, teacher)
    return Objective(name, loss_of_module(made, reading, data.ignore_index), teacher, made)


def _automatic(labels: bool, target: Any) -> str:
    if not labels or not isinstance(target, Tensor):
        return "distillation"
    if not target.is_floating_point():
        return "cross_entropy"
    if target.numel() >= FEWEST_DECISIONS and bool(((target == 0) | (target == 1)).all()):
        message = (
            f"qat.loss: auto cannot tell what real-valued targets of only 0 and 1 are: write {BINARY} for labels, or "
            "qat.loss: mean_squared_error for values"
        )
        raise DataError(message)
    return "mean_squared_error"


def _reading(recipe: Recipe, target: Any, outputs: Any) -> Reading:
    """Return on which axis the classes are, as far as that is clear; a loss that needs to know more tells so itself."""
    own = recipe.gate.metric_kwargs.get("class_axis") if recipe.gate.metric in METRICS else None
    reading = Reading(own)
    if outputs is None:
        return reading
    try:
        axis = reading.axis((logits(outputs), target))
    except DataError:
        return reading
    return Reading(axis, 0.0 if axis is None else None)


def _made(qat: Qat, name: str, trust: tuple[str, ...]) -> Any:
    path, kwargs_path = "qat.loss", "qat.loss_kwargs"
    factory = load_factory(name, trust, path, "loss", qat.loss_kwargs, kwargs_path)
    kwargs = with_tensors(qat.loss_kwargs) if package_of(name) == "torch" else qat.loss_kwargs
    made = call(factory, kwargs, kwargs_path, path, name)
    if not callable(made):
        message = f"qat.loss: {name} returned a {type(made).__name__}; return a function (outputs, target) -> a scalar"
        raise DataError(message)
    return made
