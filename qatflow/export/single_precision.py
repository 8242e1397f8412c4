"""A graph in double precision, made to compute in single: ONNX's and PyTorch's quantize ops know no doubles.

Inputs and outputs keep their type, with a cast behind and before them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.layers import set_tensor
from qatflow.graph.tree import tree_map

aten = torch.ops.aten


def in_single_precision(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Let a graph compute in float32 what it computed in float64, in place.

    Returns:
        The casts behind inputs, by the input's name: what reads the input reads them.
    """
    for name, value in graph.state_dict().items():
        if value.dtype is torch.float64:
            set_tensor(graph, name, value.float())
    casts: dict[str, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            node.args, node.kwargs = tree_map(_single, (node.args, node.kwargs))
        elif node.op == "placeholder" and _is_double(node):
            casts[node.name] = _cast_input(graph, node)
        elif node.op == "output":
            node.args = tree_map(lambda leaf: _cast_output(graph, leaf), node.args)
    return casts


def _single(argument: Any) -> Any:
    return torch.float32 if argument is torch.float64 else argument


def _is_double(leaf: object) -> bool:
    value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.float64


def _cast_input(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    last = node
    while last.next.op == "placeholder":
        last = last.next
    with graph.graph.inserting_after(last):
        cast = graph.graph.create_node("call_function", aten._to_copy.default, (node,), {"dtype": torch.float32})
    node.replace_all_uses_with(cast, lambda reader: reader is not cast)
    return cast


def _cast_output(graph: fx.GraphModule, leaf: Any) -> Any:
    if not _is_double(leaf):
        return leaf
    with graph.graph.inserting_before(next(node for node in graph.graph.nodes if node.op == "output")):
        return graph.graph.create_node("call_function", aten._to_copy.default, (leaf,), {"dtype": torch.float64})
