"""A float graph, its design, and the weight encodings that steps have fixed for it: what the ladder's steps pass on.

Steps are of two sorts. Some change weights and keep the float function (folding, equalization); others fit weights,
biases or statistics to what quantization does to them, which changes it. Every step aims at the function of FP32: what
was fitted before is where it starts, and never its goal. So a network remembers FP32's values of what was fitted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, fx

from qatflow.errors import StepError
from qatflow.graph.layers import set_tensor, tensor
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding


@dataclass(frozen=True)
class Network:
    """What a rung is made of.

    Attributes:
        graph: the captured graph, float weights included.
        design: what it is quantized for, and how.
        encodings: weight encodings that the simulation must use, by parameter name. Rounding steps leave the weight
            on its grid and the grid here, so that quantizing it again changes nothing.
        normals: mean and standard deviation of a layer's output channels, as the batch norm that was folded into it
            learned them, by the layer's node; float64, shape `[channels]` each.
        goal: FP32's values of the parameters that steps have fitted, by name; those of all others are in the graph.
    """

    graph: fx.GraphModule
    design: Design = field(default_factory=Design)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    normals: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    goal: Mapping[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Network:
        """Return a network that shares no tensor with this one, but for those that are never changed."""
        return replace(
            self,
            graph=copy_graph(self.graph),
            encodings=dict(self.encodings),
            normals=dict(self.normals),
            goal=dict(self.goal),
        )

    def designed(self, design: Design) -> Network:
        """Return the same network with another design."""
        return replace(self, design=design)

    def fp32(self, name: str) -> Tensor:
        """Return the value of a parameter in the FP32 function, detached."""
        return (self.goal[name] if name in self.goal else tensor(self.graph, name)).detach()

    @cached_property
    def fp32_graph(self) -> fx.GraphModule:
        """The graph with FP32's function: what quantized outputs are compared with."""
        return with_tensors(self.graph, self.goal) if self.goal else self.graph

    def unfitted(self) -> Network:
        """Return the network as it was before any step fitted weights to quantization."""
        return Network(self.fp32_graph, self.design, normals=self.normals)

    def fitted(self, values: Mapping[str, Tensor], encodings: Mapping[str, Encoding] | None = None) -> Network:
        """Return a network with other values of some parameters, which FP32 does not have, and encodings for some."""
        goal = {name: tensor(self.graph, name).detach() for name in values if name not in self.goal}
        graph = with_tensors(self.graph, values)
        return replace(self, graph=graph, encodings={**self.encodings, **(encodings or {})}, goal={**self.goal, **goal})

    def require_unfitted(self, step: str) -> None:
        """Refuse a step that has to know the FP32 function from the graph alone.

        Raises:
            StepError: weights were fitted already.
        """
        if self.goal or self.encodings:
            fitted = next(iter({**self.goal, **self.encodings}))
            message = f"{step}: weights were fitted to their quantization already ({fitted}, ...); run it before that"
            raise StepError(message)

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


def with_tensors(graph: fx.GraphModule, values: Mapping[str, Tensor]) -> fx.GraphModule:
    """Return a copy of a graph with other values of some parameters and buffers."""
    copied = copy_graph(graph)
    for name, value in values.items():
        set_tensor(copied, name, value)
    return copied


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
