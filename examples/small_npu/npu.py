"""The table of an invented accelerator.

- Everything is symmetric int8: activations one scale per tensor, weights one per output channel. Biases are int32.
- Convolutions, linear layers and sums run on integers, with a ReLU behind them at no cost. All else runs in float.
- Its compiler takes an ONNX file with Q/DQ. The compiler is not here, so that ONNX Runtime stands in for it, node by
  node as the file is written.
"""

from qatflow.quant.target import Parameter, Target
from qatflow.recipe.targets import Road

COMPUTING = frozenset({"conv", "linear", "add"})

TABLE = Target(
    name="small_npu",
    activations_signed=True,
    activations_symmetric=True,
    parameters={"conv": Parameter(operand=1, axis=0), "linear": Parameter(operand=1, axis=0)},
    bias="int32",
    integer_weights=frozenset({8}),
    at="producer",
    inputs=COMPUTING,
    outputs=COMPUTING,
    chains=("conv|linear|add relu?",),
    preserving=frozenset({"reshape", "max_pool"}),
    attention="closed",
    road=Road(packed_int4=False),
)
