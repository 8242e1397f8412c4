"""Round a large tensor to a grid, piece by piece, so that every piece is read from memory once.

`x / scale`, round, clamp and `* scale` are four passes over memory. Done on a piece that stays in the processor's cache
they cost little more than one, and where nobody else reads the tensor the result takes its place: a fresh tensor of
tens of megabytes costs more, in pages that the system hands out one by one, than the arithmetic. Measured on 2 cores,
16x96x112x112: 33 ms plainly, 7 ms in place in pieces; a ReLU6 into a fresh tensor takes 27 ms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qatflow.quant.grid import along

PIECE = 2**18
"""Values rounded at a time on a CPU: 1 MiB of float32."""
Bound = float | Tensor


def round_to_grid(
    x: Tensor, scale: Tensor, low: Tensor, high: Tensor, axis: int | None = None, *, overwrite: bool = False
) -> Tensor:
    """Return `clamp(round(x / scale), low, high) * scale`; no gradient flows.

    Args:
        x: any shape.
        scale: shape `[]`, or one per channel along `axis`.
        low: smallest whole number, the shape of `scale`.
        high: largest one, the shape of `scale`.
        axis: the channel axis; None per tensor.
        overwrite: put the result where `x` is.
    """
    with torch.no_grad():
        result = x if overwrite else torch.empty_like(x)
        pieces = _pieces(x, result, axis)
        if pieces is None:
            return _round(x, result, along(scale, x, axis), along(low, x, axis), along(high, x, axis))
        if axis is None:
            bounds = float(low), float(high)
            for source, target in zip(*pieces, strict=True):
                _round(source, target, scale, *bounds)
            return result
        rows = 0
        for source, target in zip(*pieces, strict=True):
            here = slice(rows, rows + len(source))
            _round(source, target, scale[here, None], low[here, None], high[here, None])
            rows += len(source)
        return result


def _round(source: Tensor, target: Tensor, scale: Tensor, low: Bound, high: Bound) -> Tensor:
    torch.div(source, scale, out=target)
    return target.round_().clamp_(low, high).mul_(scale)  # type: ignore[arg-type]


def _pieces(x: Tensor, result: Tensor, axis: int | None) -> tuple[list[Tensor], list[Tensor]] | None:
    """Cut both tensors alike, into runs of memory or into whole channels; None where that is no gain."""
    if x.device.type != "cpu" or x.numel() <= PIECE:
        return None
    if axis is None:
        flat = [in_memory_order(one) for one in (x, result)]
        if flat[0] is None or flat[1] is None:
            return None
        return list(torch.split(flat[0], PIECE)), list(torch.split(flat[1], PIECE))
    if axis != 0 or not x.is_contiguous():
        return None
    rows = max(1, PIECE * len(x) // x.numel())
    return list(torch.split(x.flatten(1), rows)), list(torch.split(result.flatten(1), rows))


def in_memory_order(x: Tensor) -> Tensor | None:
    """View a tensor that has no gaps as one row; None where it has some."""
    if x.is_contiguous():
        return x.view(-1)
    moved = x.movedim(1, -1)
    return moved.view(-1) if x.dim() > 2 and moved.is_contiguous() else None
