"""Fold batch norms into the layer before them.

A batch norm in evaluation mode is an affine map per channel, `y = (x - mean) * gamma / sqrt(var + eps) + beta`, and a
convolution or linear layer followed by it is one convolution or linear layer. The function stays what it is, to
float rounding; the folding is computed in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qatflow.graph.layers import Layer, set_tensor, shared_parameters, tensor, weighted_layers
from qatflow.graph.ops import argument, kind
from qatflow.graph.surgery import bypass, finish, give_bias, sole_user
from qatflow.quant.network import Network
from qatflow.recipe.steps import FoldBatchNorms
from qatflow.results.result import Note
from qatflow.steps.context import StepContext

FLATTENED = ((1, "start_dim", 0), (2, "end_dim", -1))
"""Arguments of `aten.flatten`: position, name and default."""


@dataclass(frozen=True)
class BatchNorm:
    """The parameters of a batch-norm node: names, or None where it has none."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float


def fold_batch_norms(network: Network, config: FoldBatchNorms, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with every batch norm folded that directly follows a weighted layer.

    Notes count `folded` and `left` (batch norms that follow something else, or a layer that others read as well).
    """
    network.require_unfitted("fold_batch_norms")
    graph = network.copy().graph
    layers = {layer.node: layer for layer in weighted_layers(graph)}
    shared = shared_parameters(graph)
    normals = dict(network.normals)
    folded = left = 0
    for node in list(graph.graph.nodes):
        if kind(node) != "batch_norm":
            continue
        layer, norm = layer_before(node, layers), batch_norm(node)
        if layer is None or norm is None or shared & {layer.weight, layer.bias}:
            left += 1
            continue
        normals[layer.node.name] = _normal(graph, norm)
        _fold(graph, layer, norm)
        _remove(graph, node)
        layers = {layer.node: layer for layer in weighted_layers(graph)}
        folded += 1
    if not folded:
        return network, {"folded": 0, "left": left, "reason": "no batch norm follows a layer that it could fold into"}
    return Network(finish(graph), network.design, normals=normals), {"folded": folded, "left": left}


def layer_before(node: fx.Node, layers: Mapping[fx.Node, Layer]) -> Layer | None:
    """Return the layer whose output a batch norm alone reads; None where there is none.

    Between a linear layer over tokens and its batch norm, tokens and samples may be flattened into one dimension.
    """
    source = node.args[0]
    if not isinstance(source, fx.Node) or sole_user(source) is not node:
        return None
    if source in layers or source.target is not torch.ops.aten.flatten.using_ints:
        return layers.get(source)
    before = source.args[0]
    layer = layers.get(before) if isinstance(before, fx.Node) and sole_user(before) is source else None
    if layer is None or layer.kind != "linear":
        return None
    rank = layer.node.meta["val"].dim()
    first, last = (argument(source, place, name, default) for place, name, default in FLATTENED)
    return layer if first % rank == 0 and last % rank == rank - 2 else None


def batch_norm(node: fx.Node) -> BatchNorm | None:
    """Return the parameters of a batch-norm node; None where they are not parameters or it uses batch statistics."""
    functional = node.target is torch.ops.aten.batch_norm.default
    sources = node.args[1:5]
    if any(isinstance(source, fx.Node) and source.op != "get_attr" for source in sources):
        return None
    if not isinstance(sources[2], fx.Node) or not isinstance(sources[3], fx.Node):
        return None
    if functional and bool(argument(node, 5, "training", False)):
        return None
    weight, bias, mean, variance = (str(s.target) if isinstance(s, fx.Node) else None for s in sources)
    assert mean is not None
    assert variance is not None
    eps = argument(node, 7 if functional else 6, "eps")
    return BatchNorm(weight, bias, mean, variance, float(eps))


def fold_factors(graph: fx.GraphModule, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return a batch norm as `x * factor + offset`, float64, shape `[channels]` each."""
    mean, variance = tensor(graph, norm.mean).double(), tensor(graph, norm.variance).double()
    factor = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * tensor(graph, norm.weight).double()
    offset = -mean * factor
    if norm.bias is not None:
        offset = offset + tensor(graph, norm.bias).double()
    return factor.detach(), offset.detach()


def _normal(graph: fx.GraphModule, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation that a batch norm gives its channels: its bias and the size of its weight."""
    like = tensor(graph, norm.mean).detach().double()
    mean = torch.zeros_like(like) if norm.bias is None else tensor(graph, norm.bias).detach().double()
    weight = torch.ones_like(like) if norm.weight is None else tensor(graph, norm.weight).detach().double()
    return mean, weight.abs()


def _fold(graph: fx.GraphModule, layer: Layer, norm: BatchNorm) -> None:
    """Scale the layer's output channels and shift its bias."""
    factor, offset = fold_factors(graph, norm)
    weight = tensor(graph, layer.weight)
    set_tensor(graph, layer.weight, (weight.double() * _by_output_channel(factor, layer, weight)).to(weight.dtype))
    bias = offset if layer.bias is None else tensor(graph, layer.bias).double() * factor + offset
    give_bias(graph, layer, bias.detach().to(weight.dtype))


def _by_output_channel(values: Tensor, layer: Layer, weight: Tensor) -> Tensor:
    """Shape one value per output channel so that it broadcasts over the layer's weight."""
    trailing = [1] * (weight.dim() - 2)
    if layer.kind != "conv_transpose":
        return values.view(-1, 1, *trailing)
    per_group = values.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
    return per_group.reshape(weight.shape[0], -1, *trailing)


def _remove(graph: fx.GraphModule, node: fx.Node) -> None:
    """Let the readers of the batch norm read its input; the older op returns a tuple."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if node.target is torch.ops.aten.batch_norm.default:
        bypass(graph, node, source)
        return
    for user in list(node.users):
        bypass(graph, user, source)
    graph.graph.erase_node(node)
