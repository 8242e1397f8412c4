"""Tell whether two functions that should be the same agree to float rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.outputs import output_parts
from qatflow.graph.tree import tree_leaves


def close(wanted: Tensor, got: Tensor, tolerance: float) -> bool:
    """Tell whether no value is further off than `tolerance` times the largest finite magnitude of `wanted`.

    Both are floats. Infinities and NaN must be equal in place; they are no measure of how large a difference may be.
    Tensors of different shapes are not close.
    """
    if wanted.shape != got.shape:
        return False
    wanted, got = wanted.detach().double(), got.detach().double()
    finite = wanted.isfinite()
    if not torch.allclose(wanted[~finite], got[~finite], equal_nan=True):
        return False
    wanted, got = wanted[finite], got[finite]
    reach = max(float(wanted.abs().max()), 1e-12) if wanted.numel() else 0.0
    return bool(((wanted - got).abs() <= tolerance * reach).all())


def outputs_close(graph: fx.GraphModule, wanted: Any, got: Any, tolerance: float, equal: float = 1.0) -> bool:
    """Tell whether two outputs of a graph are close, every part of the float ones by itself.

    Args:
        graph: what returned one of them.
        wanted: as it returns them.
        got: likewise.
        tolerance: see `close`.
        equal: share of an output's whole numbers that must be equal: where two scores are, rounding may decide.
    """
    pairs = list(zip(tree_leaves(wanted), tree_leaves(got), strict=True))
    if any(one.shape != other.shape for one, other in pairs if isinstance(one, Tensor)):
        return False
    parts = output_parts(graph)
    cut = [(one[part.index], other[part.index]) for part in parts for one, other in (pairs[part.leaf],)]
    floats = {part.leaf for part in parts}
    rest = [pair for place, pair in enumerate(pairs) if place not in floats and isinstance(pair[0], Tensor)]
    same = all(int((one == other).sum()) >= equal * one.numel() for one, other in rest)
    return same and all(close(*pair, tolerance) for pair in cut)
