"""ONNX Runtime as a second opinion: QuantizeLinear and DequantizeLinear."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from qatflow.quant.grid import Encoding


def through_onnxruntime(x: Tensor, encoding: Encoding) -> Tensor:
    """Return `x` after QuantizeLinear and DequantizeLinear with an 8-bit encoding."""
    integer = np.int8 if encoding.grid.signed else np.uint8
    initializers = [
        numpy_helper.from_array(encoding.scale.numpy(), "scale"),
        numpy_helper.from_array(encoding.zero_point.numpy().astype(integer), "zero_point"),
    ]
    options = {} if encoding.axis is None else {"axis": encoding.axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **options),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **options),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name in "xy"]
    graph = helper.make_graph(nodes, "qdq", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
