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

import math
from typing import Any

import torch
from torch import Tensor

from qatflow.quant.fused import Kernels, usable
from qatflow.quant.grid import Grid, along, channel_range, channels_first
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


def extent_of(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Return what `channel_range` does; in training, where it is wanted in every step, by the compiled kernel."""
    found = usable(x) if torch.is_grad_enabled() else None
    rows = _rows(x, axis)
    if found is None or rows is None:
        return channel_range(x, axis)
    low, high = found.extent(rows)
    return (low[0], high[0]) if axis is None else (low, high)


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
        rows = _rows(x.detach(), axis)
        assert rows is not None
        limits = [torch.full_like(scale, bound) for bound in clip]
        within = narrowed(scale, *ends, clip) if clip != NO_BOUNDS else ends
        bounds = torch.stack([one.detach().reshape(-1).float() for one in (scale, *within, *limits)])
        if overwrite:
            result, code = x, kernels.forward_in_place(rows, bounds)
            ctx.mark_dirty(x)
        else:
            result, code = kernels.forward(rows, bounds)
            result = _from_rows(result, x.shape, x.stride())
        ctx.save_for_backward(code, scale, *ends)
        ctx.axis, ctx.clip, ctx.factor, ctx.kernels = axis, clip, factor, kernels
        ctx.shape, ctx.strides = x.shape, x.stride()
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        code, scale, low, high = ctx.saved_tensors
        if grad.stride() != ctx.strides:
            grad = torch.empty_strided(ctx.shape, ctx.strides, dtype=grad.dtype, device=grad.device).copy_(grad)
        rows = _rows(grad, ctx.axis)
        assert rows is not None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            grad_rows, grad_scale, grad_zero_point = ctx.kernels.backward_frozen(rows, code), None, None
        else:
            grad_rows, *sums = ctx.kernels.backward(rows, code)
            grad_scale, grad_zero_point = _of_sums(sums, scale, low, high, ctx.clip)
            grad_scale, grad_zero_point = grad_scale * ctx.factor, grad_zero_point * ctx.factor
        grad_x = _from_rows(grad_rows, ctx.shape, ctx.strides)
        return grad_x, grad_scale, grad_zero_point, None, None, None, None, None, None


def _of_sums(sums: list[Tensor], scale: Tensor, low: Tensor, high: Tensor, clip: Bounds) -> tuple[Tensor, Tensor]:
    """Return the gradients of scale and zero point from the kernel's sums: what is outside has one slope a side."""
    inside, *outside = (one.view_as(scale) for one in sums)
    grad_scale, grad_zero_point = inside, torch.zeros_like(scale)
    for total, bound, end, off in zip(outside, clip, (low, high), (torch.lt, torch.gt), strict=True):
        steps = bound / scale
        off_grid = off(steps.round(), end)
        grad_scale = grad_scale + total * torch.where(off_grid, end, steps.round() - steps)
        grad_zero_point = grad_zero_point - total * torch.where(off_grid, scale, 0.0)
    return grad_scale, grad_zero_point


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
