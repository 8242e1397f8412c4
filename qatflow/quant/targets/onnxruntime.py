"""ONNX Runtime, CPU execution provider.

Sources: `onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc` (which op becomes an integer
kernel, and which need the same scale in and out), `qdq_s8_to_u8.cc` (why activations are unsigned on x86), and the
guide to quantization in ONNX Runtime's documentation.

- Activations are uint8, asymmetric, one scale per tensor; weights int8, symmetric, the full grid; biases int32.
- An op becomes an integer kernel when every float input is dequantized and its output is quantized by one Q. Linear
  and matmul may give floats: their result has a quantizer only where another integer kernel reads it.
- A transposed convolution has no integer kernel in the CPU provider: it runs in float between dequantize and
  quantize, with its weight stored in 8 bits, as the runtime's own `quantize_static` has it.
- A Relu, or a Clip from 0, behind an integer kernel is dropped, because the output's grid clips in the same way.
  Another Clip is not, and would keep its layer in float without a quantizer between.
- The scales of the inputs of Add, Mul and Concat may differ.
- Attention runs opened up: integer products, with scores, mask and softmax in float between them. A softmax has the
  range that its integer kernel assumes, 256 steps from 0.
- A pad with zeros goes into the convolution behind it when the file is written.
- Norms, GELU, SiLU, hard swish and what else is not listed run in float between dequantize and quantize.
"""

from __future__ import annotations

from qatflow.quant.target import Parameter, Target
from qatflow.recipe.targets import TARGETS

ONNXRUNTIME = Target(
    name="onnxruntime",
    road=TARGETS["onnxruntime"].road,
    activations_signed=False,
    activations_symmetric=False,
    parameters={
        "conv": Parameter(operand=1, axis=0),
        "conv_transpose": Parameter(operand=1, axis=1),
        "linear": Parameter(operand=1, axis=0),
        "matmul": Parameter(operand=1, axis=-1),
    },
    bias="int32",
    at="producer",
    inputs=frozenset(
        {"conv", "conv_transpose", "linear", "matmul", "add", "mul", "concat", "avg_pool", "leaky_relu", "sigmoid"}
    ),
    outputs=frozenset({"conv", "conv_transpose", "add", "mul", "concat", "avg_pool", "leaky_relu", "sigmoid"}),
    chains=("conv|conv_transpose|linear|matmul|add|mul|concat|avg_pool relu|clip",),
    preserving=frozenset(
        {
            "max_pool",
            "reduce_max",
            "reshape",
            "transpose",
            "slice",
            "split",
            "getitem",
            "expand",
            "tile",
            "gather",
            "pad",
            "resize_nearest",
            "identity",
        }
    ),
    fixed_ranges={"softmax": (0.0, 1.0)},
    fixed_steps="2^bits",
    clips_from_zero=True,
    attention="opened",
)
