"""Search weight scales for the least reconstruction error of the layer's output.

The goal of SeqMSE (AIMET, "Sequential MSE"): per output channel, of many scales the one whose rounded weights change
the layer's output least, layers in order, each on inputs that the layers before it have quantized. The output's error
is a quadratic form of the rounded weights, so that a candidate costs one matrix product with the Gram matrix of the
inputs, whatever the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qatflow.quant.grid import Encoding, channel_range, encoding_of_range
from qatflow.quant.network import Network
from qatflow.recipe.steps import SearchScales
from qatflow.results.result import Note
from qatflow.steps.context import StepContext
from qatflow.steps.reconstruct import Problem, Solution, mean_shift, reconstruct


def search_scales(network: Network, config: SearchScales, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with the scales of its weights fixed; the weights stay, biases that were moved before follow.

    Notes give the number of `layers`, how many `kept` the scales of calibration because the found ones are not better
    on held-out samples, and `error_share`, the geometric mean of the error as a share of what it was.
    """
    search = _Search(config)
    result = reconstruct(network, context, config.samples, search.solve, name="search_scales", shifts=False)
    shares = search.shares
    notes: dict[str, Note] = {
        "layers": len(shares),
        "kept": sum(share >= 1 for share in shares),
        "error_share": math.exp(sum(math.log(max(share, 1e-12)) for share in shares) / max(1, len(shares))),
    }
    return result, notes


@dataclass
class _Search:
    """Searches layer after layer; remembers what it gained."""

    config: SearchScales
    shares: list[float] = field(default_factory=list)

    def solve(self, problem: Problem) -> Solution:
        """Return the best encoding found, or the one in force where it is not better on held-out samples.

        A bias that a step before has moved was right for other scales: it follows.
        """
        moved = bool(problem.bias.any())
        fit, held = (one if moved else one.about_zero() for one in (problem.fit, problem.held))
        found = self._best(problem, lambda rows: problem.per_channel_sum(fit.error(rows)))
        old, new = (float(held.error(problem.quantized_rows(one)).sum()) for one in (problem.encoding, found))
        better = new < old
        self.shares.append(new / old if better else 1.0)
        chosen = found if better else problem.encoding
        return Solution(chosen, shift=mean_shift(problem, problem.quantized_rows(chosen)) if moved else None)

    def _best(self, problem: Problem, error: Callable[[Tensor], Tensor]) -> Encoding:
        """Return, per channel, the candidate of least error; the encoding in force is one of them."""
        weight, old = problem.start, problem.encoding
        full = encoding_of_range(old.grid, *channel_range(weight, old.axis), old.axis)
        best, least = old.scale, error(problem.quantized_rows(old))
        for share in torch.linspace(self.config.lowest, 1.0, self.config.candidates).tolist():
            candidate = replace(full, scale=full.scale * share)
            found = error(problem.quantized_rows(candidate))
            best = torch.where(found < least, candidate.scale, best)
            least = torch.minimum(found, least)
        return replace(full, scale=best)
