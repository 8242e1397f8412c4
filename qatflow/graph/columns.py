"""A weighted layer as a matrix product: its weight as rows, its input as columns.

A convolution computes, for every group, `rows @ columns`: a row holds the weights of one output channel, a column the
patch of the input that one output position sees, zeros of the padding included. A transposed convolution is a
convolution of its input spread out with zeros, with the kernel mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qatflow.graph.layers import Layer
from qatflow.graph.ops import argument


def weight_rows(weight: Tensor, layer: Layer) -> Tensor:
    """Return a weight as rows; shape `[groups, output channels of a group, columns]`."""
    if layer.kind != "conv_transpose":
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    grouped = torch.unflatten(weight.flip(list(range(2, weight.dim()))), 0, (layer.groups, -1))
    return grouped.transpose(1, 2).flatten(2)


def weight_from_rows(rows: Tensor, like: Tensor, layer: Layer) -> Tensor:
    """Undo `weight_rows`; the shape of `like`."""
    if layer.kind != "conv_transpose":
        return rows.reshape(like.shape)
    grouped = torch.unflatten(rows, 2, (like.shape[0] // layer.groups, *like.shape[2:])).transpose(1, 2)
    return grouped.flatten(0, 1).flip(list(range(2, like.dim())))


def per_row(values: Tensor, layer: Layer, axis: int | None) -> Tensor:
    """Return one value per row of `weight_rows`, shape `[groups, rows, 1]`, of values per channel (or of one value).

    A transposed convolution has one scale for the channel of the same place in every group.
    """
    if axis is None or values.dim() == 0:
        return values.reshape(1, 1, 1)
    if layer.kind == "conv_transpose":
        return values.view(1, -1, 1)
    return values.view(layer.groups, -1, 1)


@dataclass(frozen=True)
class Patches:
    """How a layer cuts its input into columns; see `columns`."""

    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    """Padding in front, per dimension."""
    behind: tuple[int, ...]
    spread: tuple[int, ...]
    """Distance of input values once zeros are put between them; 1 puts none."""


def patches(layer: Layer, weight: Tensor) -> Patches | None:
    """Return how a convolution cuts its input; None for a linear layer."""
    if layer.kind == "linear":
        return None
    node, rank = layer.node, weight.dim() - 2
    kernel = tuple(weight.shape[2:])
    stride = _sizes(argument(node, 3, "stride", 1), rank)
    padding: Any = argument(node, 4, "padding", 0)
    if layer.kind == "conv":
        dilation = _sizes(argument(node, 5, "dilation", 1), rank)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same":
            before = tuple(total // 2 for total in reach)
            behind = tuple(total - total // 2 for total in reach)
        else:
            before = behind = _sizes(0 if padding == "valid" else padding, rank)
        return Patches(layer.groups, kernel, stride, dilation, before, behind, (1,) * rank)
    extra = _sizes(argument(node, 5, "output_padding", 0), rank)
    dilation = _sizes(argument(node, 7, "dilation", 1), rank)
    before = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, _sizes(padding, rank), strict=True))
    behind = tuple(b + e for b, e in zip(before, extra, strict=True))
    return Patches(layer.groups, kernel, (1,) * rank, dilation, before, behind, stride)


def _sizes(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    sizes = [value] if isinstance(value, int) else list(value)
    return tuple(sizes * rank if len(sizes) == 1 else sizes)


def columns(x: Tensor, how: Patches | None, positions: int | None = None, seed: int = 0) -> Tensor:
    """Return the columns of an input; shape `[groups, samples, positions, columns]`.

    Args:
        x: the layer's input, batch first.
        how: of `patches`.
        positions: take at most so many output positions of every sample, chosen at random; None takes all.
        seed: of the choice: equal shapes and seeds choose equal positions.
    """
    generator = torch.Generator().manual_seed(seed)
    if how is None:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        return rows[:, _chosen(rows.shape[1], positions, generator).to(x.device)][None]
    view = _windows(_padded(x, how), how)
    rank = len(how.kernel)
    out = view.shape[2 : 2 + rank]
    flat = _chosen(int(torch.Size(out).numel()), positions, generator)
    index: Any = torch.unravel_index(flat.to(x.device), out)
    everything = slice(None)
    picked: Tensor = view[(everything, everything, *index)]  # [samples, channels, positions, *kernel]
    grouped = torch.unflatten(picked, 1, (how.groups, -1)).permute(1, 0, 3, 2, *range(4, 4 + rank))
    return grouped.flatten(3)


def _chosen(count: int, positions: int | None, generator: torch.Generator) -> Tensor:
    if positions is None or positions >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:positions].sort().values


def _padded(x: Tensor, how: Patches) -> Tensor:
    """Put zeros between the values, then around them; negative padding cuts off."""
    if any(step > 1 for step in how.spread):
        shape = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], how.spread, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *shape)
        spread[(slice(None), slice(None), *(slice(None, None, step) for step in how.spread))] = x
        x = spread
    sides = [side for pair in zip(reversed(how.before), reversed(how.behind), strict=True) for side in pair]
    return functional.pad(x, sides)


def _windows(x: Tensor, how: Patches) -> Tensor:
    """View an input as `[samples, channels, *output positions, *kernel]`."""
    x = x.contiguous()
    reach = [d * (k - 1) + 1 for d, k in zip(how.dilation, how.kernel, strict=True)]
    out = [(size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, how.stride, strict=True)]
    steps = x.stride()[2:]
    return x.as_strided(
        (*x.shape[:2], *out, *how.kernel),
        (
            *x.stride()[:2],
            *(step * s for step, s in zip(steps, how.stride, strict=True)),
            *(step * d for step, d in zip(steps, how.dilation, strict=True)),
        ),
    )
