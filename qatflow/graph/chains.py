"""Chains: pairs of weighted layers with nothing between them but ops that treat every channel by itself.

Every op on the way must be positively homogeneous, `f(s x) = s f(x)` for `s > 0`, so that a scale per channel can be
moved from one layer to the next. A ReLU6 (a clip from 0) is not; a pair with one is marked, and it is up to the step
what to do with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from qatflow.graph.layers import Layer, shared_parameters, weighted_layers
from qatflow.graph.ops import argument, clip_bounds, kind
from qatflow.graph.surgery import sole_user

Side = Literal["in", "out"]
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "max_pool", "avg_pool", "identity"})


@dataclass(frozen=True)
class Pair:
    """Two layers between which a scale per channel can be moved."""

    first: Layer
    second: Layer
    between: tuple[fx.Node, ...]
    """The ops on the way, in order."""
    clips: tuple[fx.Node, ...]
    """Those of them that clip from 0 to a bound, such as ReLU6."""


def pairs(graph: fx.GraphModule) -> list[Pair]:
    """Return every pair of a graph, in the order of their first layers.

    A layer whose weight or bias another op reads too is in no pair.
    """
    layers = {layer.node: layer for layer in weighted_layers(graph)}
    shared = shared_parameters(graph)
    found = []
    for first in layers.values():
        between: list[fx.Node] = []
        node = sole_user(first.node)
        while node is not None and node not in layers and (_is_clip_from_zero(node) or _keeps_channels(node, first)):
            between.append(node)
            node = sole_user(node)
        second = layers.get(node) if node is not None else None
        if second is None or node is None or second.node.args[0] is not (between[-1] if between else first.node):
            continue
        own = [name for name in (first.weight, first.bias, second.weight, second.bias) if name is not None]
        if shared & set(own) or not _channels_meet(graph, first, second):
            continue
        clips = tuple(step for step in between if _is_clip_from_zero(step))
        found.append(Pair(first, second, tuple(between), clips))
    return found


def chains(found: list[Pair]) -> list[list[Pair]]:
    """Return pairs in runs in which the second layer of one is the first of the next."""
    runs: dict[str, list[Pair]] = {}
    for pair in found:
        run = runs.pop(pair.first.node.name, [])
        runs[pair.second.node.name] = [*run, pair]
    return list(runs.values())


def _keeps_channels(node: fx.Node, first: Layer) -> bool:
    """Tell whether an op is positively homogeneous and keeps the channels of `first` apart and in place."""
    known = kind(node)
    if known == "mean":
        dims = argument(node, 1, "dim") or []
        rank = _rank(node.args[0])
        return first.kind != "linear" and bool(dims) and all(dim % rank > 1 for dim in dims)
    if known == "reshape" and node.target is torch.ops.aten.flatten.using_ints:
        return argument(node, 1, "start_dim", 0) == 1 and _is_one_pixel(node.args[0])
    return known in HOMOGENEOUS


def _is_clip_from_zero(node: fx.Node) -> bool:
    if kind(node) != "clip":
        return False
    try:
        low, high = clip_bounds(node)
    except TypeError:
        return False
    return low == 0 and high > 0


def _rank(value: object) -> int:
    recorded = value.meta.get("val") if isinstance(value, fx.Node) else None
    return recorded.dim() if isinstance(recorded, torch.Tensor) else 0


def _is_one_pixel(value: object) -> bool:
    """Tell whether a tensor has no extent beyond batch and channels."""
    recorded = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(recorded, torch.Tensor) and all(
        isinstance(size, int) and size == 1 for size in recorded.shape[2:]
    )


def _channels_meet(graph: fx.GraphModule, first: Layer, second: Layer) -> bool:
    """Tell whether the first layer gives as many channels as the second one takes, and both have them in dim 1."""
    if first.kind == "linear" and second.kind != "linear":
        return False
    if first.kind != "linear" and second.kind == "linear" and _rank(second.input) != 2:
        return False
    return out_channels(graph, first) == in_channels(graph, second)


def out_channels(graph: fx.GraphModule, layer: Layer) -> int:
    """Return how many channels a layer gives."""
    weight = graph.get_parameter(layer.weight)
    return int(weight.shape[1] * layer.groups) if layer.kind == "conv_transpose" else int(weight.shape[0])


def in_channels(graph: fx.GraphModule, layer: Layer) -> int:
    """Return how many channels a layer takes."""
    weight = graph.get_parameter(layer.weight)
    return int(weight.shape[0]) if layer.kind == "conv_transpose" else int(weight.shape[1] * layer.groups)


def channel_rows(weight: Tensor, layer: Layer, of: Side) -> Tensor:
    """Return a weight as `[channels, rest]`, by output or input channel; a group reads and writes its own channels."""
    if (of == "out") != (layer.kind == "conv_transpose"):
        return weight.flatten(1)
    grouped = weight.view(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
    return grouped.transpose(1, 2).reshape(layer.groups * weight.shape[1], -1)


def from_channel_rows(rows: Tensor, like: Tensor, layer: Layer, of: Side) -> Tensor:
    """Undo `channel_rows`; the shape of `like`."""
    if (of == "out") != (layer.kind == "conv_transpose"):
        return rows.view_as(like)
    grouped = rows.view(layer.groups, like.shape[1], like.shape[0] // layer.groups, -1)
    return grouped.transpose(1, 2).reshape(like.shape)
