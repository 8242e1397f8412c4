"""Ranges from calibration: min-max, percentile, least squared error (SQNR), and least divergence (entropy).

All of them read the same histogram, so trying another method costs no further pass over the data. Weights need no
histogram: the search looks at the values themselves, for all channels at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qatflow.quant.grid import Encoding, Grid, channel_range, channels_first, encoding_of_range
from qatflow.quant.histogram import Histogram
from qatflow.recipe import Calibration

ACTIVATION_CUTS = 24
"""Candidates per side of the range in each of two rounds of the search for the least squared error."""
SEARCH_BINS = 512
"""About how many bins the search looks at; finer ones are merged first."""
SPIKE = 64
"""A bin with more than one in so many of all values is taken for a single value."""
ENTROPY_CUTS = 128
"""Thresholds that the search for the least divergence tries."""
WEIGHT_RATIOS = torch.linspace(1.0, 0.2, 81, dtype=torch.float64)
"""Candidate scales of weights, relative to the min-max scale."""
CLIPPED = 4.0
"""How many times the squared error of a clipped weight counts: it always has the sign of the weight, so that clipping
weakens a channel, where rounding errors have both signs and cancel."""
CLIPPED_FROM = 0.5 + 1e-4
"""Steps of error from which on a weight was clipped, not rounded."""


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
    elif calibration.activations == "entropy":
        low, high = least_divergence_range(histogram, counts, grid)
    else:
        low, high = _least_error_range(histogram, counts, grid)
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


def least_divergence_range(histogram: Histogram, counts: Tensor, grid: Grid) -> tuple[float, float]:
    """Search the range whose steps say most about the values: the least Kullback-Leibler divergence.

    Migacz 2017, "8-bit Inference with TensorRT": cut off at a threshold, put what lies outside on the edge, count per
    step of the grid, spread every step's count over the bins that hold values, and compare. The threshold is one for
    both sides, as far as values reach. Single values that many elements have (the zeros behind a ReLU, which every
    grid holds, and the bound of a clip) are compared only where they are cut off.
    """
    edges = (torch.arange(len(counts) + 1, device=counts.device) + histogram.first_used) * histogram.bin_width
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    reach = max(-low, high)
    spread = torch.where(counts * SPIKE > counts.sum(), 0.0, counts)
    best, least = (low, high), math.inf
    for share in torch.linspace(1.0, 1.0 / ENTROPY_CUTS, ENTROPY_CUTS).tolist():
        bounds = max(low, -share * reach), min(high, share * reach)
        inside = (edges[1:] > bounds[0]) & (edges[:-1] < bounds[1])
        if int(inside.sum()) <= 1:
            break
        kept = spread[inside].double()
        seen = kept.clone()
        seen[0] += counts[edges[1:] <= bounds[0]].sum()
        seen[-1] += counts[edges[:-1] >= bounds[1]].sum()
        steps = (grid.qmax - grid.qmin) / max(bounds[1] - bounds[0], 1e-30)
        centres = ((edges[:-1] + edges[1:]) / 2)[inside]
        step = ((centres - bounds[0]) * steps).round().long().clamp(0, grid.qmax - grid.qmin)
        held, width = (
            torch.zeros(grid.qmax - grid.qmin + 1).to(kept).index_add_(0, step, one)
            for one in (kept, (seen > 0).double())
        )
        coarse = torch.where(seen > 0, held[step] / width[step].clamp(min=1), 0.0)
        divergence = _divergence(seen, coarse)
        if divergence < least:
            best, least = bounds, divergence
    return best


def _divergence(wanted: Tensor, got: Tensor) -> float:
    """Return the Kullback-Leibler divergence of two histograms; bins that only `wanted` fills count as one value."""
    p, q = wanted / wanted.sum(), got.clamp(min=1e-9) / got.sum().clamp(min=1e-9)
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())


def _least_error_range(histogram: Histogram, counts: Tensor, grid: Grid) -> tuple[float, float]:
    """Search `[low, high]` for the least expected squared error, coarsely and then around the best."""
    bins = _Bins.of(histogram, counts)
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
        errors = _expected_error(pairs, bins, grid)
        if float(errors.min()) < least:
            best_low, best_high = (float(bound) for bound in pairs[errors.argmin()])
            best, least = (best_low, best_high), float(errors.min())
        centre = (best[0] / low if low else 1.0, best[1] / high if high else 1.0)
        reach = 2.0 / ACTIVATION_CUTS
    return best


def _cuts(centre: float, reach: float) -> Tensor:
    """Return candidate shares of a range's side: `reach` down from `centre`, and up where there is room."""
    low, high = max(centre - reach, 1.0 / ACTIVATION_CUTS), min(centre + reach, 1.0)
    return torch.linspace(low, high, ACTIVATION_CUTS, dtype=torch.float64)


