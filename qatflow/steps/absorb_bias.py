"""High-bias absorption: move what is always there of a large bias into the next layer.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2. Where a
channel never comes near the ReLU's kink, `relu(y - c) + c = relu(y)`: the constant `c` can go from one layer's bias to
the next one's, `b1 - c` and `b2 + W2 c`, and the activation between them needs a shorter range. The float function is
kept: a bias is absorbed only as far as no calibration value comes near the kink, which is less than the paper's
`mean - 3 std`, and not into a layer that pads with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qatflow.graph.chains import Pair, channel_rows, pairs
from qatflow.graph.layers import Layer, set_tensor, tensor
from qatflow.graph.observe import observe
from qatflow.graph.ops import argument, kind
from qatflow.graph.surgery import finish, give_bias
from qatflow.quant.network import Network
from qatflow.recipe.steps import AbsorbBias
from qatflow.results.result import Note
from qatflow.steps.context import StepContext

DEVIATIONS = 6
"""Standard deviations below the mean that an absorbed bias stays; the paper has 3, which changes the function."""
MARGIN = 0.25
"""Share of a channel's observed range that stays between an absorbed bias and the smallest value seen."""
FEWEST = 1000
"""Fewest calibration values of a channel from which its smallest one is believed."""


def absorb_bias(network: Network, config: AbsorbBias, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with large biases moved into the next layer.

    Notes count the `absorbed_channels`.
    """
    network.require_unfitted("absorb_bias")
    result = network.copy()
    absorbed = absorb(result, context)
    if not absorbed:
        return network, {"absorbed_channels": 0, "reason": "no channel stays clear of its ReLU's kink"}
    finish(result.graph)
    return result, {"absorbed_channels": absorbed}


def absorb(network: Network, context: StepContext) -> int:
    """Absorb large biases over every pair that allows it, in place; returns how many channels had one."""
    graph = network.graph
    able = [pair for pair in pairs(graph) if _can_absorb(pair)]
    if not able:
        return 0
    excess = _absorbable(network, [pair.first.node for pair in able], context)
    count = 0
    for pair in able:
        surplus = excess[pair.first.node]
        if not bool((surplus > 0).any()):
            continue
        assert pair.first.bias is not None
        count += int((surplus > 0).sum())
        second = tensor(graph, pair.second.weight).detach().double()
        shift = _response(channel_rows(second, pair.second, "in"), surplus, second, pair.second)
        old = torch.zeros_like(shift) if pair.second.bias is None else tensor(graph, pair.second.bias).double()
        first = tensor(graph, pair.first.bias)
        network.shift_normal(pair.first.node.name, -surplus)
        set_tensor(graph, pair.first.bias, (first.double() - surplus).to(first.dtype))
        give_bias(graph, pair.second, (old + shift).to(first.dtype))
    return count


def _can_absorb(pair: Pair) -> bool:
    """Tell whether a constant can be moved through: one ReLU on the way, and no padding with zeros behind it."""
    if pair.first.bias is None or [kind(node) for node in pair.between] != ["relu"]:
        return False
    if pair.second.kind == "linear":
        return True
    padding = argument(pair.second.node, 4, "padding", 0)
    sizes = padding if isinstance(padding, (list, tuple)) else [padding]
    return pair.second.kind == "conv" and all(size in (0, "valid") for size in sizes)


def _absorbable(network: Network, nodes: list[fx.Node], context: StepContext) -> dict[fx.Node, Tensor]:
    """Return, per layer output, how much of each channel is always there; float64, shape `[channels]`.

    That is the paper's `mean - 3 std` with more deviations, never more than what every calibration value exceeds by a
    margin, and nothing where there are too few values to tell.
    """
    axes = {node: -1 if kind(node) == "linear" else 1 for node in nodes}
    sums: dict[fx.Node, list[Tensor]] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        rows = value.detach().movedim(axes[node], 0).flatten(1).double()
        new = [
            torch.full_like(rows[:, 0], rows.shape[1]),
            rows.sum(1),
            rows.square().sum(1),
            rows.amin(1),
            rows.amax(1),
        ]
        old = sums.get(node)
        sums[node] = (
            new if old is None else [*(a + b for a, b in zip(old[:3], new[:3], strict=True)), *_wider(old[3:], new[3:])]
        )

    observe(network.graph, nodes, context.calibration_inputs(network), see)
    result = {}
    for node, (count, total, squares, low, high) in sums.items():
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        surplus = torch.minimum(mean - DEVIATIONS * deviation, low - MARGIN * (high - low)).clamp(min=0)
        result[node] = torch.where(count >= FEWEST, surplus, 0.0)
    return result


def _wider(old: list[Tensor], new: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.minimum(old[0], new[0]), torch.maximum(old[1], new[1])


def _response(rows: Tensor, constant: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """Return what a layer makes of an input that is `constant` per channel; shape `[output channels]`."""
    per_input = (rows * constant[:, None]).view(layer.groups, weight.shape[1], weight.shape[0] // layer.groups, -1)
    return per_input.sum((1, 3)).flatten()
