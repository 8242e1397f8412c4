"""How well a grid suits the values on it: what it clips, how many of its levels they take, and whose channel rules it.

What is found names the likely cause of a tensor's noise, and what usually helps against that.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from qatflow.quant.grid import Encoding, along, channels_first

MIDDLE = 0.99
"""Share of the values that `used` levels hold: the rest are the tails."""
FEW = 1 / 8
"""A grid of whose levels the middle takes no more than this is stretched by something else."""
UNEQUAL = 8.0
"""Times that the largest channel is as large as the median one, where channels explain that."""
FEW_BITS = 4


@dataclass(frozen=True)
class GridUse:
    """What was seen of one tensor on its grid.

    Attributes:
        levels: of the grid.
        used: levels that the middle 99 % of the values span.
        clipped: share of the values that lie outside by more than a step.
        clipping: share of the error's power that these make.
        imbalance: how many times the median channel's mean magnitude the largest channel's is; 1 where there are no
            channels, or each has its own scale.
        signal, noise: power of the values and of the error, summed up.
    """

    levels: int
    used: int
    clipped: float
    clipping: float
    imbalance: float
    signal: float
    noise: float

    @property
    def sqnr_db(self) -> float:
        """Of the tensor itself; NaN where there is no noise, or no signal."""
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 and self.signal > 0 else math.nan

    @property
    def why(self) -> str:
        """The likely cause of its noise; empty where that is plain rounding."""
        if self.clipping > 0.5:
            return f"clipped: {100 * self.clipped:.2g} % of the values lie outside, and make most of the error"
        if self.used <= FEW * self.levels:
            middle = f"99 % of the values share {self.used} of {self.levels} levels"
            if self.imbalance >= UNEQUAL:
                return f"channel imbalance: {middle}, the largest channel is {self.imbalance:.0f} times the median one"
            return f"outliers: {middle}"
        return f"few levels: {self.levels} in all" if self.levels <= 2**FEW_BITS else ""


def what_helps(use: GridUse, *, weight: bool, per_tensor: bool, better: str, done: Collection[str] = ()) -> str:
    """Return what usually helps against a tensor's noise; empty where nothing stands out.

    Args:
        use: of its grid.
        weight: whether it is a weight.
        per_tensor: whether the recipe gives weights one scale.
        better: the override that gives it the next better precision that the target runs; empty for none.
        done: steps that were taken, and need not be named.
    """
    cause = use.why.partition(":")[0]
    found = {
        "clipped": ["search_scales" if weight else "calibrate", better],
        "channel imbalance": [
            "precision.per_channel=true" if weight and per_tensor else "",
            "equalize",
            "" if weight else "smooth",
            better,
        ],
        "outliers": ["search_scales" if weight else "", better],
        "few levels": ["adaround" if weight else "", better],
    }.get(cause, [])
    return ", ".join(one for one in found if one and one not in done)


class GridUseObserver:
    """Counts what passes.

    Args:
        encoding: the grid.
        channels: the axis of the values' channels.
    """

    def __init__(self, encoding: Encoding, channels: int) -> None:
        self.encoding, self.channels = encoding, channels
        grid = encoding.grid
        self.counts = torch.zeros(grid.qmax - grid.qmin + 1, dtype=torch.int64)
        self.signal = self.noise = self.clipping = 0.0
        self.clipped = 0
        self.imbalance = 1.0

    @torch.no_grad()
    def see(self, value: Tensor, fitted: Tensor | None = None) -> None:
        """Count a tensor's values; `fitted` are quantized in their place, where a step has fitted them."""
        value, grid = value.detach(), self.encoding.grid
        codes = self.encoding.quantize(value if fitted is None else fitted.detach())
        error = self.encoding.dequantize(codes) - value
        power = error.double().square()
        low, high, step = (
            along(one, value, self.encoding.axis)
            for one in (self.encoding.low, self.encoding.high, self.encoding.scale)
        )
        outside = (value < low - step) | (value > high + step)
        self.signal += float(value.double().square().sum())
        self.noise += float(power.sum())
        self.clipping += float(power[outside].sum())
        self.clipped += int(outside.sum())
        places = (codes.nan_to_num(grid.qmin) - grid.qmin).long().flatten()
        self.counts += torch.bincount(places, minlength=len(self.counts)).cpu()
        if self.encoding.axis is None:
            self.imbalance = max(self.imbalance, _imbalance(value, self.channels))

    @property
    def use(self) -> GridUse:
        """What was counted."""
        total = int(self.counts.sum())
        tail = (1 - MIDDLE) / 2
        shares = self.counts.cumsum(0) / max(total, 1)
        first, last = int((shares < tail).sum()), int((shares < 1 - tail).sum())
        return GridUse(
            levels=len(self.counts),
            used=min(last, len(self.counts) - 1) - first + 1,
            clipped=self.clipped / max(total, 1),
            clipping=self.clipping / self.noise if self.noise > 0 else 0.0,
            imbalance=self.imbalance,
            signal=self.signal,
            noise=self.noise,
        )


def _imbalance(value: Tensor, axis: int) -> float:
    """Return how many times the median channel's mean magnitude the largest channel's is; one outlier makes none."""
    if value.dim() < 2 or value.shape[axis] < 2:
        return 1.0
    means = channels_first(value, axis).abs().float().mean(1)
    middle = float(means.median())
    return float(means.max()) / middle if middle > 0 else 1.0
