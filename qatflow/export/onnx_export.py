"""A simulation as an ONNX file with Q/DQ, as its target wants it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import fx

from qatflow.export.integer_biases import integer_biases
from qatflow.export.onnx_file import OPSET, OPSET_OF_FEW_AND_MANY_BITS, OnnxOptions, write_onnx
from qatflow.export.onnx_form import OnnxForm
from qatflow.export.processor import Storage, weights_stored_as
from qatflow.export.quantized_graph import quantized_graph
from qatflow.export.signature import Example, Signature
from qatflow.export.torch_form import TorchForm
from qatflow.quant.placement import Placement
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export


@dataclass(frozen=True)
class Exported:
    """A file and what it must compute.

    Attributes:
        path: the file.
        signature: names of its inputs and outputs.
        simulation: what it must compute; biases are in float there.
        graph: the same with PyTorch's quantize and dequantize calls, and biases as in the file.
        weights: how signed weights of up to 8 bits are stored.
    """

    path: Path
    signature: Signature
    simulation: fx.GraphModule
    placement: Placement
    graph: fx.GraphModule
    weights: Storage


def export_onnx(simulation: Simulation, example: Example, path: Path, config: Export | None = None) -> Exported:
    """Write a simulation as ONNX, with a dynamic batch and the names of the model's own inputs and outputs.

    Args:
        simulation: calibrated or trained.
        example: positional and keyword inputs, at least 2 samples.
        path: the file.
        config: how weights are stored, and the opset.

    Raises:
        ExportError: `torch.onnx.export` has no translation for an op of the model, or none to the opset.
    """
    config, target, placement = config or Export(), simulation.target, simulation.placement
    content = integer_biases(simulation)
    on_integers = target.name == "onnxruntime"
    stored = weights_stored_as(config.weights, weight_bits(placement)) if on_integers else "int8"
    packed = config.packed_int4 if config.packed_int4 is not None else not on_integers
    graph = quantized_graph(content, placement, target, OnnxForm(), unsigned_weights=stored == "uint8")
    signature = Signature.of(content.network.graph, example)
    options = OnnxOptions(config.opset or needed_opset(placement, packed), packed)
    write_onnx(graph, signature, example, path, options)
    torch_graph = quantized_graph(content, placement, target, TorchForm())
    return Exported(path, signature, simulation.model, placement, torch_graph, stored)


def weight_bits(placement: Placement) -> int:
    """Return the bits of the widest weight."""
    return max(point.grid.bits for point in placement.points if point.parameter)


def needed_opset(placement: Placement, packed: bool) -> int:
    """Return the opset whose QuantizeLinear and DequantizeLinear have all types that a file needs."""
    wide = any(point.grid.bits > 8 for point in placement.points)
    narrow = packed and any(point.grid.bits <= 4 for point in placement.points if point.parameter)
    return OPSET_OF_FEW_AND_MANY_BITS if wide or narrow else OPSET
