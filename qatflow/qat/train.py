"""One trial of quantization-aware training, after AIMET's guide.

Training starts from a calibrated candidate. Weight scales follow the weights; activation ranges are frozen, or trained
with range learning. The learning rate is divided by 10 every few epochs. The candidate itself is epoch 0: it is
measured first, and training that never beats it returns it. A loss that is not finite takes training back to the best
epoch and halves the rate, once; the second time ends the trial as failed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.gate import Measurement
from qatflow.qat.losses import Loss
from qatflow.quant.simulation import QUANTIZERS, Simulation
from qatflow.recipe import Qat
from qatflow.result import EpochRecord
from qatflow.tasks.data import Batches

State = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of one trial."""

    lr: float
    epochs: int
    decay_period: int
    range_learning: bool

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1: divided by 10 every `decay_period` epochs."""
        return self.lr / float(10 ** ((epoch - 1) // self.decay_period))


@dataclass(frozen=True)
class Training:
    """What a trial trains with, the same for every trial of a study.

    Attributes:
        train: training batches.
        validate: measures a model on the validation part.
        loss: see `qatflow.qat.losses`.
        fp32: the model that a distilling loss compares with; None for a loss on labels alone.
        qat: optimizer and the learning rate of ranges.
        device: where batches go.
        report: called after every epoch with `(epoch, value)`; returning True stops the trial.
    """

    train: Batches
    validate: Callable[[fx.GraphModule], Measurement]
    loss: Loss
    fp32: Callable[..., Any] | None
    qat: Qat
    device: torch.device
    report: Callable[[int, float], bool] = lambda epoch, value: False


@dataclass
class Outcome:
    """What a trial came to; the simulation holds its best epoch.

    Attributes:
        history: one record an epoch, epoch 0 first.
        best_epoch: the epoch with the best validation value.
        best: that value.
        failed: whether it ended on losses that are not finite.
        pruned: whether `report` stopped it.
        reason: why it failed, or what was rolled back.
    """

    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best: float = math.nan
    failed: bool = False
    pruned: bool = False
    reason: str = ""


def train(simulation: Simulation, training: Training, settings: Settings) -> Outcome:
    """Train `simulation.model` in place, and leave it at its best epoch.

    Epochs are compared by the validation metric; a tie stays with the earlier one.
    """
    model = simulation.model
    parameters = _trainable(simulation, settings.range_learning)
    outcome = Outcome()
    start = time.perf_counter()
    measurement = training.validate(model)
    sign = 1.0 if measurement.higher_is_better else -1.0
    outcome.best = measurement.value
    outcome.history.append(_record(0, 0.0, math.nan, measurement.value, start))
    best, factor = _snapshot(model), 1.0
    optimizer = _optimizer(parameters, training.qat)
    for epoch in range(1, settings.epochs + 1):
        start, rate = time.perf_counter(), settings.rate(epoch) * factor
        loss = _epoch(model, optimizer, rate, training)
        value = training.validate(model).value if math.isfinite(loss) else math.nan
        outcome.history.append(_record(epoch, rate, loss, value, start))
        if not math.isfinite(value):
            model.load_state_dict(best)
            optimizer = _optimizer(parameters, training.qat)
            _note_divergence(outcome, epoch, rate)
            if outcome.failed:
                break
            factor /= 2
            continue
        if not math.isfinite(outcome.best) or sign * (value - outcome.best) > 0:
            outcome.best, outcome.best_epoch, best = value, epoch, _snapshot(model)
        if training.report(epoch, value):
            outcome.pruned = True
            break
    model.load_state_dict(best)
    return outcome


def _note_divergence(outcome: Outcome, epoch: int, rate: float) -> None:
    """Record a roll-back; the second one fails the trial."""
    outcome.failed = bool(outcome.reason)
    told = f"not finite in epoch {epoch} at learning rate {rate:.3g}: back to epoch {outcome.best_epoch}"
    told += ", and given up" if outcome.failed else ", rate halved"
    outcome.reason = f"{outcome.reason}; {told}" if outcome.reason else told


def _trainable(simulation: Simulation, range_learning: bool) -> list[tuple[list[torch.nn.Parameter], bool]]:
    """Return the parameters to train in groups of `(parameters, are they ranges)`."""
    for parameter in simulation.model.parameters():
        parameter.requires_grad_(True)
    simulation.learn_ranges(range_learning)
    weights: list[torch.nn.Parameter] = []
    ranges: list[torch.nn.Parameter] = []
    for name, parameter in simulation.model.named_parameters():
        if parameter.requires_grad:
            (ranges if name.startswith(f"{QUANTIZERS}.") else weights).append(parameter)
    return [(weights, False), (ranges, True)] if ranges else [(weights, False)]


def _optimizer(parameters: list[tuple[list[torch.nn.Parameter], bool]], qat: Qat) -> torch.optim.Optimizer:
    groups = [
        {"params": group, "scale": qat.range_lr_scale if ranges else 1.0, "lr": 0.0} for group, ranges in parameters
    ]
    if qat.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    return (torch.optim.Adam if qat.optimizer == "adam" else torch.optim.AdamW)(groups, lr=1.0)


def _epoch(model: fx.GraphModule, optimizer: torch.optim.Optimizer, rate: float, training: Training) -> float:
    """Train one epoch; returns the mean loss, NaN as soon as one is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    total, samples = 0.0, 0
    for cpu_batch in training.train:
        batch = cpu_batch.to(training.device)
        outputs = model(*batch.args, **batch.kwargs)
        with torch.no_grad():
            reference = training.fp32(*batch.args, **batch.kwargs) if training.fp32 is not None else None
        loss = training.loss(outputs, batch.target, reference)
        value = float(loss.detach())
        if not math.isfinite(value):
            return math.nan
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total, samples = total + value * batch.size, samples + batch.size
    return total / samples if samples else math.nan


def _snapshot(model: fx.GraphModule) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _record(epoch: int, rate: float, loss: float, value: float, start: float) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        lr=rate,
        train_loss=loss if math.isfinite(loss) else None,
        value=value if math.isfinite(value) else None,
        seconds=time.perf_counter() - start,
    )
