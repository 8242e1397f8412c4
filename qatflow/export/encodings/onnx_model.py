"""What an ONNX model tells about the tensors of an encodings file: their roles, shapes, and which need an entry.

The rule for what needs one, after AIMET's: every float activation, because QNN silently calibrates a tensor without
one anew, and the weights of convolutions and matrix products. An activation may go without where it lies inside a
group that runs as one op (`INSIDE`), or where the op that gives it is one that converters remove (`REMOVED`). Of
tensors that do not depend on the values of an input only weights are asked for. Bodies of `If` and `Loop` are not
looked into.

A model with Q/DQ tells by itself which tensors are quantized: those go by the name of what QuantizeLinear reads, or of
the model's output where the pair gives one, and stored weights by that of their floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qatflow.export.encodings.fields import shown
from qatflow.export.encodings.onnx_file import FLOATS, constants, load
from qatflow.export.encodings.onnx_pairs import pairs_of
from qatflow.export.encodings.tensor import EncodingsFile, Role, TensorEncoding

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NORMS = ("BatchNormalization",)
FUNCTIONS = ("Relu", "Clip", "PRelu", "LeakyRelu")
INSIDE = {
    "Conv": (*NORMS, *FUNCTIONS),
    "ConvTranspose": (*NORMS, *FUNCTIONS),
    "Gemm": (*NORMS, *FUNCTIONS),
    "MatMul": ("Add", *FUNCTIONS),
    "Add": FUNCTIONS,
    "BatchNormalization": FUNCTIONS,
}
"""Ops, and those that may follow each of them in one group: the follower is then the only one that reads its result."""
REMOVED = ("Identity", "Dropout", "Cast", "DequantizeLinear")
SHAPES_ONLY = ("Shape", "Size")


@dataclass(frozen=True)
class ModelFacts:
    """What a model tells.

    Attributes:
        shapes: of its float initializers, by name.
        axes: channel axis of weights whose channels are not along axis 0, by name.
        activations: names that must have an entry as an activation, in the order of the graph.
        parameters: names of weights, which must have one as a parameter.
        tensors: all names.
    """

    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int]
    activations: tuple[str, ...]
    parameters: tuple[str, ...]
    tensors: frozenset[str]


def read_model(path: Path) -> ModelFacts:
    """Return what an ONNX model tells; needs the package `onnx`.

    Raises:
        EncodingsError: the package is missing, or the file is no ONNX model.
    """
    graph = load(path)
    found = constants(graph)
    shapes = {name: shape for name, (shape, kind) in found.items() if kind in FLOATS}
    pairs = pairs_of(graph, found)
    weights, axes = _weights(graph, {**shapes, **pairs.stored})
    inputs = [value.name for value in graph.input if value.name not in found]
    every = {*inputs, *found, *(name for node in graph.node for name in node.output if name)}
    activations = pairs.activations if pairs.there else _activations(graph, inputs, set(found))
    return ModelFacts({**shapes, **pairs.stored}, {**axes, **pairs.axes}, activations, weights, frozenset(every))


def with_model(file: EncodingsFile, model: ModelFacts) -> EncodingsFile:
    """Return the file with what its version does not tell: axes of parameters, or which tensors are parameters."""
    tells_role = not file.version.startswith("2.")
    return replace(file, tensors=tuple(_informed(tensor, model, tells_role) for tensor in file.tensors))


def _informed(tensor: TensorEncoding, model: ModelFacts, tells_role: bool) -> TensorEncoding:
    if tells_role:
        return tensor if tensor.axis is None else replace(tensor, axis=model.axes.get(tensor.name, tensor.axis))
    if tensor.name not in model.tensors:
        return tensor
    stored = tensor.name in model.shapes and tensor.name not in model.activations  # a constant may be an activation
    role: Role = "parameter" if stored or tensor.axis is not None else "activation"
    return replace(tensor, role="bias" if tensor.role == "bias" and role == "parameter" else role)


def misfits(file: EncodingsFile, model: ModelFacts) -> list[str]:
    """Return a sentence about every tensor that has other channels in the model than in the file."""
    found = []
    for tensor in file.tensors:
        shape = model.shapes.get(tensor.name)
        if shape is None or tensor.axis is None:
            continue
        channels = shape[tensor.axis] if -len(shape) <= tensor.axis < len(shape) else None
        if channels != len(tensor.scales):
            said = f"{len(tensor.scales)} scales along axis {tensor.axis}"
            found.append(f"{shown(tensor.name)}: has {said}, but the model's tensor has shape {list(shape)}")
    return found


def _weights(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the weights, and the channel axes of those that do not have them along axis 0."""
    names: dict[str, None] = {}
    axes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            continue
        names |= {name: None for name in node.input[:2] if name in shapes}
        weight = node.input[1]
        if weight not in shapes:
            continue
        if node.op_type == "ConvTranspose":
            axes[weight] = 1
        elif node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
            axes[weight] = max(len(shapes[weight]) - 1, 0)
    return tuple(names), axes


def _activations(graph: onnx.GraphProto, inputs: list[str], constant: set[str]) -> tuple[str, ...]:
    """Return the float tensors that depend on the values of an input and must have an entry."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs, fixed = {value.name for value in graph.output}, set(constant)
    found = [name for name in inputs if kinds[name] in FLOATS]
    for node in graph.node:
        read = [name for name in node.input if name]
        if node.op_type in SHAPES_ONLY or all(name in fixed for name in read):
            fixed.update(node.output)
            continue
        for name in node.output:
            used = name in outputs or name in readers
            is_float = kinds.get(name, 0) in (0, *FLOATS)
            if name and used and is_float and (name in outputs or not _may_go_without(node, readers[name], fixed)):
                found.append(name)
    return tuple(found)


def _may_go_without(node: onnx.NodeProto, readers: list[onnx.NodeProto], fixed: set[str]) -> bool:
    """Tell whether the result of a node may lie inside a group, or is removed by converters."""
    if node.op_type in REMOVED:
        return True
    if len(readers) != 1 or readers[0].op_type not in INSIDE.get(node.op_type, ()):
        return False
    return readers[0].op_type != "Add" or any(name in fixed for name in readers[0].input)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((one.i for one in node.attribute if one.name == name), default)
