"""SmoothQuant: move outlying channels of a norm's output into the weights of the linear layers that read it.

Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models". A few
channels of a transformer's layer norm are far larger than the rest, and one scale for the whole tensor wastes the grid
on them. Channel `j` of the norm is divided by `s_j` and column `j` of every reading weight multiplied by it, with
`s_j = max|x_j|^a / max|w_j|^(1 - a)`. The float function is kept.

A norm whose output something else reads as well, such as the residual sum of a post-norm transformer, is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qatflow.graph.layers import Layer, set_tensor, shared_parameters, tensor, weighted_layers
from qatflow.graph.ops import argument, kind
from qatflow.graph.padding import observe_real
from qatflow.graph.surgery import finish
from qatflow.quant.network import Network
from qatflow.recipe.steps import Smooth
from qatflow.results.result import Note
from qatflow.steps.context import StepContext

AFFINE = {"layer_norm": (2, 3), "rms_norm": (2, None)}
"""Where a norm's weight and bias stand among its arguments."""
SMALLEST = 1e-5
"""Magnitudes below this are taken for this: a channel that is never used has no scale of its own."""


@dataclass(frozen=True)
class Group:
    """A norm and all that reads it."""

    norm: fx.Node
    weight: str
    """Of the norm; shape `[channels]`."""
    bias: str | None
    readers: tuple[Layer, ...]


def smooth(network: Network, config: Smooth, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with the channels of norms evened out.

    Notes count `groups`, `left` (norms whose output something else reads too) and give `largest_scale`.
    """
    network.require_unfitted("smooth")
    result = network.copy()
    graph = result.graph
    groups, left = find_groups(graph)
    if not groups:
        return network, {"groups": 0, "left": left, "reason": "no norm whose output linear layers alone read"}
    reach = _reach(result, [group.norm for group in groups], context)
    largest = 1.0
    for group in groups:
        weights = [tensor(graph, layer.weight).detach().double() for layer in group.readers]
        columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=SMALLEST)
        scale = reach[group.norm].pow(config.strength) / columns.pow(1 - config.strength)
        for name in filter(None, (group.weight, group.bias)):
            value = tensor(graph, name)
            set_tensor(graph, name, (value.detach().double() / scale).to(value.dtype))
        for layer, weight in zip(group.readers, weights, strict=True):
            set_tensor(graph, layer.weight, (weight * scale).to(tensor(graph, layer.weight).dtype))
        largest = max(largest, float(scale.max()))
    finish(graph)
    return result, {"groups": len(groups), "left": left, "largest_scale": largest}


def find_groups(graph: fx.GraphModule) -> tuple[list[Group], int]:
    """Return the norms that can be smoothed, and how many others have a weight."""
    layers = {layer.node: layer for layer in weighted_layers(graph)}
    shared = shared_parameters(graph)
    found, left = [], 0
    for node in graph.graph.nodes:
        if kind(node) not in AFFINE:
            continue
        weight, bias = (
            None if place is None else argument(node, place, name)
            for place, name in zip(AFFINE[kind(node)], ("weight", "bias"), strict=True)
        )
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or weight.meta["val"].dim() != 1:
            continue
        own = [one for one in (weight, bias) if isinstance(one, fx.Node)]
        readers = [layers.get(user) for user in node.users]
        alone = all(one.op == "get_attr" and str(one.target) not in shared for one in own)
        if (
            alone
            and readers
            and all(one is not None and _reads(one, node) and one.weight not in shared for one in readers)
        ):
            linears = tuple(one for one in readers if one is not None)
            found.append(
                Group(node, str(weight.target), str(bias.target) if isinstance(bias, fx.Node) else None, linears)
            )
        else:
            left += 1
    return found, left


def _reads(layer: Layer, norm: fx.Node) -> bool:
    return layer.kind == "linear" and layer.input is norm


def _reach(network: Network, norms: list[fx.Node], context: StepContext) -> dict[fx.Node, Tensor]:
    """Return the largest magnitude of every channel of each norm's output; float64, shape `[channels]`."""
    found: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        largest = value.detach().abs().flatten(0, -2).amax(0).double()
        found[node] = torch.maximum(found[node], largest) if node in found else largest

    observe_real(network.graph, norms, context.calibration_inputs(network), see)
    return {node: value.clamp(min=SMALLEST) for node, value in found.items()}
