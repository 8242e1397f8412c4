"""A simulation as an ExecuTorch program whose layers XNNPACK runs on integers.

ExecuTorch is an extra: `pip install qatflow[executorch]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from qatflow.errors import ExportError
from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.loaded import LayerKernel, own_logging
from qatflow.export.onnx_export import Exported
from qatflow.export.quantized_graph import quantized_graph
from qatflow.export.signature import Example, Signature, repeated
from qatflow.export.torch_form import TorchForm
from qatflow.graph.capture_errors import first_sentence, quiet
from qatflow.quant.network import copy_graph
from qatflow.quant.simulation import Simulation
from qatflow.results.store import void, write_atomically
from qatflow.users_code import blame_machine

MISSING = "export.pte needs ExecuTorch: pip install 'qatflow[executorch]', or set export.pte=false"
LAYERS = frozenset({"convolution", "addmm", "linear", "mm", "bmm", "matmul"})
NAMED = re.compile(r"\b(?:aten|quantized_decomposed)\.(\w+)\.")
DELEGATED, PORTABLE = "XNNPACK", "portable"


def export_pte(
    simulation: Simulation, example: Example, path: Path, content: IntegerBiases | None = None, *, batch: int = 1
) -> Exported:
    """Write a simulation as a program for batches of one size, its layers given to XNNPACK.

    Args:
        simulation: calibrated or trained, of target `xnnpack` or another whose program XNNPACK runs.
        example: positional and keyword inputs.
        path: the file.
        content: what `integer_biases` made of the simulation, where that is known.
        batch: samples that the program takes at a time.

    Raises:
        ExportError: ExecuTorch is not installed, or cannot take the graph, or other dimensions than the batch are free.
    """
    content, placement = content or integer_biases(simulation), simulation.placement
    graph = quantized_graph(content, placement, simulation.design.target, TorchForm())
    signature = Signature.of(graph, example)
    if signature.free:
        message = f"an ExecuTorch program takes one {' and '.join(signature.sizes)} only, which data.free leaves free"
        raise ExportError(message)
    layers = write_program(graph, signature, example, path, batch=batch)
    return Exported(path, signature, simulation.model, placement, graph, "int8", "pte", layers)


def write_program(
    graph: fx.GraphModule, signature: Signature, example: Example, path: Path, *, batch: int = 1
) -> tuple[LayerKernel, ...]:
    """Write a graph, with quantizers or without, for batches of one size, and return how its layers run.

    Raises:
        ExportError: ExecuTorch is not installed, or cannot take the graph.
    """
    try:
        with own_logging(), quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise ExportError(MISSING) from error
    graph = copy_graph(graph)
    _keep_dimensions_of_means(graph)
    _give_readers_their_own(graph)
    args, kwargs = repeated(batch, signature.ordered(example))
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(graph, args, kwargs)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            layers = tuple(_layers(lowered.exported_program()))
            buffer = lowered.to_executorch().buffer
    except Exception as error:
        blame_machine(error)
        message = f"ExecuTorch cannot take the model: {first_sentence(error)}"
        raise ExportError(message) from error
    write_atomically(path, lambda aside: void(aside.write_bytes(buffer)))
    return layers


def _keep_dimensions_of_means(graph: fx.GraphModule) -> None:
    """Let a quantized mean keep its dimensions, and drop them behind it: XNNPACK takes no other, and the program would
    be split there.
    """
    for node in list(graph.graph.nodes):
        quantized = next(iter(node.users), None)
        if node.target is not torch.ops.aten.mean.dim or _keeps(node) or not _is(quantized, "quantize_per_tensor"):
            continue
        assert quantized is not None
        sizes: list[Any] = list(node.meta["val"].shape[1:]) if "val" in node.meta else [None]
        if len(node.users) > 1 or not all(isinstance(size, int) for size in sizes):
            continue
        with graph.graph.inserting_before(node):
            kept = graph.graph.call_function(torch.ops.aten.mean.dim, (*node.args[:2], True))
        node.replace_all_uses_with(kept)
        graph.graph.erase_node(node)
        for dequantized in list(quantized.users):
            _drop_dimensions(graph.graph, quantized, dequantized, [-1, *sizes])
    graph.recompile()


def _drop_dimensions(graph: fx.Graph, quantized: fx.Node, dequantized: fx.Node, shape: list[int]) -> None:
    """Reshape behind a dequantize call, on the same grid."""
    readers = list(dequantized.users)
    with graph.inserting_after(dequantized):
        flat = graph.call_function(torch.ops.aten.reshape.default, (dequantized, shape))
    with graph.inserting_after(flat):
        again = graph.node_copy(quantized)
    again.replace_input_with(quantized.all_input_nodes[0], flat)
    with graph.inserting_after(again):
        last = graph.node_copy(dequantized)
    last.replace_input_with(quantized, again)
    for reader in readers:
        reader.replace_input_with(dequantized, last)


def _keeps(node: fx.Node) -> bool:
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))


def _op(node: fx.Node) -> str:
    """Return the name of a node's op; ExecuTorch has its own class for them."""
    found = NAMED.search(f"{node.target}.") if node.op == "call_function" else None
    return found[1] if found is not None else ""


def _is(node: fx.Node | None, op: str) -> bool:
    return node is not None and _op(node) == op


def _give_readers_their_own(graph: fx.GraphModule) -> None:
    """Repeat a dequantize call for every reader: ExecuTorch's partitioner takes an op together with its own."""
    for node in list(graph.graph.nodes):
        if not _op(node).startswith("dequantize"):
            continue
        for reader in list(node.users)[1:]:
            with graph.graph.inserting_before(reader):
                own = graph.graph.node_copy(node)
            reader.replace_input_with(node, own)
    graph.recompile()


def _layers(program: ExportedProgram) -> Iterator[LayerKernel]:
    """Tell of every convolution and product of a lowered program whether XNNPACK has it, and on integers."""
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    for node in program.graph.nodes:
        if _op(node) in LAYERS:
            yield _layer(node, program, PORTABLE, "XNNPACK did not take it: it runs in a portable kernel, in float")
    for _, lowered, _ in get_lowered_submodules(program.graph_module):
        inner = lowered.original_module
        for node in inner.graph.nodes:
            if _op(node) in LAYERS:
                yield _layer(node, inner, DELEGATED, _why_float(node))


def _layer(node: fx.Node, program: ExportedProgram, kernel: str, reason: str) -> LayerKernel:
    named = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    sources = (named.get(str(one)) for operand in node.all_input_nodes for one in (operand, *operand.all_input_nodes))
    weights = [name for name in sources if name is not None]
    layer = weights[0].rpartition(".")[0] if weights else node.name
    return LayerKernel(layer, _op(node), kernel, not reason, reason)


def _why_float(node: fx.Node) -> str:
    """Say why a layer within XNNPACK's part runs in float; empty where it does not."""
    operands = [one for one in node.all_input_nodes if one.op == "call_function"]
    for what, operand in zip(("input", "weight"), operands, strict=False):
        while _op(operand) in ("permute_copy", "t_copy"):
            operand = operand.all_input_nodes[0]
        if not _op(operand).startswith("dequantize"):
            return f"its {what} is not quantized"
    last = node
    while len(last.users) == 1 and _op(next(iter(last.users))) in ("relu", "hardtanh", "clamp"):
        last = next(iter(last.users))
    if not all(_op(reader).startswith("quantize") for reader in last.users):
        return "its result is not quantized right behind it"
    return ""
