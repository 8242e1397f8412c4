"""Quantize and dequantize as PyTorch's own ops, `quantized_decomposed`, which its exporters and ExecuTorch know."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the ops
from torch import fx

from qatflow.export.quantized_graph import Stored
from qatflow.graph.surgery import buffer_node

OPS = torch.ops.quantized_decomposed


class TorchForm:
    """Calls of `quantize_per_tensor`, `dequantize_per_tensor` and `dequantize_per_channel`."""

    def quantize(self, graph: fx.GraphModule, source: fx.Node, stored: Stored) -> fx.Node:
        """Add the call that turns `source` into integers."""
        args = (source, stored.scales[0], stored.zero_points[0], stored.low, stored.high, stored.dtype)
        name = f"{stored.name}_quantized"
        return graph.graph.create_node("call_function", OPS.quantize_per_tensor.default, args, name=name)

    def dequantize(self, graph: fx.GraphModule, source: fx.Node, stored: Stored) -> fx.Node:
        """Add the call that turns the integers `source` into floats."""
        limits = (stored.low, stored.high, stored.dtype)
        name = f"{stored.name}_dequantized"
        if stored.encoding.axis is None:
            grid = (source, stored.scales[0], stored.zero_points[0], *limits)
            return graph.graph.create_node("call_function", OPS.dequantize_per_tensor.default, grid, name=name)
        zero_points = torch.tensor(stored.zero_points)
        scales_node = buffer_node(graph, f"{stored.name}_scale", stored.encoding.scale.float(), before=source)
        zero_points_node = buffer_node(graph, f"{stored.name}_zero_point", zero_points, before=source)
        args = (source, scales_node, zero_points_node, stored.encoding.axis, *limits)
        return graph.graph.create_node("call_function", OPS.dequantize_per_channel.default, args, name=name)
