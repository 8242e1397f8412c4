"""The modules that stand in a simulation's graph: one per quantized tensor.

Both learn a correction of the range that calibration found, as an exponent so that scales stay positive; at zero, where
training starts, it changes nothing. That of an activation is dimensionless, so one learning rate suits tensors of any
magnitude. That of a weight counts in the weight's own units: under Adam a range then keeps up with its weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qatflow.quant.calibrate import activation_encoding, weight_encoding
from qatflow.quant.fake_quantize import NO_BOUNDS, fake_quantize, followed_range, narrowed
from qatflow.quant.grid import TINY_SCALE, Encoding, Grid, channel_range, encoding_of_range
from qatflow.quant.histogram import Histogram
from qatflow.quant.observing import Observer
from qatflow.quant.rounding import round_to_grid
from qatflow.quant.softmax_view import SoftmaxView
from qatflow.recipe import Calibration

SMALLEST_UNIT = 0.01
"""Of the largest range of a weight's channels; smaller ones would be learned in leaps."""

Clip = tuple[float, float | Tensor]
"""Lower and upper bound of what a quantizer sees; the upper one may be one per channel."""


def clipped(x: Tensor, clip: Clip) -> Tensor:
    """Return `x` within the bounds of `clip`."""
    low, high = clip
    return torch.minimum(x.clamp(min=low), high) if isinstance(high, Tensor) else x.clamp(low, high)


