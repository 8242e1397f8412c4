"""What every step may use besides the network and its own config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.results.progress import Progress, Silent
from qatflow.results.result import Note

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of the model, one batch."""


@dataclass(frozen=True)
class Trial:
    """What a simulation measured that a step tried.

    Attributes:
        passed: whether it meets the gate, by the point estimate.
        value: of the metric.
        rank: a higher one is better.
    """

    passed: bool
    value: float
    rank: tuple[float, float]


def no_table(name: str, rows: Sequence[Mapping[str, Note]]) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class StepContext:
    """Calibration inputs, a seed, and who is told.

    Attributes:
        inputs: called with the most samples wanted (None: all), yields batches of calibration inputs, always in the
            same order.
        seed: of everything random in the step.
        progress: who is told how it gets on.
        measure: returns what the run's gate says of a simulation; None where there is no run.
        refit: does to a network what steps before did to fit its weights to their quantization; None where none did.
        table: keeps rows under a name, beside the run's other tables.
    """

    inputs: Callable[[int | None], Iterable[Inputs]]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    measure: Callable[[Simulation], Trial] | None = None
    refit: Callable[[Network], Network] | None = None
    table: Callable[[str, Sequence[Mapping[str, Note]]], None] = no_table

    def calibration_inputs(self, network: Network) -> Iterable[Inputs]:
        """Return batches of as many calibration inputs as the network's design asks for."""
        return self.inputs(network.design.calibration.samples)
