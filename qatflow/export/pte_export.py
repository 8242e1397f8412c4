"""A simulation as an ExecuTorch program whose layers XNNPACK runs on integers, and that program as a function.

ExecuTorch is an extra: `pip install qatflow[executorch]`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.errors import ExportError
from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.onnx_export import Exported
from qatflow.export.quantized_graph import quantized_graph
from qatflow.export.signature import Example, Signature
from qatflow.export.torch_form import TorchForm
from qatflow.graph.capture_errors import first_sentence, quiet
from qatflow.graph.tree import tree_map_only
from qatflow.quant.simulation import Simulation
from qatflow.results.store import void, write_atomically
from qatflow.users_code import blame_machine

MISSING = "export.pte needs ExecuTorch: pip install 'qatflow[executorch]', or set export.pte=false"


def export_pte(simulation: Simulation, example: Example, path: Path, content: IntegerBiases | None = None) -> Exported:
    """Write a simulation as a program for batches of one sample, its layers given to XNNPACK.

    Args:
        simulation: calibrated or trained, of target `xnnpack` or another whose program XNNPACK runs.
        example: positional and keyword inputs.
        path: the file.
        content: what `integer_biases` made of the simulation, where that is known.

    Raises:
        ExportError: ExecuTorch is not installed, or cannot take the graph.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ExportError(MISSING) from error
    content, placement = content or integer_biases(simulation), simulation.placement
    graph = quantized_graph(content, placement, simulation.design.target, TorchForm())
    signature = Signature.of(graph, example)
    _give_readers_their_own(graph)
    args, kwargs = one_sample(signature.ordered(example))
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(graph, args, kwargs)
            buffer = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    except Exception as error:
        blame_machine(error)
        message = f"ExecuTorch cannot take the model: {first_sentence(error)}"
        raise ExportError(message) from error
    write_atomically(path, lambda aside: void(aside.write_bytes(buffer)))
    return Exported(path, signature, simulation.model, placement, graph, "int8", "pte")


class PteModel:
    """A program in ExecuTorch's runtime, called like the model: sample by sample, on the CPU.

    Args:
        path: the file.
        signature: of the model.

    Raises:
        ExportError: the runtime cannot load it.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        self.signature = signature
        self.name = f"ExecuTorch {version('executorch')}"
        try:
            from executorch.runtime import Runtime

            with _silent():
                self._program = Runtime.get().load_program(path)
                self._method = self._program.load_method("forward")
        except Exception as error:  # the runtime's errors share no base class
            blame_machine(error)
            message = f"ExecuTorch cannot load {path.name}: {error}"
            raise ExportError(message) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, on the device of its inputs."""
        feed = self.signature.feed(args, kwargs)
        device = next(iter(feed.values())).device
        samples = [[value[i : i + 1].cpu().contiguous() for value in feed.values()] for i in range(_size(feed))]
        with _silent():
            outputs = [[one.clone() for one in self._method.execute(sample)] for sample in samples]
        return self.signature.result([torch.cat(parts).to(device) for parts in zip(*outputs, strict=True)])


def _give_readers_their_own(graph: fx.GraphModule) -> None:
    """Repeat a dequantize call for every reader: ExecuTorch's partitioner takes an op together with its own."""
    for node in list(graph.graph.nodes):
        if "dequantize" not in str(node.target):
            continue
        for reader in list(node.users)[1:]:
            with graph.graph.inserting_before(reader):
                own = graph.graph.node_copy(node)
            reader.replace_input_with(node, own)
    graph.recompile()


def one_sample(example: Example) -> Example:
    """Return the first sample of an example, as a batch."""
    return tree_map_only(Tensor, lambda one: one[:1], example)  # type: ignore[no-any-return]


def _size(feed: dict[str, Tensor]) -> int:
    return len(next(iter(feed.values())))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what the runtime's C++ writes to stderr from the terminal."""
    saved = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
