"""A float graph and the weight encodings that steps have fixed for it: what the ladder's steps pass on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from qatflow.quant.grid import Encoding


@dataclass(frozen=True)
class Network:
    """What a rung is made of.

    Attributes:
        graph: the captured graph, float weights included.
        encodings: weight encodings that the simulation must use, by parameter name. Rounding steps leave the weight
            on its grid and the grid here, so that quantizing it again changes nothing.
        normals: mean and standard deviation of a layer's output channels, as the batch norm that was folded into it
            learned them, by the layer's node; float64, shape `[channels]` each.
    """

    graph: fx.GraphModule
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    normals: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def copy(self) -> Network:
        """Return a network that shares no tensor with this one."""
        return Network(copy_graph(self.graph), dict(self.encodings), dict(self.normals))

    def shift_normal(self, node: str, by: Tensor) -> None:
        """Note that the bias of a layer has moved, shape `[channels]`; only on a copy of one's own."""
        if node in self.normals:
            mean, deviation = self.normals[node]
            self.normals[node] = mean + by, deviation

    def scale_normal(self, node: str, by: Tensor) -> None:
        """Note that a layer's output channels were multiplied by positive factors, shape `[channels]`."""
        if node in self.normals:
            mean, deviation = self.normals[node]
            self.normals[node] = mean * by, deviation * by


def copy_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a deep copy of a graph; what export recorded of its nodes is shared, since it is only read."""
    notes = {node.name: node.meta for node in graph.graph.nodes}
    for node in graph.graph.nodes:
        node.meta = {}
    try:
        result = copy.deepcopy(graph)
    finally:
        for node in graph.graph.nodes:
            node.meta = notes[node.name]
    for node in result.graph.nodes:
        node.meta = dict(notes[node.name])
    return result
