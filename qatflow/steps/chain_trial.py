"""Try a change of the weights chain by chain: does it bring a chain's quantized output nearer to the float one?

A chain is judged by itself, from its float input, so that one pass over a few samples judges all of them, and none of
them depends on what is done with another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.chains import Pair
from qatflow.graph.layers import tensor
from qatflow.graph.observe import observe
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.steps.context import StepContext

SAMPLES = 32
"""Calibration samples that a chain is judged on."""


def helpful(every: list[list[Pair]], before: Network, after: Network, context: StepContext) -> list[list[Pair]]:
    """Return the chains whose quantized output errs less in `after` than in `before`.

    Args:
        every: the chains, as pairs in order.
        before: the float network.
        after: the same function with other weights, and nodes of the same names.
        context: of the step.
    """
    simulations = []
    for network in (before, after):
        simulation = Simulation(network)
        simulation.calibrate(context.calibration_inputs(network))
        simulations.append(simulation)
    ends = [(chain[0].first.node.name, chain[-1].second.node.name) for chain in every]
    nodes = {node.name: node for node in before.graph.graph.nodes}
    watched = {nodes[start].args[0] for start, _ in ends} | {nodes[end] for _, end in ends}
    errors = torch.zeros(2, len(every), dtype=torch.float64)
    for batch in context.inputs(SAMPLES):
        floats: dict[str, Tensor] = {}

        def see(node: fx.Node, value: Tensor, floats: dict[str, Tensor] = floats) -> None:
            floats[node.name] = value

        observe(before.graph, watched, [batch], see)
        for i, simulation in enumerate(simulations):
            for j, (start, end) in enumerate(ends):
                source = nodes[start].args[0]
                assert isinstance(source, fx.Node)
                got = _run(simulation.model, start, end, floats[source.name])
                errors[i, j] += float((got - floats[end]).double().square().sum())
    return [chain for j, chain in enumerate(every) if errors[1, j] < errors[0, j]]


@torch.no_grad()
def _run(model: fx.GraphModule, start: str, end: str, x: Tensor) -> Tensor:
    """Return what a simulation computes at node `end` where node `start` reads the float value `x`."""
    nodes = {node.name: node for node in model.graph.nodes}
    source = nodes[start].args[0]
    assert isinstance(source, fx.Node)
    known: dict[fx.Node, Any] = {}
    known[source] = model.get_submodule(str(source.target))(x) if source.op == "call_module" else x

    def value(node: fx.Node) -> Any:
        if node not in known:
            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            if node.op == "get_attr":
                known[node] = tensor(model, str(node.target))
            elif node.op == "call_module":
                known[node] = model.get_submodule(str(node.target))(*args, **kwargs)
            else:
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node]

    result = value(nodes[end])
    assert isinstance(result, Tensor)
    return result
