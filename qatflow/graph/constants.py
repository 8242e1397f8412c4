"""What a graph computes from parameters alone, whatever its inputs are.

Weight-standardised convolutions, weight norm and slices of a joint projection compute the weight of a layer. On a
device that is a constant, and only a stored weight can be folded, equalized and rounded: such a weight, and a computed
bias, becomes a parameter of its own. The function is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.layers import set_tensor, tensor
from qatflow.graph.ops import WEIGHTED, argument, kind, module_path
from qatflow.graph.surgery import finish

OPERANDS = {"weight": 1, "bias": 2}
"""Operands of a weighted layer that may be computed, by name and position."""

aten = torch.ops.aten
LOOKS_AT_SHAPES = frozenset(
    {
        aten.sym_size.int,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
    }
)
"""Ops that take only the shape and type of a tensor."""


def constant_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that depend on no input of the graph, neither on its values nor on its shape."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and all(s in found for s in node.all_input_nodes)):
            found.add(node)
    return found


def shape_only_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that depend on no value of an input, though they may depend on its shape: masks, positions."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        free = node.op == "call_function" and (
            node.target in LOOKS_AT_SHAPES or all(source in found for source in node.all_input_nodes)
        )
        if node.op == "get_attr" or free:
            found.add(node)
    return found


def store_computed_weights(graph: fx.GraphModule) -> int:
    """Give every layer whose weight or bias is computed from parameters a parameter `<layer>.effective_weight`.

    The graph is changed; returns how many parameters were made.
    """
    constant = constant_nodes(graph)
    values = _Values(graph)
    count = 0
    for node in list(graph.graph.nodes):
        if kind(node) not in WEIGHTED | {"matmul"} or node in constant:
            continue
        for name, position in OPERANDS.items() if kind(node) in WEIGHTED else [("weight", 1)]:
            operand = argument(node, position, name)
            if isinstance(operand, fx.Node) and operand.op != "get_attr" and operand in constant:
                stored = f"{module_path(node) or node.name}.effective_{name}"
                node.replace_input_with(operand, _parameter(graph, operand, stored, values.of(operand)))
                count += 1
    if count:
        finish(graph)
    return count


def _parameter(graph: fx.GraphModule, operand: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Return a node that reads a new parameter called `name`, or `name` with a number where that is taken."""
    taken = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    free = next(one for one in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if one not in taken)
    set_tensor(graph, free, value)
    with graph.graph.inserting_after(operand):
        node = graph.graph.get_attr(free)
    node.meta["val"] = operand.meta.get("val")
    return node


class _Values:
    """Values of constant nodes, computed when they are asked for."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._known: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        if node not in self._known:
            if node.op == "get_attr":
                self._known[node] = tensor(self._graph, str(node.target)).detach()
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), self.of)
                with torch.no_grad():
                    self._known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._known[node]
