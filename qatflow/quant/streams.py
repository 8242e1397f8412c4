"""Walk a simulation once, node by node, with the float and the quantized stream side by side.

The float stream is FP32's, whatever was fitted before. Per-layer solvers need a layer's input there and as it arrives
when everything before it is quantized. One walk gives both to every layer: its cost grows with the depth of the
network, not with its square, and a value is freed after its last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.layers import Layer, tensor, weighted_layers
from qatflow.graph.tree import flat_inputs
from qatflow.quant.quantizer import clipped
from qatflow.quant.simulation import Simulation

Chunks = list[Any]
"""One value per batch of inputs."""
Solve = Callable[[Layer, Chunks, Chunks], None]
"""Called with a layer, its float inputs and its quantized inputs, before the layer runs; it may change the weight of
`simulation.model` and its quantizer."""


def walk(simulation: Simulation, inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], solve: Solve) -> None:
    """Push all `inputs` through the float network and the simulation, and call `solve` at every weighted layer.

    Args:
        simulation: calibrated; its weights may change on the way.
        inputs: positional and keyword inputs, a batch each; all of them are held in memory.
        solve: see `Solve`.
    """
    _Walk(simulation, list(inputs), solve).run()


class _Walk:
    """The state of one walk: what is still to be read, in both streams."""

    def __init__(
        self, simulation: Simulation, inputs: list[tuple[tuple[Any, ...], dict[str, Any]]], solve: Solve
    ) -> None:
        self.simulation = simulation
        self.graph = simulation.model
        self.inputs = inputs
        self.solve = solve
        self.float: dict[fx.Node, Chunks] = {}
        self.quantized: dict[fx.Node, Chunks] = {}
        self.last_reader = {source: node for node in self.graph.graph.nodes for source in node.all_input_nodes}

    def run(self) -> None:
        layers = {layer.node.name: layer for layer in weighted_layers(self.simulation.network.graph)}
        self._place_inputs()
        with torch.no_grad():
            for node in self.graph.graph.nodes:
                if node.op in ("placeholder", "output") or _is_parameter(node):
                    continue
                layer = layers.get(node.name)
                if layer is not None:
                    source, every = node.args[0], range(len(self.inputs))
                    inputs = (
                        [self._read_float(source, i) for i in every],
                        [self._read_quantized(source, i) for i in every],
                    )
                    with torch.enable_grad():
                        self.solve(layer, *inputs)
                self.float[node] = [self._call_float(node, i) for i in range(len(self.inputs))]
                self.quantized[node] = [self._call_quantized(node, i) for i in range(len(self.inputs))]
                self._free(node)

    def _place_inputs(self) -> None:
        placeholders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        flat = [flat_inputs(self.graph, args, kwargs) for args, kwargs in self.inputs]
        for position, node in enumerate(placeholders):
            self.float[node] = self.quantized[node] = [values[position] for values in flat]

    def _call_float(self, node: fx.Node, chunk: int) -> Any:
        args: Any
        kwargs: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._read_float(source, chunk))
        if node.op == "call_module":
            return clipped(args[0], kwargs["clip"]) if "clip" in kwargs else args[0]
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _call_quantized(self, node: fx.Node, chunk: int) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._read_quantized(source, chunk))
        if node.op == "call_module":
            return self.graph.get_submodule(str(node.target))(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _read_float(self, node: fx.Node, chunk: int) -> Any:
        if _is_parameter(node):
            source = node.args[0] if node.op == "call_module" else node
            assert isinstance(source, fx.Node)
            return self.simulation.network.fp32(str(source.target))
        return self.float[node][chunk]

    def _read_quantized(self, node: fx.Node, chunk: int) -> Any:
        if node.op == "get_attr":
            return tensor(self.graph, str(node.target))
        if _is_parameter(node):
            return self._call_quantized(node, chunk)
        return self.quantized[node][chunk]

    def _free(self, node: fx.Node) -> None:
        """Drop the values that `node` was the last to read."""
        for source in node.all_input_nodes:
            if self.last_reader[source] is node:
                self.float.pop(source, None)
                self.quantized.pop(source, None)


def _is_parameter(node: fx.Node) -> bool:
    """Tell whether a node reads a parameter, or quantizes one: such values are read when they are needed."""
    if node.op == "call_module":
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "get_attr"
    return node.op == "get_attr"


def joined(chunks: Chunks) -> Tensor:
    """Return the chunks of a value as one tensor, samples first."""
    return torch.cat(chunks)
