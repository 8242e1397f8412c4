"""Look at the values of chosen nodes while a graph runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.tree import flat_inputs


class _Observer(fx.Interpreter):
    """Runs a graph and shows the values of some nodes."""

    def __init__(self, graph: fx.GraphModule, nodes: Collection[fx.Node], see: Callable[[fx.Node, Tensor], None]):
        super().__init__(graph)
        self._nodes = frozenset(nodes)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._nodes:
            self._see(n, result)
        return result


def observe(
    graph: fx.GraphModule,
    nodes: Collection[fx.Node],
    inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
    see: Callable[[fx.Node, Tensor], None],
) -> None:
    """Run `graph` on every batch of `inputs` and call `see(node, value)` for each of `nodes`."""
    observer = _Observer(graph, nodes, see)
    with torch.no_grad():
        for args, kwargs in inputs:
            observer.run(*flat_inputs(graph, args, kwargs), enable_io_processing=False)
