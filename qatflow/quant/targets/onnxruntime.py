"""ONNX Runtime, CPU execution provider.

Sources: `onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc` (which op becomes an integer
kernel, and which need the same scale in and out), `qdq_s8_to_u8.cc` (why activations are unsigned on x86), and the
guide to quantization in ONNX Runtime's documentation.

- Activations are uint8, asymmetric, one scale per tensor; weights int8, symmetric, the full grid.
- An op becomes an integer kernel when every float input is dequantized and its output is quantized.
- A Relu or Clip behind an op is dropped, because the output's grid clips in the same way.
- The scales of the inputs of Add, Mul and Concat may differ.
- Layer norm, GELU, SiLU, hard swish and what else is not listed run in float between dequantize and quantize.
"""

from __future__ import annotations

from qatflow.quant.target import Target

ONNXRUNTIME = Target(
    name="onnxruntime",
    activations_signed=False,
    activations_symmetric=False,
    weight_axis={"conv": 0, "conv_transpose": 1, "linear": 0},
    quantized=frozenset(
        {
            "conv",
            "conv_transpose",
            "linear",
            "matmul",
            "add",
            "mul",
            "concat",
            "avg_pool",
            "leaky_relu",
            "sigmoid",
            "softmax",
        }
    ),
    preserving=frozenset(
        {"max_pool", "reshape", "transpose", "slice", "split", "getitem", "identity"},
    ),
    fused=frozenset(
        {
            ("conv", "relu"),
            ("conv", "clip"),
            ("conv_transpose", "relu"),
            ("conv_transpose", "clip"),
            ("linear", "relu"),
            ("linear", "clip"),
            ("matmul", "relu"),
            ("add", "relu"),
            ("add", "clip"),
        }
    ),
    fixed_ranges={"softmax": (0.0, 1.0), "sigmoid": (0.0, 1.0)},
)
