"""The pairs of QuantizeLinear and DequantizeLinear in an ONNX model, and the stored weights behind the latter alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Pairs:
    """What a model's Q/DQ says.

    Attributes:
        there: whether it has any.
        activations: names of the activations that go through a pair, in the order of the graph.
        stored: shapes of stored tensors, by the name of their floats.
        axes: channel axis of those that have a scale per channel.
    """

    there: bool
    activations: tuple[str, ...]
    stored: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int]


def pairs_of(graph: onnx.GraphProto, constants: Mapping[str, tuple[tuple[int, ...], int]]) -> Pairs:
    """Return the pairs of a graph.

    Args:
        graph: of a model.
        constants: shape and type of its stored tensors, by name.
    """
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    quantized: dict[str, str] = {}
    names: dict[str, None] = {}
    stored: dict[str, tuple[int, ...]] = {}
    axes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            quantized[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            stored[node.output[0]] = constants[node.input[0]][0]
            if len(constants.get(node.input[1], ((), 0))[0]):
                axes[node.output[0]] = next((one.i for one in node.attribute if one.name == "axis"), 1)
        elif node.op_type == "DequantizeLinear" and node.input[0] in quantized:
            source, result = quantized[node.input[0]], _end(node, readers.get(node.output[0], []))
            names[result if result in outputs and source not in inputs else source] = None
    return Pairs(bool(quantized or stored), tuple(names), stored, axes)


def _end(node: onnx.NodeProto, readers: list[onnx.NodeProto]) -> str:
    """Return the result of a pair, that of the Clip behind it where few bits are kept within their grid."""
    clips = [one.op_type for one in readers] == ["Clip"] and bool(readers[0].output)
    return str(readers[0].output[0] if clips else node.output[0])
