"""The modules that stand in a simulation's graph: one per quantized tensor.

Both learn a dimensionless correction of the range that calibration found, so one learning rate suits tensors of any
magnitude: `scale * exp(log_ratio)`. At zero, where training starts, the correction changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qatflow.quant.calibrate import activation_encoding, ratio_to_full_range, weight_encoding
from qatflow.quant.fake_quantize import fake_quantize
from qatflow.quant.grid import Encoding, Grid, channel_range, encoding_of_range
from qatflow.quant.histogram import Histogram
from qatflow.recipe import Calibration


class ActivationQuantizer(nn.Module):
    """Simulates the encoding of an activation, one scale for the whole tensor.

    While it observes, it passes values on unchanged and counts them.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, fixed_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.fixed_range = fixed_range
        self.observing: Histogram | None = None
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.log_ratio = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        self.shift = nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid; the shape of `x`."""
        if self.observing is not None:
            self.observing.update(x)
            return x
        return fake_quantize(x, self.scale * self.log_ratio.exp(), self._zero_point(), self.grid)

    def _zero_point(self) -> Tensor:
        """The zero point with its correction, which counts in widths of the grid; not rounded."""
        if self.grid.symmetric:
            return self.zero_point
        moved = self.zero_point + self.shift * (self.grid.qmax - self.grid.qmin)
        return moved.clamp(self.grid.qmin, self.grid.qmax)

    def settle(self, calibration: Calibration) -> None:
        """Stop observing and take the range that `calibration` finds in what was seen.

        Raises:
            ValueError: nothing was seen.
        """
        histogram, self.observing = self.observing, None
        if self.fixed_range is not None:
            self.encoding = encoding_of_range(self.grid, *map(torch.tensor, self.fixed_range))
        elif histogram is not None:
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


class WeightQuantizer(nn.Module):
    """Simulates the encoding of a weight, whose scale follows the weight.

    The scale is `ratio` times the min-max scale of the weight as it is now; calibration finds the ratio (1 for
    min-max) and range learning trains it.
    """

    ratio: Tensor

    def __init__(self, grid: Grid, axis: int | None, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        shape = () if axis is None else (channels,)
        self.register_buffer("ratio", torch.ones(shape))
        self.log_ratio = nn.Parameter(torch.zeros(shape), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` on the grid; the shape of `weight`."""
        full = encoding_of_range(self.grid, *channel_range(weight.detach(), self.axis), self.axis)
        return fake_quantize(
            weight, full.scale * self.ratio * self.log_ratio.exp(), full.zero_point, self.grid, self.axis
        )

    def settle(self, weight: Tensor, method: str) -> None:
        """Take the range that `method` finds for `weight`."""
        self.adopt(weight, weight_encoding(weight, self.grid, self.axis, method))

    def adopt(self, weight: Tensor, encoding: Encoding) -> None:
        """Use `encoding` for `weight`, and the same share of the range for what training makes of it."""
        with torch.no_grad():
            self.ratio.copy_(ratio_to_full_range(weight, encoding))
            self.log_ratio.zero_()

    def encoding_of(self, weight: Tensor) -> Encoding:
        """Return the encoding in force for `weight`."""
        with torch.no_grad():
            full = encoding_of_range(self.grid, *channel_range(weight, self.axis), self.axis)
            return Encoding(self.grid, full.scale * self.ratio * self.log_ratio.exp(), full.zero_point, self.axis)

    def learn_range(self, learn: bool) -> None:
        """Let the ratio be trained, or freeze it; the scale follows the weight in both cases."""
        self.log_ratio.requires_grad_(learn)
