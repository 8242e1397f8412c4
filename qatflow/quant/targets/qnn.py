"""Qualcomm AI Engine Direct (QNN) on the Hexagon Tensor Processor, as AIMET simulates it.

Sources: AIMET 2.42 (`common/quantsim_config/htp_quantsim_config_v73.json` to `v85.json`, `common/onnx/_utils.py`) and
ONNX Runtime's `quantization/execution_providers/qnn/quant_config.py`.

- Activations are uint8 or uint16, asymmetric, one scale per tensor; weights int8 symmetric on the full grid, per
  channel for convolution, linear, matmul and PReLU. ONNX Runtime's helper for QNN has no per-channel matmul: drop its
  axis for that road. Weights of layer, instance and RMS norm are asymmetric; group norm's bias is quantized too.
  Other biases are int32 at export.
- Every tensor is quantized where it is made, the model's inputs included, but for the results of cast, gather and
  channel shuffle, and what lies inside a supergroup.
- Supergroups: convolution (depthwise as well), batch norm and ReLU or ReLU6; transposed convolution and ReLU; linear
  and ReLU; sum and ReLU. AIMET has hard swish, PReLU and leaky ReLU behind a convolution as well, but without a
  quantizer between them the HTP simulator of onnxruntime-qnn 2.7.0 gives other numbers (2 to 8 dB to the simulation
  instead of 39), as it does for a clip whose lower bound is not 0.
- Ops that move values have the grid of their input; concat shares one grid between its inputs and its result, and
  resize has that of its input.
- What is added to attention scores (masks, position biases) stays in float: it may be minus infinity. So do divisors,
  which must not become zero.
- Clip, maximum, minimum and where have a range of their own while calibrating. A pad has the grid of its input, so that
  its zeros go into the convolution behind it.
"""

from __future__ import annotations

from qatflow.graph.ops import ALL_KINDS
from qatflow.quant.target import Parameter, Target
from qatflow.recipe.targets import TARGETS

MOVING = frozenset(
    {
        "depth_to_space",
        "space_to_depth",
        "expand",
        "flip",
        "getitem",
        "identity",
        "max_pool",
        "pad",
        "reduce_max",
        "reshape",
        "resize_nearest",
        "roll",
        "slice",
        "split",
        "tile",
        "transpose",
    }
)
NOT_QUANTIZED = frozenset({"cast", "gather", "channel_shuffle", "embedding", "lstm", "gru"})
COMPUTING = ALL_KINDS - MOVING - NOT_QUANTIZED

QNN = Target(
    name="qnn",
    road=TARGETS["qnn"].road,
    activations_signed=False,
    activations_symmetric=False,
    smallest_range=1e-4,
    integer_activations=frozenset({8, 16}),
    integer_weights=frozenset({*range(2, 9), 16}),
    parameters={
        "conv": Parameter(operand=1, axis=0),
        "conv_transpose": Parameter(operand=1, axis=1),
        "linear": Parameter(operand=1, axis=0),
        "matmul": Parameter(operand=1, axis=-1),
        "prelu": Parameter(operand=1, axis=0),
        "embedding": Parameter(operand=0),
        "layer_norm": Parameter(operand=2, symmetric=False),
        "instance_norm": Parameter(operand=1, symmetric=False),
        "rms_norm": Parameter(operand=2, symmetric=False),
        "group_norm": (Parameter(operand=2), Parameter(operand=3)),
    },
    bias="int32_at_export",
    at="producer",
    inputs=COMPUTING,
    outputs=COMPUTING | {"input"},
    chains=(
        "conv batch_norm? relu|clip?",
        "conv_transpose batch_norm? relu?",
        "linear batch_norm? relu?",
        "add relu",
    ),
    preserving=MOVING | {"embedding", "gather"},
    sharing=frozenset({"resize"}),
    tied=frozenset({"concat"}),
    never_tied=frozenset({"clip", "maximum", "minimum", "where"}),
    fixed_ranges={
        "softmax": (0.0, 1.0),
        "sigmoid": (0.0, 1.0),
        "tanh": (-1.0, 1.0),
        "sin": (-1.0, 1.0),
        "cos": (-1.0, 1.0),
    },
    clips_from_zero=True,
    attention="opened",
)
