"""The table of ONNX Runtime beside ONNX Runtime: what it really turns into integer kernels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qatflow.quant.targets import TARGETS

TARGET = TARGETS["onnxruntime"]
SHAPE = (1, 4, 6, 6)


@dataclass(frozen=True)
class Pattern:
    """One op between dequantize and quantize.

    Attributes:
        ops: the op, and those behind it that should run with it.
        shape: of each input.
        inputs: how many activations it reads.
        weight: shape of an int8 weight, per channel of `axis`; None has none.
        constants: further inputs.
        attributes: of the first op.
        outputs: how many results it has; all are quantized.
    """

    ops: Sequence[str]
    shape: tuple[int, ...] = SHAPE
    inputs: int = 1
    weight: tuple[int, ...] | None = None
    axis: int = 0
    constants: Sequence[np.ndarray] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def optimized(pattern: Pattern, folder: Path, same_scale: bool = False, quantized_output: bool = True) -> list[str]:
    """Return the ops of the graph that ONNX Runtime makes of a pattern."""
    scales = {f"scale{i}": 0.02 if same_scale else 0.02 + 0.001 * i for i in range(pattern.inputs)}
    scales["scale_out"] = 0.02 if same_scale else 0.0234
    zero = {"zero": 128, "zero_out": 128 if len(pattern.ops) == 1 else 0}
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in scales.items()]
    tensors += [numpy_helper.from_array(np.uint8(value), name) for name, value in zero.items()]
    nodes, reads = [], []
    for i in range(pattern.inputs):
        nodes.append(helper.make_node("QuantizeLinear", [f"x{i}", f"scale{i}", "zero"], [f"q{i}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", f"scale{i}", "zero"], [f"d{i}"]))
        reads.append(f"d{i}")
    if pattern.weight is not None:
        channels = pattern.weight[pattern.axis]
        weight = np.random.default_rng(0).integers(-127, 128, pattern.weight).astype(np.int8)
        tensors += [
            numpy_helper.from_array(weight, "w_q"),
            numpy_helper.from_array(np.full(channels, 0.01, "f"), "w_s"),
        ]
        tensors.append(numpy_helper.from_array(np.zeros(channels, np.int8), "w_z"))
        nodes.append(helper.make_node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], axis=pattern.axis))
        reads.append("w")
    for i, value in enumerate(pattern.constants):
        tensors.append(numpy_helper.from_array(value, f"c{i}"))
        reads.append(f"c{i}" if value.size else "")
    results = [f"y{i}" for i in range(pattern.outputs)]
    nodes.append(helper.make_node(pattern.ops[0], reads, results, **pattern.attributes))
    for place, op in enumerate(pattern.ops[1:]):
        bounds = ["low", "high"] if op == "Clip" else []
        tensors += [numpy_helper.from_array(np.float32(v), n) for n, v in zip(bounds, (0, 6), strict=False)]
        nodes.append(helper.make_node(op, [results[0], *bounds], [f"after{place}"]))
        results[0] = f"after{place}"
    for i, name in enumerate(results if quantized_output else ()):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale_out", "zero_out"], [f"q_out{i}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q_out{i}", "scale_out", "zero_out"], [f"out{i}"]))
        results[i] = f"out{i}"
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, pattern.shape) for i in range(pattern.inputs)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    graph = helper.make_graph(nodes, "pattern", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def layers(*after: str) -> dict[str, Pattern]:
    return {
        "conv": Pattern(["Conv", *after], weight=(4, 4, 3, 3)),
        "depthwise conv": Pattern(["Conv", *after], weight=(4, 1, 3, 3), attributes={"group": 4}),
        "linear": Pattern(["Gemm", *after], (3, 6), weight=(5, 6), attributes={"transB": 1}),
        "linear over tokens": Pattern(["MatMul", *after], (2, 3, 6), weight=(6, 5), axis=1),
        "matmul": Pattern(["MatMul", *after], inputs=2),
        "add": Pattern(["Add", *after], inputs=2),
        "mul": Pattern(["Mul", *after], inputs=2),
        "concat": Pattern(["Concat", *after], inputs=2, attributes={"axis": 1}),
        "avg_pool": Pattern(["AveragePool", *after], attributes={"kernel_shape": [2, 2]}),
        "global avg_pool": Pattern(["GlobalAveragePool", *after]),
    }


COMPUTING = {**layers(), "leaky_relu": Pattern(["LeakyRelu"]), "sigmoid": Pattern(["Sigmoid"])}
MOVING = {
    "max_pool": Pattern(["MaxPool"], attributes={"kernel_shape": [2, 2]}),
    "reduce_max": Pattern(["ReduceMax"], constants=[integers(2)]),
    "reshape": Pattern(["Reshape"], constants=[integers(1, -1)]),
    "transpose": Pattern(["Transpose"], attributes={"perm": [0, 2, 3, 1]}),
    "slice": Pattern(["Slice"], constants=[integers(0), integers(2), integers(1)]),
    "split": Pattern(["Split"], attributes={"axis": 1, "num_outputs": 2}, outputs=2),
    "expand": Pattern(["Expand"], constants=[integers(2, 4, 6, 6)]),
    "tile": Pattern(["Tile"], constants=[integers(2, 1, 1, 1)]),
    "gather": Pattern(["Gather"], constants=[integers(0, 2)], attributes={"axis": 1}),
    "resize_nearest": Pattern(
        ["Resize"], constants=[np.zeros(0, "f"), np.array([1, 1, 2, 2], "f")], attributes={"mode": "nearest"}
    ),
}
IN_FLOAT = {
    "gelu": Pattern(["Gelu"]),
    "tanh": Pattern(["Tanh"]),
    "hardswish": Pattern(["HardSwish"]),
    "mean": Pattern(["ReduceMean"], constants=[integers(2, 3)]),
    "sub": Pattern(["Sub"], inputs=2),
    "div": Pattern(["Div"], inputs=2),
    "resize": Pattern(
        ["Resize"], constants=[np.zeros(0, "f"), np.array([1, 1, 2, 2], "f")], attributes={"mode": "linear"}
    ),
    "conv_transpose": Pattern(["ConvTranspose"], weight=(4, 4, 3, 3), axis=1),
}
FLOAT_OPS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "Mul", "Concat", "AveragePool"}
FLOAT_OPS |= {"GlobalAveragePool", "LeakyRelu", "Sigmoid", "Relu", "Clip"}


def test_every_kind_of_the_table_is_tried() -> None:
    named = {name.split()[-1] if name != "linear over tokens" else "linear" for name in COMPUTING}
    assert named == TARGET.inputs - {"conv_transpose"}
    assert TARGET.outputs <= TARGET.inputs
    assert set(MOVING) == TARGET.preserving - {"getitem", "identity", "pad"}
    assert not set(IN_FLOAT) & TARGET.integer_kinds - {"conv_transpose"}


@pytest.mark.parametrize("name", COMPUTING)
def test_what_the_table_quantizes_becomes_an_integer_kernel(name: str, tmp_path: Path) -> None:
    ops = optimized(COMPUTING[name], tmp_path)
    assert not FLOAT_OPS & set(ops), ops
    assert ops.count("DequantizeLinear") == 1


@pytest.mark.parametrize("name", [name for name in layers() if name.split()[0] in ("linear", "matmul")])
def test_products_may_give_floats(name: str, tmp_path: Path) -> None:
    ops = optimized(COMPUTING[name], tmp_path, quantized_output=False)
    assert not FLOAT_OPS & set(ops), ops
    assert "DequantizeLinear" not in ops


@pytest.mark.parametrize("after", ["Relu", "Clip"])
@pytest.mark.parametrize("name", layers())
def test_a_chain_of_the_table_is_one_kernel(name: str, after: str, tmp_path: Path) -> None:
    ops = optimized(layers(after)[name], tmp_path)
    assert not FLOAT_OPS & set(ops), ops


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_values_runs_on_integers_with_one_grid_only(name: str, tmp_path: Path) -> None:
    ops = optimized(MOVING[name], tmp_path, same_scale=True)
    assert ops[0] == "QuantizeLinear"
    assert "DequantizeLinear" not in ops[: ops.index(MOVING[name].ops[0])], ops
    ops = optimized(MOVING[name], tmp_path)
    assert "DequantizeLinear" in ops[: ops.index(MOVING[name].ops[0])], ops


@pytest.mark.parametrize("name", IN_FLOAT)
def test_what_the_table_leaves_in_float_runs_in_float(name: str, tmp_path: Path) -> None:
    ops = optimized(IN_FLOAT[name], tmp_path, same_scale=True)
    assert not any(op.startswith("QLinear") for op in ops), ops
    assert ops.count("DequantizeLinear") > 1 or ops[-2] == "QuantizeLinear"
