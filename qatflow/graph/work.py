"""How many multiply-accumulates every layer and product of a graph does for one sample."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from qatflow.graph.layers import weighted_layers
from qatflow.graph.observe import observe
from qatflow.graph.ops import kind

PRODUCTS = frozenset({"matmul", "attention"})
"""Kinds that multiply two activations."""


def multiply_accumulates(graph: fx.GraphModule, example: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, int]:
    """Return the multiply-accumulates of one sample, by the node that does them, in the order of the graph.

    Args:
        graph: the float graph.
        example: positional and keyword inputs, a batch.
    """
    layers = {layer.node: layer for layer in weighted_layers(graph)}
    working = [node for node in graph.graph.nodes if node in layers or kind(node) in PRODUCTS]
    operands = {source for node in working for source in node.all_input_nodes}
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    batch: list[int] = []

    def see(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node] = tuple(value.shape)
            if node.op == "placeholder" and value.dim() and not batch:
                batch.append(len(value))

    inputs = graph.graph.find_nodes(op="placeholder")
    observe(graph, {*working, *operands, *inputs}, [example], see)
    return {node.name: _of(node, shapes) // (batch[0] if batch else 1) for node in working}


def _of(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> int:
    first, second = (shapes[one] for one in node.args[:2])  # type: ignore[index]
    given = math.prod(shapes[node])
    match kind(node):
        case "conv":
            return given * math.prod(second[1:])
        case "conv_transpose":
            return math.prod(first) * math.prod(second[1:])
        case "attention":  # scores of every query with every key, and as many with the values
            value = shapes[node.args[2]]  # type: ignore[index]
            return math.prod(first[:-1]) * second[-2] * (first[-1] + value[-1])
        case _:
            return given * first[-1]
