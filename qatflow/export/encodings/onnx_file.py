"""Reading an ONNX file for its names and shapes; weights in files beside it are not read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from qatflow.errors import EncodingsError

if TYPE_CHECKING:
    import onnx

PAIR = ("QuantizeLinear", "DequantizeLinear")
FLOATS = (1, 10, 11, 16)
"""ONNX's numbers of float, float16, double and bfloat16."""


def load(path: Path) -> onnx.GraphProto:
    """Return the graph of a model, with the types of its tensors where ONNX can infer them.

    Raises:
        EncodingsError: the package `onnx` is missing, or the file is no ONNX model.
    """
    try:
        import onnx
        from onnx.shape_inference import InferenceError, infer_shapes
    except ImportError as error:
        message = "reading an ONNX model needs the package onnx: pip install onnx"
        raise EncodingsError(message) from error
    broken: type[Exception] = import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise EncodingsError(message) from error
    except broken as error:
        message = f"{path} is no ONNX model"
        raise EncodingsError(message) from error
    if not model.graph.node:
        message = f"{path} is no ONNX model, or one without a node"
        raise EncodingsError(message)
    for node in model.graph.node:
        if node.op_type in PAIR and (not node.output or len(node.input) < 2):
            message = f"{path} is no valid ONNX model: its {node.op_type} {node.name!r} lacks inputs or its output"
            raise EncodingsError(message)
    try:
        return infer_shapes(model).graph
    except (InferenceError, ValueError):
        return model.graph  # a tensor of unknown type counts as one of floats


def constants(graph: onnx.GraphProto) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return the shape and ONNX's number of the type of every initializer and every constant with a tensor."""
    tensors = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            tensors.update((node.output[0], one.t) for one in node.attribute if one.name == "value")
    return {name: (tuple(one.dims), one.data_type) for name, one in tensors.items()}
