"""Replace the marked calls of an exported model by QuantizeLinear and DequantizeLinear.

Scales and zero points become initializers, named after their tensor; zero points are always written, since ONNX
Runtime rewrites some graphs only where they are. Integers that are held in a wider type than they need (3-bit
activations in a byte) are clipped behind DequantizeLinear, since QuantizeLinear uses the whole byte; before it a Clip
would let ONNX Runtime round the biases of such layers to a grid that is much too coarse.

A tensor that has no op of its own in the file (a `contiguous`, a slice of all) leaves two pairs on one grid behind each
other; the second is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qatflow.export.onnx_form import DOMAIN

CLIP = "_clip"


@dataclass(frozen=True)
class _Marked:
    """The attributes of a marked call."""

    name: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    per_channel: int
    axis: int
    low: int
    high: int
    bits: int
    signed: int

    @staticmethod
    def of(node: ir.Node) -> _Marked:
        return _Marked(**{name: node.attributes[name].value for name in _Marked.__dataclass_fields__})


def insert_qdq(model: ir.Model, names: Mapping[str, str], *, packed: bool) -> None:
    """Replace every marked call of `model`, in place, and call the marked tensors by their names.

    Args:
        model: as `torch.onnx.export` gave it.
        names: of tensors in the file, by their names in the graph.
        packed: hold weights of up to 4 bits as INT4, two to a byte, instead of in bytes.
    """
    tensors: list[tuple[ir.Node, str]] = []
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        name = node.attributes["name"].as_string()
        if node.op_type == "Tensor":
            tensors.append((node, name))
            continue
        marked = _Marked.of(node)
        new = _quantize(model.graph, node, marked) if node.op_type == "Quantize" else None
        if new is not None:
            tensors.append((new, name))
        new = new or _dequantize(model.graph, node, marked, packed)
        _put(model.graph, new, node)
    _call_by_name(model.graph, [(node, names[name]) for node, name in tensors if not _drop_if_second(node)])
    for node, _ in tensors:
        if node.op_type == "Tensor":
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0], replace_graph_outputs=True)  # type: ignore[arg-type]
            model.graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)


def _put(graph: ir.Graph, new: ir.Node, node: ir.Node) -> None:
    """Put a node into another one's place."""
    new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(node.outputs[0], new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _drop_if_second(node: ir.Node) -> bool:
    """Drop a pair that stands behind another one on the same grid; tells whether it did."""
    first = given_by(node.inputs[0])
    if node.op_type != "QuantizeLinear" or first is None or not same_grid(first, node):
        return False
    ends = [end for use in node.outputs[0].uses() if (end := clipped(use.node)) is not None]
    for end in ends:
        ir.convenience.replace_all_uses_with(end.outputs[0], node.inputs[0], replace_graph_outputs=True)  # type: ignore[arg-type]
    return True


def given_by(value: ir.Value | None) -> ir.Node | None:
    """Return the QuantizeLinear of the pair that an activation comes out of; None where it comes out of none."""
    node = None if value is None else value.producer()
    if node is not None and is_clip(node):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    source = node.inputs[0].producer()
    return source if source is not None and source.op_type == "QuantizeLinear" else None


def clipped(node: ir.Node) -> ir.Node | None:
    """Return the last node of the pair that a DequantizeLinear belongs to: itself, or the Clip behind it."""
    if node.op_type != "DequantizeLinear":
        return None
    readers = [use.node for use in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and is_clip(readers[0]) else node


def is_clip(node: ir.Node) -> bool:
    """Tell whether a node keeps integers of few bits within their grid."""
    return node.op_type == "Clip" and (node.name or "").endswith(CLIP)


def same_grid(one: ir.Node, other: ir.Node) -> bool:
    """Tell whether two nodes quantize, or dequantize, on the same grid."""
    pairs = list(zip(one.inputs[1:], other.inputs[1:], strict=True))
    return all(
        a is not None
        and b is not None
        and a.const_value is not None
        and b.const_value is not None
        and a.dtype == b.dtype
        and np.array_equal(a.const_value.numpy(), b.const_value.numpy())
        for a, b in pairs
    )


def _call_by_name(graph: ir.Graph, tensors: list[tuple[ir.Node, str]]) -> None:
    """Name what each node reads; a name that another tensor has already is taken from it."""
    owners: dict[ir.Value, str] = {}
    for node, name in tensors:
        value = node.inputs[0]
        if value is not None and not (node.op_type == "Tensor" and given_by(value) is not None):
            owners.setdefault(value, name)
    taken = set(owners.values())
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value in owners:
            value.name = owners[value]
        elif value.name in taken:
            value.name = f"{value.name}_inside"


def _quantize(graph: ir.Graph, node: ir.Node, marked: _Marked) -> ir.Node:
    dtype = node.outputs[0].dtype
    assert dtype is not None
    grid = _grid(graph, marked, dtype)
    new = ir.node("QuantizeLinear", [node.inputs[0], *grid], name=f"{marked.name}_QuantizeLinear")
    new.outputs[0].name = f"{marked.name}_quantized"
    return new


def _dequantize(graph: ir.Graph, node: ir.Node, marked: _Marked, packed: bool) -> ir.Node:
    source = node.inputs[0]
    assert source is not None
    assert source.dtype is not None
    dtype, stored = source.dtype, source.is_initializer()
    if stored and packed and marked.bits <= 4 and marked.signed:
        dtype = ir.DataType.INT4
        integers = source.const_value.numpy().astype(ml_dtypes.int4)  # type: ignore[union-attr]
        source.const_value = ir.Tensor(integers, dtype=dtype, name=source.name)
        source.type = ir.TensorType(dtype)
    attributes = {"axis": marked.axis} if marked.per_channel else {}
    name, grid = f"{marked.name}_DequantizeLinear", _grid(graph, marked, dtype)
    new = ir.node("DequantizeLinear", [source, *grid], attributes, name=name)
    whole = np.iinfo(dtype.numpy()) if not stored else None
    if whole is None or (marked.low, marked.high) == (whole.min, whole.max):
        new.outputs[0].name = marked.name if stored else f"{marked.name}_dequantized"
        return new
    new.outputs[0].name = f"{marked.name}_wide"
    graph.insert_before(node, new)
    return _clip(graph, new.outputs[0], marked)


def _clip(graph: ir.Graph, wide: ir.Value, marked: _Marked) -> ir.Node:
    """Return the Clip that keeps integers of few bits within their grid, in floats."""
    scale, zero_point = np.float32(marked.scale[0]), marked.zero_point[0]
    bounds = [
        initializer(graph, f"{marked.name}_{side}", np.asarray(scale * np.float32(bound - zero_point)))
        for side, bound in (("low", marked.low), ("high", marked.high))
    ]
    clip = ir.node("Clip", [wide, *bounds], name=f"{marked.name}{CLIP}")
    clip.outputs[0].name = f"{marked.name}_dequantized"
    return clip


def _grid(graph: ir.Graph, marked: _Marked, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Return scale and zero point, shared by all calls for one tensor."""
    scale, zero_point = np.array(marked.scale, np.float32), np.array(marked.zero_point, np.int64).astype(dtype.numpy())
    if not marked.per_channel:
        scale, zero_point = scale[0], zero_point[0]
    return (
        initializer(graph, f"{marked.name}_scale", np.asarray(scale)),
        initializer(graph, f"{marked.name}_zero_point", np.asarray(zero_point), dtype),
    )


def initializer(graph: ir.Graph, name: str, value: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """Return the initializer called `name`, made where there is none yet."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(value, dtype=dtype, name=name)
    made = ir.Value(name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(made)
    return made
