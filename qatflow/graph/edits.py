"""A changed graph, written down as what differs from the captured one.

A step changes a few nodes and leaves hundreds as they were. So a candidate's graph is stored as the list of its nodes,
the unchanged ones by name only, the others in full as JSON, and is rebuilt from a fresh capture of the same model.
Nothing is pickled.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qatflow.errors import CaptureError
from qatflow.graph.layers import laid_out_like, tensor
from qatflow.graph.operators import Operator
from qatflow.graph.tree import call_like

PYTHON_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "getitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "lshift", "rshift", "invert"),
)
"""Of the module `operator`: those that compute."""
Description = list[Any]
"""One entry a node: its name if the base graph has the same node, else a dict."""


def describe(base: fx.GraphModule, graph: fx.GraphModule) -> Description:
    """Return the nodes of `graph`, those that `base` has as well by name only.

    Raises:
        CaptureError: a new node has an argument that JSON cannot hold.
    """
    known = {node.name: node for node in base.graph.nodes}
    return [node.name if _same(node, known.get(node.name)) else _node_to_json(node) for node in graph.graph.nodes]


def rebuild(base: fx.GraphModule, description: Description, state: Mapping[str, Tensor]) -> fx.GraphModule:
    """Return the graph that was described, with the tensors of `state` by name.

    Raises:
        CaptureError: the description does not fit `base`, or a tensor is missing.
    """
    known = {node.name: node for node in base.graph.nodes}
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    try:
        if not isinstance(description, list):
            raise TypeError("it is no list of nodes")
        for entry in description:
            if isinstance(entry, str):
                made[entry] = graph.node_copy(known[entry], lambda source: made[source.name])
            else:
                made[entry["name"]] = _node_from_json(graph, entry, made, known)
        holder = _holder(base, graph, state)
        call_like(graph, base)
        module = fx.GraphModule(holder, graph)
        module.meta = dict(base.meta)
        module.graph.lint()
    except (KeyError, AttributeError) as error:
        message = f"a stored graph does not fit the captured model: {error} is missing"
        raise CaptureError(message) from error
    except (LookupError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        message = f"a stored graph does not fit the captured model: {error}"
        raise CaptureError(message) from error
    return module


def _same(node: fx.Node, other: fx.Node | None) -> bool:
    """Tell whether two nodes of different graphs are the same call on nodes of the same names."""
    if other is None or (node.op, node.target) != (other.op, other.target):
        return False
    return _named((node.args, node.kwargs)) == _named((other.args, other.kwargs))


def _named(argument: Any) -> str:
    return repr(fx.map_arg(argument, lambda node: f"%{node.name}"))


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    if node.op not in ("call_function", "get_attr", "output"):
        message = f"node {node.name} is a new {node.op}, which cannot be stored"
        raise CaptureError(message)
    value = node.meta.get("val")
    return {
        "name": node.name,
        "op": node.op,
        "target": _target_name(node),
        "args": _to_json(list(node.args)),
        "kwargs": {name: _to_json(argument) for name, argument in node.kwargs.items()},
        "like": _like(node) if isinstance(value, Tensor) else None,
    }


def _like(node: fx.Node) -> str | None:
    """Name the input whose recorded shape a new node shares: a replaced activation has that of its input."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return sources[0].name if sources else None


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, Operator):
        return str(node.target)
    return f"operator.{getattr(node.target, '__name__', node.target)}"


def _to_json(argument: Any) -> Any:
    if isinstance(argument, fx.Node):
        return {"node": argument.name}
    if isinstance(argument, (list, tuple)):
        return [_to_json(part) for part in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": repr(argument)}
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    if isinstance(argument, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(argument).removeprefix("torch.")}
    if isinstance(argument, torch.device):
        return {"device": str(argument)}
    if isinstance(argument, slice):
        return {"slice": _to_json([argument.start, argument.stop, argument.step])}
    message = f"an argument of type {type(argument).__name__} cannot be stored"
    raise CaptureError(message)


def _node_from_json(
    graph: fx.Graph, entry: dict[str, Any], made: dict[str, fx.Node], known: dict[str, fx.Node]
) -> fx.Node:
    args = tuple(_from_json(argument, made) for argument in entry["args"])
    kwargs = {name: _from_json(argument, made) for name, argument in entry["kwargs"].items()}
    target: Any = entry["target"] if entry["op"] != "call_function" else _target(entry["target"])
    node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
    if entry["name"] in known:
        node.meta = dict(known[entry["name"]].meta)
    elif entry["like"] is not None:
        node.meta = dict(made[entry["like"]].meta)
    return node


def _from_json(value: Any, made: dict[str, fx.Node]) -> Any:
    match value:
        case {"node": name}:
            return made[name]
        case {"float": text}:
            return float(text)
        case {"torch": name}:
            return _constant(name)
        case {"device": name}:
            return torch.device(name)
        case {"slice": parts}:
            return slice(*(_from_json(part, made) for part in parts))
    if isinstance(value, list):
        return [_from_json(part, made) for part in value]
    return value


def _constant(name: str) -> Any:
    """Find `float32` or `channels_last`.

    Raises:
        ValueError: torch's thing of that name is no dtype, memory format or layout.
    """
    found = getattr(torch, name)
    if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
        message = f"{name!r} is no constant"
        raise ValueError(message)
    return found


def _target(name: str) -> Any:
    """Find `aten.relu.default` or `operator.getitem`, an operator of torch's or one of `PYTHON_OPERATORS`.

    A run folder may be anyone's, and both `operator` and `torch.ops` have things that call or load others.

    Raises:
        ValueError: it is something else.
    """
    namespace, *path = name.split(".")
    if namespace == "operator" and len(path) == 1 and path[0] in PYTHON_OPERATORS:
        return getattr(operator, path[0])
    found: Any = torch.ops
    for part in (namespace, *path) if len(path) == 2 else ():
        found = getattr(found, part)
    if not isinstance(found, Operator):
        message = f"{name!r} is no operator"
        raise ValueError(message)
    return found


def _holder(base: fx.GraphModule, graph: fx.Graph, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a module with every tensor that the graph reads: parameters where `base` or the name says so.

    Tensors lie in memory as those of `base` do, so that a network computes to the last bit what it did before it was
    stored.

    Raises:
        KeyError: one is neither in `state` nor in `base`.
    """
    holder = nn.Module()
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, leaf = str(node.target).rpartition(".")
        owner = holder
        for part in filter(None, path.split(".")):
            if not isinstance(getattr(owner, part, None), nn.Module):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        before = _found(base, str(node.target))
        value = state.get(str(node.target), before)
        if value is None:
            raise KeyError(str(node.target))
        value = laid_out_like(before, value)
        if value.is_floating_point() and not _is_buffer(base, str(node.target)):
            owner.register_parameter(leaf, nn.Parameter(value))
        else:
            owner.register_buffer(leaf, value)
    return holder


def _found(base: fx.GraphModule, name: str) -> Tensor | None:
    try:
        return tensor(base, name)
    except (KeyError, AttributeError):
        return None


def _is_buffer(base: fx.GraphModule, name: str) -> bool:
    return name in dict(base.named_buffers()) or name.endswith("_bound")
