"""How a softmax behind a tensor sees it: along which dimension, and how far below a row's largest value it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.ops import argument, kind, scores_of

REACH = 20.0
"""How far below a row's largest score another one still counts: `exp(-20)` is 2e-9."""
BIAS_REACH = 80.0
"""How much further a score still counts to which something is yet to be added, which may hide the row's largest."""
PASSED = frozenset(
    {"softmax", "identity", "cast", "scale", "reshape", "transpose", "maximum", "clip", "attention_bias"}
)
aten = torch.ops.aten


@dataclass(frozen=True)
class SoftmaxView:
    """The dimension that the softmax sums over, counted from the end, and the reach in the tensor's own unit."""

    dim: int
    reach: float

    def clamp(self, scores: Tensor) -> Tensor:
        """Raise what the softmax cannot tell from minus infinity: masks."""
        return torch.maximum(scores, scores.amax(self.dim, keepdim=True) - self.reach)


def softmax_view(node: fx.Node) -> SoftmaxView | None:
    """Return how the softmaxes behind a tensor see it; None where something else reads it, or they differ."""
    views = {_through(reader, node) for reader in node.users}
    return views.pop() if len(views) == 1 else None


def _through(reader: fx.Node, node: fx.Node) -> SoftmaxView | None:
    """Return how the softmaxes behind one reader see what it reads."""
    recorded = node.meta.get("val")
    known = kind(reader)
    if not isinstance(recorded, Tensor) or known not in PASSED:
        return None
    rank = recorded.dim()
    if known == "softmax":
        return SoftmaxView(int(argument(reader, 1, "dim")) % rank - rank, REACH)
    behind = softmax_view(reader)
    if behind is None or known in ("identity", "cast", "maximum", "clip"):
        return behind
    if known == "attention_bias":
        return SoftmaxView(behind.dim, behind.reach + BIAS_REACH) if node is scores_of(reader) else None
    if known == "scale":
        factor = _factor(reader)
        return None if factor is None else SoftmaxView(behind.dim, behind.reach / factor)
    if known == "transpose":
        order = _order(reader, rank)
        return None if order is None else SoftmaxView(order[behind.dim] - rank, behind.reach)
    rows, kept = recorded.shape[-1], reader.meta["val"].shape[-1]
    return behind if behind.dim == -1 and str(rows) == str(kept) else None


def _factor(node: fx.Node) -> float | None:
    """Return the positive number that a node multiplies by; None where it is not one."""
    numbers: list[Any] = [one for one in node.args[:2] if isinstance(one, (int, float))]
    if node.target is aten.mul.Tensor and numbers and numbers[0] > 0:
        return float(numbers[0])
    if node.target is aten.div.Tensor and isinstance(node.args[0], fx.Node) and numbers and numbers[0] > 0:
        return 1 / float(numbers[0])
    return None


def _order(node: fx.Node, rank: int) -> list[int] | None:
    """Return which dimension of its input each dimension of a transposed tensor is."""
    if node.target is aten.permute.default:
        dims = argument(node, 1, "dims")
        return [int(dim) % rank for dim in dims]
    if node.target in (aten.transpose.int, aten.swapaxes.default):
        dims = [argument(node, place, name) for place, name in ((1, "dim0"), (2, "dim1"))]
        first, second = (int(dim) % rank for dim in dims)
        order = list(range(rank))
        order[first], order[second] = second, first
        return order
    return None
