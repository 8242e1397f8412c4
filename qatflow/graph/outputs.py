"""The parts of a model's outputs that stand for something of their own.

Every float output is a part. Where an output is a concatenation that nothing else reads, each operand is one: a
detector's head may put boxes in pixels beside scores of 0 to 1 in one tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.ops import WEIGHTED, argument, is_float_tensor, kind, module_path
from qatflow.graph.surgery import value_readers
from qatflow.graph.tree import output_form, tree_flatten_with_path, tree_leaves, tree_unflatten

aten = torch.ops.aten
POINTWISE = frozenset(
    {"identity", "cast", "scale", "shift", "relu", "clip", "leaky_relu", "hardswish", "hardsigmoid", "silu", "gelu"}
    | {"elu", "mish", "softplus", "sigmoid", "tanh", "exp", "sqrt"}
)
"""Kinds that leave every value where it is."""
STACKED = (aten.stack.default,)
Index = dict[int, tuple[int, int]]
"""From where to where a part reaches along some dimensions of its output."""
Dims = list[int | None]
"""Which dimension of the output each dimension of a tensor before it is; None where it is none of its own."""


@dataclass(frozen=True)
class OutputPart:
    """One part.

    Attributes:
        name: that of the output; of an operand of a concatenation with its place and the layer that it comes from:
            `output[:, 4:9] (head.scores)`.
        leaf: the output's place among all leaves that the model returns.
        index: what of the output the part is.
    """

    name: str
    leaf: int
    index: tuple[slice, ...] = ()


def output_parts(graph: fx.GraphModule) -> list[OutputPart]:
    """Return the parts of a captured graph's float outputs, in order."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    leaves = tree_leaves(output.args[0])
    parts: list[OutputPart] = []
    for place, (name, node) in enumerate(zip(_names(graph, len(leaves)), leaves, strict=True)):
        if isinstance(node, fx.Node) and is_float_tensor(node):
            parts += _operands(OutputPart(name, place), node)
    return parts


