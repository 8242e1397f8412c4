"""What a model is called with and returns, as named tensors in a fixed order: the way a runtime sees it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.free import Free, dynamic_shapes, free_sizes
from qatflow.graph.outputs import joined, output_name
from qatflow.graph.tree import TreeSpec, tree_flatten_with_path, tree_map_only, tree_unflatten

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
        free: names of dimensions that are free besides the first one, by input and place.
        sizes: of these, by name, in that call.
    """

    call: inspect.Signature
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    leaves: tuple[Any, ...]
    form: TreeSpec
    free: Free = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(graph: fx.GraphModule, example: Example) -> Signature:
        """Return the signature of a graph, from one call."""
        args, kwargs = example
        call = inspect.signature(graph.forward)
        with torch.no_grad():
            paths, form = tree_flatten_with_path(graph(*args, **kwargs))
        named = _named_inputs(call, args, kwargs)
        inputs, free = tuple(named), graph.meta.get("free", {})
        outputs = tuple(output_name(path, inputs) for path, leaf in paths if isinstance(leaf, Tensor))
        leaves = tuple(HOLE if isinstance(leaf, Tensor) else leaf for _, leaf in paths)
        return Signature(call, inputs, outputs, leaves, form, free, free_sizes(free, named))

    def ordered(self, example: Example) -> Example:
        """Return an example with its keyword inputs in the order of the graph's arguments."""
        args, kwargs = example
        return args, {name: kwargs[name] for name in self.call.parameters if name in kwargs}

    def dynamic_shapes(self, example: Example) -> dict[str, Any]:
        """Return what makes the free dimensions of inputs dynamic in `torch.export`."""
        args, kwargs = example
        return dynamic_shapes(self.call.bind(*args, **kwargs).arguments, self.free)

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


def _named_inputs(call: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    paths, _ = tree_flatten_with_path(dict(call.bind(*args, **kwargs).arguments))
    return {joined(path): leaf for path, leaf in paths if isinstance(leaf, Tensor)}
