"""A metric that is no mean of samples, with what it is without one group of samples after the other.

F1, mean intersection over union, mean average precision or RMSE have no score per sample to compare in pairs. Leaving
out groups of samples shows how much they depend on which samples there were: the grouped jackknife (Tukey 1958; Shao
and Tu 1995, chapter 1). Samples go to groups by their running number, so that every model has the same groups.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qatflow.errors import DataError
from qatflow.graph.tree import tree_leaves, tree_map

GROUPS = 20
"""Student's t with 19 degrees of freedom is hardly wider than the normal distribution."""
DICT_VALUE = "map"
"""What counts of the mapping that torchmetrics' MeanAveragePrecision computes."""
REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a metric raises that can take whole batches only, or cannot be merged."""


class Replicated:
    """One value over all samples, and one without each group of them.

    Every group has a metric of its own, and those of all groups but one are merged, where the metric can be merged as
    torchmetrics' can; else every replicate is a metric that is given all samples but those of its group.

    Args:
        make_whole: returns a fresh object with `update(outputs, target)` and `compute()`.
        groups: how many; 0 gives the value alone.
    """

    def __init__(self, make_whole: Callable[[], Any], groups: int = GROUPS) -> None:
        self.make_whole = make_whole
        self.groups = groups
        self.samples = 0
        self._whole = make_whole()
        self._merged = False
        self._parts: list[Any] | None = [] if groups > 1 else None

    def update(self, outputs: Any, target: Any, size: int) -> None:
        """Add a batch.

        Args:
            outputs: trees of tensors with the samples first, or lists of one entry a sample; as the metric takes them.
            target: likewise.
            size: how many samples it has.
        """
        self._whole.update(outputs, target)
        group = torch.arange(self.samples, self.samples + size) % max(self.groups, 1)
        self.samples += size
        if self._parts is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the metric of all samples has warned already
                self._update_parts(self._parts, outputs, target, group)
        except REFUSALS:
            self._parts = None  # there is a value all the same

    def _update_parts(self, parts: list[Any], outputs: Any, target: Any, group: Tensor) -> None:
        if not parts:
            self._merged = _can_be_merged(self.make_whole, outputs, target)
            parts += [self.make_whole() for _ in range(self.groups)]
        for number, part in enumerate(parts):
            chosen = group == number if self._merged else group != number
            if chosen.any():
                part.update(_taken(outputs, chosen), _taken(target, chosen))

    def result(self) -> tuple[float, npt.NDArray[np.float64] | None]:
        """Return the value over all samples, and the replicates, shape `[groups]`.

        There are as many groups as samples where those are fewer. The replicates are None where there are not two, or
        where the metric cannot take a batch apart.

        Raises:
            DataError: the metric computes more than one number.
        """
        value = single(self._whole.compute())
        groups = min(self.groups, self.samples)
        if self._parts is None or groups < 2:
            return value, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return value, np.array([single(self._without(group, groups).compute()) for group in range(groups)])
        except REFUSALS:
            return value, None

    def _without(self, group: int, groups: int) -> Any:
        """Return a metric of all samples but those of one group."""
        assert self._parts is not None
        if not self._merged:
            return self._parts[group]
        return _merge(self.make_whole(), [self._parts[other] for other in range(groups) if other != group])


def single(computed: Any) -> float:
    """Return the one number that a metric computed; of a mapping, its only one or `map`.

    Raises:
        DataError: there are several.
    """
    if isinstance(computed, Mapping):
        key = next(iter(computed)) if len(computed) == 1 else DICT_VALUE
        if key not in computed:
            message = f"gate.metric: it computes {', '.join(map(str, computed))}; return a metric of one of them"
            raise DataError(message)
        computed = computed[key]
    values = torch.as_tensor(computed)
    if values.numel() != 1:
        message = f"gate.metric: it computes {values.numel()} numbers and the gate takes one; average them, for "
        raise DataError(message + "instance with gate.metric_kwargs.average=macro")
    return float(values)


def _can_be_merged(make_whole: Callable[[], Any], outputs: Any, target: Any) -> bool:
    """Tell whether a metric that is merged of two is what it is of all their samples."""
    if not hasattr(make_whole(), "merge_state"):
        return False
    one, other, both = make_whole(), make_whole(), make_whole()
    for metric in (one, other, both, both):
        metric.update(outputs, target)
    try:
        wanted, got = (single(metric.compute()) for metric in (both, _merge(make_whole(), [one, other])))
    except REFUSALS:
        return False
    return math.isclose(wanted, got, rel_tol=1e-5, abs_tol=1e-7) or (math.isnan(wanted) and math.isnan(got))


def _merge(fresh: Any, parts: list[Any]) -> Any:
    for part in parts:
        fresh.merge_state(part)
    return fresh


def _taken(value: Any, chosen: Tensor) -> Any:
    """Return the chosen samples of a batch; `chosen` has a truth value for each.

    Raises:
        ValueError: it cannot be taken apart.
    """
    rows, size = chosen.nonzero().flatten(), len(chosen)
    per_sample = isinstance(value, (list, tuple)) and len(value) == size
    leaves = [leaf for leaf in tree_leaves(value) if leaf is not None]
    if per_sample and (not _samples_first(leaves, size) or all(isinstance(one, Mapping) for one in value)):
        return [value[row] for row in rows.tolist()]
    if not _samples_first(leaves, size):
        raise ValueError("neither tensors with the samples first nor a list of samples")
    return tree_map(lambda leaf: leaf if leaf is None else leaf[rows], value)


def _samples_first(leaves: list[Any], size: int) -> bool:
    return all(len(getattr(leaf, "shape", ())) > 0 and leaf.shape[0] == size for leaf in leaves)