def whole_outputs(outputs: Any) -> list[OutputPart]:
    """Return one part for every float tensor that some model has returned."""
    paths, _ = tree_flatten_with_path(outputs)
    return [
        OutputPart(output_name(path), place)
        for place, (path, leaf) in enumerate(paths)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def output_name(path: Sequence[Any], inputs: Sequence[str] = ()) -> str:
    """Name an output by where it is; a runtime has one namespace for inputs and outputs."""
    name = joined(path) or "output"
    name = name if name[0].isalpha() else f"output_{name}"
    return f"{name}_output" if name in inputs else name


def joined(path: Sequence[Any]) -> str:
    """Return a path in a nested value as a name: `features_0`."""
    return "_".join(str(next(getattr(key, one) for one in ("key", "idx", "name") if hasattr(key, one))) for key in path)


def _names(graph: fx.GraphModule, count: int) -> list[str]:
    """Return the names of the leaves that a graph returns."""
    form = output_form(graph)
    nested = tuple(range(count)) if form is None else tree_unflatten([torch.empty(0)] * count, form)
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    return [output_name(path, inputs) for path, _ in tree_flatten_with_path(nested)[0]]


def _operands(whole: OutputPart, node: fx.Node) -> list[OutputPart]:
    """Return an output in the parts that were put together to make it."""
    found: list[tuple[fx.Node, Index]] = []
    _cut(node, list(range(node.meta["val"].dim())), {}, found)
    if len(found) == 1:
        return [whole]
    return [
        dataclasses.replace(whole, name=f"{whole.name}{_written(index)} ({_maker(source)})", index=_slices(index))
        for source, index in found
    ]


def _cut(node: fx.Node, dims: Dims, index: Index, found: list[tuple[fx.Node, Index]]) -> None:
    """Add what `node`, which is `index` of an output, was put together from."""
    source, dims = _before(node, dims)
    if kind(source) != "concat" or not leaving(source):
        found.append((node, index))
        return
    rank = source.meta["val"].dim()
    along = int(argument(source, 1, "dim", 0)) % rank
    stacked, operands = source.target in STACKED, source.args[0]
    sizes = [1 if stacked else one.meta["val"].shape[along] for one in operands]  # type: ignore[union-attr]
    target = dims[along]
    if target is None or not all(isinstance(size, int) for size in sizes):
        found.append((node, index))
        return
    start, _ = index.get(target, (0, 0))
    left = [dim for place, dim in enumerate(dims) if place != along] if stacked else dims
    for operand, size in zip(operands, sizes, strict=True):  # type: ignore[arg-type]
        assert isinstance(operand, fx.Node)
        if size:
            _cut(operand, left, {**index, target: (start, start + size)}, found)
        start += size


def _before(node: fx.Node, dims: Dims) -> tuple[fx.Node, Dims]:
    """Return the tensor that `node` is, before it was moved, and its dimensions."""
    while node.args and isinstance(node.args[0], fx.Node) and isinstance(node.args[0].meta.get("val"), Tensor):
        source = node.args[0]
        before, after = source.meta["val"].shape, node.meta["val"].shape
        if kind(node) in POINTWISE and len(before) == len(after):
            pass
        elif kind(node) == "transpose":
            order = _order(node, len(before))
            dims = [dims[order.index(place)] for place in range(len(before))]
        elif kind(node) == "reshape":
            places = _kept(before, after)
            dims = [next((dims[j] for j, i in enumerate(places) if i == place), None) for place in range(len(before))]
        else:
            break
        node = source
    return node, dims


def _order(node: fx.Node, rank: int) -> list[int]:
    """Return which dimension of its input each dimension of a transposed tensor is."""
    probe = torch.empty(tuple(range(rank)), device="meta")
    return [int(size) for size in node.target(probe, *node.args[1:], **node.kwargs).shape]  # type: ignore[operator]


def _kept(before: Sequence[Any], after: Sequence[Any]) -> list[int | None]:
    """Return which dimension of a tensor each dimension of the reshaped one is, None where it was merged or split.

    Values stay in order, so that a dimension is the same where as many values lie behind it, or before it.
    """
    old, new = ([size if isinstance(size, int) else str(size) for size in one] for one in (before, after))

    def rest(sizes: list[Any]) -> list[Any]:
        return [size for size in sizes if size != 1]

    def same(i: int, j: int) -> bool:
        ends = rest(old[i + 1 :]) == rest(new[j + 1 :]), rest(old[:i]) == rest(new[:j])
        return old[i] == new[j] and any(ends)

    return [next((i for i in range(len(old)) if same(i, j)), None) for j in range(len(new))]


def leaving(node: fx.Node) -> list[fx.Node]:
    """Return a tensor and all that becomes of it where it is only moved, put together, and returned; else nothing."""
    pending = [node]
    for source in pending:
        for reader in value_readers(source):
            if reader.op == "output" or reader in pending:
                continue
            if kind(reader) not in POINTWISE | {"transpose", "reshape", "concat"}:
                return []
            pending.append(reader)
    return pending


def _maker(node: fx.Node) -> str:
    """Name the layer that a tensor comes from; the module or the node where no layer made it."""
    source = node
    while kind(source) not in WEIGHTED and source.args and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    weight = argument(source, 1, "weight") if kind(source) in WEIGHTED else None
    name = str(weight.target).rpartition(".")[0] if isinstance(weight, fx.Node) else ""
    return name or module_path(node) or (str(node.target) if node.op == "get_attr" else node.name)


def _slices(index: Index) -> tuple[slice, ...]:
    return tuple(slice(*index[dim]) if dim in index else slice(None) for dim in range(max(index) + 1))


def _written(index: Index) -> str:
    shown = (f"{one.start}:{one.stop}" if one.stop is not None else ":" for one in _slices(index))
    return f"[{', '.join(shown)}]"
