"""The vocabulary: which ATen op is which kind of op.

Targets' tables, chains and reports speak of kinds (`conv`, `relu`, `add`); this table is the only place that knows
ATen's names. An op that is not here has the kind `other` and stays in float.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

KINDS: dict[Any, str] = {
    aten.conv1d.default: "conv",
    aten.conv1d.padding: "conv",
    aten.conv2d.default: "conv",
    aten.conv2d.padding: "conv",
    aten.conv3d.default: "conv",
    aten.conv3d.padding: "conv",
    aten.conv_transpose1d.default: "conv_transpose",
    aten.conv_transpose2d.input: "conv_transpose",
    aten.conv_transpose3d.input: "conv_transpose",
    aten.linear.default: "linear",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.batch_norm.default: "batch_norm",
    aten._native_batch_norm_legit_no_training.default: "batch_norm",
    aten.layer_norm.default: "layer_norm",
    aten.group_norm.default: "group_norm",
    aten.relu.default: "relu",
    aten.relu6.default: "clip",
    aten.hardtanh.default: "clip",
    aten.clamp.default: "clip",
    aten.minimum.default: "minimum",
    aten.leaky_relu.default: "leaky_relu",
    aten.prelu.default: "prelu",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.softmax.int: "softmax",
    aten.add.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.cat.default: "concat",
    aten.max_pool1d.default: "max_pool",
    aten.max_pool2d.default: "max_pool",
    aten.max_pool3d.default: "max_pool",
    aten.avg_pool1d.default: "avg_pool",
    aten.avg_pool2d.default: "avg_pool",
    aten.avg_pool3d.default: "avg_pool",
    aten.adaptive_avg_pool1d.default: "avg_pool",
    aten.adaptive_avg_pool2d.default: "avg_pool",
    aten.adaptive_avg_pool3d.default: "avg_pool",
    aten.mean.dim: "mean",
    aten.flatten.using_ints: "reshape",
    aten.view.default: "reshape",
    aten.reshape.default: "reshape",
    aten._unsafe_view.default: "reshape",
    aten.unflatten.int: "reshape",
    aten.squeeze.default: "reshape",
    aten.squeeze.dim: "reshape",
    aten.squeeze.dims: "reshape",
    aten.unsqueeze.default: "reshape",
    aten.permute.default: "transpose",
    aten.transpose.int: "transpose",
    aten.numpy_T.default: "transpose",
    aten.slice.Tensor: "slice",
    aten.select.int: "slice",
    aten.split.Tensor: "split",
    aten.split_with_sizes.default: "split",
    aten.chunk.default: "split",
    operator.getitem: "getitem",
    aten.contiguous.default: "identity",
    aten.clone.default: "identity",
    aten.alias.default: "identity",
}

WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})


def kind(node: fx.Node) -> str:
    """Return the kind of a node: one of `KINDS`' values, `input`, `parameter`, `output`, or `other`."""
    if node.op == "call_function":
        return KINDS.get(node.target, "other")
    return {"placeholder": "input", "get_attr": "parameter", "output": "output"}.get(node.op, "other")


def is_float_tensor(node: fx.Node) -> bool:
    """Tell whether a node's value is one floating-point tensor, from what export recorded."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def clip_bounds(node: fx.Node) -> tuple[float, float]:
    """Return the lower and upper bound of a `clip` node; infinite where there is none.

    Bounds that are not numbers (a tensor, say) raise a TypeError: look at `kind` and the arguments first.
    """
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    low_name, high_name = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    default_low, default_high = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    low = argument(node, 1, low_name, default_low)
    high = argument(node, 2, high_name, default_high)
    return (float("-inf") if low is None else float(low)), (float("inf") if high is None else float(high))


def module_path(node: fx.Node) -> str:
    """Return the path of the module that a node was called in, such as `features.3.conv`; empty at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if entry[0]]
    return str(paths[-1]) if paths else ""
