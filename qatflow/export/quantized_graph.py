"""The quantized graph as a file holds it: weights and biases as integers, quantize and dequantize around the rest.

Every file is written from this one graph, and it follows the placement that the simulation follows. What the two
calls become is the file's affair: torch's own ops in a `.pt2`, QuantizeLinear and DequantizeLinear in ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from qatflow.export.integer_biases import IntegerBiases
from qatflow.export.single_precision import in_single_precision
from qatflow.graph.layers import add_buffer, tensor
from qatflow.graph.surgery import finish
from qatflow.quant.grid import Encoding
from qatflow.quant.network import copy_graph
from qatflow.quant.placement import Placement
from qatflow.quant.target import Target


@dataclass(frozen=True)
class Stored:
    """How the integers of an encoding are held.

    Attributes:
        name: of the tensor.
        encoding: what they mean.
        shift: added to every integer and to the zero point; 128 holds a signed weight in unsigned bytes.
    """

    name: str
    encoding: Encoding
    shift: int = 0

    @property
    def signed(self) -> bool:
        """Whether the integers need a signed type."""
        return self.encoding.grid.signed and self.shift == 0

    @property
    def bits(self) -> int:
        """Bits of the container in memory: 8, 16 or 32."""
        return next(size for size in (8, 16, 32) if self.encoding.grid.bits <= size)

    @property
    def dtype(self) -> torch.dtype:
        """Torch's type of the container."""
        return getattr(torch, f"{'int' if self.signed else 'uint'}{self.bits}")  # type: ignore[no-any-return]

    @property
    def low(self) -> int:
        """Smallest integer."""
        return self.encoding.grid.qmin + self.shift

    @property
    def high(self) -> int:
        """Largest integer."""
        return self.encoding.grid.qmax + self.shift

    @property
    def scales(self) -> list[float]:
        """One scale, or one per channel."""
        return [float(scale) for scale in self.encoding.scale.reshape(-1)]

    @property
    def zero_points(self) -> list[int]:
        """One zero point, or one per channel."""
        return [int(zero_point) + self.shift for zero_point in self.encoding.zero_point.reshape(-1)]

    def integers(self, value: Tensor) -> Tensor:
        """Return `value` on the grid, as `dtype`; the shape of `value`."""
        doubled = Encoding(
            self.encoding.grid, self.encoding.scale.double(), self.encoding.zero_point.double(), self.encoding.axis
        )
        exact = doubled if self.bits == 32 else self.encoding
        return (exact.quantize(value.detach().to(exact.scale.dtype)) + self.shift).to(self.dtype)


class Form(Protocol):
    """How a file spells the two calls. Each is named after its tensor: `relu_quantized`, `relu_dequantized`."""

    def quantize(self, graph: fx.GraphModule, source: fx.Node, stored: Stored) -> fx.Node:
        """Add the call that turns `source` into integers, at the graph's insertion point."""

    def dequantize(self, graph: fx.GraphModule, source: fx.Node, stored: Stored) -> fx.Node:
        """Add the call that turns the integers `source` into floats."""


def quantized_graph(
    content: IntegerBiases, placement: Placement, target: Target, form: Form, *, unsigned_weights: bool = False
) -> fx.GraphModule:
    """Return a network's graph with its quantizers as calls of `form`.

    Args:
        content: the float network, its encodings and those of its biases; it is copied.
        placement: which tensors are quantized.
        target: whether tensors that only move values are quantized again.
        form: how the calls are spelled.
        unsigned_weights: hold signed weights of up to 8 bits as unsigned bytes around 128.
    """
    graph, encodings = copy_graph(content.network.graph), content.encodings
    nodes = {node.name: node for node in graph.graph.nodes}
    nodes |= in_single_precision(graph)
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and (name := str(node.target)) in content.biases:
            _integer_parameter(graph, node, name, Stored(name, content.biases[name]), form)
    for point in placement.points:
        node, encoding = nodes[point.tensor], encodings[point.tensor]
        if point.parameter is not None:
            shift = 128 if unsigned_weights and encoding.grid.signed and encoding.grid.bits <= 8 else 0
            _integer_parameter(graph, node, point.parameter, Stored(point.parameter, encoding, shift), form)
        else:
            readers = [one for one in node.users if point.readers is None or one.name in point.readers]
            _insert(graph, node, readers, Stored(point.tensor, encoding), form)
    if target.at == "producer":
        # The values are on the grid already: the pair costs nothing, and tells the runtime that it may move integers.
        for name, origin in placement.tied.items():
            _insert(graph, nodes[name], list(nodes[name].users), Stored(name, encodings[origin]), form)
    return finish(graph)


def _insert(graph: fx.GraphModule, node: fx.Node, readers: list[fx.Node], stored: Stored, form: Form) -> None:
    last = node
    while last.op == "placeholder" and last.next.op == "placeholder":
        last = last.next
    with graph.graph.inserting_after(last):
        integers = form.quantize(graph, node, stored)
    with graph.graph.inserting_after(integers):
        result = form.dequantize(graph, integers, stored)
    for reader in readers:
        reader.replace_input_with(node, result)


def _integer_parameter(graph: fx.GraphModule, node: fx.Node, name: str, stored: Stored, form: Form) -> None:
    """Let the readers of a parameter read its integers, dequantized."""
    add_buffer(graph, f"{name}_quantized", stored.integers(tensor(graph, name)))
    with graph.graph.inserting_after(node):
        integers = graph.graph.get_attr(f"{name}_quantized")
    with graph.graph.inserting_after(integers):
        result = form.dequantize(graph, integers, stored)
    node.replace_all_uses_with(result)
