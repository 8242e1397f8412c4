"""A simulation as an ONNX file with Q/DQ, as its target wants it, and as the float model of the encodings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from torch import fx

from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.loaded import LayerKernel
from qatflow.export.onnx_file import OPSET, OPSET_OF_FEW_AND_MANY_BITS, OnnxOptions, onnx_model, save_onnx
from qatflow.export.onnx_float import FileTensors, tensors_of, without_qdq
from qatflow.export.onnx_form import OnnxForm, keep_names
from qatflow.export.onnx_spelling import spell
from qatflow.export.processor import Storage, weights_stored_as
from qatflow.export.quantized_graph import quantized_graph
from qatflow.export.signature import Example, Signature
from qatflow.export.tensor_names import tensor_names
from qatflow.export.torch_form import TorchForm
from qatflow.quant.placement import Placement
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export
from qatflow.recipe.targets import FileKind


@dataclass(frozen=True)
class Exported:
    """A file and what it must compute.

    Attributes:
        path: the file.
        signature: names of its inputs and outputs.
        simulation: what it must compute; biases are in float there.
        graph: the same with PyTorch's quantize and dequantize calls, and biases as in the file.
        weights: how signed weights of up to 8 bits are stored.
        kind: of the file.
        lowered: how its layers run, where that is settled when it is written.
    """

    path: Path
    signature: Signature
    simulation: fx.GraphModule
    placement: Placement
    graph: fx.GraphModule
    weights: Storage
    kind: FileKind = "onnx"
    lowered: tuple[LayerKernel, ...] = ()


@dataclass(frozen=True)
class OnnxFiles:
    """A simulation as ONNX models, not yet written.

    Attributes:
        quantized: with Q/DQ.
        floats: the same without: what encodings belong to.
        tensors: what both call the graph's tensors.
        signature: names of inputs and outputs.
        weights: how signed weights of up to 8 bits are stored.
    """

    quantized: ir.Model
    floats: ir.Model
    tensors: FileTensors
    signature: Signature
    weights: Storage


def export_onnx(simulation: Simulation, example: Example, path: Path, config: Export | None = None) -> Exported:
    """Write a simulation as ONNX, with a free batch unless `config` fixes it, and the model's own names.

    Args:
        simulation: calibrated or trained.
        example: positional and keyword inputs, at least 2 samples.
        path: the file.
        config: how weights are stored, and the opset.

    Raises:
        ExportError: `torch.onnx.export` has no translation for an op of the model, or none to the opset.
    """
    content = integer_biases(simulation)
    return write_quantized(simulation, content, onnx_files(simulation, content, example, config or Export()), path)


def onnx_files(simulation: Simulation, content: IntegerBiases, example: Example, config: Export) -> OnnxFiles:
    """Return a simulation as ONNX models.

    Args:
        simulation: calibrated or trained.
        content: what `integer_biases` made of it.
        example: positional and keyword inputs, at least 2 samples.
        config: how weights are stored, and the opset.

    Raises:
        ExportError: `torch.onnx.export` has no translation for an op of the model, or none to the opset.
    """
    target, placement, road = simulation.design.target, simulation.placement, simulation.design.target.road
    stored = weights_stored_as(config.weights, weight_bits(placement)) if road.unsigned_weights else "int8"
    packed = config.packed_int4 if config.packed_int4 is not None else road.packed_int4
    graph = quantized_graph(content, placement, target, OnnxForm(), unsigned_weights=stored == "uint8")
    if target.at == "reader":
        keep_names(graph, placement.tied)
    signature = Signature.of(content.network.graph, example)
    every = tensor_names(content.network.graph, signature)
    listed = [point.tensor for point in placement.points if point.parameter is None] + list(placement.tied)
    names = {tensor: every[tensor] for tensor in listed}
    opset = config.opset or max(road.opset, needed_opset(placement, packed))
    options = OnnxOptions(opset, packed, config.batch)
    quantized = onnx_model(graph, signature, example, options, names)
    floats = without_qdq(quantized)
    tensors = tensors_of(quantized, floats, names)
    spell(quantized, road.spelling)
    return OnnxFiles(quantized, floats, tensors, signature, stored)


def write_quantized(simulation: Simulation, content: IntegerBiases, files: OnnxFiles, path: Path) -> Exported:
    """Write the model with Q/DQ."""
    save_onnx(files.quantized, path)
    graph = quantized_graph(content, simulation.placement, simulation.design.target, TorchForm())
    return Exported(path, files.signature, simulation.model, simulation.placement, graph, files.weights)


def weight_bits(placement: Placement) -> int:
    """Return the bits of the widest weight."""
    return max(point.grid.bits for point in placement.points if point.parameter)


def needed_opset(placement: Placement, packed: bool) -> int:
    """Return the opset whose QuantizeLinear and DequantizeLinear have all types that a file needs."""
    wide = any(point.grid.bits > 8 for point in placement.points)
    narrow = packed and any(point.grid.bits <= 4 for point in placement.points if point.parameter)
    return OPSET_OF_FEW_AND_MANY_BITS if wide or narrow else OPSET
