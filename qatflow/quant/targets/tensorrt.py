"""NVIDIA TensorRT, explicit quantization.

Sources: "Working with quantized types" in TensorRT's documentation, the Q/DQ insertion of NVIDIA's TensorRT Model
Optimizer (`onnx/quantization`), and the special cases of the TensorFlow quantization toolkit.

- Everything is symmetric and signed: activations int8 on the full grid, one scale per tensor; weights int8 narrow,
  per output channel. Biases stay in float.
- The inputs of convolutions, linear layers and products are quantized, never their outputs: Q/DQ inside a chain
  (convolution, batch norm, activation, residual sum) would break its fusion.
- Residual sum: only the skip input is quantized, so that convolution, sum and activation run as one kernel. With a
  convolution on neither or on both sides, nothing is.
- Concat: all inputs and the result share one scale, so that it costs nothing.
- Pooling and ops that move values run on the integers of their input. Resize prefers a quantized input.

Model Optimizer also leaves convolutions with fewer than 16 channels and products with a vector in float, because they
gain no time. That is no rule of the runtime; `precision.overrides` can say so.
"""

from __future__ import annotations

from qatflow.quant.target import Parameter, Target
from qatflow.recipe.targets import TARGETS

TENSORRT = Target(
    name="tensorrt",
    road=TARGETS["tensorrt"].road,
    activations_signed=True,
    activations_symmetric=True,
    weights_narrow=True,
    parameters={
        "conv": Parameter(operand=1, axis=0),
        "conv_transpose": Parameter(operand=1, axis=1),
        "linear": Parameter(operand=1, axis=0),
        "matmul": Parameter(operand=1, axis=-1),
    },
    bias="float",
    at="reader",
    inputs=frozenset({"conv", "conv_transpose", "linear", "matmul", "add", "resize", "resize_nearest"}),
    chains=(
        "conv|conv_transpose|linear|matmul batch_norm? relu|clip|leaky_relu|sigmoid|hardswish|silu|gelu? max_pool?",
        "conv|conv_transpose|linear|matmul batch_norm? add relu|clip?",
    ),
    residual="skip_input",
    preserving=frozenset({"max_pool", "reshape", "transpose", "slice", "split", "getitem", "gather", "identity"}),
    tied=frozenset({"concat"}),
    attention="opened",
)
