#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU: QuantizeLinear and DequantizeLinear of 8 and of 16 bits whose grid begins at 0, which is how a
# quantized ReLU is written where the quantizer does its work.
# Expected: both clip, as ONNX says of QuantizeLinear: it saturates.
#
# Seen: the 8-bit pair clips. The 16-bit pair is removed whole, its saturation included: negative values, and values above
# the grid, pass. Nothing is logged. A W8A16 file whose ReLUs are left to their quantizers is another function there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

x = np.array([[-2.0, -0.5, 0.25, 1.0, 9.0]], np.float32)


def model(kind, top):
    stored = {"s": np.float32(4 / top), "z": kind(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Neg", ["d"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5]) for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


found = {}
for bits, kind in ((8, np.uint8), (16, np.uint16)):
    content = model(kind, 2**bits - 1)
    wanted = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found[bits] = -compiled({"x": x})[0][0]
    print(bits, "bits: OpenVINO", found[bits].tolist(), "ONNX Runtime", (-wanted[0]).tolist())
print("openvino", openvino.__version__)
assert found[8].min() >= 0 and found[8].max() <= 4.001
assert found[16].min() == -2 and found[16].max() == 9, "this has changed"
PY
