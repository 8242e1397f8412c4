"""Dimensions that are free besides the batch: lengths of sequences, sizes of images.

`{"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}}` names them, input by input, as `torch.onnx` has it in
its `dynamic_axes`. Dimensions of one name have one size. A captured graph knows them (`graph.meta["free"]`), so that
whoever exports it once more leaves them free.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.errors import CaptureError, DataError, allowed_values
from qatflow.graph.outputs import joined
from qatflow.graph.tree import flat_inputs, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

Free = Mapping[str, Mapping[int, str]]
"""Names of dimensions, by input and place."""
BATCH = "batch"
"""What the first dimension of every input is called."""


@dataclass(eq=False)
class _Input:
    """Stands where an input is, so that its names can be compared."""

    value: Any


class FreeDimensions:
    """The free dimensions of one call of a model.

    Attributes:
        free: as the user names them.

    Args:
        free: as the user names them.
        forward: the model's.
        args: example positional inputs.
        kwargs: example keyword inputs.

    Raises:
        DataError: there is no such input or dimension, or dimensions of one name differ.
    """

    def __init__(self, free: Free, forward: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.free = free
        self._args, self._kwargs = tree_map(_Input, (tuple(args), dict(kwargs)))
        self._call = inspect.signature(forward)
        named = {**self._call.bind_partial(*self._args).arguments, **self._kwargs}
        self._inputs = {joined(path): leaf for path, leaf in tree_flatten_with_path(named)[0]}
        self.sizes = dict(_sizes(free, {name: one.value for name, one in self._inputs.items()}))

    def shapes(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what `torch.export` is told of a call: the batch is dynamic, and the dimensions of these names."""
        of = {self._inputs[name]: dims for name, dims in self.free.items()}

        def spec(one: _Input) -> Any:
            return dynamic(one.value, [dim for dim, name in of.get(one, {}).items() if names is None or name in names])

        return {
            key: tree_map(spec, value) for key, value in self._call.bind(*self._args, **self._kwargs).arguments.items()
        }

    def resized(self, name: str, size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call with another size of one name: inputs are cut off, or begun again."""
        of = {self._inputs[key]: dims for key, dims in self.free.items()}

        def other(one: _Input) -> Any:
            value = one.value
            for dim in [dim for dim, called in of.get(one, {}).items() if called == name]:
                value = torch.cat([value] * -(-size // self.sizes[name]), dim).narrow(dim, 0, size)
            return value.clone() if isinstance(value, Tensor) else value

        return tree_map(other, (self._args, self._kwargs))  # type: ignore[no-any-return]

    def note(self, graph: fx.GraphModule) -> None:
        """Let a captured graph know its free dimensions, by the names that it has for its inputs.

        Raises:
            CaptureError: the model takes two of them in one size only.
        """
        if not self.free:
            return
        bound = inspect.signature(graph.forward).bind(*self._args, **self._kwargs).arguments
        names = {one: joined(path) for path, one in tree_flatten_with_path(dict(bound))[0]}
        graph.meta["free"] = {names[self._inputs[name]]: dict(dims) for name, dims in self.free.items()}
        placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        nodes = dict(zip(flat_inputs(graph, self._args, self._kwargs), placeholders, strict=True))
        found: dict[str, str] = {}
        for name, dims in self.free.items():
            for dim, called in dims.items():
                symbol = str(nodes[self._inputs[name]].meta["val"].shape[dim])
                if found.setdefault(symbol, called) != called:
                    message = (
                        f"data.free: the model takes {found[symbol]} and {called} in one size only: give both one name"
                    )
                    raise CaptureError(message)


def dynamic(leaf: Any, dims: Sequence[int] = ()) -> Any:
    """Return what `torch.export` is told of one input: its first dimension is dynamic, and so are others."""
    return dict.fromkeys((0, *dims), torch.export.Dim.DYNAMIC) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None


def dynamic_shapes(arguments: Mapping[str, Any], free: Free) -> dict[str, Any]:
    """Return what `torch.export` is told of the inputs of a captured graph."""
    paths, form = tree_flatten_with_path(dict(arguments))
    return tree_unflatten([dynamic(leaf, [*free.get(joined(path), ())]) for path, leaf in paths], form)  # type: ignore[no-any-return]


def free_sizes(free: Free, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of free dimensions in a call of a captured graph, by name."""
    return {called: inputs[name].shape[dim] for name, dims in free.items() for dim, called in dims.items()}


def batch_axis(node: fx.Node) -> int | None:
    """Return the first dimension of a tensor whose size depends on the batch's; None where none does."""
    recorded = node.meta.get("val")
    if not isinstance(recorded, Tensor):
        return None
    inputs = (leaf for one in node.graph.find_nodes(op="placeholder") for leaf in tree_leaves(one.meta.get("val")))
    batch = {symbol for one in inputs if isinstance(one, Tensor) and one.dim() for symbol in _symbols(one.shape[0])}
    return next((axis for axis, size in enumerate(recorded.shape) if batch & _symbols(size)), None)


def _symbols(size: Any) -> set[Any]:
    return set() if isinstance(size, int) else set(size.node.expr.free_symbols)


def _sizes(free: Free, inputs: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the names and sizes of free dimensions.

    Raises:
        DataError: there is no such input or dimension, it has too small a size, or dimensions of one name differ.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() > 1}
    seen: dict[str, tuple[int, str]] = {}
    for name, dims in free.items():
        if name not in tensors:
            what = "has no dimension but the batch" if name in inputs else "is no input of the model"
            message = f"data.free.{name}: {name!r} {what}; {allowed_values(name, tensors)}"
            raise DataError(message)
        for dim, called in dims.items():
            shape = list(tensors[name].shape)
            problem = _problem(dim, called, shape)
            if problem:
                message = f"data.free.{name}.{dim}: {problem}"
                raise DataError(message)
            size, other = seen.setdefault(called, (shape[dim], name))
            if size != shape[dim]:
                message = (
                    f"data.free.{name}.{dim}: {called} is {shape[dim]} here and {size} in {other}: give what differs a "
                    "name of its own"
                )
                raise DataError(message)
            yield called, size


def _problem(dim: int, called: str, shape: Sequence[int]) -> str:
    """Return what is wrong with one free dimension; empty where nothing is."""
    if not 0 < dim < len(shape):
        return f"the shape is {list(shape)}, so that 1 to {len(shape) - 1} can be named; the batch is free in any case"
    if called == BATCH or not called.isidentifier():
        return f"{called!r} is no name for it: take a word of letters, digits and _, and not {BATCH}"
    return f"the samples have size {shape[dim]} there, and capture needs 2 or more" if shape[dim] < 2 else ""
