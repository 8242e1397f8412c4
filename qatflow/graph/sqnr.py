"""Signal to quantization-noise ratios of a model's outputs, every part of them on its own.

The lowest speaks for the model: scores of 0 to 1 that are lost beside boxes in pixels do not show in a ratio over
both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qatflow.graph.outputs import OutputPart
from qatflow.graph.padding import Padding
from qatflow.graph.tree import tree_leaves

MOST_DB = 300.0
"""What an SQNR is held within, so that an exact match is a number and ranks first."""
MOST_DB_OF_A_SAMPLE = 100.0
"""Likewise for one sample's, so that no sample outweighs all others in a mean."""

Powers = tuple[Tensor, Tensor]
"""Of signal and of noise, summed over everything but the first dimension; float64, shape `[n]` each."""


def decibel(signal: float, noise: float) -> float:
    """Return `10 log10(signal / noise)` within `MOST_DB`; NaN where the noise is not finite.

    No noise is `MOST_DB`, and noise where there is no signal is `-MOST_DB`.
    """
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.nan
    if noise == 0:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise))) if signal > 0 else -MOST_DB


def lowest(ratios: Iterable[float]) -> float:
    """Return the lowest of some ratios; NaN where one of them is NaN, or where there is none."""
    ratios = list(ratios)
    return min(ratios) if ratios and not any(math.isnan(one) for one in ratios) else math.nan


def powers(wanted: Tensor, got: Tensor, real: Tensor | None = None) -> Powers:
    """Return the power of `wanted` and that of the difference, per entry along the first dimension.

    Args:
        wanted: shape `[n, ...]`, or a number.
        got: the same shape.
        real: which elements count, broadcastable to that shape; None counts all.

    The same infinity in both is neither signal nor noise.
    """
    wanted, got = (one.detach().double().reshape(one.shape or (1,)) for one in (wanted, got))
    if real is not None:
        wanted, got = torch.where(real, wanted, 0.0), torch.where(real, got, 0.0)
    both = _summed(wanted, wanted - got)
    if all(bool(one.isfinite().all()) for one in both):
        return both
    equal = wanted.isinf() & (wanted == got)
    return _summed(torch.where(equal, 0.0, wanted), torch.where(equal, 0.0, wanted - got))


def _summed(signal: Tensor, noise: Tensor) -> Powers:
    total, off = (one.square().unsqueeze(-1).flatten(1).sum(1) for one in (signal, noise))
    return total, off


def part_powers(
    parts: Sequence[OutputPart], reference: Any, outputs: Any, padding: Padding | None = None
) -> list[Powers]:
    """Return the powers of every part of a model's outputs on one batch; padded positions do not count."""
    wanted, got = tree_leaves(reference), tree_leaves(outputs)
    found = []
    for part in parts:
        real = None if padding is None else padding.real(part.leaf, wanted[part.leaf])
        if real is not None:
            real = real.expand(wanted[part.leaf].shape)[part.index]
        found.append(powers(wanted[part.leaf][part.index], got[part.leaf][part.index], real))
    return found


class OutputSqnr:
    """The SQNR of every part, over any number of batches.

    Args:
        parts: of the outputs.
    """

    def __init__(self, parts: Sequence[OutputPart]) -> None:
        self.parts = parts
        self._sums = [torch.zeros(2, dtype=torch.float64) for _ in parts]

    def add(self, batch: Sequence[Powers]) -> None:
        """Add the powers of one batch, in the order of the parts."""
        for total, (signal, noise) in zip(self._sums, batch, strict=True):
            total += torch.stack([signal.sum(), noise.sum()]).cpu()

    def ratios(self) -> tuple[tuple[str, float], ...]:
        """Return name and SQNR of every part, in dB; NaN where a value is not finite."""
        return tuple((part.name, decibel(*total.tolist())) for part, total in zip(self.parts, self._sums, strict=True))

    @property
    def lowest(self) -> float:
        """The lowest of them, in dB; NaN where one is NaN, or where no output is a float tensor."""
        return lowest(ratio for _, ratio in self.ratios())


def lowest_of_samples(batch: Sequence[Powers], size: int) -> Tensor:
    """Return, for every sample of a batch, the SQNR of the part that has the lowest; in dB, shape `[size]`, float64.

    It is within `MOST_DB_OF_A_SAMPLE`; NaN where a value is not finite, and where no output has one entry a sample.
    """
    rows = [_of_samples(signal, noise) for signal, noise in batch if len(signal) == size]
    return torch.stack(rows).amin(0) if rows else torch.full((size,), math.nan, dtype=torch.float64)


def _of_samples(signal: Tensor, noise: Tensor) -> Tensor:
    most = MOST_DB_OF_A_SAMPLE
    ratio = torch.where(noise == 0, most, 10 * torch.log10(signal / noise)).clamp(-most, most)
    return torch.where(signal.isfinite() & noise.isfinite(), ratio, math.nan)
