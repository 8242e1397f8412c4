"""Spell ops of a file so that a target's runtime runs them as its table says: the same function, in other nodes.

Which of these a target's files need is its road's to say (`qatflow.recipe.targets.Road`). Each was seen in the runtime,
and `tests/runtimes` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime

from qatflow.export.onnx_one_width import one_width
from qatflow.export.onnx_qdq import initializer
from qatflow.recipe.targets import Spelling

PRODUCTS = frozenset({"Gemm", "MatMul"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"})
CLIPPING = frozenset({"Relu", "Clip"})
BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})


def spell(model: ir.Model, spellings: Sequence[Spelling]) -> None:
    """Rewrite ops of a finished model, in place; all tensors that have a name of their own keep it."""
    for spelling in spellings:
        SPELLINGS[spelling](model.graph)
    passes.RemoveUnusedNodesPass()(model)


def _weight_behind_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Hide the weight of a product whose input has no 8 bits from ONNX Runtime, which would take both for a
    `MatMulNBits` and round the input to 8 bits.
    """
    weight = _dequantized(node.inputs[1]) if node.op_type in PRODUCTS else None
    if weight is None or not weight.inputs[0].is_initializer() or _type_of(node.inputs[0]) in BYTES:  # type: ignore[union-attr]
        return
    rank = len(weight.inputs[0].shape or ())  # type: ignore[union-attr]
    as_it_is = initializer(graph, f"as_it_is_{rank}d", np.zeros(rank, np.int64))
    _instead(node, 1, ir.node("Reshape", [node.inputs[1], as_it_is], name=f"{node.name}_weight"))


def _float_layer_before_sum(graph: ir.Graph, node: ir.Node) -> None:
    """Put a sum of one tensor, which is that tensor, between a layer in float and the quantizer of its result.

    Where a layer reads a quantized tensor and gives one, ONNX Runtime rounds its float weight to 8 bits, with one scale
    for all channels (`WeightBiasQuantization`); it does not look beyond a sum.
    """
    weight = node.inputs[1] if node.op_type in WEIGHTED else None
    if weight is None or not weight.is_initializer() or weight.dtype != ir.DataType.FLOAT:
        return
    value = node.outputs[0]
    readers = [use.node for use in value.uses()]
    while len(readers) == 1 and readers[0].op_type in CLIPPING:
        value = readers[0].outputs[0]
        readers = [use.node for use in value.uses()]
    if _dequantized(node.inputs[0]) is None or [one.op_type for one in readers] != ["QuantizeLinear"]:
        return
    _instead(readers[0], 0, same := ir.node("Sum", [value], name=f"{node.name}_in_float"))
    same.outputs[0].name, value.name = value.name, f"{value.name}_in_float"


def _hard_sigmoid_as_clip(graph: ir.Graph, node: ir.Node) -> None:
    """Write a hard sigmoid as sum, clip and product, which OpenVINO runs within the convolution before them."""
    if node.op_type != "HardSigmoid":
        return
    alpha, beta = (node.attributes[name].as_float() if name in node.attributes else default for name, default in SLOPE)
    name = str(node.name)
    numbers = {"shift": beta / alpha, "low": 0.0, "high": 1 / alpha, "slope": alpha}
    shift, low, high, slope = (_number(graph, f"{name}_{key}", value) for key, value in numbers.items())
    shifted = ir.node("Add", [node.inputs[0], shift], name=f"{name}_add")
    clipped = ir.node("Clip", [shifted.outputs[0], low, high], name=f"{name}_minmax")
    scaled = ir.node("Mul", [clipped.outputs[0], slope], name=name)
    _replace(graph, node, [shifted, clipped, scaled])


def _four_dimensions(graph: ir.Graph, node: ir.Node) -> None:
    """Reduce a tensor of three dimensions as one of four: of bytes, OpenVINO reduces these wrongly as soon as there are
    more samples than channels.
    """
    value = node.inputs[0] if node.op_type in REDUCING else None
    if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 3:
        return
    name = str(node.name)
    if node.op_type == "GlobalAveragePool":
        axes, keeps = [2], True
    else:
        given = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 else None  # type: ignore[arg-type]
        axes = [0, 1, 2] if given is None else sorted(int(axis) % 3 for axis in given.numpy())
        keeps = "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())
    op = "ReduceMean" if node.op_type == "GlobalAveragePool" else node.op_type
    last = initializer(graph, "last_dimension", np.asarray([3]))
    wider = ir.node("Unsqueeze", [value, last], name=f"{name}_of_four")
    over = initializer(graph, f"{name}_axes", np.asarray(axes))
    reduced = ir.node(
        op, [wider.outputs[0], over], attributes={"keepdims": 1}, name=name if keeps else f"{name}_reduced"
    )
    gone = initializer(graph, f"{name}_gone", np.asarray([3] if keeps else [*axes, 3]))
    _replace(graph, node, [wider, reduced, ir.node("Squeeze", [reduced.outputs[0], gone], name=f"{name}_squeezed")])
    for one in (wider, reduced):
        one.outputs[0].shape = None


