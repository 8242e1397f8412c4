"""The weighted layers of a graph, whatever way the model spelled them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from qatflow.graph.ops import WEIGHTED, argument, kind


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed convolution or linear layer whose weight is a parameter of the graph."""

    node: fx.Node
    name: str
    """The module path of the weight: `features.0.0`."""
    kind: str
    weight: str
    """Name of the weight parameter; shape `[out, in / groups, ...]`, transposed: `[in, out / groups, ...]`."""
    bias: str | None
    """Name of the bias parameter."""
    groups: int

    @property
    def input(self) -> fx.Node:
        """The node that gives the layer's input."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source


def weighted_layers(graph: fx.GraphModule) -> list[Layer]:
    """Return the weighted layers of `graph` in the order they run."""
    found = []
    for node in graph.graph.nodes:
        if kind(node) not in WEIGHTED:
            continue
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not isinstance(node.args[0], fx.Node):
            continue
        if bias is not None and bias.op != "get_attr":
            continue
        found.append(
            Layer(
                node=node,
                name=str(weight.target).rpartition(".")[0] or str(weight.target),
                kind=kind(node),
                weight=str(weight.target),
                bias=None if bias is None else str(bias.target),
                groups=_groups(node),
            )
        )
    return found


def shared_parameters(graph: fx.GraphModule) -> set[str]:
    """Return the names of parameters that more than one op reads: none of them may be changed for one op's sake."""
    reads: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            reads[str(node.target)] += len(node.users)
    return {name for name, count in reads.items() if count > 1}


def _groups(node: fx.Node) -> int:
    if kind(node) == "linear":
        return 1
    return int(argument(node, 6, "groups", 1))


def tensor(graph: fx.GraphModule, name: str) -> Tensor:
    """Return the parameter or buffer called `name`.

    Raises:
        KeyError: there is none.
    """
    owner_path, _, leaf = name.rpartition(".")
    value = getattr(graph.get_submodule(owner_path), leaf, None)
    if not isinstance(value, Tensor):
        raise KeyError(name)
    return value


def set_tensor(graph: fx.GraphModule, name: str, value: Tensor) -> None:
    """Give the parameter or buffer called `name` a new value of any shape; a new name becomes a parameter.

    A value of the old one's shape is laid out in memory as that was: kernels add up in another order otherwise, and a
    network would differ, in the last bits, from the same one read from a file.
    """
    owner_path, _, leaf = name.rpartition(".")
    owner = _owner(graph, owner_path)
    value = laid_out_like(getattr(owner, leaf, None), value)
    is_buffer = leaf in dict(owner.named_buffers(recurse=False))
    setattr(owner, leaf, value if is_buffer else nn.Parameter(value))


def laid_out_like(other: Tensor | None, value: Tensor) -> Tensor:
    """Return a copy of `value` with the strides of another tensor, contiguous where that has another shape."""
    if other is None or other.shape != value.shape:
        return value.detach().clone(memory_format=torch.contiguous_format)
    return torch.empty_like(other, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value.detach())


def add_buffer(graph: fx.GraphModule, name: str, value: Tensor) -> None:
    """Add a buffer called `name`."""
    owner_path, _, leaf = name.rpartition(".")
    _owner(graph, owner_path).register_buffer(leaf, value.detach().clone())


def _owner(graph: fx.GraphModule, path: str) -> nn.Module:
    """Return the submodule at `path`, made where it is missing."""
    module: nn.Module = graph
    for part in filter(None, path.split(".")):
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    return module
