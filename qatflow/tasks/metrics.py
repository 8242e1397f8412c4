"""Metrics: one score per sample where that is possible, because the gate compares samples in pairs.

A metric of ours is a function of outputs, target and FP32 outputs that returns one score per sample; its value is
their mean. A metric of torchmetrics, or of the user's, has `update` and `compute` and gives one value for all samples.
How outputs are read is settled once, by FP32's (`fitted`), before anything is measured.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qatflow.errors import DataError, RecipeError
from qatflow.recipe import Gate
from qatflow.recipe.check import metric_kwargs_mistakes
from qatflow.results.gate import check_direction
from qatflow.tasks.class_metrics import ClassScores, share
from qatflow.tasks.classes import Reading, logits, same_shape
from qatflow.tasks.factory import call, load_factory
from qatflow.tasks.live import Live, fresh
from qatflow.tasks.metric_names import metric_name
from qatflow.tasks.whole_metrics import AS_THEY_ARE, Arguments, arguments_of
from qatflow.users_code import users_code

__all__ = ["METRICS", "Metric", "fitted", "fitting_target", "load_metric", "logits"]

PerSample = Callable[..., Tensor]
"""`(outputs, target, fp32_outputs) -> scores`, shape `[batch]`; metrics of ours take a mask (`takes_mask`) as well."""
Fit = Callable[[Sequence[Any], Sequence[Any]], "Metric"]


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
    arguments: Callable[[Any, Any], tuple[Any, Any]] = AS_THEY_ARE
    """`(outputs, target)` to what `update` is called with."""
    counts: Callable[[Any, Any, Tensor | None], Tensor] | None = None
    """`(outputs, target, mask)` to which samples have a score, bool of shape `[batch]`; None where all have one."""
    takes_mask: bool = False
    """Whether `per_sample` takes a mask of real positions, shape `[batch, positions]`, as its last argument."""
    fit: Fit | None = None
    """Batches of FP32's outputs and targets to the metric that reads all outputs alike; None where nothing is open."""

    def scores(self, outputs: Any, target: Any, fp32_outputs: Any, mask: Tensor | None = None) -> Tensor:
        """Return the score of every sample, shape `[batch]`; padded positions do not count for metrics of ours."""
        assert self.per_sample is not None
        masked = (mask,) if self.takes_mask else ()
        return self.per_sample(outputs, target, fp32_outputs, *masked)


def fitted(metric: Metric, outputs: Sequence[Any], targets: Sequence[Any]) -> Metric:
    """Return the metric with all that is open about outputs and targets settled by some batches of FP32's.

    Args:
        metric: as `load_metric` returns it.
        outputs: FP32's, batch by batch.
        targets: beside them; None for a batch without labels.

    Raises:
        DataError: the metric cannot read them; the sentence says why, and what to write.
    """
    made = metric.fit(outputs, targets) if metric.fit is not None else metric
    whole = made.make_whole() if made.make_whole is not None else None
    for one, target in zip(outputs, targets, strict=True):
        if whole is not None:
            update(whole, made, one, target)
        elif made.per_sample is not None:
            made.scores(one, target, one)
    return made


def update(whole: Any, metric: Metric, outputs: Any, target: Any, *size: int) -> None:
    """Give a metric over all samples, or one that is replicated, one more batch.

    Raises:
        UserCodeError: the metric cannot take it.
    """
    given = metric.arguments(outputs, target)
    with users_code(f"gate.metric: {metric.name}, given the model's outputs and the data's targets"):
        whole.update(*given, *size)


