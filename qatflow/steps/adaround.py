"""AdaRound: round every weight up or down so that the layer's output, not the weight, is nearest.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". Two solvers of that problem:

- `exact` sees that the error is quadratic in the rounded weights, collects the moments of a layer's inputs once, and
  solves for integers with linear algebra (`qatflow.quant.integer_rows`): every weight may take any integer, or only
  its two neighbours; scales follow in closed form, and biases take up the difference of means;
- `gradient` is the published relaxation, with the activation in the objective (`qatflow.steps.adaround_gradient`).

A layer keeps nearest rounding where the solution is not better on held-out samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qatflow.quant.grid import Encoding
from qatflow.quant.integer_rows import Lattice, descend, successive
from qatflow.quant.moments import Moments
from qatflow.quant.network import Network
from qatflow.recipe.steps import AdaRound
from qatflow.results.result import Note
from qatflow.steps.adaround_gradient import adaround_by_gradient
from qatflow.steps.context import StepContext
from qatflow.steps.reconstruct import Problem, Solution, mean_shift, reconstruct

ROUNDS = 2
"""Times that scales are refitted to the integers, and integers to the scales."""
DAMPINGS = (0.01, 0.1, 1.0)
"""Dampings tried where the config has none: much of it suits few samples."""


def adaround(network: Network, config: AdaRound, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with every quantized weight rounded to its grid, and the grids fixed.

    Notes give the number of `layers`, how many `kept_nearest` rounding, and `error_share`, the geometric mean of the
    reconstruction error on held-out samples as a share of nearest rounding's.
    """
    if config.solver == "gradient":
        return adaround_by_gradient(network, config, context)
    solver = _Exact(config)
    result = reconstruct(network, context, config.samples, solver.solve, name="adaround", shifts=config.move_biases)
    return result, rounding_notes(solver.shares)


def rounding_notes(shares: list[float]) -> dict[str, Note]:
    """Return the notes of layers whose error is these shares of nearest rounding's."""
    floor = [max(share, 1e-12) for share in shares]
    return {
        "layers": len(shares),
        "kept_nearest": sum(share >= 1 for share in shares),
        "error_share": math.exp(sum(map(math.log, floor)) / max(1, len(floor))),
    }


@dataclass
class _Exact:
    """Solves layer after layer; remembers how well."""

    config: AdaRound
    shares: list[float] = field(default_factory=list)

    def solve(self, problem: Problem) -> Solution:
        """Return the best rounding found, or nearest rounding where that is not worse on held-out samples."""
        free = self.config.move_biases
        fit, held = (one if free else one.about_zero(problem.bias) for one in (problem.fit, problem.held))
        rows, encoding = self._rounded(problem, fit, held)
        nearest = problem.quantized_rows(problem.encoding)
        error, least = (float(held.error(one).sum()) for one in (rows, nearest))
        better = error < least
        self.shares.append(error / least if better else 1.0)
        if not better:
            rows, encoding = nearest, problem.encoding
        return Solution(encoding, rows, mean_shift(problem, rows) if free else None)

    def _rounded(self, problem: Problem, fit: Moments, held: Moments) -> tuple[Tensor, Encoding]:
        """Return rows on a grid, and that grid: those of the damping that is best on held-out samples."""
        v: Tensor | None = None
        found = []
        for damping in DAMPINGS if self.config.damping is None else (self.config.damping,):
            damped = _damped(fit, problem, damping)
            v, encoding = self._integers(problem, damped, v)
            rows = v * problem.per_row(encoding.scale)
            found.append((float(held.error(rows).sum()), rows, encoding))
        _, rows, encoding = min(found, key=lambda one: one[0])
        return rows, encoding

    def _integers(self, problem: Problem, moments: Moments, v: Tensor | None) -> tuple[Tensor, Encoding]:
        """Return integers and scales fitted in turn, found from `v` or else from two starts."""
        encoding, rounding = problem.encoding, self.config.rounding
        lattice = _lattice(moments, problem, encoding, rounding)
        if v is None:
            starts = [lattice.nearest(problem.rows / problem.per_row(encoding.scale)), successive(lattice)]
            found = torch.stack([descend(lattice, start) for start in starts])
            best = torch.stack([lattice.error(one) for one in found]).argmin(0)
            v = found.gather(0, best[None, :, :, None].expand_as(found[:1]))[0]
        else:
            v = descend(lattice, v)
        if self.config.refit_scales:
            for _ in range(ROUNDS):
                encoding = _refitted(moments, problem, encoding, v)
                v = descend(_lattice(moments, problem, encoding, rounding), v)
        return v, encoding


def _damped(moments: Moments, problem: Problem, damping: float) -> Moments:
    """Return moments of inputs with some noise added: what few samples cannot tell then stays as it is.

    `damping` is a share of the inputs' mean power per column. All is divided by that power, group by group.
    """
    power = moments.gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0)
    power = torch.where(power > 1e-30, power, 1.0)[:, None, None]
    noise = damping * torch.eye(moments.gram.shape[1]).to(moments.gram)
    return replace(moments, gram=moments.gram / power + noise, cross=moments.cross / power + damping * problem.rows)


def _lattice(moments: Moments, problem: Problem, encoding: Encoding, rounding: str) -> Lattice:
    """Return the problem in steps of the scales, in single precision."""
    scale, zero_point = problem.per_row(encoding.scale), problem.per_row(encoding.zero_point)
    low, high = encoding.grid.qmin - zero_point, encoding.grid.qmax - zero_point
    if rounding == "adjacent":
        below = (problem.rows / scale).floor()
        low, high = torch.maximum(torch.minimum(below, high), low), torch.maximum(torch.minimum(below + 1, high), low)
    return Lattice(*(one.float() for one in (moments.gram, moments.cross / scale, low, high)))


def _refitted(moments: Moments, problem: Problem, encoding: Encoding, v: Tensor) -> Encoding:
    """Return the encoding with the scales that are best for the integers `v`, in closed form."""
    v = v.double()
    along, power = (v * moments.cross).sum(-1), ((v @ moments.gram) * v).sum(-1)
    best = problem.per_channel_sum(along) / problem.per_channel_sum(power).clamp(min=1e-300)
    scale = torch.where((best > 0.5 * encoding.scale) & (best < 2 * encoding.scale), best, encoding.scale.double())
    return replace(encoding, scale=scale.to(encoding.scale.dtype))
