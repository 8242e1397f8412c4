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

FRESH = WEIGHTED | {"add", "sub", "mul", "matmul", "concat", "avg_pool", "batch_norm", "clip", "minimum"}
"""Kinds whose result shares no memory with an input, and is not kept for their own gradient."""


def absorb_clip(graph: fx.GraphModule, quantizer: fx.Node) -> None:
    """Move the ReLU or clip, and a minimum behind it, that a quantizer alone reads into the quantizer's call."""
    source = _source(quantizer)
    if _alone(source, quantizer):
        before = source.args[0] if source.args else None
        if (limits := _limits(source)) is not None:
            _take_over(graph, quantizer, [source], limits)
        elif kind(source) == "minimum" and isinstance(before, fx.Node) and _alone(before, source):
            limits = _limits(before)
            if limits is not None and _lies_between(graph, source.args[1], *limits):
                _take_over(graph, quantizer, [source, before], (limits[0], source.args[1]))
    _mark(quantizer)


def _limits(node: fx.Node) -> tuple[float, float] | None:
    """Return the bounds of a ReLU or clip; None for another op, and for bounds that are not numbers."""
    if kind(node) == "relu":
        return 0.0, math.inf
    if kind(node) != "clip":
        return None
    given = [one for one in (*node.args[1:], *node.kwargs.values()) if one is not None]
    return clip_bounds(node) if all(isinstance(one, (int, float)) for one in given) else None


def _lies_between(graph: fx.GraphModule, bound: Any, low: float, high: float) -> bool:
    """Tell whether a minimum's other operand is a parameter within the limits of the clip before it."""
    if not isinstance(bound, fx.Node) or bound.op != "get_attr":
        return False
    value = tensor(graph, str(bound.target))
    return bool(((value > low) & (value <= high)).all())


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
