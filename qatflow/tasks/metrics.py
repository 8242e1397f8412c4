"""Metrics: one score per sample where that is possible, because the gate compares samples in pairs.

A metric of ours is a function of outputs, target and FP32 outputs that returns one score per sample; its value is
their mean. A metric of torchmetrics, or of the user's, has `update` and `compute` and gives one value for all samples:
the gate then has no interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qatflow.errors import DataError
from qatflow.recipe import Gate
from qatflow.tasks.factory import call, load_factory

PerSample = Callable[[Any, Any, Any], Tensor]
"""`(outputs, target, fp32_outputs) -> scores`, shape `[batch]`."""


@dataclass(frozen=True)
class Metric:
    """What is measured of a model.

    Exactly one of `per_sample` and `make_whole` is given.
    """

    name: str
    higher_is_better: bool
    per_sample: PerSample | None = None
    make_whole: Callable[[], Any] | None = None
    """Returns a fresh object with `update(outputs, target)` and `compute()`, as torchmetrics has them."""


def logits(outputs: Any) -> Tensor:
    """Return the first tensor of a model's outputs: the class scores of a classifier.

    A mapping with `logits` or `out` gives that one.

    Raises:
        DataError: there is none.
    """
    for key in ("logits", "out"):
        if isinstance(outputs, dict) and key in outputs:
            outputs = outputs[key]
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise DataError("the model returns no tensor that a metric could read")
    return tensors[0]


def _same_shape(values: Tensor, target: Any, what: str) -> Tensor:
    """Return the target in the shape of `values`; dimensions of size 1 may be left out or added.

    Raises:
        DataError: they do not fit; comparing them all the same would compare every sample with every other.
    """
    if not isinstance(target, Tensor) or [n for n in values.shape if n > 1] != [n for n in target.shape if n > 1]:
        found = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
        message = (
            f"the model's {what} have the shape {list(values.shape)}, and the data's targets {found}: make them fit"
        )
        raise DataError(message)
    return target.reshape(values.shape)


def fitting_target(outputs: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return a model's values and real-valued targets in the same shape."""
    values = logits(outputs)
    return values, _same_shape(values, target, "values")


def _per_sample_mean(values: Tensor) -> Tensor:
    return values.double().flatten(1).mean(1) if values.dim() > 1 else values.double()


def accuracy(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return 1 where the highest score is the target's class; for pixels, the share of them."""
    best = logits(outputs).argmax(1)
    return _per_sample_mean(best == _same_shape(best, target, "best classes"))


def top5_accuracy(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return 1 where the target's class is among the five highest scores."""
    scores = logits(outputs)
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    target = _same_shape(best[:, 0], target, "best classes")
    return _per_sample_mean((best == target.unsqueeze(1)).any(1))


def mean_squared_error(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return the mean squared difference from the target."""
    values, wanted = fitting_target(outputs, target)
    return _per_sample_mean((values - wanted).square())


def agreement(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return 1 where the highest score is the same class as FP32's; needs no labels."""
    return _per_sample_mean(logits(outputs).argmax(1) == logits(fp32_outputs).argmax(1))


def sqnr_db(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return the signal to quantization-noise ratio of a sample's outputs in dB, within 100; needs no labels."""
    wanted, got = (logits(one).double().unsqueeze(-1).flatten(1) for one in (fp32_outputs, outputs))
    noise = (wanted - got).square().sum(1)
    ratio = 10 * torch.log10(wanted.square().sum(1) / noise).clamp(-10, 10)
    return torch.where(noise == 0, 100.0, ratio)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, accuracy),
    "top5_accuracy": Metric("top5_accuracy", True, top5_accuracy),
    "mean_squared_error": Metric("mean_squared_error", False, mean_squared_error),
    "agreement": Metric("agreement", True, agreement),
    "sqnr_db": Metric("sqnr_db", True, sqnr_db),
}


def load_metric(gate: Gate, trust: tuple[str, ...] = ()) -> Metric:
    """Return the gate's metric: by name, or made by a `package.module:function`.

    A factory returns a function like those here (then `gate.direction` says which way is better), or an object with
    `update` and `compute`, as torchmetrics' classes are.

    Raises:
        DataError: the factory returns something else, or nothing says which direction is better.
        RecipeError: the factory is not trusted or not there.
    """
    if gate.metric in METRICS:
        metric = METRICS[gate.metric]
        return metric if gate.direction == "auto" else Metric(metric.name, _higher(gate), metric.per_sample)
    factory = load_factory(gate.metric, trust, "gate.metric")
    name = gate.metric.partition(":")[2]
    made = call(factory, gate.metric_kwargs, "gate.metric_kwargs", "gate.metric", gate.metric)
    if hasattr(made, "update") and hasattr(made, "compute"):
        higher = getattr(made, "higher_is_better", None) if gate.direction == "auto" else _higher(gate)
        if higher is None:
            raise DataError(_no_direction(gate))
        return Metric(name, bool(higher), make_whole=lambda: factory(**gate.metric_kwargs))
    if not callable(made):
        message = (
            f"gate.metric: {gate.metric} returned a {type(made).__name__}; return a function "
            "(outputs, target, fp32_outputs) -> one score per sample, or a torchmetrics metric"
        )
        raise DataError(message)
    if gate.direction == "auto":
        raise DataError(_no_direction(gate))
    return Metric(name, _higher(gate), per_sample=made)


def _higher(gate: Gate) -> bool:
    return gate.direction == "higher"


def _no_direction(gate: Gate) -> str:
    return f"gate.direction: nothing says whether a higher {gate.metric} is better; write higher or lower"
