"""Compare a file in its runtime with the simulation, tensor by tensor, each on its own.

A difference of one step early in a deep network comes out as many at its end, which says nothing about where it came
from. So every tensor of the simulation is computed from the runtime's own integers of the tensors before it. What
differs then is that one op's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.export.loaded import LoadedFile
from qatflow.export.signature import Example
from qatflow.graph.tree import tree_leaves


@dataclass
class Difference:
    """How the integers of one tensor differ between runtime and simulation, given the same inputs.

    Attributes:
        tensor: its name.
        elements: how many were compared.
        differing: how many are not equal.
        by_more: how many differ by more than one step.
        steps: the largest difference, in steps of the grid.
        signal: sum of the squared values, in steps.
        noise: sum of the squared differences, in steps.
    """

    tensor: str
    elements: int = 0
    differing: int = 0
    by_more: int = 0
    steps: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: Tensor, got: Tensor, zero_point: int) -> None:
        """Count the elements of one batch."""
        apart = (wanted.long() - got.long()).abs()
        self.elements += apart.numel()
        self.differing += int((apart > 0).sum())
        self.by_more += int((apart > 1).sum())
        self.steps = max(self.steps, int(apart.max()) if apart.numel() else 0)
        self.signal += float((wanted.double() - zero_point).square().sum())
        self.noise += float(apart.double().square().sum())


def compare(graph: fx.GraphModule, model: LoadedFile, inputs: Iterable[Example]) -> list[Difference]:
    """Return the difference of every quantized activation that the runtime was asked for.

    Args:
        graph: of `quantized_graph` with `TorchForm`, on the device of the inputs.
        model: the file, which returns integers named after the graph's quantize calls.
        inputs: batches.
    """
    found: dict[str, Difference] = {}
    for args, kwargs in inputs:
        with torch.no_grad():
            _Beside(graph, model.run(args, kwargs), found).run(*_placed(graph, model, args, kwargs))
    return list(found.values())


def _placed(graph: fx.GraphModule, model: LoadedFile, args: Any, kwargs: Any) -> list[Any]:
    """Return the inputs in the order of the graph's placeholders."""
    bound = model.signature.call.bind(*args, **kwargs)
    return list(tree_leaves(dict(bound.arguments)))


class _Beside(fx.Interpreter):
    """Runs a graph; where the runtime has the integers of a tensor, notes the difference and goes on with those."""

    def __init__(self, graph: fx.GraphModule, runtime: dict[str, Tensor], found: dict[str, Difference]) -> None:
        super().__init__(graph)
        self.runtime = runtime
        self.found = found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name not in self.runtime or not isinstance(result, Tensor):
            return result
        zero_point, low, high = n.args[2:5]
        assert isinstance(zero_point, int)
        # Few bits in a byte are clipped after the byte.
        got = self.runtime[n.name].to(result.device).long().clamp(low, high).to(result.dtype)  # type: ignore[arg-type]
        tensor = n.name.removesuffix("_quantized")
        self.found.setdefault(tensor, Difference(tensor)).add(result, got, zero_point)
        return got
