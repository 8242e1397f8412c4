"""What every step may use besides the network and its own config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qatflow.quant.target import Target
from qatflow.recipe import Calibration, Precision
from qatflow.results.progress import Progress, Silent

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of the model, one batch."""


@dataclass(frozen=True)
class StepContext:
    """Calibration inputs and the run's settings.

    Attributes:
        inputs: called with the most samples wanted (None: all), yields batches of calibration inputs, always in the
            same order.
        target: the runtime's table.
        precision: bit widths and granularity.
        calibration: how ranges are found.
        seed: of everything random in the step.
        progress: who is told how it gets on.
    """

    inputs: Callable[[int | None], Iterable[Inputs]]
    target: Target
    precision: Precision
    calibration: Calibration
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
