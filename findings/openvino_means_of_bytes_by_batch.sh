#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU: ReduceMean over the last dimension of [batch, channels, length], as every 1-d network ends,
# between a QuantizeLinear/DequantizeLinear pair and the output, at f32 execution.
# Expected: the mean of each sample, whatever the batch, as for the same model without the pair.
#
# Seen: right up to as many samples as channels. With one more, the samples behind that are wrong, by as much as the values
# themselves; with the pair taken away, or the same tensor as [batch, channels, length, 1] and the mean over both last
# dimensions, all are right. Nothing is logged, and tests with small batches do not show it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import openvino
from onnx import TensorProto, helper, numpy_helper

CHANNELS, LENGTH, SCALE = 8, 20, 0.02


def model(pair, wider):
    nodes, last = [], "x"
    stored = {"s": np.float32(SCALE), "z": np.uint8(128), "axes": np.array([2, 3] if wider else [2]), "new": np.array([3])}
    if pair:
        nodes.append(helper.make_node("QuantizeLinear", [last, "s", "z"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]))
        last = "d"
    if wider:
        nodes.append(helper.make_node("Unsqueeze", [last, "new"], ["u"]))
        last = "u"
    nodes.append(helper.make_node("ReduceMean", [last, "axes"], ["y"], keepdims=0))
    ends = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, LENGTH]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS]),
    )
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def right(samples, pair, wider):
    """Return how many samples have the mean that they should have."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model(pair, wider)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    steps = np.random.default_rng(1).integers(-100, 100, (samples, CHANNELS, LENGTH))
    x = (steps * SCALE).astype(np.float32)
    return int((np.abs(compiled({"x": x})[0] - x.mean(2)) < SCALE).all(1).sum())


print("openvino", openvino.__version__)
for samples in (CHANNELS, CHANNELS + 1, 16):
    found = {form: right(samples, *form) for form in ((True, False), (False, False), (True, True))}
    print(f"{samples} samples: right are {found[True, False]}, {found[False, False]} without the pair, "
          f"{found[True, True]} with four dimensions")
    assert found[False, False] == found[True, True] == samples
    assert (found[True, False] == samples) == (samples <= CHANNELS), "this has changed"
PY
