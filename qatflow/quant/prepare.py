"""Bring a captured graph into the shape that steps and a target's placement work on; its function is kept."""

from __future__ import annotations

from torch import fx

from qatflow.graph.constants import store_computed_weights
from qatflow.graph.opened import addmm_to_linear, open_attention, open_einsum
from qatflow.quant.target import Target


def prepare(graph: fx.GraphModule, target: Target) -> fx.GraphModule:
    """Return `graph`, changed in place: computed weights stored, products opened up as the target runs them.

    Args:
        graph: as captured.
        target: decides whether attention is opened up.
    """
    addmm_to_linear(graph)
    store_computed_weights(graph)
    open_einsum(graph)
    if target.attention == "opened":
        open_attention(graph)
    return graph
