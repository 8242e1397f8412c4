"""Quantize and dequantize as calls that `torch.onnx.export` passes through untouched.

Real QuantizeLinear and DequantizeLinear nodes would be in the exporter's way: its optimizer would compute dequantized
weights, and the types of 16 and 4 bits need a newer opset than its translations have. So the exporter sees ops of a
domain of ours, which `qatflow.export.onnx_qdq` replaces afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.export.quantized_graph import Stored

DOMAIN = "qatflow"


def _symbolic(op: str, x: Tensor, dtype: torch.dtype, attributes: dict[str, Any]) -> Tensor:
    result = torch.onnx.ops.symbolic(f"{DOMAIN}::{op}", (x,), attributes, dtype=dtype, shape=x.shape, version=1)
    assert isinstance(result, Tensor)
    return result


def quantize(x: Tensor, dtype: torch.dtype, attributes: dict[str, Any]) -> Tensor:
    """Stand for QuantizeLinear."""
    return _symbolic("Quantize", x, dtype, attributes)


def dequantize(x: Tensor, attributes: dict[str, Any]) -> Tensor:
    """Stand for DequantizeLinear."""
    return _symbolic("Dequantize", x, torch.float32, attributes)


def tensor(x: Tensor, name: str) -> Tensor:
    """Stand for a tensor that is to be known by its name in the file, and computes nothing."""
    return _symbolic("Tensor", x, x.dtype, {"name": name})


class OnnxForm:
    """Calls of the two functions above."""

    def quantize(self, graph: fx.GraphModule, source: fx.Node, stored: Stored) -> fx.Node:
        """Add the call that turns `source` into integers."""
        return graph.graph.create_node(
            "call_function", quantize, (source, stored.dtype, _attributes(stored)), name=f"{stored.name}_quantized"
        )

    def dequantize(self, graph: fx.GraphModule, source: fx.Node, stored: Stored) -> fx.Node:
        """Add the call that turns the integers `source` into floats."""
        return graph.graph.create_node(
            "call_function", dequantize, (source, _attributes(stored)), name=f"{stored.name}_dequantized"
        )


def keep_names(graph: fx.GraphModule, names: Iterable[str]) -> fx.GraphModule:
    """Mark tensors, so that the file knows them by their names in the graph; in place."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for name in names:
        node = nodes[name]
        with graph.graph.inserting_after(node):
            marked = graph.graph.create_node("call_function", tensor, (node, name))
        node.replace_all_uses_with(marked, lambda reader, marked=marked: reader is not marked)
    graph.recompile()
    return graph


def _attributes(stored: Stored) -> dict[str, Any]:
    axis = stored.encoding.axis
    return {
        "name": stored.name,
        "scale": stored.scales,
        "zero_point": stored.zero_points,
        "per_channel": int(axis is not None),
        "axis": axis or 0,
        "low": stored.low,
        "high": stored.high,
        "bits": stored.encoding.grid.bits,
        "signed": int(stored.signed),
    }