@dataclass(frozen=True)
class _Bins:
    """What the search looks at: bins of different widths, float64, shape `[bins]` each."""

    left: Tensor
    right: Tensor
    counts: Tensor

    @staticmethod
    def of(histogram: Histogram, counts: Tensor) -> _Bins:
        """Merge neighbours, but for bins that hold so much that it matters where in the merged one they lie.

        Such are the zeros behind a ReLU and the values that a clip holds at its bound.
        """
        edges = torch.arange(len(counts) + 1, device=counts.device, dtype=torch.float64)
        edges = (edges + histogram.first_used) * histogram.bin_width
        spikes = counts * SEARCH_BINS > counts.sum()
        by = max(1, len(counts) // SEARCH_BINS)
        rest = torch.where(spikes, 0.0, counts)
        merged = torch.nn.functional.pad(rest, (0, -len(counts) % by)).view(-1, by).sum(1)
        starts = edges[:-1:by]
        return _Bins(
            torch.cat([starts, edges[:-1][spikes]]),
            torch.cat([starts + by * histogram.bin_width, edges[1:][spikes]]),
            torch.cat([merged, counts[spikes]]),
        )


def _expected_error(pairs: Tensor, bins: _Bins, grid: Grid) -> Tensor:
    """Return the squared error that each range `[low, high]` of `pairs`, shape `[n, 2]`, would make; shape `[n]`.

    It is integrated over every bin as if the values lay evenly in it: sampled at the centres, a grid with a few bins
    to a step would look better or worse than it is, by how the two happen to meet.
    """
    encoding = encoding_of_range(grid, pairs[:, 0], pairs[:, 1])
    scale, low, high = (value[:, None] for value in (encoding.scale, encoding.low, encoding.high))
    errors = []
    for start in range(0, len(pairs), 256):
        s, lo, hi = (value[start : start + 256] for value in (scale, low, high))
        left, right = (torch.maximum(torch.minimum(side, hi), lo) for side in (bins.left, bins.right))
        error = s.pow(3) * (_rounding(right / s) - _rounding(left / s))
        error += ((bins.right - hi).clamp(min=0).pow(3) - (bins.left - hi).clamp(min=0).pow(3)) / 3
        error += ((lo - bins.left).clamp(min=0).pow(3) - (lo - bins.right).clamp(min=0).pow(3)) / 3
        errors.append((error / (bins.right - bins.left)) @ bins.counts)
    return torch.cat(errors)


def _rounding(steps: Tensor) -> Tensor:
    """Return the integral of `(x - round(x))²` from 0 to `steps`."""
    whole = steps.round()
    return whole / 12 + (steps - whole).pow(3) / 3


def weight_encoding(weight: Tensor, grid: Grid, axis: int | None, method: str) -> Encoding:
    """Return the encoding of a weight tensor, per channel along `axis` or per tensor where it is None.

    `sqnr` takes, per channel, the candidate scale with the least squared error, in which clipped weights count
    `CLIPPED` times.
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
        off = candidate.dequantize(candidate.quantize(rows)) - rows
        clipped = off.abs() > candidate.scale * CLIPPED_FROM
        error = (torch.where(clipped, CLIPPED, 1.0) * off.square()).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    return Encoding(grid, full.scale * best_ratio.view(full.scale.shape), full.zero_point, axis)
