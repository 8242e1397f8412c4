#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0 with onnxruntime 1.32.0, the HTP backend's simulator (Linux, x86-64): a quantized model whose batch
# is a symbol.
# Expected: the backend runs it with the batch that it is given, or a message says that it does not.
#
# Seen: the backend takes no node, and ONNX Runtime's own CPU kernels run all of them, without a word; the session lists
# the provider as if it were used. With the batch fixed by `add_free_dimension_override_by_name` the same file runs whole
# in the backend. Latency or accuracy "on QNN" that is measured with a free batch is the CPU's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.4
"$work/venv/bin/pip" install --quiet --no-deps onnxruntime-qnn==2.7.0
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import numpy as np
import onnxruntime
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

made = np.random.default_rng(0)
stored = {
    "s": np.float32(0.02),
    "z": np.uint8(128),
    "w_q": made.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
    "w_s": np.full(4, 0.01, np.float32),
    "w_z": np.zeros(4, np.int8),
    "s_out": np.float32(0.05),
}
nodes = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"], name="q_in"),
    helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_d"], name="d_in"),
    helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], axis=0, name="d_weight"),
    helper.make_node("Conv", ["x_d", "w"], ["c"], name="conv"),
    helper.make_node("QuantizeLinear", ["c", "s_out", "z"], ["y_q"], name="q_out"),
    helper.make_node("DequantizeLinear", ["y_q", "s_out", "z"], ["y"], name="d_out"),
]
ends = [
    helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8]),
    helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6]),
]
tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
model = helper.make_model(
    helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
)
onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
device = next(one for one in onnxruntime.get_ep_devices() if one.ep_name == "QNNExecutionProvider")


def who_runs(fixed):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if fixed:
        options.add_free_dimension_override_by_name("batch", 1)
    own = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
    options.add_provider_for_devices([device], own)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})
    parts = session.get_provider_graph_assignment_info()
    return session.get_providers(), {part.ep_name for part in parts}


free, fixed = who_runs(False), who_runs(True)
print("onnxruntime-qnn", onnxruntime_qnn.__version__, "free batch:", *free, "fixed:", *fixed)
assert "QNNExecutionProvider" in free[0]
assert free[1] == {"CPUExecutionProvider"}, "this has changed"
assert fixed[1] == {"QNNExecutionProvider"}, "this has changed"
PY
