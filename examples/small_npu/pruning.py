"""Magnitude pruning: the weights of least magnitude become zero, layer by layer (Han et al. 2015).

An accelerator that skips zeros gains by every one of them. Whether the model can spare them the gate says: the step is
`always_kept`, so that only pruned networks can be shipped, and their accuracy is what is judged.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from qatflow.graph.layers import shared_parameters, tensor, weighted_layers
from qatflow.quant.network import Network
from qatflow.recipe.steps import StepConfig
from qatflow.steps.context import StepContext


class Prune(StepConfig):
    """Set the weights of least magnitude to zero."""

    not_after = ("correct_bias",)  # which makes up for what the lost weights added on average
    always_kept = True

    amount: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each layer's weights."""
    least: Annotated[int, Field(ge=1)] = 256
    """Layers with fewer weights are left alone: a depthwise convolution can spare none."""


def prune(network: Network, config: Prune, context: StepContext) -> tuple[Network, dict[str, bool | int | float | str]]:
    """Return the network with zeros in place of small weights; FP32 stays what later steps aim at.

    Notes count the `layers` that were pruned and give the share of `zeros` among all weights.
    """
    shared = shared_parameters(network.graph)
    names = {layer.weight for layer in weighted_layers(network.graph)} - shared
    weights = {name: tensor(network.graph, name).detach() for name in sorted(names)}
    large = [name for name, weight in weights.items() if weight.numel() >= config.least]
    if not large:
        return network, {"layers": 0, "reason": f"no layer has {config.least} weights"}
    pruned = weights | {name: without_small(weights[name], config.amount) for name in large}
    zeros = sum(int((weight == 0).sum()) for weight in pruned.values())
    share = zeros / sum(weight.numel() for weight in pruned.values())
    return network.fitted({name: pruned[name] for name in large}), {"layers": len(large), "zeros": share}


def without_small(weight: Tensor, amount: float) -> Tensor:
    """Return a weight with the share `amount` of its numbers, those of least magnitude, set to zero."""
    smallest = weight.abs().flatten().argsort()[: int(weight.numel() * amount)]
    return weight.flatten().index_fill(0, smallest, 0.0).reshape(weight.shape)
