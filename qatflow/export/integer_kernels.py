"""Will it fuse? Which layers of an exported file ONNX Runtime runs on integers, and why not the others.

The answer is read from the graph as the runtime has optimized it, not guessed from rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger"})
RENAMED = re.compile(r"(_token_\d+|_nhwc|_fused|_kernel)+$")
"""What the runtime appends to the name of a node that it replaces."""


@dataclass(frozen=True)
class LayerKernel:
    """How one layer runs.

    Attributes:
        layer: its name.
        op: the op in the file.
        kernel: the op in the optimized graph; empty where it is not found there.
        integer: whether that is an integer kernel.
        reason: why not; empty where it is.
    """

    layer: str
    op: str
    kernel: str
    integer: bool
    reason: str


def layer_kernels(path: Path, optimized: Path) -> list[LayerKernel]:
    """Return how every convolution and product of a file runs.

    Args:
        path: the file.
        optimized: what the runtime wrote of it.
    """
    kernels = {RENAMED.sub("", node.name or ""): node.op_type for node in _nodes(optimized)}
    found = []
    for node in _nodes(path):
        if node.op_type not in LAYERS:
            continue
        kernel = kernels.get(node.name or "", "")
        integer = kernel in INTEGER
        found.append(LayerKernel(node.name or "", node.op_type, kernel, integer, "" if integer else _reason(node)))
    return found


def kernel_counts(optimized: Path) -> dict[str, int]:
    """Return how often each op is in the optimized graph, the most frequent first."""
    counts: dict[str, int] = {}
    for node in _nodes(optimized):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _nodes(path: Path) -> list[ir.Node]:
    return list(ir.load(path).graph)


def _reason(node: ir.Node) -> str:
    """Say why a layer of the file has no integer kernel."""
    inputs = [None if value is None else value.producer() for value in node.inputs[:2]]
    for what, source in zip(("input", "weight"), inputs, strict=True):
        if source is not None and source.op_type == "Clip" and (source.name or "").endswith("_clip"):
            return f"its {what} has fewer than 8 bits, which no integer kernel takes"
        if source is None or source.op_type != "DequantizeLinear":
            return f"its {what} is not quantized"
    types = {value.dtype for source in inputs if source is not None for value in source.inputs[:1] if value is not None}
    if other := types - {ir.DataType.INT8, ir.DataType.UINT8}:
        return f"{', '.join(sorted(str(one) for one in other))} has no integer kernel in ONNX Runtime"
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no integer kernel for transposed convolutions"
    users = [use.node.op_type for use in node.outputs[0].uses()]
    if node.op_type == "Conv" and users != ["QuantizeLinear"]:
        return f"its result is not quantized right behind it, but read by {', '.join(sorted(set(users))) or 'nothing'}"
    return "ONNX Runtime did not choose one"
