"""Cross-layer equalization.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.
Between two layers with nothing but positively homogeneous ops between them, output channel `i` of the first may be
divided by `s_i` and input channel `i` of the second multiplied by it; `s_i = sqrt(r1_i / r2_i)` makes both weights
reach equally far. Sweeping over all pairs until the scales stand still also settles chains through depthwise
convolutions. The float function is kept:

- a ReLU6 on the way gets the bound `6 / s_i`, as a clip at the largest bound, which a runtime fuses and which keeps the
  range short, and a minimum with one bound per channel (or, if the config
  says so, becomes a ReLU where calibration shows that it hardly ever clips, or the pair is left alone);
- large biases may be absorbed into the next layer afterwards (`qatflow.steps.absorb_bias`).

What is gained in the weights may be lost in the activation between them, which has one scale for all channels. So every
chain of pairs is tried: it is equalized only if its own output, quantized, is nearer to the float one than before.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qatflow.graph.chains import Pair, chains, channel_rows, from_channel_rows, out_channels, pairs
from qatflow.graph.layers import set_tensor, tensor
from qatflow.graph.observe import observe
from qatflow.graph.ops import clip_bounds
from qatflow.graph.surgery import buffer_node, finish, replace_call
from qatflow.quant.network import Network
from qatflow.recipe.steps import Equalize
from qatflow.results.result import Note
from qatflow.steps.absorb_bias import absorb
from qatflow.steps.chain_trial import helpful
from qatflow.steps.context import StepContext

aten = torch.ops.aten
STILL = 1e-2
"""Scales that change by less than this share in a sweep stand still."""
DEAD = 2.0**-20
"""Weights that reach no farther than this share of their layer's largest say nothing: stretching them would only blow
up their channel's bias."""


def equalize(network: Network, config: Equalize, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with the weight ranges of neighbouring layers equalized.

    Notes count `pairs`, `sweeps`, `relu6_scaled`, `relu6_swapped`, `relu6_skipped`, the chains `left_as_they_were`
    because equalizing them does not help, and `absorbed_channels`.
    """
    network.require_unfitted("equalize")
    result = network.copy()
    chosen, notes = _choose(result, config, context)
    if not chosen:
        reason = "no two layers with only per-channel ops between them; fold batch norms first if the model has any"
        return network, {"pairs": 0, "reason": reason}
    if config.choose == "measured":
        before, after = result.copy(), result.copy()
        _apply(after, _same_pairs(after, chosen), config.iterations)
        every = chains(chosen)
        kept = helpful(every, before, after, context)
        notes["left_as_they_were"] = len(every) - len(kept)
        chosen = [pair for chain in kept for pair in chain]
    if not chosen:
        return network, {**notes, "pairs": 0, "reason": "equalizing helps no chain on calibration samples"}
    notes |= _apply(result, chosen, config.iterations)
    notes["absorbed_channels"] = absorb(result, context) if config.absorb_bias else 0
    finish(result.graph)
    return result, notes


def _same_pairs(network: Network, chosen: list[Pair]) -> list[Pair]:
    """Return the pairs of a copy that are those of the original."""
    names = {pair.first.node.name for pair in chosen}
    return [pair for pair in pairs(network.graph) if pair.first.node.name in names]


def _apply(network: Network, chosen: list[Pair], iterations: int) -> dict[str, Note]:
    """Equalize some pairs of a network, in place; returns what was counted."""
    scales, sweeps = _sweep(network.graph, chosen, iterations)
    for pair, scale in zip(chosen, scales, strict=True):
        network.scale_normal(pair.first.node.name, 1 / scale)
    scaled = sum(_scale_bounds(network.graph, pair, scale) for pair, scale in zip(chosen, scales, strict=True))
    finish(network.graph)
    return {"pairs": len(chosen), "sweeps": sweeps, "relu6_scaled": scaled}


def _choose(network: Network, config: Equalize, context: StepContext) -> tuple[list[Pair], dict[str, Note]]:
    """Return the pairs to equalize, having swapped idle ReLU6s if the config says so."""
    graph = network.graph
    found = pairs(graph)
    with_clips = [pair for pair in found if pair.clips]
    notes: dict[str, Note] = {"relu6_swapped": 0, "relu6_skipped": 0}
    if config.relu6 == "scale_bound" or not with_clips:
        return found, notes
    idle: set[fx.Node] = set()
    if config.relu6 == "swap_if_idle":
        clips = [clip for pair in with_clips for clip in pair.clips]
        shares = _clipped_shares(network, clips, context)
        idle = {clip for clip in clips if shares[clip] <= config.idle_share}
        for clip in idle:
            replace_call(graph, clip, aten.relu.default, (clip.args[0],))
        notes["relu6_swapped"] = len(idle)
    kept = [pair for pair in pairs(graph) if not pair.clips]
    notes["relu6_skipped"] = len(found) - len(kept)
    return kept, notes


def _clipped_shares(network: Network, clips: list[fx.Node], context: StepContext) -> dict[fx.Node, float]:
    """Return the share of calibration values that each clip cuts off at its upper bound."""
    hits = dict.fromkeys(clips, 0)
    total = dict.fromkeys(clips, 0)

    def see(node: fx.Node, value: Tensor) -> None:
        hits[node] += int((value >= clip_bounds(node)[1]).sum())
        total[node] += value.numel()

    observe(network.graph, clips, context.calibration_inputs(network), see)
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
            outs, ins = channel_rows(first, pair.first, "out"), channel_rows(second, pair.second, "in")
            scale = _equalizing_scale(outs, ins)
            doubles[pair.first.weight] = from_channel_rows(outs / scale[:, None], first, pair.first, "out")
            doubles[pair.second.weight] = from_channel_rows(ins * scale[:, None], second, pair.second, "in")
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
    """Return `sqrt(r1 / r2)` per channel, 1 where a channel of either layer is next to all zeros; rows are channels."""
    reach_first, reach_second = first.abs().amax(1), second.abs().amax(1)
    alive = (reach_first > DEAD * reach_first.max()) & (reach_second > DEAD * reach_second.max())
    ratio = torch.where(alive, reach_first, 1.0) / torch.where(alive, reach_second, 1.0)
    return ratio.sqrt()


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
            widest = graph.graph.call_function(aten.clamp.default, (clip.args[0], 0.0, float(bound.max())))
        widest.meta = dict(clip.meta)
        replace_call(graph, clip, aten.minimum.default, (widest, node))
    return len(pair.clips)
