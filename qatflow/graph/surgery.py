"""Small changes to a graph: a new bias, a node removed, a node replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.layers import Layer, add_buffer, set_tensor
from qatflow.graph.ops import argument

aten = torch.ops.aten
SHAPED_LIKE = (aten.reshape_as.default, aten.view_as.default, aten.expand_as.default)
"""Ops that take the shape of their second operand."""


def value_readers(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that read the values of `node`, not only its shape."""
    return {user for user in node.users if not _reads_the_shape(user, node)}


def _reads_the_shape(user: fx.Node, node: fx.Node) -> bool:
    return user.target is aten.sym_size.int or (user.target in SHAPED_LIKE and user.args[0] is not node)


def sole_user(node: fx.Node) -> fx.Node | None:
    """Return the only node that reads the values of `node`; None where several do or none does."""
    readers = value_readers(node)
    return readers.pop() if len(readers) == 1 else None


def give_bias(graph: fx.GraphModule, layer: Layer, bias: Tensor) -> None:
    """Set a layer's bias, shape `[out channels]`; a layer without one gets a parameter `<layer>.bias`."""
    if layer.bias is not None:
        set_tensor(graph, layer.bias, bias)
        return
    taken = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    choices = (f"{layer.name}.bias", *(f"{layer.weight}_bias{i or ''}" for i in range(len(taken) + 1)))
    name = next(one for one in choices if one not in taken and not (layer.name == layer.weight and one == choices[0]))
    set_tensor(graph, name, bias)
    weight = argument(layer.node, 1, "weight")
    with graph.graph.inserting_before(layer.node):
        node = graph.graph.get_attr(name)
    node.meta["val"] = weight.meta["val"].new_empty(tuple(bias.shape))
    if len(layer.node.args) > 2:
        layer.node.update_arg(2, node)
    else:
        layer.node.update_kwarg("bias", node)


def call(graph: fx.GraphModule, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """Add a call where the graph's insertion point is.

    It belongs to the module that `like` was called in, and what export would have recorded of its value is computed
    from what it recorded of the arguments.
    """
    node = graph.graph.call_function(target, args)
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    values = fx.map_arg(args, lambda source: source.meta.get("val"))
    node.meta["val"] = target(*values)
    return node


def bypass(graph: fx.GraphModule, node: fx.Node, source: fx.Node) -> None:
    """Let the readers of `node` read `source`, and remove `node`."""
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)


def replace_call(graph: fx.GraphModule, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Replace a call by another one with the same readers and metadata; returns the new node."""
    with graph.graph.inserting_after(node):
        new = graph.graph.call_function(target, args)
    new.meta = dict(node.meta)
    bypass(graph, node, new)
    return new


def buffer_node(graph: fx.GraphModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """Add a buffer and a node that reads it, placed before `before`."""
    add_buffer(graph, name, value)
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def finish(graph: fx.GraphModule) -> fx.GraphModule:
    """Drop what nobody reads, nodes and parameters both, and compile the graph's code again."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    _drop_unread_tensors(graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def _drop_unread_tensors(graph: fx.GraphModule) -> None:
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for path, module in list(graph.named_modules()):
        every = {"recurse": False, "remove_duplicate": False}
        for leaf, _ in [*module.named_parameters(**every), *module.named_buffers(**every)]:
            if (f"{path}.{leaf}" if path else leaf) not in read:
                delattr(module, leaf)
