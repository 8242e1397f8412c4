"""What a peer is given, how it reports, and how it says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Measure = Callable[[str, Callable[[Tensor], Tensor], float], None]
"""Takes a step's name, the simulated quantized model after it, and the seconds that the step took."""


class PeerError(Exception):
    """The peer cannot do what the case asks for, or is not installed."""


@dataclass(frozen=True)
class Case:
    """A model to quantize.

    Attributes:
        name: of the model.
        model: in float, in evaluation mode; peers copy it.
        calibration: batches of inputs.
        weights: bits, symmetric.
        activations: bits, per tensor.
        per_channel: whether weights have a scale per output channel, rather than one per tensor.
    """

    name: str
    model: nn.Module
    calibration: list[Tensor]
    weights: int
    activations: int
    per_channel: bool


def inference(model: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """Return the model as a function that keeps no gradients."""

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = model(x)
            return y

    return call
