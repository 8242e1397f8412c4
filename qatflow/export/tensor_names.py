"""What a file calls the tensors of a graph.

Inputs and outputs are called as in the model's `forward`, everything else as in the captured graph: encodings, report
and file then speak of the same tensors. The exporter's own names would not do: it renames, and a captured `relu` may
become another tensor's name.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qatflow.export.signature import Signature
from qatflow.graph.tree import tree_leaves


def tensor_names(graph: fx.GraphModule, signature: Signature) -> dict[str, str]:
    """Return the name in a file of every tensor, by its name in the graph; parameters are called as in the state dict.

    Args:
        graph: the float network.
        signature: of the same model.
    """
    ends: dict[fx.Node, str] = {}
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder" and _is_tensor(node)]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    outputs = [leaf for leaf in tree_leaves(output.args[0]) if _is_tensor(leaf)]
    for node, name in (
        *zip(inputs, signature.inputs, strict=True),
        *zip(outputs, signature.outputs, strict=True),
    ):
        if node.meta["val"].dtype is not torch.float64:  # a file computes in single precision behind a cast
            ends.setdefault(node, name)
    taken = {*signature.inputs, *signature.outputs}
    return {
        node.name: ends.get(node, f"{name}_inside" if (name := _own_name(node)) in taken else name)
        for node in graph.graph.nodes
        if node.op != "output"
    }


def _own_name(node: fx.Node) -> str:
    return str(node.target) if node.op == "get_attr" else node.name


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)
