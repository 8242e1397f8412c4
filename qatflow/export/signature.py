"""What a model is called with and returns, as named tensors in a fixed order: the way a runtime sees it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.outputs import joined, output_name
from qatflow.graph.tree import TreeSpec, tree_flatten_with_path, tree_map, tree_map_only, tree_unflatten

Example = tuple[tuple[Any, ...], dict[str, Any]]
HOLE = object()
"""Stands where an output tensor goes."""


@dataclass(frozen=True)
class Signature:
    """Names of a graph's inputs and outputs.

    Attributes:
        call: the parameters of the graph's call.
        inputs: a name for every input tensor: that of the argument, with the key or place in it where it holds several.
        outputs: likewise for every output tensor; a lone one is called `output`.
        leaves: what the graph returns besides tensors, in order, `HOLE` where a tensor goes.
        form: how the outputs are nested.
    """

    call: inspect.Signature
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    leaves: tuple[Any, ...]
    form: TreeSpec

    @staticmethod
    def of(graph: fx.GraphModule, example: Example) -> Signature:
        """Return the signature of a graph, from one call."""
        args, kwargs = example
        call = inspect.signature(graph.forward)
        with torch.no_grad():
            paths, form = tree_flatten_with_path(graph(*args, **kwargs))
        inputs = tuple(_named_inputs(call, args, kwargs))
        outputs = tuple(output_name(path, inputs) for path, leaf in paths if isinstance(leaf, Tensor))
        leaves = tuple(HOLE if isinstance(leaf, Tensor) else leaf for _, leaf in paths)
        return Signature(call, inputs, outputs, leaves, form)

    def ordered(self, example: Example) -> Example:
        """Return an example with its keyword inputs in the order of the graph's arguments."""
        args, kwargs = example
        return args, {name: kwargs[name] for name in self.call.parameters if name in kwargs}

    def dynamic_shapes(self, example: Example) -> dict[str, Any]:
        """Return what makes the first dimension of every input dynamic in `torch.export`."""
        args, kwargs = example
        return {name: tree_map(_dynamic, value) for name, value in self.call.bind(*args, **kwargs).arguments.items()}

    def feed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the input tensors of a call by name."""
        return _named_inputs(self.call, args, kwargs)

    def result(self, outputs: Sequence[Tensor]) -> Any:
        """Return output tensors, in order, in the form that the graph returns."""
        rest = iter(outputs)
        return tree_unflatten([next(rest) if leaf is HOLE else leaf for leaf in self.leaves], self.form)


def repeated(count: int, example: Example) -> Example:
    """Return a batch of so many samples: those of an example, from the start again where they do not suffice."""
    return tree_map_only(  # type: ignore[no-any-return]
        Tensor, lambda one: one.repeat(-(-count // len(one)), *[1] * (one.dim() - 1))[:count], example
    )


def _dynamic(leaf: Any) -> Any:
    return {0: torch.export.Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.dim() > 0 else None


def _named_inputs(call: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    paths, _ = tree_flatten_with_path(dict(call.bind(*args, **kwargs).arguments))
    return {joined(path): leaf for path, leaf in paths if isinstance(leaf, Tensor)}
