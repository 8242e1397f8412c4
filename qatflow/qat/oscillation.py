"""Weights that jump to and fro between two steps of the grid (Nagel et al. 2022, "Overcoming Oscillations in QAT").

The straight-through estimator drives a weight whose best value lies between two steps towards the threshold from both
sides, for ever. A weight oscillates when its integer changes in the direction opposite to its last change; the share
of steps in which it does is averaged exponentially. Frozen ones stay on the integer they were at most of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qatflow.graph.layers import tensor
from qatflow.quant.grid import Encoding
from qatflow.quant.quantizer import WeightFakeQuantize
from qatflow.quant.simulation import Simulation

MOMENTUM = 0.01
OSCILLATING = 0.005
"""Share of steps from which on a weight counts as oscillating, as in the paper."""
FROZEN = 0.02
"""Share of steps from which on it is frozen."""
SAMPLED = 2**14
"""Weights of a tensor that are looked at where they are only counted."""


@dataclass
class _Track:
    """One weight tensor, or a sample of it, flat."""

    weight: nn.Parameter
    quantizer: WeightFakeQuantize
    chosen: Tensor
    channel: Tensor
    integers: Tensor
    last: Tensor
    share: Tensor
    mean: Tensor
    frozen: Tensor


class Oscillations:
    """Follows the integers of all weights of a simulation from step to step.

    Args:
        simulation: being trained.
        freeze: hold weights that oscillate; otherwise they are only counted, on a sample.
    """

    def __init__(self, simulation: Simulation, freeze: bool) -> None:
        self.freeze = freeze
        self._tracks = [
            _track(weight, quantizer, freeze)
            for point in simulation.placement.points
            if point.parameter is not None
            and isinstance(quantizer := simulation.quantizer(point.tensor), WeightFakeQuantize)
            and isinstance(weight := tensor(simulation.model, point.parameter), nn.Parameter)
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Look at the weights after a step of the optimizer, and put frozen ones back."""
        for track in self._tracks:
            encoding = track.quantizer.encoding_of(track.weight)
            integers = _integers(track.weight, encoding, track.chosen, track.channel)
            change = (integers - track.integers).sign()
            moved = change != 0
            flipped = moved & (change == -track.last)
            track.share.lerp_(flipped.float(), MOMENTUM)
            track.last = torch.where(moved, change, track.last)
            track.integers = integers
            if self.freeze:
                self._hold(track, encoding)

    def _hold(self, track: _Track, encoding: Encoding) -> None:
        """Freeze what oscillates, and put all that is frozen back on its integer."""
        track.mean.lerp_(torch.where(track.frozen, track.mean, track.integers), MOMENTUM)
        new = (track.share > FROZEN) & ~track.frozen
        track.frozen |= new
        track.mean = torch.where(new, track.mean.round(), track.mean)
        if bool(track.frozen.any()):
            held = encoding.dequantize(track.mean.view_as(track.weight))
            track.weight.copy_(torch.where(track.frozen.view_as(track.weight), held, track.weight))
            track.integers = torch.where(track.frozen, track.mean, track.integers)

    def shares(self) -> tuple[float, float]:
        """Return which share of the weights oscillates, and which share is frozen."""
        count = sum(track.share.numel() for track in self._tracks)
        if not count:
            return 0.0, 0.0
        oscillating = sum(int(((track.share > OSCILLATING) & ~track.frozen).sum()) for track in self._tracks)
        return oscillating / count, sum(int(track.frozen.sum()) for track in self._tracks) / count

    def state(self) -> list[dict[str, Tensor]]:
        """Return all that a later process needs to go on."""
        return [{name: getattr(track, name) for name in STATE} for track in self._tracks]

    def load_state(self, state: list[dict[str, Tensor]]) -> None:
        """Go on from what `state` returned."""
        for track, values in zip(self._tracks, state, strict=True):
            for name in STATE:
                setattr(track, name, values[name].to(track.weight.device))


STATE = ("integers", "last", "share", "mean", "frozen")


@torch.no_grad()
def _track(weight: nn.Parameter, quantizer: WeightFakeQuantize, freeze: bool) -> _Track:
    every = 1 if freeze else max(1, weight.numel() // SAMPLED)
    chosen = torch.arange(0, weight.numel(), every, device=weight.device)
    channel = torch.zeros_like(chosen)
    if quantizer.axis is not None:
        inner = math.prod(weight.shape[quantizer.axis + 1 :])
        channel = chosen // inner % weight.shape[quantizer.axis]
    integers = _integers(weight, quantizer.encoding_of(weight), chosen, channel)
    none = torch.zeros_like(integers)
    return _Track(weight, quantizer, chosen, channel, integers, none, none.clone(), integers.clone(), none.bool())


def _integers(weight: Tensor, encoding: Encoding, chosen: Tensor, channel: Tensor) -> Tensor:
    """Return the integers of the chosen weights, flat."""
    scale, zero_point = encoding.scale.reshape(-1)[channel], encoding.zero_point.reshape(-1)[channel]
    steps = (weight.detach().flatten()[chosen] / scale).round() + zero_point
    return steps.clamp(encoding.grid.qmin, encoding.grid.qmax)
