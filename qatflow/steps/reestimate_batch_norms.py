"""Re-estimate the statistics of batch norms from what quantized layers give them.

A batch norm whose running mean and variance were taken in float no longer normalises what quantized layers give.
Fresh statistics from calibration samples mend that (Sun et al. 2019, "Hybrid 8-bit Floating Point Training and
Inference"; AIMET's `reestimate_bn_stats`), norms in the order they run, each behind those already mended. It is for
batch norms that cannot be folded, such as those before a convolution, and after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qatflow.graph.layers import shared_parameters
from qatflow.graph.observe import observe
from qatflow.graph.ops import kind
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.recipe.steps import ReestimateBatchNorms
from qatflow.results.result import Note
from qatflow.steps.context import StepContext
from qatflow.steps.fold_batch_norms import batch_norm


def reestimate_batch_norms(
    network: Network, config: ReestimateBatchNorms, context: StepContext
) -> tuple[Network, dict[str, Note]]:
    """Return the network with the statistics of its batch norms as quantized calibration data has them.

    Notes count the batch norms `reestimated`.
    """
    shared = shared_parameters(network.graph)
    found = ((node.name, batch_norm(node)) for node in network.graph.graph.nodes if kind(node) == "batch_norm")
    norms = {name: norm for name, norm in found if norm is not None and not shared & {norm.mean, norm.variance}}
    if not norms:
        return network, {"reestimated": 0, "reason": "every batch norm is folded, or shares its statistics"}
    for name, norm in norms.items():
        simulation = Simulation(network)
        simulation.calibrate(context.calibration_inputs(network))
        mean, variance = _statistics(simulation.model, name, context, config.samples)
        network = network.fitted({norm.mean: mean.float(), norm.variance: variance.float()})
    return network, {"reestimated": len(norms)}


def _statistics(model: fx.GraphModule, name: str, context: StepContext, samples: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel of a batch norm's input; float64, shape `[channels]`."""
    (node,) = (one for one in model.graph.nodes if one.name == name)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    sums: list[Tensor] = []

    def see(_: fx.Node, value: Tensor) -> None:
        rows = value.detach().movedim(1, 0).flatten(1).double()
        new = [torch.tensor(float(rows.shape[1])), rows.sum(1), rows.square().sum(1)]
        sums[:] = new if not sums else [old + one for old, one in zip(sums, new, strict=True)]

    observe(model, [source], context.inputs(samples), see)
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0)
