"""Let a quantizer do the work of the ReLU or clip before it, and use memory that nobody else reads.

Rounding is monotone, so clipping first is the same as a narrower grid: `round(clamp(x, a, b) / s)` is
`clamp(round(x / s), round(a / s), round(b / s))`. A simulation then costs no more passes over memory than the float
model. Where gradients are wanted the quantizer clips as the op did.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from qatflow.graph.layers import tensor
from qatflow.graph.ops import WEIGHTED, clip_bounds, kind
from qatflow.graph.surgery import sole_user

FRESH = WEIGHTED | {"add", "sub", "mul", "matmul", "concat", "avg_pool", "batch_norm", "relu", "clip", "minimum"}
"""Kinds whose result shares no memory with an input."""


def absorb_clip(graph: fx.GraphModule, quantizer: fx.Node) -> None:
    """Move the ReLU, clip, or ReLU and minimum that a quantizer alone reads into the quantizer's call."""
    source = _source(quantizer)
    if _alone(source, quantizer):
        before = source.args[0] if source.args else None
        if kind(source) == "relu":
            _take_over(graph, quantizer, [source], (0.0, math.inf))
        elif kind(source) == "clip" and all(isinstance(one, (int, float)) for one in _bounds(source)):
            _take_over(graph, quantizer, [source], clip_bounds(source))
        elif kind(source) == "minimum" and isinstance(before, fx.Node) and kind(before) == "relu":
            bound = source.args[1]
            if _alone(before, source) and _is_positive(graph, bound):
                _take_over(graph, quantizer, [source, before], (0.0, bound))
    _mark(quantizer)


def _bounds(node: fx.Node) -> list[Any]:
    return [one for one in (*node.args[1:], *node.kwargs.values()) if one is not None]


def _is_positive(graph: fx.GraphModule, bound: Any) -> bool:
    if not isinstance(bound, fx.Node) or bound.op != "get_attr":
        return False
    return bool((tensor(graph, str(bound.target)) > 0).all())


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _alone(node: fx.Node, reader: fx.Node) -> bool:
    return sole_user(node) is reader and len(node.users) == 1


def _take_over(graph: fx.GraphModule, quantizer: fx.Node, ops: list[fx.Node], clip: tuple[float, Any]) -> None:
    quantizer.args = (_source(ops[-1]),)
    quantizer.kwargs = {"clip": clip}
    for op in ops:
        graph.graph.erase_node(op)


def _mark(quantizer: fx.Node) -> None:
    """Allow the quantizer to overwrite what it reads, where that is fresh and nobody else reads it."""
    source = _source(quantizer)
    if kind(source) in FRESH and len(source.users) == 1:
        quantizer.kwargs = {**quantizer.kwargs, "overwrite": True}
