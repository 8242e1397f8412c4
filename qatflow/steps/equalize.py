"""Cross-layer equalization with high-bias absorption.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", sections 4.1 and 4.2.
Between two layers with nothing but positively homogeneous ops between them, output channel `i` of the first may be
divided by `s_i` and input channel `i` of the second multiplied by it; `s_i = sqrt(r1_i / r2_i)` makes both weights
reach equally far. Sweeping over all pairs until the scales stand still also settles chains through depthwise
convolutions. The float function is kept:

- a ReLU6 on the way gets the bound `6 / s_i`, as a ReLU and a minimum with one bound per channel (or, if the config
  says so, becomes a ReLU where calibration shows that it hardly ever clips, or the pair is left alone);
- a bias is absorbed, `b1 - c` and `b2 + W2 c`, only as far as no calibration value comes near the ReLU's kink, and
  not into a layer that pads with zeros.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx

from qatflow.graph.chains import Pair, out_channels, pairs
from qatflow.graph.layers import Layer, set_tensor, tensor
from qatflow.graph.observe import observe
from qatflow.graph.ops import argument, clip_bounds, kind
from qatflow.graph.surgery import buffer_node, finish, give_bias, replace_call
from qatflow.quant.network import Network
from qatflow.result import Note
from qatflow.step_configs import Equalize
from qatflow.steps.context import StepContext

aten = torch.ops.aten
Side = Literal["in", "out"]
STILL = 1e-2
"""Scales that change by less than this share in a sweep stand still."""
DEVIATIONS = 6
"""Standard deviations below the mean that an absorbed bias stays; the paper has 3, which changes the function."""
MARGIN = 0.25
"""Share of a channel's observed range that stays between an absorbed bias and the smallest value seen."""
FEWEST = 1000
"""Fewest calibration values of a channel from which its smallest one is believed."""


