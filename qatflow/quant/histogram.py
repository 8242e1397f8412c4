"""One streaming histogram per tensor, from which every calibration method takes its range.

Bins are a power of two wide and aligned at zero. When a batch reaches further, neighbouring bins are merged, so a
count never leaves its place: the result does not depend on how the samples were cut into batches or in which order
they came. Exact smallest and largest values are kept beside it.
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


class Histogram:
    """Counts of the values of one tensor over any number of batches."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self._exponent = 0
        self._first = 0
        self._counts: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no value has been seen."""
        return self._counts is None

    def update(self, values: Tensor) -> None:
        """Add all values of a tensor of any shape.

        Raises:
            ValueError: a value is not finite.
        """
        if values.numel() == 0:
            return
        values = values.detach().flatten().float()
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a calibration sample makes a value that is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._make_room(values.device)
        assert self._counts is not None
        far = max(abs(self._first), abs(self._first + BINS)) >= EXACT
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            place = (part.double() if far else part).mul(2.0**-self._exponent).floor_().sub_(self._first)
            self._counts += torch.histc(place, bins=BINS, min=0, max=BINS).double()

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
        used = self._counts.nonzero().flatten()
        span = torch.arange(int(used[0]), int(used[-1]) + 1, device=self._counts.device)
        centres = (span.double() + self._first + 0.5) * 2.0**self._exponent
        return centres.clamp(self.low, self.high), self._counts[span]

    @property
    def first_used(self) -> int:
        """Place of the first bin in use: it begins at `first_used * bin_width`."""
        return math.floor(self.low / self.bin_width)

    @property
    def bin_width(self) -> float:
        """Width of a bin."""
        return float(2.0**self._exponent)
