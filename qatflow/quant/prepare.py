"""Bring a captured graph into the shape that steps and a target's placement work on; its function is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from qatflow.graph.capture import capture
from qatflow.graph.constants import store_computed_weights
from qatflow.graph.free import Free
from qatflow.graph.opened import addmm_to_linear, open_attention, open_einsum
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.target import Target
from qatflow.recipe import ATTENTION_MASK


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


def captured_network(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    design: Design | None = None,
    mask: str = ATTENTION_MASK,
    free: Free | None = None,
) -> Network:
    """Capture a model as the network that steps and simulations of a design take.

    Args:
        model: in evaluation mode.
        args: positional inputs, at least 2 samples.
        kwargs: keyword inputs.
        design: None is the default one: `onnxruntime`, 8 bits.
        mask: the input that says which positions are padding.
        free: names of dimensions that are free besides the batch; see `capture`.

    Raises:
        CaptureError: it cannot be captured as one graph.
    """
    design = design or Design()
    return Network(prepare(capture(model, tuple(args), dict(kwargs or {}), mask, free), design.target), design)
