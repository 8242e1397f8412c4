"""Quantize-dequantize with gradients for the tensor, the scale and the zero point.

Forward is `clamp(round(c / s), qmin - z, qmax - z) * s`, where `c` is `x` within the bounds of a ReLU or clip before
the quantizer, if there is one. Backward is the straight-through estimator with the scale gradient of LSQ (Esser et al.
2020) and the zero-point gradient of LSQ+ (Bhalgat et al. 2020):

    d/dx = 1 inside the grid and the bounds, else 0
    d/ds = round(c / s) - c / s inside the grid, else qmin - z or qmax - z
    d/dz = 0 inside the grid, else -s

The zero point is rounded in the forward pass and the rounding is passed straight through. Large tensors go through the
compiled kernels of `fused`, which keep one byte an element for the backward pass; small ones run op by op.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from qatflow.quant.fused import Kernels, usable
from qatflow.quant.grid import Grid, along, channel_range, channels_first, encoding_of_range
from qatflow.quant.rounding import in_memory_order, round_to_grid

Bounds = tuple[float, float]
NO_BOUNDS: Bounds = (-math.inf, math.inf)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    grid: Grid,
    axis: int | None = None,
    *,
    clip: Bounds = NO_BOUNDS,
    values: int | None = None,
    overwrite: bool = False,
) -> Tensor:
    """Return `x` rounded to the grid, as floats.

    Args:
        x: any shape.
        scale: shape `[]`, or `[x.shape[axis]]` per channel; positive.
        zero_point: the same shape; rounded to a whole number here.
        grid: the integers.
        axis: the channel axis; None per tensor.
        clip: bounds that hold before rounding, those of a ReLU for instance.
        values: how many values LSQ counts for a scale; None counts those of `x`. For an activation it is those of one
            sample, so that neither the batch size nor the number of processes changes the gradient.
        overwrite: whether the result may be put where `x` is: nobody else reads it, its own gradient included.

    Gradients flow to all three tensors; those of scale and zero point carry LSQ's factor `1 / sqrt(values * qmax)`,
    which balances the updates of ranges and weights.
    """
    if values is None:
        values = x.numel() // max(1, scale.numel())
    factor = 1.0 / math.sqrt(max(1, values) * grid.qmax)
    z = zero_point.round()
    ends = grid.qmin - z.detach(), grid.qmax - z.detach()
    rows = _rows(x, axis)
    found = None if rows is None else usable(x)
    if found is None or rows is None:
        result = _OpByOp.apply(x, scale, zero_point, ends, axis, clip, factor)
    else:
        result = _Fused.apply(x, scale, zero_point, ends, axis, clip, factor, found, overwrite)
    assert isinstance(result, Tensor)
    return result


def narrowed(scale: Tensor, low: Tensor, high: Tensor, clip: Bounds) -> tuple[Tensor, Tensor]:
    """Return the grid's ends, in whole steps, within `clip`: clamping to them is the same as clipping first."""
    least, most = clip
    return torch.maximum(low, (least / scale).round()), torch.minimum(high, (most / scale).round())


def followed_range(x: Tensor, grid: Grid, axis: int | None) -> tuple[Tensor, Tensor]:
    """Return the min-max scale and zero point of `x`; in training, wanted in every step, by the compiled kernel."""
    found = usable(x) if torch.is_grad_enabled() else None
    rows = _rows(x.data, axis)
    if found is None or rows is None:
        encoding = encoding_of_range(grid, *channel_range(x, axis), axis)
        return encoding.scale, encoding.zero_point
    scale, zero_point = found.followed(rows, *_constants(grid, x.device), grid.symmetric)
    return (scale[0], zero_point[0]) if axis is None else (scale, zero_point)


