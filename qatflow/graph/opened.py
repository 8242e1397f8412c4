"""Ops that hide matrix products, opened up into them.

A runtime that computes attention on integers sees two products, a softmax between them, a scale and a mask. Opened up,
a quantizer can stand at each of them. The function is kept to float rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from qatflow.graph.ops import argument, kind
from qatflow.graph.surgery import bypass, call, finish

aten = torch.ops.aten


def open_attention(graph: fx.GraphModule) -> int:
    """Replace `scaled_dot_product_attention` by `softmax(q kᵀ scale + mask) v`; returns how many there were.

    Masked scores get the smallest number of their type (a row that is masked whole attends to everything equally,
    where torch gives zeros). The graph is changed. Attention that is causal or groups its heads is left as it is.
    """
    nodes = [node for node in graph.graph.nodes if kind(node) == "attention" and _is_plain(node)]
    for node in nodes:
        with graph.graph.inserting_before(node):
            opened = _attention(graph, node)
        bypass(graph, node, opened)
    if nodes:
        finish(graph)
    return len(nodes)


def _is_plain(node: fx.Node) -> bool:
    return not argument(node, 5, "is_causal", False) and not argument(node, 7, "enable_gqa", False)


def _attention(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node)
    mask, scale = argument(node, 3, "attn_mask"), argument(node, 6, "scale")
    recorded = query.meta["val"]

    def new(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, args, node)

    scores = new(aten.matmul.default, query, new(aten.transpose.int, key, -2, -1))
    scores = new(aten.mul.Tensor, scores, 1 / math.sqrt(recorded.shape[-1]) if scale is None else scale)
    if isinstance(mask, fx.Node):
        if mask.meta["val"].dtype == torch.bool:
            hidden = new(aten.logical_not.default, mask)
            scores = new(aten.masked_fill.Scalar, scores, hidden, torch.finfo(recorded.dtype).min)
        else:
            scores = new(aten.add.Tensor, scores, mask)
    weights = new(aten.softmax.int, scores, -1)
    return new(aten.matmul.default, weights, value)


def open_einsum(graph: fx.GraphModule) -> int:
    """Replace `einsum` of two operands by one matrix product; returns how many there were.

    Those that sum over one index, keep one of each operand's own and share the others are opened; the others are left
    as they are. The graph is changed.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.einsum.default or len(node.args[1]) != 2:
            continue
        plan = _product_of(str(node.args[0]))
        if plan is None:
            continue
        with graph.graph.inserting_before(node):
            first, second = (
                call(graph, aten.permute.default, (x, order), node)
                for x, order in zip(node.args[1], plan[:2], strict=True)
            )
            product = call(graph, aten.matmul.default, (first, second), node)
            result = call(graph, aten.permute.default, (product, plan[2]), node)
        bypass(graph, node, result)
        count += 1
    if count:
        finish(graph)
    return count


def _product_of(equation: str) -> tuple[list[int], list[int], list[int]] | None:
    """Return how to permute both operands of a matrix product and its result; None where it is not one."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    a, _, b = left.partition(",")
    if not arrow or not (a + b + result).isalpha() or any(len(set(one)) != len(one) for one in (a, b, result)):
        return None
    batch = [one for one in result if one in a and one in b]
    rows, columns = ([one for one in result if one in own and one not in batch] for own in (a, b))
    summed = [one for one in a if one in b and one not in result]
    if (len(rows), len(columns), len(summed)) != (1, 1, 1) or not set(a + b) <= set(result + summed[0]):
        return None
    product = [*batch, *rows, *columns]
    return (
        [a.index(one) for one in [*batch, *rows, *summed]],
        [b.index(one) for one in [*batch, *summed, *columns]],
        [product.index(one) for one in result],
    )


def addmm_to_linear(graph: fx.GraphModule) -> int:
    """Replace `addmm(bias, x, weight)` with a weight that is a parameter by a linear layer; returns how many.

    The weight is transposed, which `store_computed_weights` makes a parameter of its own. The graph is changed.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs:
            continue
        bias, x, weight = node.args[:3]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        with graph.graph.inserting_before(node):
            turned = call(graph, aten.transpose.int, (weight, 0, 1), node)
            layer = call(graph, aten.linear.default, (x, turned, bias), node)
        bypass(graph, node, layer)
        count += 1
    if count:
        finish(graph)
    return count
