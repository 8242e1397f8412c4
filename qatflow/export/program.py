"""Export a graph once more, with the dimensions that are free: what `.pt2` and ONNX files are made of."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from qatflow.errors import ExportError
from qatflow.export.signature import Example, Signature
from qatflow.graph.capture_errors import first_sentence, quiet
from qatflow.users_code import blame_machine


def exported(graph: fx.GraphModule, signature: Signature, example: Example) -> ExportedProgram:
    """Return a graph as a program whose free dimensions are dynamic: the first of every input, and those named.

    Raises:
        ExportError: it cannot be exported.
    """
    args, kwargs = signature.ordered(example)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(graph, args, kwargs, dynamic_shapes=signature.dynamic_shapes(example))
    except Exception as error:
        blame_machine(error)
        message = f"the quantized graph cannot be exported: {first_sentence(error)}"
        raise ExportError(message) from error
