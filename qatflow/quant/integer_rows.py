"""Integers for the rows of a weight that minimise a quadratic error: no gradient steps, only linear algebra.

Every row `v` (in steps of its scale) has the error `v H vᵀ - 2 t vᵀ`, with the same `H` for all rows of a group. Two
methods, both on all rows at once and in blocks of columns, so that nearly all work is matrix products:

- `successive`: round one column after another and let the columns still open make up for the error, as optimally as
  real numbers can (Frantar et al. 2022, "GPTQ"; Babai's nearest plane), columns of most power first;
- `descend`: coordinate descent (Behdin et al. 2023, "QuantEase"): set every integer to its best value given all
  others, column after column, until nothing moves. It never makes an error larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
"""Columns handled between two products with all columns."""
SWEEPS = 30
"""Most passes of coordinate descent."""
STILL = 1e-3
"""A pass that lowers the error by less than this share of what passes have gained so far is the last."""


@dataclass(frozen=True)
class Lattice:
    """The problem in units of the scales: minimise `v H vᵀ - 2 t vᵀ` over whole numbers `low <= v <= high`.

    Attributes:
        gram: `H`, positive definite, shape `[groups, columns, columns]`.
        wanted: `t`, shape `[groups, rows, columns]`.
        low: smallest integers, broadcasts to the shape of `wanted`.
        high: largest integers, likewise.
    """

    gram: Tensor
    wanted: Tensor
    low: Tensor
    high: Tensor

    def error(self, v: Tensor) -> Tensor:
        """Return the error of every row, shape `[groups, rows]`, up to a constant."""
        return ((v @ self.gram - 2 * self.wanted) * v).sum(-1)

    def nearest(self, real: Tensor) -> Tensor:
        """Return the integers nearest to real numbers, within the bounds."""
        return torch.maximum(torch.minimum(real.to(self.wanted).round(), self.high), self.low)


def successive(problem: Lattice) -> Tensor:
    """Return integers found by rounding one column after another; shape `[groups, rows, columns]`."""
    order = problem.gram.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    gram = _by_order(_by_order(problem.gram, order).mT, order).mT
    lower = torch.linalg.cholesky(gram.flip(1, 2))
    unit = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    upper = torch.linalg.solve_triangular(lower, unit, upper=False).flip(1, 2)  # the inverse is its transpose times it
    shape = problem.wanted.shape
    wanted, low, high = (_by_order(one.expand(shape), order) for one in (problem.wanted, problem.low, problem.high))
    real = wanted @ upper.mT @ upper
    result = torch.empty_like(real)
    for start in range(0, real.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, real.shape[2]))
        here, factor = real[:, :, block].clone(), upper[:, block, block]
        errors = torch.empty_like(here)
        for j in range(here.shape[2]):
            value = torch.maximum(torch.minimum(here[:, :, j].round(), high[:, :, start + j]), low[:, :, start + j])
            result[:, :, start + j] = value
            errors[:, :, j] = (here[:, :, j] - value) / factor[:, None, j, j]
            here[:, :, j:] -= errors[:, :, j, None] * factor[:, None, j, j:]
        real[:, :, block.stop :] -= errors @ upper[:, block, block.stop :]
    return _by_order(result, order.argsort(1))


def _by_order(values: Tensor, order: Tensor) -> Tensor:
    """Permute the last dimension, group by group."""
    return values.gather(2, order[:, None, :].expand(-1, values.shape[1], -1))


def descend(problem: Lattice, v: Tensor) -> Tensor:
    """Return integers that hardly any change of a single one improves, found from `v`; shape as `v`.

    `v` has the shape `[groups, rows, columns]`.
    """
    gram = problem.gram
    slope = (v @ gram - problem.wanted).mT.contiguous()
    # one integer of every row is a run of memory once columns come first
    low, high = (one.expand(v.shape).mT.contiguous() for one in (problem.low, problem.high))
    v = v.mT.clone(memory_format=torch.contiguous_format)
    inverse = gram.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(v.dtype).tiny).reciprocal()[:, :, None]
    gained = 0.0
    for _ in range(SWEEPS):
        gain = 0.0
        for start in range(0, v.shape[1], BLOCK):
            block = slice(start, min(start + BLOCK, v.shape[1]))
            here, local = v[:, block].clone(), slope[:, block].clone()
            bounds = low[:, block], high[:, block]
            _descend_block(here, local, gram[:, block, block], inverse[:, block], *bounds)
            change = here - v[:, block]
            gain -= float((change * (slope[:, block] + local)).sum())
            v[:, block] = here
            slope.baddbmm_(gram[:, :, block], change)
        gained += gain
        if gain <= STILL * gained:
            break
    return v.mT


def _descend_block(v: Tensor, slope: Tensor, gram: Tensor, inverse: Tensor, low: Tensor, high: Tensor) -> None:
    """Go once through a block of columns, shape `[groups, columns, rows]` each; changes `v` and `slope`."""
    for j in range(v.shape[1]):
        best = torch.addcmul(v[:, j], slope[:, j], inverse[:, j], value=-1).round_()
        best = best.clamp_(low[:, j], high[:, j])
        step = best - v[:, j]
        v[:, j] = best
        slope.baddbmm_(gram[:, :, j : j + 1], step[:, None])
