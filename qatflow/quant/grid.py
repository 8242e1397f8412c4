"""Grids and encodings: which real numbers an integer tensor can hold.

A real number `x` is stored as `q = clamp(round(x / scale) + zero_point, qmin, qmax)` and means
`(q - zero_point) * scale` (ONNX's convention, rounding half to even). Zero is always on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

TINY_SCALE = 1e-10
"""Smallest scale: a tensor of zeros still gets a grid."""


@dataclass(frozen=True)
class Grid:
    """The integers of an encoding."""

    bits: int
    signed: bool
    symmetric: bool
    narrow: bool = False
    """Leave out the most negative integer of a signed grid, so that both sides are equal."""
    smallest_scale: float = field(default=TINY_SCALE, compare=False)
    """No encoding on this grid gets a finer one."""

    def __post_init__(self) -> None:
        if (self.symmetric or self.narrow) and not self.signed:
            raise ValueError("a symmetric or narrow grid is signed")

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return int(self.narrow) - int(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return int(2 ** (self.bits - int(self.signed))) - 1


@dataclass(frozen=True)
class Encoding:
    """Scale and zero point of one tensor.

    Attributes:
        grid: the integers.
        scale: shape `[]`, or `[channels]` where there is one per channel; positive.
        zero_point: whole numbers as floats, the same shape.
        axis: the channel axis of the tensor; None per tensor.
    """

    grid: Grid
    scale: Tensor
    zero_point: Tensor
    axis: int | None = None

    @property
    def low(self) -> Tensor:
        """Smallest real number on the grid, the shape of `scale`."""
        return (self.grid.qmin - self.zero_point) * self.scale

    @property
    def high(self) -> Tensor:
        """Largest real number on the grid, the shape of `scale`."""
        return (self.grid.qmax - self.zero_point) * self.scale

    def quantize(self, x: Tensor) -> Tensor:
        """Return the integers of `x`, as floats; the shape of `x`."""
        scale, zero_point = along(self.scale, x, self.axis), along(self.zero_point, x, self.axis)
        return ((x / scale).round() + zero_point).clamp(self.grid.qmin, self.grid.qmax)

    def dequantize(self, q: Tensor) -> Tensor:
        """Return the real numbers that the integers `q` stand for; the shape of `q`."""
        return (q - along(self.zero_point, q, self.axis)) * along(self.scale, q, self.axis)


def along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Shape one value per channel so that it broadcasts along `axis` of `x`."""
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.view(shape)


def encoding_of_range(grid: Grid, low: Tensor, high: Tensor, axis: int | None = None) -> Encoding:
    """Return the encoding that covers `[low, high]` and zero: AIMET's min-max rule.

    Symmetric: `scale = max(high / qmax, low / qmin)`, so that on a full grid a tensor whose extreme is negative uses
    all of it. Asymmetric: `scale = (high - low) / (qmax - qmin)`, and the zero point is rounded to a whole number.

    Args:
        grid: the integers.
        low: smallest real number, shape `[]` or `[channels]`.
        high: largest real number, the same shape.
        axis: the channel axis; None per tensor.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if grid.symmetric:
        scale = torch.maximum(high / grid.qmax, low / grid.qmin).clamp(min=grid.smallest_scale)
        return Encoding(grid, scale, torch.zeros_like(scale), axis)
    scale = ((high - low) / (grid.qmax - grid.qmin)).clamp(min=grid.smallest_scale)
    zero_point = (grid.qmin - (low / scale).round()).clamp(grid.qmin, grid.qmax)
    return Encoding(grid, scale, zero_point, axis)


def channel_range(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value, shape `[]`, or `[x.shape[axis]]` per channel; zeros of an empty tensor."""
    if x.numel() == 0:
        nothing = x.new_zeros(() if axis is None else x.shape[axis])
        return nothing, nothing
    if axis is None:
        low, high = torch.aminmax(x)
    else:
        low, high = torch.aminmax(channels_first(x, axis), dim=1)
    return low, high


def channels_first(x: Tensor, axis: int) -> Tensor:
    """Return `x` as one row per channel, shape `[x.shape[axis], rest]`."""
    return x.movedim(axis, 0).unsqueeze(-1).flatten(1)


def sqnr_db(signal: Tensor, noisy: Tensor) -> float:
    """Return `10 log10(sum(signal²) / sum((signal - noisy)²))`; infinite where they are equal, NaN where one is NaN."""
    signal, noisy = signal.detach().double(), noisy.detach().double()
    noise, power = (signal - noisy).square().sum(), signal.square().sum()
    return float("inf") if noise == 0 else float(10 * torch.log10(power / noise))
