"""Let every op of a file read and give activations of one width.

Qualcomm's HTP has kernels for 8 and for 16 bits, and none from the one to the other: a convolution from 8 to 16 bits
runs in float there, or wrongly (2 dB). So where an op reads or gives 16 bits, the tensors of 8 bits around it go
through 16 bits as well, on a grid 256 times as fine that holds every value of the 8. The backend converts between both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qatflow.export.onnx_qdq import initializer

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FINER = 256
"""Steps of the wide grid in one of the narrow one."""


@dataclass
class _Part:
    """Ops between quantizers, joined by floats.

    Attributes:
        reads: who reads a dequantized activation, at which place, and the node that dequantizes it.
        gives: the nodes that quantize what comes out.
    """

    reads: list[tuple[ir.Node, int, ir.Node]] = field(default_factory=list)
    gives: list[ir.Node] = field(default_factory=list)

    def add(self, node: ir.Node) -> Iterator[ir.Node]:
        """Add an op; yields those that it is joined with."""
        for place, value in enumerate(node.inputs):
            source = None if value is None else value.producer()
            if source is None or source.op_type == QUANTIZE:
                continue
            if source.op_type != DEQUANTIZE:
                yield source
            elif source.inputs[0] is not None and not source.inputs[0].is_initializer():
                self.reads.append((node, place, source))
        for reader in (use.node for value in node.outputs for use in value.uses()):
            if reader.op_type == QUANTIZE and reader not in self.gives:
                self.gives.append(reader)
            elif reader.op_type not in (QUANTIZE, DEQUANTIZE):
                yield reader


def one_width(graph: ir.Graph) -> None:
    """Put pairs of 16 bits around ops that would read and give activations of both widths, in place."""
    for part in list(_parts(graph)):
        ends = [*(source for _, _, source in part.reads), *part.gives]
        narrow = [node for node in ends if _kind(node) in (ir.DataType.UINT8, ir.DataType.INT8)]
        if len(narrow) == len(ends) or not narrow:
            continue
        for reader, place, source in part.reads:
            if source in narrow:
                _widen(graph, source, reader, place)
        for node in part.gives:
            if node in narrow:
                _widen(graph, node, node, 0)


def _parts(graph: ir.Graph) -> Iterator[_Part]:
    seen: set[ir.Node] = set()
    for start in graph:
        if start.op_type in (QUANTIZE, DEQUANTIZE) or start in seen:
            continue
        part, pending = _Part(), [start]
        seen.add(start)
        while pending:
            near = [one for one in dict.fromkeys(part.add(pending.pop())) if one not in seen]
            pending += near
            seen.update(near)
        yield part


def _kind(node: ir.Node) -> ir.DataType | None:
    """Return the type of the integers that a node gives, or takes."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    return None if zero_point is None else zero_point.dtype


def _widen(graph: ir.Graph, grid: ir.Node, reader: ir.Node, place: int) -> None:
    """Put a pair of 16 bits before what a node reads, with every value of an 8-bit grid."""
    value, (scale, zero_point) = reader.inputs[place], grid.inputs[1:3]
    assert value is not None
    assert scale is not None
    assert scale.const_value is not None
    assert zero_point is not None
    assert zero_point.const_value is not None
    wide = np.uint16 if zero_point.dtype == ir.DataType.UINT8 else np.int16
    fine = initializer(graph, f"{scale.name}_of_16", (scale.const_value.numpy() / FINER).astype(np.float32))
    zero = initializer(
        graph, f"{zero_point.name}_of_16", zero_point.const_value.numpy().astype(wide) * np.asarray(FINER, wide)
    )
    name = f"{reader.name}_{place}_of_16"
    quantize = ir.node(QUANTIZE, [value, fine, zero], name=f"{name}_{QUANTIZE}")
    dequantize = ir.node(DEQUANTIZE, [quantize.outputs[0], fine, zero], name=f"{name}_{DEQUANTIZE}")
    for node, kind in ((quantize, zero.type), (dequantize, value.type)):
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{node.name}_output", value.shape, kind
    graph.insert_before(reader, [quantize, dequantize])
    reader.replace_input_with(place, dequantize.outputs[0])
