"""Write a graph as an ONNX file, by `torch.onnx.export` and the passes beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import fx

from qatflow import __version__
from qatflow.errors import ExportError
from qatflow.export.onnx_qdq import insert_qdq
from qatflow.export.onnx_tidy import fix_batch, tidy
from qatflow.export.program import exported
from qatflow.export.signature import Example, Signature
from qatflow.graph.caches import forget_sizes
from qatflow.graph.capture_errors import first_sentence, quiet
from qatflow.results.store import write_atomically
from qatflow.users_code import blame_machine

OPSET = 18
"""The opset that the exporter's translations are written for."""
OPSET_OF_FEW_AND_MANY_BITS = 21
"""The first whose QuantizeLinear and DequantizeLinear have 16 and 4 bits."""
LEAVE_OUT = "export.onnx=false on the same run folder ends the run without that file"
MOST_BYTES = 2**31 - 2**20
"""A protobuf message holds no more; the weights then go into a file beside it."""


@dataclass(frozen=True)
class OnnxOptions:
    """How a file is written: its opset, whether weights of up to 4 bits are packed, two to a byte, and the size of its
    batch, None where that is free.
    """

    opset: int = OPSET
    packed: bool = False
    batch: int | None = None


def write_onnx(graph: fx.GraphModule, signature: Signature, example: Example, path: Path, options: OnnxOptions) -> None:
    """Write a float graph.

    Args:
        graph: without quantizers.
        signature: of the same model.
        example: inputs.
        path: the file.
        options: opset and packing.

    Raises:
        ExportError: `torch.onnx.export` has no translation for an op, or none to the opset.
    """
    save_onnx(onnx_model(graph, signature, example, options, {}), path)


def onnx_model(
    graph: fx.GraphModule, signature: Signature, example: Example, options: OnnxOptions, names: Mapping[str, str]
) -> ir.Model:
    """Return a graph as an ONNX model, with its marked quantize and dequantize calls as Q/DQ.

    Args:
        graph: of `quantized_graph` with `OnnxForm`, or a float graph.
        signature: of the same model.
        example: inputs.
        options: opset and packing.
        names: of tensors in the file, by their names in the graph.

    Raises:
        ExportError: `torch.onnx.export` has no translation for an op, or none to the opset.
    """
    program = exported(graph, signature, example)
    try:
        with torch.no_grad(), quiet():
            converted = torch.onnx.export(program, dynamo=True, opset_version=options.opset, verbose=False)
    except Exception as error:
        blame_machine(error)
        message = f"the model cannot be written as ONNX: {first_sentence(_root(error))}; {LEAVE_OUT}"
        raise ExportError(message) from error
    assert converted is not None
    forget_sizes(program.graph_module)
    model = converted.model
    insert_qdq(model, names, packed=options.packed)
    tidy(model, signature.inputs, signature.outputs, signature.free)
    if options.batch is not None:
        fix_batch(model, options.batch)
    model.producer_name, model.producer_version = "qatflow", __version__
    model.graph.name = "model"
    return model


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a model, its weights in a file beside it where one file cannot hold them."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    beside = f"{path.name}.data" if size > MOST_BYTES else None
    write_atomically(path, lambda aside: ir.save(model, aside, external_data=beside))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