class ActivationFakeQuantize(nn.Module):
    """Simulates the encoding of an activation, one scale for the whole tensor.

    While it observes, it passes values on unchanged and counts them.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, grid: Grid, fixed_range: tuple[float, float] | None = None, *, softmax: SoftmaxView | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.softmax = softmax
        self.fixed_range = fixed_range
        self.enabled = True
        self.observing: Histogram | Observer | None = None
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.log_ratio = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.shift = nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def forward(self, x: Tensor, clip: Clip | None = None, overwrite: bool = False) -> Tensor:
        """Return `x` on the grid; the shape of `x`.

        Args:
            x: any shape.
            clip: bounds that hold before rounding: what a ReLU or clip between the op and its quantizer does.
            overwrite: whether nobody else reads `x`, the gradient of the op that made it included.
        """
        if not self.enabled:
            return x if clip is None else clipped(x, clip)
        learning = torch.is_grad_enabled() and (x.requires_grad or self.log_ratio.requires_grad)
        if self.observing is not None:
            x = x if clip is None else clipped(x, clip)
            self.observing.update(x if self.softmax is None else self.softmax.clamp(x))
            return x
        return self._trained(x, clip, overwrite) if learning else self._rounded(x.detach(), clip, overwrite)

    def _trained(self, x: Tensor, clip: Clip | None, overwrite: bool) -> Tensor:
        """Round where a gradient is wanted."""
        bounds = NO_BOUNDS
        if clip is not None:
            least, most = clip
            if isinstance(most, Tensor):
                x, overwrite = clipped(x, clip), False
            else:
                bounds = least, most
        a_sample = x.numel() // x.shape[0] if x.dim() and x.shape[0] else 1
        scale = self.scale * self.log_ratio.exp()
        overwrite = overwrite and x.requires_grad and not x.is_leaf
        return fake_quantize(x, scale, self._zero_point(), self.grid, clip=bounds, values=a_sample, overwrite=overwrite)

    def _rounded(self, x: Tensor, clip: Clip | None, overwrite: bool) -> Tensor:
        """Round where no gradient is wanted: clipping costs nothing then, it only narrows the grid."""
        scale, zero_point = self.scale * self.log_ratio.exp(), self._zero_point().round()
        low, high = self.grid.qmin - zero_point, self.grid.qmax - zero_point
        if clip is not None:
            least, most = clip
            if isinstance(most, Tensor):
                x, overwrite = torch.minimum(x, most, out=x if overwrite else None), True
                most = math.inf
            low, high = narrowed(scale, low, high, (least, most))
        return round_to_grid(x, scale.detach(), low, high, overwrite=overwrite)

    def _zero_point(self) -> Tensor:
        """The zero point with its correction, which counts in widths of the grid; not rounded."""
        if self.grid.symmetric:
            return self.zero_point
        moved = self.zero_point + self.shift * (self.grid.qmax - self.grid.qmin)
        return moved.clamp(self.grid.qmin, self.grid.qmax)

    def settle(self, histogram: Histogram, calibration: Calibration) -> None:
        """Take the range that `calibration` finds in a histogram, or the fixed one.

        Raises:
            ValueError: the histogram is empty.
        """
        if self.fixed_range is not None:
            self.encoding = _of_numbers(self.grid, *self.fixed_range)
        else:
            self.encoding = activation_encoding(histogram, self.grid, calibration)

    @property
    def encoding(self) -> Encoding:
        """The encoding in force."""
        with torch.no_grad():
            return Encoding(self.grid, self.scale * self.log_ratio.exp(), self._zero_point().round())

    @encoding.setter
    def encoding(self, encoding: Encoding) -> None:
        with torch.no_grad():
            self.scale.copy_(encoding.scale)
            self.zero_point.copy_(encoding.zero_point)
            self.log_ratio.zero_()
            self.shift.zero_()

    def learn_range(self, learn: bool) -> None:
        """Let the range be trained, or freeze it."""
        self.log_ratio.requires_grad_(learn and self.fixed_range is None)
        self.shift.requires_grad_(learn and self.fixed_range is None and not self.grid.symmetric)


def _of_numbers(grid: Grid, low: float, high: float) -> Encoding:
    return encoding_of_range(grid, torch.tensor(low), torch.tensor(high))


class WeightFakeQuantize(nn.Module):
    """Simulates the encoding of a weight, whose scale follows the weight.

    The scale grows and shrinks with the min-max scale of the weight as it is now; calibration finds where it starts,
    and range learning corrects it.
    """

    scale: Tensor
    reach: Tensor
    moved: Tensor
    unit: Tensor

    def __init__(self, grid: Grid, axis: int | None, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        shape = () if axis is None else (channels,)
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("reach", torch.ones(shape))
        self.register_buffer("moved", torch.zeros(shape))
        self.register_buffer("unit", torch.ones(shape))
        self.widened = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.enabled = True
        self._last: tuple[Tensor, list[int], Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` on the grid; the shape of `weight`.

        Where no gradient is wanted, a weight that has not changed since the last call is not rounded again.
        """
        if not self.enabled:
            return weight
        if torch.is_grad_enabled() and (weight.requires_grad or self.widened.requires_grad):
            self._last = None
            return self._rounded(weight)
        versions = [one._version for one in (weight, self.scale, self.reach, self.moved, self.widened)]
        if self._last is None or self._last[0] is not weight or self._last[1] != versions:
            self._last = weight, versions, self._rounded(weight.detach())
        return self._last[2]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._last = None  # moving a module changes its tensors without a new version
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _rounded(self, weight: Tensor) -> Tensor:
        scale, zero_point = self._grid_of(weight)
        return fake_quantize(weight, scale, zero_point, self.grid, self.axis)

    def _grid_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point for `weight`: to the last bit what was adopted, if it has not moved."""
        full, zero_point = followed_range(weight.detach(), self.grid, self.axis)
        growth = torch.where(full > TINY_SCALE, full / self.reach, 1.0)
        if not self.grid.symmetric:
            zero_point = (zero_point + self.moved).clamp(self.grid.qmin, self.grid.qmax)
        return self.scale * growth * (self.widened / self.unit).exp(), zero_point

    def settle(self, weight: Tensor, method: str) -> None:
        """Take the range that `method` finds for `weight`."""
        self.adopt(weight, weight_encoding(weight, self.grid, self.axis, method))

    def adopt(self, weight: Tensor, encoding: Encoding) -> None:
        """Use `encoding` for `weight`, and the same share of the range for what training makes of it.

        A channel of zeros has no range: once it moves, its scale is min-max.
        """
        with torch.no_grad():
            full = encoding_of_range(self.grid, *channel_range(weight, self.axis), self.axis)
            self.scale.copy_(encoding.scale)
            self.reach.copy_(torch.where(full.scale > TINY_SCALE, full.scale, self.scale))
            self.moved.copy_(encoding.zero_point - full.zero_point)
            widest = torch.where(full.scale > TINY_SCALE, self.scale * self.grid.qmax, 0.0)
            self.unit.copy_(widest.clamp(min=SMALLEST_UNIT * (float(widest.max()) or 1.0)))
            self.widened.zero_()

    def encoding_of(self, weight: Tensor) -> Encoding:
        """Return the encoding in force for `weight`."""
        with torch.no_grad():
            return Encoding(self.grid, *self._grid_of(weight), self.axis)

    def learn_range(self, learn: bool) -> None:
        """Let the correction be trained, or freeze it; the scale follows the weight in both cases."""
        self.widened.requires_grad_(learn)
