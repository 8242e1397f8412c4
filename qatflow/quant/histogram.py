"""One streaming histogram per tensor, from which every calibration method takes its range.

Bins are a power of two wide and aligned at zero. When a batch reaches further, neighbouring bins are merged, so a
count never leaves its place: the result does not depend on how the samples were cut into batches or in which order
they came. Exact smallest and largest values are kept beside it. Of a sample with many values, evenly spread ones are
counted for all: a range for 256 steps needs no more, and counting costs more than a convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4096
"""Most bins in use; at least half of them cover the values seen."""
EXACT = 2**24
"""Whole numbers below this are exact in float32."""
CHUNK = 2**22
"""Values counted at a time: `histc` counts in float32, which stands still at `EXACT`."""


PER_SAMPLE = 2**16
"""Values counted of a sample (one entry along the first dimension); where there are more, each counts for several."""


class Histogram:
    """Counts of the values of one tensor over any number of batches."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self._exponent = 0
        self._first = 0
        self._counts: Tensor | None = None

    def update(self, values: Tensor, counts: Tensor | None = None) -> None:
        """Add the values of a tensor of any shape: all of them, or where `counts`, a mask of that shape, is true.

        Raises:
            ValueError: a value is not finite.
        """
        if values.numel() == 0:
            return
        values = values.detach().float()
        low, high = (float(bound) for bound in torch.aminmax(values if counts is None else values[counts]))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a calibration sample makes a value that is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._make_room(values.device)
        assert self._counts is not None
        values, each = _spread(values)
        if counts is not None:
            values = values[_spread(counts)[0]]
        far = max(abs(self._first), abs(self._first + BINS)) >= EXACT
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            place = (part.double() if far else part).mul(2.0**-self._exponent).floor_().sub_(self._first)
            self._counts += each * torch.histc(place, bins=BINS, min=0, max=BINS).double()

    def _make_room(self, device: torch.device) -> None:
        """Widen the bins until they reach from `low` to `high`, and move the counts to their new places."""
        span = max(self.high - self.low, max(abs(self.low), abs(self.high)) * 1e-6, 1e-30)
        exponent = math.ceil(math.log2(span / (BINS - 2)))
        if self._counts is None:
            self._exponent, self._first = exponent, math.floor(self.low / 2.0**exponent)
            self._counts = torch.zeros(BINS, dtype=torch.float64, device=device)
            return
        exponent = max(exponent, self._exponent)
        first = math.floor(self.low / 2.0**exponent)
        if exponent == self._exponent and first >= self._first and self.high < (self._first + BINS) * 2.0**exponent:
            return
        old = torch.arange(BINS, device=device) + self._first
        place = torch.div(old, 2 ** min(exponent - self._exponent, 62), rounding_mode="floor") - first
        used = self._counts > 0
        moved = torch.zeros_like(self._counts)
        moved.index_add_(0, place[used].clamp(0, BINS - 1), self._counts[used])
        self._exponent, self._first, self._counts = exponent, first, moved

    def bins(self) -> tuple[Tensor, Tensor]:
        """Return centres and counts of the bins in use, float64, shape `[bins]` each, centres rising.

        Raises:
            ValueError: nothing has been seen.
        """
        if self._counts is None:
            raise ValueError("nothing was calibrated: the tensor never had a value")
        last = math.floor(self.high / self.bin_width)
        span = torch.arange(self.first_used, last + 1, device=self._counts.device)
        centres = (span.double() + 0.5) * self.bin_width
        counts = self._counts[span - self._first].clone()
        counts[[0, -1]] = counts[[0, -1]].clamp(min=1)  # the extremes are known, counted or not
        return centres.clamp(self.low, self.high), counts

    @property
    def first_used(self) -> int:
        """Place of the first bin in use: it begins at `first_used * bin_width`."""
        return math.floor(self.low / self.bin_width)

    @property
    def bin_width(self) -> float:
        """Width of a bin."""
        return float(2.0**self._exponent)


def _spread(values: Tensor) -> tuple[Tensor, int]:
    """Return evenly spread values of every sample as one row, and for how many each of them counts."""
    rows = values.flatten(1) if values.dim() > 1 else values.view(-1, 1)
    each = 1
    if rows.shape[1] > PER_SAMPLE:
        each = -(-rows.shape[1] // PER_SAMPLE)
        while math.gcd(each, rows.shape[1]) > 1:  # a stride that divides the width would see few columns
            each += 1
    return rows[:, ::each].flatten(), each
