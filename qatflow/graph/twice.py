"""Run a batch twice at once, the second time with other values at padded positions: what differs stems from padding.

So no op needs to be known for how it treats positions. An element of any tensor, whatever was merged, split and
transposed before it, is one of real positions if padding does not change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.ops import WEIGHTED, kind
from qatflow.graph.tree import flat_inputs, tree_map

CHANGED = WEIGHTED | {"input", "embedding", "layer_norm", "rms_norm"}
"""Kinds whose results are changed at padded positions. A mask that a model multiplies with comes after them."""
ROUNDING = 1e-5
"""Differences that come of the order of sums, relative to a tensor's largest magnitude."""


def run_twice(graph: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], real: Tensor) -> Any:
    """Return what a graph gives for a batch and, behind it, for the same with other values at padded positions.

    Args:
        graph: captured, with or without quantizers.
        args: positional inputs, `[n, ...]` each.
        kwargs: keyword inputs, likewise.
        real: true where a position is real, shape `[n, T]`.
    """
    twice = tree_map(_twice, (tuple(args), dict(kwargs)))
    return _Changed(graph, real).run(*flat_inputs(graph, *twice), enable_io_processing=False)


def _twice(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() else leaf


def same(once: Tensor, again: Tensor) -> Tensor:
    """Return which elements of two halves are equal but for rounding, of those that are not finite as well; bool."""
    if once.numel() == 0:
        return torch.ones_like(once, dtype=torch.bool)
    reach = float(once.abs().max())
    if math.isfinite(reach):
        return (once - again).abs() <= ROUNDING * reach
    finite = once.isfinite()
    reach = float(once.where(finite, 0.0).abs().max())
    return ((once - again).abs() <= ROUNDING * reach) | (once == again) | ~(finite | again.isfinite())


class _Changed(fx.Interpreter):
    """Runs a graph on a doubled batch; in the second half, padded positions hold what real ones do."""

    def __init__(self, graph: fx.GraphModule, real: Tensor) -> None:
        super().__init__(graph)
        self.real = real
        places = torch.arange(real.shape[1], device=real.device)
        counts = real.sum(1, keepdim=True)
        ordered = torch.argsort(real.logical_not().long(), dim=1, stable=True)  # the real ones first
        self.source = torch.where(real, places, ordered.gather(1, places % counts))

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if kind(n) not in CHANGED or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        size, length = self.real.shape
        fits = [dim for dim in range(1, result.dim()) if result.shape[dim] == length]
        if not fits or result.dim() < 3 or len(result) != 2 * size:
            return result
        once, again = result.chunk(2)
        moved = again.movedim(fits[0], 1)
        samples = torch.arange(size, device=self.real.device)[:, None]
        return torch.cat([once, moved[samples, self.source].movedim(1, fits[0])])
