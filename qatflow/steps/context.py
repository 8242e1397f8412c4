"""What every step may use besides the network and its own config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qatflow.quant.network import Network
from qatflow.results.progress import Progress, Silent

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of the model, one batch."""


@dataclass(frozen=True)
class StepContext:
    """Calibration inputs, a seed, and who is told.

    Attributes:
        inputs: called with the most samples wanted (None: all), yields batches of calibration inputs, always in the
            same order.
        seed: of everything random in the step.
        progress: who is told how it gets on.
    """

    inputs: Callable[[int | None], Iterable[Inputs]]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)

    def calibration_inputs(self, network: Network) -> Iterable[Inputs]:
        """Return batches of as many calibration inputs as the network's design asks for."""
        return self.inputs(network.design.calibration.samples)
