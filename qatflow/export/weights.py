"""Updated float weights, in the shape of the user's own model.

A folded batch norm is still in the user's module. So the folded weight goes into the convolution, the batch norm is
neutralised (mean 0, variance 1, weight `sqrt(1 + eps)`), and a bias that the convolution has no place for becomes the
batch norm's: the state dict loads with `strict=True` and computes the folded function.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from qatflow.graph.closeness import outputs_close
from qatflow.graph.layers import weighted_layers
from qatflow.graph.ops import kind
from qatflow.steps.fold_batch_norms import BatchNorm, batch_norm, layer_before

State = dict[str, Tensor]


@dataclass(frozen=True)
class FloatWeights:
    """Weights to ship.

    Attributes:
        state: tensors by name.
        loadable: whether they load into the user's module and compute what the network does.
        reason: why not, as a sentence; empty where they do.
    """

    state: State
    loadable: bool
    reason: str = ""


def float_weights(
    model: nn.Module,
    base: fx.GraphModule,
    graph: fx.GraphModule,
    example: tuple[tuple[object, ...], dict[str, object]],
) -> FloatWeights:
    """Return a network's float weights, in the user's module's shape where the graph allows it.

    Where a step changed the graph in a way that the module cannot express, the graph's own tensors are returned.

    Args:
        model: the user's module.
        base: its capture.
        graph: the network to ship.
        example: inputs on which module and network are compared.
    """
    changed = _changed_ops(base, graph)
    if changed:
        reason = f"the module has no place for the changed ops {', '.join(changed[:5])}: load the graph's own tensors"
        return FloatWeights(_own_state(graph), loadable=False, reason=reason)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    own = _own_state(graph)
    names = _names(model)
    state.update({name: value.clone() for read, value in own.items() for name in names.get(read, [])})
    for norm, layer_bias in _folded_norms(base, graph):
        _neutralise(state, norm, None if layer_bias is None or layer_bias in state else own[layer_bias])
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    if not _agree(twin, graph, example):
        reason = "in the module, the weights do not compute what the network does: load the graph's own tensors"
        return FloatWeights(own, loadable=False, reason=reason)
    return FloatWeights(state, loadable=True)


def _own_state(graph: fx.GraphModule) -> State:
    """Return the tensors that the graph reads; of a tensor with several names, capture leaves the others behind."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    return {name: value.detach().clone() for name, value in graph.state_dict().items() if name in read}


def _names(model: nn.Module) -> dict[str, list[str]]:
    """Return, for every tensor of the module, all names that it has there: several where it is tied."""
    tensors = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, value in tensors.items():
        names.setdefault(id(value), []).append(name)
    return {name: names[id(value)] for name, value in tensors.items()}


def _changed_ops(base: fx.GraphModule, graph: fx.GraphModule) -> list[str]:
    """Return the calls of `graph` that `base` does not have; a new bias is no new call."""
    known = {(node.name, node.target) for node in base.graph.nodes}
    return [
        node.name for node in graph.graph.nodes if node.op == "call_function" and (node.name, node.target) not in known
    ]


def _folded_norms(base: fx.GraphModule, graph: fx.GraphModule) -> list[tuple[BatchNorm, str | None]]:
    """Return every folded batch norm with the name of the bias of the layer it went into."""
    left = {node.name for node in graph.graph.nodes}
    layers = {layer.node: layer for layer in weighted_layers(base)}
    biases = {layer.node.name: layer.bias for layer in weighted_layers(graph)}
    found = []
    for node in base.graph.nodes:
        if kind(node) == "batch_norm" and node.name not in left:
            norm = batch_norm(node)
            assert norm is not None
            layer = layer_before(node, layers)
            found.append((norm, biases.get(layer.node.name) if layer is not None else None))
    return found


def _neutralise(state: State, norm: BatchNorm, bias: Tensor | None) -> None:
    """Make a batch norm add `bias`, or nothing, and do nothing else."""
    mean, variance = state[norm.mean], state[norm.variance]
    offset = torch.zeros_like(mean) if bias is None else bias.to(mean)
    state[norm.variance] = torch.ones_like(variance)
    if norm.weight is not None:
        state[norm.weight] = torch.full_like(state[norm.weight], (1 + norm.eps) ** 0.5)
    else:
        state[norm.variance] = torch.full_like(variance, 1 - norm.eps)
    if norm.bias is not None:
        state[norm.bias] = offset
    state[norm.mean] = torch.zeros_like(mean) if norm.bias is not None else -offset


def _agree(model: nn.Module, graph: fx.GraphModule, example: tuple[tuple[object, ...], dict[str, object]]) -> bool:
    """Tell whether module and graph give the same outputs, to float rounding."""
    args, kwargs = example
    with torch.no_grad():
        return outputs_close(graph, graph(*args, **kwargs), model.eval()(*args, **kwargs), tolerance=1e-4, equal=0.99)
