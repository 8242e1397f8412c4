"""Which layers of an ONNX file run on integers, and why not the others: what all runtimes of such files have in common.

The answer comes from what the runtime made of the file, not from rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from qatflow.export.loaded import LayerKernel

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MOVING = frozenset({"Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops that only move values."""


def layer_kernels(
    path: Path, kernels: Mapping[str, str], is_integer: Callable[[str], bool], reason: Callable[[ir.Node], str]
) -> list[LayerKernel]:
    """Return how every convolution and product of a file runs.

    Args:
        path: the file.
        kernels: what the runtime runs, by the name of a node of the file.
        is_integer: tells whether that is an integer kernel.
        reason: says why a node whose operands are bytes is none.
    """
    found = []
    for node in read_nodes(path):
        if node.op_type not in LAYERS:
            continue
        kernel = kernels.get(node.name or "", "")
        integer = is_integer(kernel)
        why = "" if integer else operand_reason(node) or reason(node)
        found.append(LayerKernel(node.name or "", node.op_type, kernel, integer, why))
    return found


def read_nodes(path: Path) -> list[ir.Node]:
    """Return the nodes of a file."""
    return list(ir.load(path).graph)


def giver(value: ir.Value | None) -> ir.Node | None:
    """Return the node that gives a tensor's values; those that only move them are passed over."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def operand_reason(node: ir.Node) -> str:
    """Say what of a layer's operands keeps it from integer kernels; empty where both are bytes."""
    inputs = [giver(value) for value in node.inputs[:2]]
    for what, source in zip(("input", "weight"), inputs, strict=True):
        if source is not None and source.op_type == "Clip" and (source.name or "").endswith("_clip"):
            return f"its {what} has fewer than 8 bits, which no integer kernel takes"
        if source is None or source.op_type != "DequantizeLinear":
            return f"its {what} is not quantized"
    types = {value.dtype for source in inputs if source is not None for value in source.inputs[:1] if value is not None}
    other = types - {ir.DataType.INT8, ir.DataType.UINT8}
    return f"{', '.join(sorted(str(one) for one in other))} has no integer kernel there" if other else ""
