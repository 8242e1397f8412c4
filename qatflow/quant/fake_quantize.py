"""Quantize-dequantize with gradients for the tensor, the scale and the zero point.

Forward is `clamp(round(x / s), qmin - z, qmax - z) * s`. Backward is the straight-through estimator with the scale
gradient of LSQ (Esser et al. 2020) and the zero-point gradient of LSQ+ (Bhalgat et al. 2020):

    d/dx = 1 inside the grid, else 0
    d/ds = round(x / s) - x / s inside, else qmin - z or qmax - z
    d/dz = 0 inside, else -s

The zero point is rounded in the forward pass and the rounding is passed straight through. Only the input is kept for
the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qatflow.quant.grid import Grid, along, channels_first
from qatflow.quant.rounding import round_to_grid


class _FakeQuantize(torch.autograd.Function):
    """The formulas above; see `fake_quantize` for shapes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid, ctx.axis = grid, axis
        z = zero_point.round()
        return round_to_grid(x, scale, grid.qmin - z, grid.qmax - z, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, zero_point = ctx.saved_tensors
        grid, axis = ctx.grid, ctx.axis
        s, z = along(scale, x, axis), along(zero_point.round(), x, axis)
        low, high = grid.qmin - z, grid.qmax - z
        steps = x / s
        rounded = steps.round()
        inside = (rounded >= low) & (rounded <= high)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, rounded - steps, rounded.clamp(low, high))
            grad_scale = _sum_to(grad * slope, scale, axis) * _gradient_scale(x, scale, grid)
        if ctx.needs_input_grad[2]:
            outside = torch.where(inside, torch.zeros_like(steps), -s.expand_as(steps))
            grad_zero_point = _sum_to(grad * outside, zero_point, axis) * _gradient_scale(x, scale, grid)
        return grad_x, grad_scale, grad_zero_point, None, None


def _gradient_scale(x: Tensor, scale: Tensor, grid: Grid) -> float:
    """Return LSQ's `1 / sqrt(values per scale * qmax)`, which balances range and weight updates."""
    return 1.0 / math.sqrt(max(1, x.numel() // max(1, scale.numel())) * grid.qmax)


def _sum_to(values: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Sum over everything but the channel axis; the shape of `like`."""
    if axis is None or like.dim() == 0:
        return values.sum().view_as(like)
    return channels_first(values, axis).sum(1)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None = None) -> Tensor:
    """Return `x` rounded to the grid, as floats.

    Args:
        x: any shape.
        scale: shape `[]`, or `[x.shape[axis]]` per channel; positive.
        zero_point: the same shape; rounded to a whole number here.
        grid: the integers.
        axis: the channel axis; None per tensor.

    Gradients flow to all three tensors; those of scale and zero point carry LSQ's factor
    `1 / sqrt(values per scale * qmax)`.
    """
    result = _FakeQuantize.apply(x, scale, zero_point, grid, axis)
    assert isinstance(result, Tensor)
    return result
