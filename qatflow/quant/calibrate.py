"""Ranges from calibration: min-max, percentile, and least squared error (SQNR).

All three read the same histogram, so trying another method costs no further pass over the data. Weights need no
histogram: the search looks at the values themselves, for all channels at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qatflow.quant.grid import Encoding, Grid, channel_range, channels_first, encoding_of_range
from qatflow.quant.histogram import Histogram
from qatflow.recipe import Calibration

ACTIVATION_CUTS = 24
"""Candidates per side of the range in each of two rounds of the search for the least squared error."""
SEARCH_BINS = 512
"""Bins that search looks at; finer ones are merged first."""
WEIGHT_RATIOS = torch.linspace(1.0, 0.2, 81, dtype=torch.float64)
"""Candidate scales of weights, relative to the min-max scale."""


def activation_encoding(histogram: Histogram, grid: Grid, calibration: Calibration) -> Encoding:
    """Return the per-tensor encoding that `calibration.activations` finds.

    Raises:
        ValueError: the histogram is empty.
    """
    centres, counts = histogram.bins()
    if calibration.activations == "minmax":
        low, high = histogram.low, histogram.high
    elif calibration.activations == "percentile":
        low, high = _percentiles(histogram, centres, counts, calibration.percentile / 100)
    else:
        low, high = _least_error_range(histogram, centres, counts, grid)
    device = counts.device
    return encoding_of_range(grid, torch.tensor(low, device=device), torch.tensor(high, device=device))


def _percentiles(histogram: Histogram, centres: Tensor, counts: Tensor, share: float) -> tuple[float, float]:
    """Return the values below and above which `1 - share` of all values lie."""
    if share >= 1:
        return histogram.low, histogram.high
    cumulated = counts.cumsum(0) / counts.sum()
    low = centres[int(torch.searchsorted(cumulated, 1 - share))]
    high = centres[min(int(torch.searchsorted(cumulated, share)), len(centres) - 1)]
    return float(low), float(high)


def _least_error_range(histogram: Histogram, centres: Tensor, counts: Tensor, grid: Grid) -> tuple[float, float]:
    """Search `[low, high]` for the least expected squared error, coarsely and then around the best."""
    merged = max(1, len(counts) // SEARCH_BINS)
    centres, counts = _merge(centres, counts, merged)
    width = histogram.bin_width * merged
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    best, least = (low, high), torch.inf
    centre, reach = (1.0, 1.0), 1.0
    for _ in range(2):
        lows = _cuts(centre[0], reach) * low
        highs = _cuts(centre[1], reach) * high
        pairs = torch.cartesian_prod(torch.unique(lows), torch.unique(highs)).to(counts.device)
        pairs = pairs[pairs[:, 1] - pairs[:, 0] > 0]
        if len(pairs) == 0:
            return best
        errors = _expected_error(pairs, centres, counts, grid, width)
        if float(errors.min()) < least:
            best_low, best_high = (float(bound) for bound in pairs[errors.argmin()])
            best, least = (best_low, best_high), float(errors.min())
        centre = (best[0] / low if low else 1.0, best[1] / high if high else 1.0)
        reach = 2.0 / ACTIVATION_CUTS
    return best


def _merge(centres: Tensor, counts: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Merge neighbouring bins, `by` at a time."""
    if by == 1:
        return centres, counts
    missing = -len(counts) % by
    counts = torch.nn.functional.pad(counts, (0, missing)).view(-1, by)
    centres = torch.cat([centres, centres[-1:].expand(missing)]).view(-1, by)
    return centres.mean(1), counts.sum(1)


def _cuts(centre: float, reach: float) -> Tensor:
    """Return candidate shares of a range's side: `reach` down from `centre`, and up where there is room."""
    low, high = max(centre - reach, 1.0 / ACTIVATION_CUTS), min(centre + reach, 1.0)
    return torch.linspace(low, high, ACTIVATION_CUTS, dtype=torch.float64)


def _expected_error(pairs: Tensor, centres: Tensor, counts: Tensor, grid: Grid, bin_width: float) -> Tensor:
    """Return the squared error that each range `[low, high]` of `pairs`, shape `[n, 2]`, would make; shape `[n]`.

    Where a step of the grid is finer than a bin, rounding inside the bin is uniform and its error `step² / 12`.
    """
    encoding = encoding_of_range(grid, pairs[:, 0], pairs[:, 1])
    scale, low, high = (value[:, None] for value in (encoding.scale, encoding.low, encoding.high))
    errors = []
    for start in range(0, len(pairs), 256):
        s, lo, hi = (value[start : start + 256] for value in (scale, low, high))
        clipped = torch.maximum(torch.minimum(centres, hi), lo)
        rounding = (clipped / s).round() * s - clipped
        rounding = torch.where(s < 2 * bin_width, s.square() / 12, rounding.square())
        errors.append(((centres - clipped).square() + rounding) @ counts)
    return torch.cat(errors)


def weight_encoding(weight: Tensor, grid: Grid, axis: int | None, method: str) -> Encoding:
    """Return the encoding of a weight tensor, per channel along `axis` or per tensor where it is None.

    `sqnr` takes, per channel, the candidate scale with the least squared error.
    """
    weight = weight.detach()
    full = encoding_of_range(grid, *channel_range(weight, axis), axis)
    if method == "minmax" or weight.numel() == 0:
        return full
    rows = channels_first(weight, axis) if axis is not None else weight.flatten()[None]
    scales = full.scale.view(-1, 1)
    zero_points = full.zero_point.view(-1, 1)
    best_error = torch.full((len(rows),), torch.inf, device=weight.device)
    best_ratio = torch.ones(len(rows), device=weight.device)
    for ratio in WEIGHT_RATIOS.tolist():
        candidate = Encoding(grid, scales * ratio, zero_points, None)
        error = (candidate.dequantize(candidate.quantize(rows)) - rows).square().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    return Encoding(grid, full.scale * best_ratio.view(full.scale.shape), full.zero_point, axis)