def _constant_as_integers(graph: ir.Graph, node: ir.Node) -> None:
    """Store a quantized constant as its integers: OpenVINO loads no sum or product with one that the file quantizes,
    or computes from what it stores, as positions that are looked up in a table.
    """
    if node.op_type != "QuantizeLinear" or node.outputs[0].is_graph_output() or "axis" in node.attributes:
        return
    source = node.inputs[0]
    value = None if source is None else _constant(graph, source)
    if source is None or value is None:
        return
    scale, zero_point = (one.const_value for one in node.inputs[1:3] if one is not None)
    assert scale is not None
    assert zero_point is not None
    kind = zero_point.dtype
    ends = np.iinfo(kind.numpy())
    integers = np.rint(value / scale.numpy()) + zero_point.numpy().astype(np.float32)
    stored = initializer(graph, str(node.outputs[0].name), np.clip(integers, ends.min, ends.max).astype(kind.numpy()))
    node.outputs[0].name = f"{stored.name}_before"
    ir.convenience.replace_all_uses_with(node.outputs[0], stored)
    graph.remove(node, safe=True)
    if not source.uses():
        graph.initializers.pop(str(source.name), None)
        dequantize = next(use.node for use in stored.uses())
        dequantize.outputs[0].name, source.name = source.name, None  # as a weight: what it stands for


def _reciprocal(graph: ir.Graph, node: ir.Node) -> None:
    """Multiply by the reciprocal of a constant: the HTP loads no model that divides by a float."""
    if node.op_type != "Div" or node.inputs[1] is None:
        return
    divisor = ir.convenience.get_const_tensor(node.inputs[1])
    if divisor is None or divisor.dtype != ir.DataType.FLOAT:
        return
    value = np.asarray(np.float32(1) / divisor.numpy())
    product = ir.node("Mul", [node.inputs[0], initializer(graph, f"{node.name}_reciprocal", value)], name=node.name)
    _replace(graph, node, [product])


def _relu_in_quantizer(graph: ir.Graph, node: ir.Node) -> None:
    """Drop a ReLU behind a linear layer over tokens whose quantizer begins at 0: ONNX Runtime makes a Gemm of the layer
    and puts a Reshape before the ReLU, and the HTP then runs the layer in float.
    """
    source = node.inputs[0].producer() if node.op_type == "Relu" and node.inputs[0] is not None else None
    product = None if source is None or source.op_type != "Add" or not source.inputs[0] else source.inputs[0].producer()
    readers = [use.node for use in node.outputs[0].uses()]
    if product is None or product.op_type != "MatMul" or node.outputs[0].is_graph_output():
        return
    if [one.op_type for one in readers] != ["QuantizeLinear"]:
        return
    (quantize,) = readers
    zero_point = None if quantize.inputs[2] is None else quantize.inputs[2].const_value
    if zero_point is None or zero_point.dtype not in UNSIGNED or zero_point.numpy().any():
        return
    assert source is not None
    source.outputs[0].name, node.outputs[0].name = node.outputs[0].name, f"{source.outputs[0].name}_before"
    quantize.replace_input_with(0, source.outputs[0])
    graph.remove(node, safe=True)


SLOPE = (("alpha", 0.2), ("beta", 0.5))
"""Attributes of a HardSigmoid, and what they are where it has none."""
UNSIGNED = frozenset({ir.DataType.UINT8, ir.DataType.UINT16})
REDUCING = frozenset({"GlobalAveragePool", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})


def _at_each(rewrite: Callable[[ir.Graph, ir.Node], None], graph: ir.Graph) -> None:
    for node in list(graph):
        rewrite(graph, node)


SPELLINGS: Mapping[Spelling, Callable[[ir.Graph], None]] = {
    "weight_behind_reshape": partial(_at_each, _weight_behind_reshape),
    "float_layer_before_sum": partial(_at_each, _float_layer_before_sum),
    "hard_sigmoid_as_clip": partial(_at_each, _hard_sigmoid_as_clip),
    "four_dimensions": partial(_at_each, _four_dimensions),
    "constant_as_integers": partial(_at_each, _constant_as_integers),
    "reciprocal": partial(_at_each, _reciprocal),
    "relu_in_quantizer": partial(_at_each, _relu_in_quantizer),
    "one_width": one_width,
}


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that gives a tensor; None where another op does."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _type_of(value: ir.Value | None) -> ir.DataType | None:
    """Return the type of the integers that a tensor was; None where it is a float."""
    node = _dequantized(value)
    return None if node is None or node.inputs[0] is None else node.inputs[0].dtype


def _constant(graph: ir.Graph, value: ir.Value) -> np.ndarray | None:
    """Return what a tensor always is; None where it depends on an input."""
    seen, open_ends = {value}, [value]
    while open_ends:
        one = open_ends.pop()
        if one.is_graph_input():
            return None
        needed = () if one.producer() is None else one.producer().inputs  # type: ignore[union-attr]
        open_ends += [new for new in needed if new is not None and new not in seen]
        seen.update(open_ends)
    if value.const_value is not None:
        return value.const_value.numpy()
    part = ir.Model(ir.convenience.extract(graph, inputs=[], outputs=[value]), ir_version=10)
    session = onnxruntime.InferenceSession(ir.to_proto(part).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {})[0])


def _number(graph: ir.Graph, name: str, value: float) -> ir.Value:
    return initializer(graph, name, np.asarray(value, np.float32))


def _instead(node: ir.Node, place: int, new: ir.Node) -> None:
    """Let a node read another one's result."""
    value = node.inputs[place]
    assert value is not None
    assert node.graph is not None
    new.outputs[0].shape, new.outputs[0].type = value.shape, value.type
    node.graph.insert_before(node, new)
    node.replace_input_with(place, new.outputs[0])


def _replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes into another one's place; the last gives its result, by its name."""
    for one in new:
        one.outputs[0].shape, one.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    for one in new[:-1]:
        one.outputs[0].name = f"{one.name}_output"
    new[-1].outputs[0].name = node.outputs[0].name
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(node.outputs[0], new[-1].outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
