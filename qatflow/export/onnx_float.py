"""The float model that belongs to an encodings file: the file with Q/DQ, without Q/DQ.

Its tensors are called as in the encodings, and every weight with an encoding is an initializer of that name, on its
grid already: so rounding that was learned is not lost, and quantizing it again changes nothing. AIMET's and Qualcomm's
converters want that pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qatflow.export.onnx_qdq import clipped, given_by, initializer


@dataclass(frozen=True)
class FileTensors:
    """What an ONNX file calls the tensors of a graph; those that it does not have are left out.

    Attributes:
        names: by their names in the graph.
        parameters: channel axis of every parameter that is stored on a grid, by its name, the same in both; None is one
            scale for all of it. A layer's weight may be transposed in a file.
    """

    names: Mapping[str, str]
    parameters: Mapping[str, int | None]


def without_qdq(model: ir.Model, tensors: Collection[str] | None = None) -> ir.Model:
    """Return a copy of a model with Q/DQ, in float.

    The name of a tensor that goes through a pair is that of the pair's input; an output keeps its own.

    Args:
        model: with Q/DQ.
        tensors: names of those that lose theirs, parameters included; a bias does so with its layer's weight. None is
            all there are.
    """
    model = model.clone()
    graph = model.graph
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and _chosen(node, tensors):
            if node.inputs[0].is_initializer():
                _float_initializer(graph, node)
            elif given_by(node.outputs[0]) is not None:
                _join(graph, node)
    for one in (passes.RemoveUnusedNodesPass(), passes.NameFixPass()):
        one(model)
    return model


def _chosen(node: ir.Node, tensors: Collection[str] | None) -> bool:
    """Tell whether what a DequantizeLinear gives is one of some tensors, or a bias beside a weight that is."""
    if tensors is None:
        return True
    source = given_by(node.outputs[0])
    value = node.outputs[0] if source is None else source.inputs[0]
    if value is None or value.name in tensors:
        return True
    readers = [use.node for use in node.outputs[0].uses()]
    return source is None and all(
        any(other is not None and other.name in tensors for other in reader.inputs) for reader in readers
    )


def tensors_of(quantized: ir.Model, float_model: ir.Model, names: Mapping[str, str]) -> FileTensors:
    """Return what both files call the tensors of a graph.

    Args:
        quantized: with Q/DQ.
        float_model: the same without.
        names: that tensors have in the files, as far as these have them.
    """
    graph = float_model.graph
    computed = (value for node in graph for value in node.outputs)
    there = {value.name for value in (*graph.inputs, *graph.initializers.values(), *computed)}
    stored = [
        node
        for node in quantized.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    ]
    return FileTensors(
        {tensor: name for tensor, name in names.items() if name in there},
        {str(node.outputs[0].name): _axis(node) for node in stored},
    )


def _axis(node: ir.Node) -> int | None:
    per_channel = node.inputs[1] is not None and node.inputs[1].shape is not None and len(node.inputs[1].shape) > 0
    return node.attributes["axis"].as_int() if per_channel and "axis" in node.attributes else 1 if per_channel else None


def _float_initializer(graph: ir.Graph, node: ir.Node) -> None:
    """Store the floats that a DequantizeLinear makes of stored integers."""
    integers, scale, zero_point = (
        value.const_value.numpy()  # type: ignore[union-attr]
        for value in node.inputs
    )
    shape = [1] * integers.ndim
    axis = _axis(node)
    if axis is not None:
        shape[axis] = -1
    steps = integers.astype(np.float64) - zero_point.astype(np.float64).reshape(shape)
    result = node.outputs[0]
    name, result.name = str(result.name), None
    floats = initializer(graph, name, (steps * scale.astype(np.float64).reshape(shape)).astype(np.float32))
    ir.convenience.replace_all_uses_with(result, floats, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _join(graph: ir.Graph, node: ir.Node) -> None:
    """Let the readers of a pair's result read its input."""
    end, source = clipped(node), given_by(node.outputs[0])
    assert end is not None
    assert source is not None
    value, result = source.inputs[0], end.outputs[0]
    assert value is not None
    if result.is_graph_output() and not value.is_graph_input() and not value.is_graph_output():
        value.name, result.name = result.name, None
    elif result.is_graph_output():
        own = ir.node("Identity", [value], name=f"{result.name}_Identity")
        graph.insert_before(end, own)
        own.outputs[0].shape, own.outputs[0].type = result.shape, result.type
        own.outputs[0].name, result.name = result.name, None
        value = own.outputs[0]
    ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
