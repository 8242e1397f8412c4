"""The vocabulary: which ATen op is which kind of op.

Targets' tables, chains and reports speak of kinds (`conv`, `relu`, `add`); this table is the only place that knows
ATen's names. An op that is not here has the kind `other` and stays in float.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

KINDS: dict[Any, str] = {
    # weighted layers and products
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
    aten.mm.default: "matmul",
    aten.scaled_dot_product_attention.default: "attention",
    aten.embedding.default: "embedding",
    aten.lstm.input: "lstm",
    aten.gru.input: "gru",
    # normalisation
    aten.batch_norm.default: "batch_norm",
    aten._native_batch_norm_legit_no_training.default: "batch_norm",
    aten.layer_norm.default: "layer_norm",
    aten.group_norm.default: "group_norm",
    aten.instance_norm.default: "instance_norm",
    aten.rms_norm.default: "rms_norm",
    # activations
    aten.relu.default: "relu",
    aten.relu6.default: "clip",
    aten.hardtanh.default: "clip",
    aten.clamp.default: "clip",
    aten.clamp_min.default: "clip",
    aten.clamp_max.default: "clip",
    aten.minimum.default: "minimum",
    aten.maximum.default: "maximum",
    aten.leaky_relu.default: "leaky_relu",
    aten.prelu.default: "prelu",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.elu.default: "elu",
    aten.mish.default: "mish",
    aten.softplus.default: "softplus",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.sin.default: "sin",
    aten.cos.default: "cos",
    aten.softmax.int: "softmax",
    aten._softmax.default: "softmax",
    aten.log_softmax.int: "log_softmax",
    # arithmetic; a number instead of a second tensor makes it `scale` or `shift`
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.rsub.Scalar: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.neg.default: "scale",
    aten.pow.Tensor_Scalar: "pow",
    aten.pow.Scalar: "pow",
    aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "rsqrt",
    aten.exp.default: "exp",
    aten.erf.default: "erf",
    aten.where.self: "where",
    aten.masked_fill.Scalar: "where",
    aten.masked_fill.Tensor: "where",
    aten.cat.default: "concat",
    aten.stack.default: "concat",
    # pooling, reductions and resampling
    aten.max_pool1d.default: "max_pool",
    aten.max_pool2d.default: "max_pool",
    aten.max_pool3d.default: "max_pool",
    aten.adaptive_max_pool1d.default: "max_pool",
    aten.adaptive_max_pool2d.default: "max_pool",
    aten.avg_pool1d.default: "avg_pool",
    aten.avg_pool2d.default: "avg_pool",
    aten.avg_pool3d.default: "avg_pool",
    aten.adaptive_avg_pool1d.default: "avg_pool",
    aten.adaptive_avg_pool2d.default: "avg_pool",
    aten.adaptive_avg_pool3d.default: "avg_pool",
    aten.mean.dim: "mean",
    aten.mean.default: "mean",
    aten.sum.dim_IntList: "sum",
    aten.amax.default: "reduce_max",
    aten.max.dim: "reduce_max",
    aten.linalg_vector_norm.default: "vector_norm",
    aten.upsample_nearest1d.vec: "resize_nearest",
    aten.upsample_nearest2d.vec: "resize_nearest",
    aten.upsample_nearest2d.default: "resize_nearest",
    aten.upsample_nearest3d.vec: "resize_nearest",
    aten.upsample_bilinear2d.vec: "resize",
    aten.upsample_bilinear2d.default: "resize",
    aten.upsample_bicubic2d.vec: "resize",
    # ops that only move values
    aten.flatten.using_ints: "reshape",
    aten.view.default: "reshape",
    aten.reshape.default: "reshape",
    aten.reshape_as.default: "reshape",
    aten.view_as.default: "reshape",
    aten._unsafe_view.default: "reshape",
    aten.unflatten.int: "reshape",
    aten.squeeze.default: "reshape",
    aten.squeeze.dim: "reshape",
    aten.squeeze.dims: "reshape",
    aten.unsqueeze.default: "reshape",
    aten.permute.default: "transpose",
    aten.transpose.int: "transpose",
    aten.swapaxes.default: "transpose",
    aten.movedim.int: "transpose",
    aten.numpy_T.default: "transpose",
    aten.t.default: "transpose",
    aten.slice.Tensor: "slice",
    aten.select.int: "slice",
    aten.narrow.default: "slice",
    aten.split.Tensor: "split",
    aten.split_with_sizes.default: "split",
    aten.chunk.default: "split",
    aten.unbind.int: "split",
    operator.getitem: "getitem",
    aten.expand.default: "expand",
    aten.expand_as.default: "expand",
    aten.broadcast_to.default: "expand",
    aten.repeat.default: "tile",
    aten.index.Tensor: "gather",
    aten.index_select.default: "gather",
    aten.gather.default: "gather",
    aten.pad.default: "pad",
    aten.constant_pad_nd.default: "pad",
    aten.roll.default: "roll",
    aten.flip.default: "flip",
    aten.pixel_shuffle.default: "depth_to_space",
    aten.pixel_unshuffle.default: "space_to_depth",
    aten.channel_shuffle.default: "channel_shuffle",
    aten.contiguous.default: "identity",
    aten.clone.default: "identity",
    aten.alias.default: "identity",
    aten.detach.default: "identity",
    aten.to.dtype: "cast",
    aten.to.device: "cast",
    aten.to.dtype_layout: "cast",
    aten._to_copy.default: "cast",
}

WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})
"""Kinds of layers with a weight to round."""

WITH_A_NUMBER = {"mul": "scale", "div": "scale", "add": "shift", "sub": "shift"}
"""What an op becomes whose other operand is a number."""

MOVING = frozenset(
    {"reshape", "transpose", "slice", "split", "getitem", "expand", "tile", "gather", "roll", "flip", "identity"}
)
"""Kinds whose results are values of their input, moved."""

ALL_KINDS = frozenset({*KINDS.values(), "scale", "shift", "attention_bias"})


def kind(node: fx.Node) -> str:
    """Return the kind of a node: one of `ALL_KINDS`, `input`, `parameter`, `output`, or `other`.

    What is added to attention scores before their softmax (a mask, a position bias) is an `attention_bias`: it may be
    as good as minus infinity, which no grid holds beside the scores.
    """
    if node.op != "call_function":
        return {"placeholder": "input", "get_attr": "parameter", "output": "output"}.get(node.op, "other")
    known = KINDS.get(node.target, "other")
    if known in WITH_A_NUMBER and _other_is_a_number(node):
        return WITH_A_NUMBER[known]
    if known in ("add", "where") and _goes_to_softmax(node):
        return "attention_bias"
    if known == "pad" and not _pads_with_own_values(node):
        return "other"
    if known == "cast" and _dtype(node) is not None and _dtype(node) == _dtype(node.args[0]):
        return "identity"
    return known


def _dtype(value: Any) -> torch.dtype | None:
    recorded = value.meta.get("val") if isinstance(value, fx.Node) else None
    return recorded.dtype if isinstance(recorded, torch.Tensor) else None


def _pads_with_own_values(node: fx.Node) -> bool:
    """Tell whether what a pad adds is on every grid that its input is on: zeros, or values of the input."""
    if node.target is aten.constant_pad_nd.default:
        return bool(argument(node, 2, "value", 0) == 0)
    return argument(node, 2, "mode", "constant") != "constant" or not argument(node, 3, "value")


def _other_is_a_number(node: fx.Node) -> bool:
    """Tell whether an op combines a tensor with a number: one written in the code, or a constant without dimensions."""
    operands = (*node.args[:2], *(node.kwargs[name] for name in ("other",) if name in node.kwargs))
    return any(not isinstance(one, fx.Node) or _is_number(one) for one in operands)


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or (node.op == "get_attr" and value.dim() == 0)


TO_SOFTMAX = MOVING | {"add", "where", "scale", "mul", "div", "cast", "maximum", "clip"}
"""Kinds that may stand between what is added to attention scores and their softmax."""


def _goes_to_softmax(node: fx.Node) -> bool:
    """Tell whether all that reads a tensor are softmaxes, at most moved, scaled and shifted on the way."""
    pending, seen = [node], {node}
    while pending:
        users = pending.pop().users
        for reader in users:
            known = KINDS.get(reader.target, "other") if reader.op == "call_function" else "other"
            if known == "softmax" or reader in seen:
                continue
            if known not in TO_SOFTMAX:
                return False
            seen.add(reader)
            pending.append(reader)
        if not users:
            return False
    return True


def scores_of(node: fx.Node) -> Any:
    """Return the operand of an `attention_bias` that holds the scores; the other one is a mask or a bias."""
    if node.target is not aten.where.self:
        return node.args[0]
    return next((one for one in node.args[1:] if isinstance(one, fx.Node) and one.op != "get_attr"), None)


def is_attention_mask(node: fx.Node) -> bool:
    """Tell whether all that is done with a tensor is to add it to attention scores."""
    return _only_used(node, lambda reader, source: kind(reader) == "attention_bias" and source is not scores_of(reader))


def is_divisor(node: fx.Node) -> bool:
    """Tell whether all that is done with a tensor is to divide by it: rounded to zero, it would ruin everything."""

    def divides(reader: fx.Node, source: fx.Node) -> bool:
        return kind(reader) == "rsqrt" or (kind(reader) == "div" and source is not reader.args[0])

    return _only_used(node, divides, MOVING | {"sqrt", "shift", "scale", "clip", "maximum", "cast"})


def _only_used(node: fx.Node, fits: Callable[[fx.Node, fx.Node], bool], passed: frozenset[str] = MOVING) -> bool:
    """Tell whether a use fits all readers of a tensor, itself or behind ops of the kinds `passed`."""
    pending = [node]
    for source in pending:
        for reader in source.users:
            if fits(reader, source) or reader in pending:
                continue
            if kind(reader) not in passed:
                return False
            pending.append(reader)
    return bool(node.users)


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
    if node.target in (aten.clamp_min.default, aten.clamp_max.default):
        name = "min" if node.target is aten.clamp_min.default else "max"
        bound = float(argument(node, 1, name))
        return (bound, float("inf")) if name == "min" else (float("-inf"), bound)
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
