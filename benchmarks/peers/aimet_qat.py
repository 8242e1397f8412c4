"""AIMET's quantization-aware training: its simulation is a PyTorch model whose quantizers have trainable ranges.

Freshly made, every range is a parameter, of weights as well as of activations, and one optimizer with one learning rate
trains all of them beside the weights: that is range learning. Frozen ranges are parameters that need no gradient, and
those of weights then stay where calibration found them. Models are trained as they are evaluated: batch norms are
folded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers import aimet
from benchmarks.peers.case import Case
from qatflow.qat.schedule import Settings
from qatflow.tasks.data import Batches


def float_model(case: Case) -> nn.Module:
    """Return the model that the simulation is made of: prepared, batch norms folded.

    Raises:
        PeerError: AIMET is not installed, or cannot take the model.
    """
    return aimet.folded(case).requires_grad_(True)


def simulated(case: Case, learn: bool) -> nn.Module:
    """Return a calibrated simulation of that model, ready to be trained.

    Raises:
        PeerError: AIMET is not installed, or cannot take the model.
    """
    with aimet.quiet():
        sim = aimet.simulation(aimet.folded(case), case, "min_max", equal_grids=True)
        aimet.calibrate(sim, case.calibration)
    return trainable(sim.model, learn)


def trainable(model: nn.Module, learn: bool) -> nn.Module:
    """Let weights be trained, and ranges if `learn`."""
    from aimet_torch.quantization.base import QuantizerBase

    model.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, QuantizerBase):
            module.requires_grad_(learn)
    return model


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        model: at its best epoch.
        best_epoch: 0 is where it started.
        best: what `validate` said of it.
    """

    model: nn.Module
    best_epoch: int
    best: float


def train(start: nn.Module, batches: Batches, settings: Settings, validate: Callable[[Any], float]) -> Outcome:
    """Train a copy of `start` on cross entropy with Adam; the earliest of equal epochs is the best.

    Args:
        start: a calibrated simulation's model.
        batches: what to train on.
        settings: the rate's schedule, and whether ranges are trained.
        validate: measures a model; more is better.
    """
    model = trainable(copy.deepcopy(start), settings.range_learning)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=settings.lr)
    best_epoch, best, state = 0, validate(model), copy.deepcopy(model.state_dict())
    for epoch in range(1, settings.epochs + 1):
        batches.reshuffle(epoch)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(epoch - 1)
        for batch in batches:
            loss = functional.cross_entropy(model(*batch.args), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = validate(model)
        if value > best:
            best_epoch, best, state = epoch, value, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return Outcome(model, best_epoch, best)
