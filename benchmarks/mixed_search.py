"""Calls of the rung `mixed_precision` outside of a run: networks for it, and what it found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml
from torch import nn

from benchmarks.peers.case import inference
from qatflow import STEPS, TARGETS, Design, Network, Simulation, captured_network
from qatflow.quant.simulation import Inputs
from qatflow.recipe import Calibration, LayerPrecision, Precision
from qatflow.recipe.precision import as_precision
from qatflow.recipe.steps import STEP_CONFIGS, MixedPrecision
from qatflow.steps.context import StepContext


@dataclass(frozen=True)
class Found:
    """What a call of the rung came to.

    Attributes:
        network: with its choice.
        notes: what it tells.
        measured: overrides of every choice that it measured.
        seconds: that it took.
    """

    network: Network
    notes: Mapping[str, Any]
    measured: Sequence[Mapping[str, LayerPrecision]]
    seconds: float


def searched(network: Network, batches: Sequence[Inputs], *, refit: bool = False, **config: Any) -> Found:
    """Call the rung with batches to calibrate with; `refit` rounds weights by AdaRound for every choice."""
    measured: list[Mapping[str, LayerPrecision]] = []

    def keep(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if name == "mixed_precision":
            said = [yaml.safe_load(str(row["overrides"])) for row in rows]
            measured.extend(Precision(overrides=one).overrides for one in said)

    context = StepContext(_given(batches), table=keep, refit=partial(rounded, batches) if refit else None)
    start = time.perf_counter()
    found, notes = STEPS["mixed_precision"](network, MixedPrecision(**config), context)
    return Found(found, notes, measured, time.perf_counter() - start)


def weights_only(low: Network, batches: Sequence[Inputs], budget: float | None) -> Found:
    """Call the rung for the best of no more bit-operations, ranked with all samples, and kept from running in float."""
    return searched(low, batches, cost="bit_operations", budget=budget, samples=_count(batches), floats=False)


def rounded(batches: Sequence[Inputs], network: Network) -> Network:
    """Return a network with its weights rounded by AdaRound."""
    return _stepped(network, batches, "adaround")


def folded(
    model: nn.Module, batches: Sequence[Inputs], precision: str, target: str = "onnxruntime", *, equalize: bool = False
) -> Network:
    """Return a network with its batch norms folded, and equalized if asked."""
    bits = Precision.model_validate(as_precision(precision))
    design = Design(TARGETS[target], bits, Calibration(samples=_count(batches)))
    network = captured_network(model, *batches[0], design)
    return _stepped(network, batches, "fold_batch_norms", *(["equalize"] if equalize else []))


def simulated(network: Network, batches: Sequence[Inputs]) -> Callable[..., Any]:
    """Return a calibrated simulation of a network."""
    simulation = Simulation(network)
    simulation.calibrate(batches)
    return inference(simulation.model) if not batches[0][1] else simulation.model


def _stepped(network: Network, batches: Sequence[Inputs], *steps: str) -> Network:
    for step in steps:
        network, _ = STEPS[step](network, STEP_CONFIGS[step](), StepContext(_given(batches)))
    return network


def _given(batches: Sequence[Inputs]) -> Callable[[int | None], Sequence[Inputs]]:
    return lambda limit: batches if limit is None else batches[: -(-limit // _count(batches[:1]))]


def _count(batches: Sequence[Inputs]) -> int:
    return sum(len(next(iter((*args, *kwargs.values())))) for args, kwargs in batches)