def fitting_target(outputs: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return a model's values and real-valued targets in the same shape.

    Raises:
        DataError: they do not fit, or the model returns whole numbers.
    """
    values = logits(outputs)
    _refuse_ids(values, "mean_squared_error")
    wanted = same_shape(values, target, "values")
    return values, wanted if wanted.is_floating_point() else wanted.to(values.dtype)


def _refuse_ids(values: Tensor, name: str) -> None:
    if not values.is_floating_point():
        message = (
            f"{name} is of real numbers, and the model returns {str(values.dtype).removeprefix('torch.')}, class ids "
            "it seems: write gate.metric: agreement, or accuracy with labels"
        )
        raise DataError(message)


def mean_squared_error(outputs: Any, target: Any, fp32_outputs: Any, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared difference from the target."""
    values, wanted = fitting_target(outputs, target)
    return share((values - wanted).square(), None, mask)


def sqnr_db(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
    """Return the signal to quantization-noise ratio of a sample's outputs in dB, within 100; needs no labels."""
    _refuse_ids(logits(fp32_outputs), "sqnr_db")
    wanted, got = (logits(one).double().unsqueeze(-1).flatten(1) for one in (fp32_outputs, outputs))
    noise = (wanted - got).square().sum(1)
    ratio = 10 * torch.log10(wanted.square().sum(1) / noise).clamp(-10, 10)
    return torch.where(noise == 0, 100.0, ratio)


def _of_classes(name: str, scores: ClassScores) -> Metric:
    """Return the metric of classes with this name, whose scores are read in one way."""
    functions = {
        "accuracy": scores.accuracy,
        "top5_accuracy": scores.top5_accuracy,
        "agreement": scores.agreement,
    }

    def fit(outputs: Sequence[Any], targets: Sequence[Any]) -> Metric:
        return _of_classes(name, scores.fitted(outputs, targets))

    counts = None if name == "agreement" else scores.counts
    return Metric(name, True, functions[name], counts=counts, takes_mask=True, fit=fit)


METRICS: dict[str, Metric] = {
    "accuracy": _of_classes("accuracy", ClassScores()),
    "top5_accuracy": _of_classes("top5_accuracy", ClassScores()),
    "mean_squared_error": Metric("mean_squared_error", False, mean_squared_error, takes_mask=True),
    "agreement": _of_classes("agreement", ClassScores()),
    "sqnr_db": Metric("sqnr_db", True, sqnr_db),
}


def load_metric(
    gate: Gate, trust: tuple[str, ...] = (), ignore_index: int | None = None, live: Live | None = None
) -> Metric:
    """Return the gate's metric: by name, made by a `package.module:function`, or of a live object.

    A factory returns a function like those here (then `gate.direction` says which way is better), or an object with
    `update` and `compute`, as torchmetrics' classes are.

    Args:
        gate: what the recipe says of it.
        trust: packages that a factory may come from.
        ignore_index: `data.ignore_index`.
        live: what a factory would return; None where the recipe names it.

    Raises:
        DataError: the factory returns something else, or nothing says which direction is better.
        RecipeError: the factory is not trusted or not there, or a metric of ours does not take these arguments.
    """
    if gate.metric in METRICS:
        metric = _ours(gate, ignore_index)
    else:
        metric = _made(gate, _maker(gate, trust) if live is None else fresh(live.value))
    higher = metric.higher_is_better if gate.direction == "auto" else _higher(gate)
    check_direction(gate, higher)
    called = gate.metric if live is None else f"{type(live.value).__module__}:{live.name}"
    return _renamed(metric, gate.label or metric_name(called, gate.metric_kwargs), higher)


def _renamed(metric: Metric, name: str, higher: bool) -> Metric:
    """Return the metric under another name and with another direction, which it keeps when it is fitted."""
    fit = metric.fit
    again: Fit | None = None if fit is None else lambda *looks: _renamed(fit(*looks), name, higher)
    return replace(metric, name=name, higher_is_better=higher, fit=again)


def _ours(gate: Gate, ignore_index: int | None) -> Metric:
    mistakes = list(metric_kwargs_mistakes(gate.metric, gate.metric_kwargs))
    if mistakes:
        raise RecipeError(mistakes)
    if METRICS[gate.metric].fit is None:
        return METRICS[gate.metric]
    return _of_classes(gate.metric, ClassScores(Reading(**gate.metric_kwargs), ignore_index))


def _maker(gate: Gate, trust: tuple[str, ...]) -> Callable[[], Any]:
    """Return what calls the factory that a gate names."""
    path, kwargs_path = "gate.metric", "gate.metric_kwargs"
    factory = load_factory(gate.metric, trust, path, "metric", gate.metric_kwargs, kwargs_path)
    return lambda: call(factory, gate.metric_kwargs, kwargs_path, path, gate.metric)


def _made(gate: Gate, make: Callable[[], Any]) -> Metric:
    made = make()
    if hasattr(made, "update") and hasattr(made, "compute"):
        higher = getattr(made, "higher_is_better", None) if gate.direction == "auto" else _higher(gate)
        if higher is None:
            raise DataError(_no_direction(gate))
        return _whole(gate.metric, bool(higher), make, arguments_of(made))
    if not callable(made):
        message = (
            f"gate.metric: {gate.metric} is a {type(made).__name__}; it has to be a function "
            "(outputs, target, fp32_outputs) -> one score per sample, or a torchmetrics metric"
        )
        raise DataError(message)
    if gate.direction == "auto":
        raise DataError(_no_direction(gate))
    return Metric(gate.metric, _higher(gate), per_sample=_told(gate.metric, made))


def _whole(name: str, higher: bool, make: Callable[[], Any], arguments: Arguments) -> Metric:
    """Return a metric over all samples; what is open about its scores is settled by FP32's."""

    def fit(outputs: Sequence[Any], targets: Sequence[Any]) -> Metric:
        return _whole(name, higher, make, arguments.fitted(outputs, targets))

    return Metric(name, higher, make_whole=make, arguments=arguments, fit=fit if arguments.squash else None)


def _told(name: str, function: PerSample) -> PerSample:
    """Return a function of the user's that tells in a sentence where it fails."""

    compares = takes_fp32(function)

    @functools.wraps(function)
    def scores(outputs: Any, target: Any, fp32_outputs: Any) -> Tensor:
        with users_code(f"gate.metric: {name}, given the model's outputs and the data's targets"):
            return function(outputs, target, fp32_outputs) if compares else function(outputs, target)

    return scores


def takes_fp32(function: Callable[..., Any]) -> bool:
    """Tell whether a metric's third argument is for FP32's outputs; true where it does not tell its arguments.

    One with a default is an option of the metric's own, unless it is called after FP32.
    """
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return True
    every = list(signature.parameters.values())
    placed = [one for one in every if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(placed) < 3:
        return any(one.kind is one.VAR_POSITIONAL for one in every)
    return placed[2].default is placed[2].empty or placed[2].name.startswith("fp32")


def _higher(gate: Gate) -> bool:
    return gate.direction == "higher"


def _no_direction(gate: Gate) -> str:
    return f"gate.direction: nothing says whether a higher {gate.metric} is better; write higher or lower"