def equalize(network: Network, config: Equalize, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with the weight ranges of neighbouring layers equalized.

    Notes count `pairs`, `sweeps`, `relu6_scaled`, `relu6_swapped`, `relu6_skipped` and `absorbed_channels`.
    """
    graph = network.copy().graph
    chosen, notes = _choose(graph, config, context)
    if not chosen:
        reason = "no two layers with only per-channel ops between them; fold batch norms first if the model has any"
        return network, {"pairs": 0, "reason": reason}
    scales, sweeps = _sweep(graph, chosen, config.iterations)
    notes["pairs"], notes["sweeps"] = len(chosen), sweeps
    notes["relu6_scaled"] = sum(_scale_bounds(graph, pair, scales[i]) for i, pair in enumerate(chosen))
    finish(graph)
    notes["absorbed_channels"] = _absorb(graph, context) if config.absorb_bias else 0
    return Network(finish(graph)), notes


def _choose(graph: fx.GraphModule, config: Equalize, context: StepContext) -> tuple[list[Pair], dict[str, Note]]:
    """Return the pairs to equalize, having swapped idle ReLU6s if the config says so."""
    found = pairs(graph)
    with_clips = [pair for pair in found if pair.clips]
    notes: dict[str, Note] = {"relu6_swapped": 0, "relu6_skipped": 0}
    if config.relu6 == "scale_bound" or not with_clips:
        return found, notes
    idle: set[fx.Node] = set()
    if config.relu6 == "swap_if_idle":
        clips = [clip for pair in with_clips for clip in pair.clips]
        shares = _clipped_shares(graph, clips, context)
        idle = {clip for clip in clips if shares[clip] <= config.idle_share}
        for clip in idle:
            replace_call(graph, clip, aten.relu.default, (clip.args[0],))
        notes["relu6_swapped"] = len(idle)
    kept = [pair for pair in pairs(graph) if not pair.clips]
    notes["relu6_skipped"] = len(found) - len(kept)
    return kept, notes


def _clipped_shares(graph: fx.GraphModule, clips: list[fx.Node], context: StepContext) -> dict[fx.Node, float]:
    """Return the share of calibration values that each clip cuts off at its upper bound."""
    hits = dict.fromkeys(clips, 0)
    total = dict.fromkeys(clips, 0)

    def see(node: fx.Node, value: Tensor) -> None:
        hits[node] += int((value >= clip_bounds(node)[1]).sum())
        total[node] += value.numel()

    observe(graph, clips, context.inputs(context.calibration.samples), see)
    return {clip: hits[clip] / max(1, total[clip]) for clip in clips}


def _sweep(graph: fx.GraphModule, chosen: list[Pair], iterations: int) -> tuple[list[Tensor], int]:
    """Equalize pair after pair until nothing moves; returns the scale of each pair, and the sweeps it took.

    Works in double precision and writes the weights once, at the end.
    """
    weights = {layer.weight: tensor(graph, layer.weight) for pair in chosen for layer in (pair.first, pair.second)}
    doubles = {name: weight.detach().double() for name, weight in weights.items()}
    biases = {pair.first.bias: tensor(graph, pair.first.bias).detach().double() for pair in chosen if pair.first.bias}
    totals = [torch.ones(out_channels(graph, pair.first)).double().to(doubles[pair.first.weight]) for pair in chosen]
    sweeps, moved = 0, 1.0
    while sweeps < iterations and moved >= STILL:
        sweeps, moved = sweeps + 1, 0.0
        for i, pair in enumerate(chosen):
            first, second = doubles[pair.first.weight], doubles[pair.second.weight]
            outs, ins = _rows(first, pair.first, "out"), _rows(second, pair.second, "in")
            scale = _equalizing_scale(outs, ins)
            doubles[pair.first.weight] = _from_rows(outs / scale[:, None], first, pair.first, "out")
            doubles[pair.second.weight] = _from_rows(ins * scale[:, None], second, pair.second, "in")
            if pair.first.bias:
                biases[pair.first.bias] = biases[pair.first.bias] / scale
            totals[i] = totals[i] * scale
            moved = max(moved, float((scale - 1).abs().max()))
    for name, value in doubles.items():
        set_tensor(graph, name, value.to(weights[name].dtype))
    for name, value in biases.items():
        assert name is not None
        set_tensor(graph, name, value.to(tensor(graph, name).dtype))
    return totals, sweeps


def _equalizing_scale(first: Tensor, second: Tensor) -> Tensor:
    """Return `sqrt(r1 / r2)` per channel, 1 where a channel of either layer is all zeros; rows are channels."""
    reach_first, reach_second = first.abs().amax(1), second.abs().amax(1)
    alive = (reach_first > 0) & (reach_second > 0)
    ratio = torch.where(alive, reach_first, 1.0) / torch.where(alive, reach_second, 1.0)
    return ratio.sqrt()


def _rows(weight: Tensor, layer: Layer, of: Side) -> Tensor:
    """View a weight as `[channels, rest]`, by output or input channel; a group reads and writes its own channels."""
    if (of == "out") != (layer.kind == "conv_transpose"):
        return weight.flatten(1)
    grouped = weight.view(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
    return grouped.transpose(1, 2).reshape(layer.groups * weight.shape[1], -1)


def _from_rows(rows: Tensor, like: Tensor, layer: Layer, of: Side) -> Tensor:
    """Undo `_rows`; the shape of `like`."""
    if (of == "out") != (layer.kind == "conv_transpose"):
        return rows.view_as(like)
    grouped = rows.view(layer.groups, like.shape[1], like.shape[0] // layer.groups, -1)
    return grouped.transpose(1, 2).reshape(like.shape)


def _scale_bounds(graph: fx.GraphModule, pair: Pair, scale: Tensor) -> int:
    """Give every ReLU6 of a pair its bound per channel; returns how many there were."""
    for clip in pair.clips:
        _, high = clip_bounds(clip)
        recorded = clip.meta["val"]
        bound = (high / scale).to(recorded.dtype)
        if pair.first.kind != "linear":
            bound = bound.view(-1, *[1] * (recorded.dim() - 2))
        node = buffer_node(graph, f"{clip.name}_bound", bound, clip)
        with graph.graph.inserting_before(clip):
            relu = graph.graph.call_function(aten.relu.default, (clip.args[0],))
        relu.meta = dict(clip.meta)
        replace_call(graph, clip, aten.minimum.default, (relu, node))
    return len(pair.clips)


def _absorb(graph: fx.GraphModule, context: StepContext) -> int:
    """Absorb large biases over every pair that allows it; returns how many channels had one."""
    able = [pair for pair in pairs(graph) if _can_absorb(pair)]
    if not able:
        return 0
    excess = _absorbable(graph, [pair.first.node for pair in able], context)
    count = 0
    for pair in able:
        surplus = excess[pair.first.node]
        if not bool((surplus > 0).any()):
            continue
        assert pair.first.bias is not None
        count += int((surplus > 0).sum())
        second = tensor(graph, pair.second.weight).detach().double()
        shift = _response(_rows(second, pair.second, "in"), surplus, second, pair.second)
        old = torch.zeros_like(shift) if pair.second.bias is None else tensor(graph, pair.second.bias).double()
        first = tensor(graph, pair.first.bias)
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


def _absorbable(graph: fx.GraphModule, nodes: list[fx.Node], context: StepContext) -> dict[fx.Node, Tensor]:
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

    observe(graph, nodes, context.inputs(context.calibration.samples), see)
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
