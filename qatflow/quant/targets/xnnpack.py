"""XNNPACK through ExecuTorch.

Source: ExecuTorch's `backends/xnnpack/quantizer/xnnpack_quantizer.py` and `xnnpack_quantizer_utils.py`.

- Activations are int8, asymmetric, one scale per tensor, none finer than 2^-12; weights int8, symmetric and narrow,
  per output channel. Biases stay in float and are converted when lowered.
- Patterns with quantized inputs and output: convolution, transposed convolution and linear, with batch norm and ReLU or
  clip; sum and product with ReLU; adaptive average pooling; concat. ExecuTorch's quantizer gives a clip behind a
  convolution the grid of what comes before it; XNNPACK runs both as one on the grid of the result, which is finer.
- One grid for input and result: concat with all its inputs, average pooling, mean, another clip, and ops that move
  values.
- Products of two activations, attention, softmax and what else is not listed run in float.
"""

from __future__ import annotations

from qatflow.quant.target import Parameter, Target
from qatflow.recipe.targets import TARGETS

PATTERNS = frozenset({"conv", "conv_transpose", "linear", "add", "mul", "avg_pool", "concat"})

XNNPACK = Target(
    name="xnnpack",
    road=TARGETS["xnnpack"].road,
    activations_signed=True,
    activations_symmetric=False,
    smallest_scale=2.0**-12,
    weights_narrow=True,
    parameters={
        "conv": Parameter(operand=1, axis=0),
        "conv_transpose": Parameter(operand=1, axis=1),
        "linear": Parameter(operand=1, axis=0),
    },
    bias="float",
    at="producer",
    inputs=PATTERNS,
    outputs=PATTERNS,
    chains=("conv|conv_transpose|linear batch_norm? relu|clip?", "add|mul relu"),
    preserving=frozenset(
        {"relu", "max_pool", "reshape", "transpose", "slice", "split", "getitem", "identity"},
    ),
    sharing=frozenset({"avg_pool", "mean", "clip"}),
    tied=frozenset({"concat"}),
    attention="closed",
)
