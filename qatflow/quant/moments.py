"""What a layer's reconstruction error depends on: second moments of its input, collected once.

With float inputs `x` and quantized inputs `y` of a layer, as columns, the error of rounded rows `V` for float rows `W`,

    mean |W x - V y|² = W E[x xᵀ] Wᵀ - 2 V E[y xᵀ] Wᵀ + V E[y yᵀ] Vᵀ,

is quadratic in `V`: the Gram matrices hold all that rounding, scale search and bias correction want to know of the
calibration samples, whatever their number. Where the bias is free to move, the same holds of the covariances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of a layer over the columns of some samples, per group, about the means; float64.

    They are those of a layer whose bias makes up for any difference of means; `about_zero` gives those of one whose
    bias stays.

    Attributes:
        gram: of the quantized inputs with themselves, shape `[groups, columns, columns]`.
        cross: of the float outputs with the quantized inputs, shape `[groups, rows, columns]`.
        power: of the float outputs, shape `[groups, rows]`.
        mean: of the quantized inputs, shape `[groups, columns]`.
        output: mean of the float outputs without bias, shape `[groups, rows]`.
        count: how many columns were seen.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor
    mean: Tensor
    output: Tensor
    count: int

    def about_zero(self, bias: Tensor | None = None) -> Moments:
        """Return the moments about zero.

        Args:
            bias: what the layer's bias has beyond FP32's, shape `[groups, rows]`: rows need not give that much.
        """
        output = self.output if bias is None else self.output - bias
        return replace(
            self,
            gram=self.gram + self.mean[:, :, None] * self.mean[:, None, :],
            cross=self.cross + output[:, :, None] * self.mean[:, None, :],
            power=self.power + output.square(),
            output=output,
        )

    def error(self, rows: Tensor) -> Tensor:
        """Return the mean squared error of each output; `rows` and result `[..., groups, rows(, columns)]`."""
        rows = rows.to(self.gram)
        return self.power + ((rows @ self.gram - 2 * self.cross) * rows).sum(-1)


class Collector:
    """Adds up moments, batch after batch.

    Sums are taken about the means of the first batch: single precision would otherwise lose a small variance beside a
    large mean.

    Args:
        rows: the float weight as rows, shape `[groups, rows, columns]`.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._count = 0
        self._about: tuple[Tensor, Tensor] | None = None
        groups, outputs, size = rows.shape
        shapes = ((groups, size, size), (groups, outputs, size), (groups, outputs), (groups, size), (groups, outputs))
        self._sums = [torch.zeros(shape, dtype=torch.float64, device=rows.device) for shape in shapes]

    def add(self, floats: Tensor, quantized: Tensor) -> None:
        """Add columns of float and quantized inputs, shape `[groups, samples, positions, columns]` each."""
        x, y = floats.flatten(1, 2), quantized.flatten(1, 2)
        if x.shape[1] == 0:
            return
        wanted = x @ self._rows.to(x).mT
        if self._about is None:
            self._about = y.mean(1), wanted.mean(1)
        y, wanted = (one - about[:, None] for one, about in zip((y, wanted), self._about, strict=True))
        new = (y.mT @ y, wanted.mT @ y, wanted.square().sum(1), y.sum(1), wanted.sum(1))
        for total, part in zip(self._sums, new, strict=True):
            total += part
        self._count += x.shape[1]

    def moments(self) -> Moments:
        """Return the moments of all that was added.

        Raises:
            ValueError: nothing was added.
        """
        if self._about is None:
            raise ValueError("no calibration sample reached this layer")
        gram, cross, power, mean, output = (total / self._count for total in self._sums)
        return Moments(
            gram - mean[:, :, None] * mean[:, None, :],
            cross - output[:, :, None] * mean[:, None, :],
            power - output.square(),
            mean + self._about[0],
            output + self._about[1],
            self._count,
        )
