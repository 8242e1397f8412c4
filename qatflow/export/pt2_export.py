"""The quantized graph as PyTorch's own file."""

from __future__ import annotations

from pathlib import Path

import torch

from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.program import exported
from qatflow.export.quantized_graph import quantized_graph
from qatflow.export.signature import Example, Signature
from qatflow.export.torch_form import TorchForm
from qatflow.graph.caches import forget_sizes
from qatflow.quant.simulation import Simulation
from qatflow.results.store import write_atomically


def export_pt2(simulation: Simulation, example: Example, path: Path, content: IntegerBiases | None = None) -> None:
    """Write a simulation as an `ExportedProgram` with PyTorch's quantize and dequantize ops and a dynamic batch.

    `torch.export.load` reads it in a process that has imported `torch.ao.quantization.fx._decomposed`, which registers
    those ops; qatflow is not needed.

    Args:
        simulation: calibrated or trained.
        example: positional and keyword inputs, at least 2 samples.
        path: the file.
        content: what `integer_biases` made of the simulation, where that is known.

    Raises:
        ExportError: `torch.export` cannot take the graph.
    """
    content, target = content or integer_biases(simulation), simulation.design.target
    graph = quantized_graph(content, simulation.placement, target, TorchForm())
    program = exported(graph, Signature.of(graph, example), example)
    write_atomically(path, lambda aside: torch.export.save(program, aside))
    forget_sizes(program.graph_module)
