"""OpenVINO on CPU, as NNCF prepares models for it.

Sources: NNCF's `common/hardware/setups/cpu.py`, `common/hardware/qspaces.py`, `torch/hardware/fused_patterns.py` and
`torch/quantization/default_quantization.py`.

- Activations are uint8, asymmetric, one scale per tensor (`precision.activations_symmetric` for the other space);
  weights int8, symmetric and narrow, per output channel. Biases stay in float.
- An op runs on integers when all its data inputs are quantized: convolution, linear, products, arithmetic, average
  pooling, mean. Query and key of attention have symmetric grids, and so have the
  inputs of other products of two activations, but for a softmax: OpenVINO multiplies integers only where both zero
  points are 0 and the second input is signed.
- NNCF quantizes the inputs of norms and of bilinear resizes as well. OpenVINO 2026.4.1 computes both in float, from
  floats that it makes of the integers: without these quantizers nothing is rounded there, and two ops less run.
- No quantizer inside a chain of layer, batch norm, activation and arithmetic. A stand-alone activation has none on
  its input; the next op's stands behind it.
- Pooling, reshaping, nearest resizes and other ops that move values pass the grid on; concat has one for all its
  inputs.
- Embedding tables are quantized as weights.

On processors without VNNI 8-bit products may saturate; NNCF's `overflow_fix` then halves the range of weights, which
here is `precision.weights: 7`.
"""

from __future__ import annotations

from qatflow.quant.target import Parameter, Target
from qatflow.recipe.targets import TARGETS

ACTIVATION = "relu|clip|leaky_relu|prelu|sigmoid|tanh|hardswish|hardsigmoid|silu|gelu|elu|mish"

OPENVINO = Target(
    name="openvino",
    road=TARGETS["openvino"].road,
    activations_signed=False,
    activations_symmetric=False,
    weights_narrow=True,
    parameters={
        "conv": Parameter(operand=1, axis=0),
        "conv_transpose": Parameter(operand=1, axis=1),
        "linear": Parameter(operand=1, axis=0),
        "matmul": Parameter(operand=1, axis=-1),
        "embedding": Parameter(operand=0, axis=0),
    },
    bias="float",
    at="reader",
    inputs=frozenset(
        {
            "conv",
            "conv_transpose",
            "linear",
            "matmul",
            "attention",
            "add",
            "sub",
            "mul",
            "div",
            "avg_pool",
            "mean",
        }
    ),
    chains=(
        f"conv|conv_transpose|linear|matmul batch_norm? {ACTIVATION}? add|sub|mul|div?",
        f"conv|conv_transpose|linear|matmul batch_norm? add|sub|mul|div? {ACTIVATION}?",
    ),
    preserving=frozenset(
        {
            "max_pool",
            "reshape",
            "transpose",
            "slice",
            "split",
            "getitem",
            "gather",
            "pad",
            "expand",
            "identity",
            "resize_nearest",
        }
    ),
    tied=frozenset({"concat"}),
    attention="closed",
    symmetric_inputs=frozenset({"attention", "matmul"}),
)