@functools.cache
def _constants(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ends of a grid and its smallest scale, as the kernels take them."""
    ends = torch.tensor([grid.qmin, grid.qmax], dtype=torch.float32, device=device)
    return ends, torch.tensor(grid.smallest_scale, dtype=torch.float32, device=device)


class _OpByOp(torch.autograd.Function):
    """The formulas above, exact in any float type; keeps the input for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        ends: tuple[Tensor, Tensor],
        axis: int | None,
        clip: Bounds,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, *ends)
        ctx.axis, ctx.clip, ctx.factor = axis, clip, factor
        ends = narrowed(scale, *ends, clip) if clip != NO_BOUNDS else ends
        return (
            round_to_grid(x.float(), scale, *ends, axis).to(x.dtype)
            if _is_half(x)
            else round_to_grid(x, scale, *ends, axis)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, low, high = ctx.saved_tensors
        axis, (least, most) = ctx.axis, ctx.clip
        wide = x.float() if _is_half(x) else x
        s, low, high = along(scale, x, axis), along(low, x, axis), along(high, x, axis)
        steps = (wide if ctx.clip == NO_BOUNDS else wide.clamp(least, most)) / s
        rounded = steps.round()
        inside = (rounded >= low) & (rounded <= high)
        grad_x = grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * (inside if ctx.clip == NO_BOUNDS else inside & (wide >= least) & (wide <= most))
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, rounded - steps, rounded.clamp(low, high))
            grad_scale = _sum_to(grad * slope, scale, axis) * ctx.factor
        if ctx.needs_input_grad[2]:
            outside = torch.where(inside, torch.zeros_like(steps), -s.expand_as(steps))
            grad_zero_point = _sum_to(grad * outside, scale, axis) * ctx.factor
        return grad_x, grad_scale, grad_zero_point, None, None, None, None


class _Fused(torch.autograd.Function):
    """The same by the compiled kernels; keeps a byte an element for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        ends: tuple[Tensor, Tensor],
        axis: int | None,
        clip: Bounds,
        factor: float,
        kernels: Kernels,
        overwrite: bool,
    ) -> Tensor:
        rows = _rows(x.data, axis)
        assert rows is not None
        limits = [torch.full_like(scale, bound) for bound in clip]
        within = narrowed(scale, *ends, clip) if clip != NO_BOUNDS else ends
        bounds = torch.stack([scale, *within, *limits]).view(5, -1).float()
        if overwrite:
            result, code = x, kernels.forward_in_place(rows, bounds)
            ctx.mark_dirty(x)
        else:
            result, code = kernels.forward(rows, bounds)
            result = _from_rows(result, x.shape, x.stride())
        ctx.save_for_backward(code, bounds, torch.stack(ends).view(2, -1).float())
        ctx.axis, ctx.like, ctx.factor, ctx.kernels = axis, scale.shape, factor, kernels
        ctx.shape, ctx.strides = x.shape, x.stride()
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        code, bounds, ends = ctx.saved_tensors
        if grad.stride() != ctx.strides:
            grad = torch.empty_strided(ctx.shape, ctx.strides, dtype=grad.dtype, device=grad.device).copy_(grad)
        rows = _rows(grad.data, ctx.axis)
        assert rows is not None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            grad_rows, grad_scale, grad_zero_point = ctx.kernels.backward_frozen(rows, code), None, None
        else:
            grad_rows, *sums = ctx.kernels.backward(rows, code, bounds, ends)
            grad_scale, grad_zero_point = ((one * ctx.factor).view(ctx.like) for one in sums)
        grad_x = _from_rows(grad_rows, ctx.shape, ctx.strides)
        return grad_x, grad_scale, grad_zero_point, None, None, None, None, None, None


def _rows(x: Tensor, axis: int | None) -> Tensor | None:
    """View `x` as `[channels, values]`, in the order of its memory per tensor; None where that takes a copy."""
    if axis is None:
        flat = in_memory_order(x)
        return None if flat is None else flat.view(1, -1)
    return x.flatten(1) if axis == 0 and x.dim() > 1 and x.is_contiguous() else None


def _from_rows(rows: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
    return rows.view(-1).as_strided(shape, strides)


def _is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def _sum_to(values: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Sum over everything but the channel axis; the shape of `like`."""
    if axis is None or like.dim() == 0:
        return values.sum().view_as(like)
    return channels_first(values, axis).sum(1)
