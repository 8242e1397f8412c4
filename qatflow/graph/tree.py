"""Nested inputs and outputs: dicts, tuples and lists of tensors, as torch and a captured graph flatten them.

What torch offers for this is private (`torch.utils._pytree`, the code generator of a graph), so it is touched here
and nowhere else: another version of torch can break this file only.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx._pytree import tree_flatten_spec
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_map_only,
    tree_unflatten,
)

__all__ = [
    "TreeSpec",
    "call_like",
    "calling",
    "flat_inputs",
    "nested_outputs",
    "output_form",
    "tree_flatten",
    "tree_flatten_with_path",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_unflatten",
]


def calling(graph: fx.GraphModule) -> Any:
    """Return what a graph knows of the nesting of its inputs and outputs; None where they are flat."""
    codegen = graph.graph._codegen
    return codegen.pytree_info if isinstance(codegen, fx.graph._PyTreeCodeGen) else None


def call_like(graph: fx.Graph, base: fx.GraphModule) -> None:
    """Let `graph` take and return what `base` does."""
    graph.set_codegen(base.graph._codegen)


def flat_inputs(graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the inputs in the order of the graph's placeholders."""
    known = calling(graph)
    return [*args, *kwargs.values()] if known is None else tree_flatten_spec((args, kwargs), known.in_spec)


def nested_outputs(graph: fx.GraphModule, outputs: Any) -> Any:
    """Return what the graph's output node gave, nested as the model returns it."""
    return graph.graph._codegen.process_outputs(outputs)


def output_form(graph: fx.GraphModule) -> TreeSpec | None:
    """Return how outputs are nested; None where the graph does not know."""
    known = calling(graph)
    return None if known is None else known.out_spec
