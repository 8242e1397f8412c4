"""One trial of quantization-aware training, after AIMET's guide.

Training starts from a calibrated candidate. Weight scales follow the weights; activation ranges are frozen, or trained
with range learning. The learning rate is divided by 10 every few epochs. The candidate itself is epoch 0: it is
measured first, and training that never beats it returns it. An epoch that diverges takes training back to the best
epoch and halves the rate, once; the second time ends the trial as failed. After every epoch all that a later process
needs to go on is written down.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, fx, nn

from qatflow.graph.padding import padding_of
from qatflow.qat.features import Watched, feature_loss
from qatflow.qat.losses import Objective
from qatflow.qat.optimizers import MakeOptimizer
from qatflow.qat.oscillation import Oscillations
from qatflow.qat.schedule import Settings
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Qat
from qatflow.results.gate import Measurement
from qatflow.results.result import EpochRecord
from qatflow.results.store import write_atomically
from qatflow.tasks.data import Batch
from qatflow.tasks.randomness import seed_all

State = dict[str, Tensor]
DIVERGED = 10.0
"""An epoch whose mean loss is this many times the first batch's, and whose metric is below the start's, diverged."""
CHECK_EVERY = 50
"""Batches after which a loss that is not finite is noticed."""


class Passes(Protocol):
    """Training batches, pass after pass; `Batches` are."""

    def reshuffle(self, seed: int) -> None:
        """Let `seed` alone decide the order of the next pass."""

    def __len__(self) -> int:
        """Return the number of batches in a pass."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch of a pass."""


@dataclass(frozen=True)
class Training:
    """What a trial trains with, the same for every trial of a study.

    Attributes:
        train: training batches.
        validate: measures a model on the validation part.
        objective: the loss.
        fp32: the model that distillation compares with.
        qat: everything else that the recipe says.
        optimizer: makes the optimizer from groups of parameters.
        fabric: devices, processes and precision.
        seed: of the order of batches, and of whatever is random in the data.
        features: nodes whose values are to match FP32's.
        start: epoch 0's measurement where it is known already.
        report: called after every epoch that did not diverge, also for those that a checkpoint holds; returns the
            reason to stop the trial, or an empty string.
        note: told what a person should know.
    """

    train: Passes
    validate: Callable[[fx.GraphModule], Measurement]
    objective: Objective
    fp32: fx.GraphModule
    qat: Qat
    optimizer: MakeOptimizer
    fabric: Fabric
    seed: int = 0
    features: tuple[str, ...] = ()
    start: Measurement | None = None
    report: Callable[[EpochRecord], str] = lambda record: ""
    note: Callable[[str], None] = lambda text: None


@dataclass
class Outcome:
    """What a trial came to; the simulation holds its best epoch.

    Attributes:
        history: one record an epoch, epoch 0 first.
        best_epoch: the epoch with the best validation value.
        best: that value.
        failed: whether it ended because training diverged.
        stopped: the reason that `report` gave to stop it.
        reason: why it failed, or what was rolled back.
    """

    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best: float = math.nan
    failed: bool = False
    stopped: str = ""
    reason: str = ""

    @property
    def epochs(self) -> int:
        """How many epochs are over."""
        return len(self.history) - 1


def train(simulation: Simulation, training: Training, settings: Settings, checkpoint: Path | None = None) -> Outcome:
    """Train `simulation.model` in place, and leave it at its best epoch.

    Epochs are compared by the validation metric; a tie stays with the earlier one.

    Args:
        simulation: calibrated.
        training: data, loss, optimizer and devices.
        settings: the hyper-parameters.
        checkpoint: where to write how far it got; one that is there is gone on from.
    """
    trial = _Trial(simulation, training, settings)
    state = None if checkpoint is None else _read(checkpoint, training)
    if state is None:
        trial.measure_start()
    else:
        trial.restore(state)
    while trial.outcome.epochs < settings.epochs and not trial.outcome.failed and not trial.outcome.stopped:
        trial.epoch()
        if checkpoint is not None and training.fabric.is_global_zero:
            write_atomically(checkpoint, trial.save)
    simulation.model.load_state_dict(trial.best)
    return trial.outcome


def _read(checkpoint: Path, training: Training) -> dict[str, Any] | None:
    """Return what a checkpoint holds; None where there is none, or a damaged one."""
    if not checkpoint.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location=training.fabric.device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - it depends on the bytes what a damaged file makes torch raise
        training.note(f"{checkpoint} is damaged ({type(error).__name__}): that trial is trained from its beginning")
        return None
    return state


class _Trial:
    """A trial under way."""

    def __init__(self, simulation: Simulation, training: Training, settings: Settings) -> None:
        self.simulation = simulation
        self.model = simulation.model
        self.training = training
        self.settings = settings
        self.outcome = Outcome()
        self.reported: list[int] = []
        self.factor = 1.0
        self.first_loss = math.nan
        self.groups = _groups(simulation, settings.range_learning, training.qat)
        names = list(training.features)
        self.called: nn.Module = Watched(self.model, names) if names else self.model
        self.teacher: nn.Module = Watched(training.fp32, names) if names else training.fp32
        self.called, self.optimizer = training.fabric.setup(self.called, training.optimizer(self.groups))
        self.oscillations = Oscillations(simulation, training.qat.oscillations == "freeze")
        self.best = _snapshot(self.model)

    def measure_start(self) -> None:
        """Make the candidate that training starts from its epoch 0."""
        started = time.perf_counter()
        measurement = self.training.start or self.training.validate(self.model)
        self.outcome.best = measurement.value
        self.sign = 1.0 if measurement.higher_is_better else -1.0
        self.outcome.history.append(self._record(0, 0.0, math.nan, measurement.value, started))

    def epoch(self) -> None:
        """Train an epoch, measure it, keep it if it is the best, and go back where it diverged."""
        outcome, started, epoch = self.outcome, time.perf_counter(), self.outcome.epochs + 1
        loss, rate = self._pass(epoch)
        value = self.training.validate(self.model).value if math.isfinite(loss) else math.nan
        record = self._record(epoch, rate, loss, value, started)
        outcome.history.append(record)
        if not math.isfinite(value) or self._diverged(loss, value):
            self._go_back(epoch, rate, "diverged" if math.isfinite(value) else "not finite")
            return
        if not math.isfinite(outcome.best) or self.sign * (value - outcome.best) > 0:
            outcome.best, outcome.best_epoch, self.best = value, epoch, _snapshot(self.model)
        self.reported.append(epoch)
        outcome.stopped = self.training.report(record)

    def _pass(self, epoch: int) -> tuple[float, float]:
        """Go through the training data once; returns the mean loss, NaN where it is not finite, and the last rate."""
        fabric, training = self.training.fabric, self.training
        seed = training.seed * 1_000_003 + epoch
        seed_all(seed)
        training.train.reshuffle(seed)
        total = torch.zeros(2, dtype=torch.float64, device=fabric.device)
        count, rate = len(training.train), 0.0
        for number, batch in enumerate(training.train):
            rate = self.settings.rate(epoch - 1 + (number + 0.5) / count) * self.factor
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            loss = self._step(batch.to(fabric.device))
            total[0] += batch.size
            total[1] += loss.double() * batch.size
            if math.isnan(self.first_loss):
                self.first_loss = _mean(fabric, total)
            if number % CHECK_EVERY == CHECK_EVERY - 1 and not math.isfinite(_mean(fabric, total)):
                break
        mean = _mean(fabric, total)
        return (mean if math.isfinite(mean) else math.nan), rate

    def _step(self, batch: Any) -> Tensor:
        """Train on one batch; returns its loss."""
        training, fabric, weight = self.training, self.training.fabric, self.settings.distillation
        outputs = self.called(*batch.args, **batch.kwargs)
        reference: Any = None
        if training.features or training.objective.needs_fp32(weight):
            with torch.no_grad():
                reference = self.teacher(*batch.args, **batch.kwargs)
        matched, padding = None, padding_of(training.fp32, batch.args, batch.kwargs)
        if training.features:
            (outputs, features), (reference, wanted) = outputs, reference
            matched = feature_loss(features, wanted, padding) * training.qat.feature_weight
        loss = training.objective.loss(outputs, batch.target, reference, weight, padding)
        loss = loss if matched is None else loss + matched
        self.optimizer.zero_grad()
        fabric.backward(loss)
        if training.qat.max_gradient_norm is not None:
            limit = training.qat.max_gradient_norm
            fabric.clip_gradients(self.called, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        self.oscillations.step()
        return loss.detach()

    def _diverged(self, loss: float, value: float) -> bool:
        start = self.outcome.history[0].value
        worse = start is not None and self.sign * (value - start) < 0
        return worse and loss > DIVERGED * self.first_loss

    def _go_back(self, epoch: int, rate: float, what: str) -> None:
        """Return to the best epoch with half the rate; the second time fails the trial."""
        outcome = self.outcome
        outcome.failed = bool(outcome.reason)
        told = f"{what} in epoch {epoch} at learning rate {rate:.3g}: back to epoch {outcome.best_epoch}"
        told += ", and given up" if outcome.failed else ", rate halved"
        outcome.reason = f"{outcome.reason}; {told}" if outcome.reason else told
        self.factor /= 2
        self.model.load_state_dict(self.best)
        made = self.training.fabric.setup_optimizers(self.training.optimizer(self.groups))
        self.optimizer = made
        self.oscillations = Oscillations(self.simulation, self.training.qat.oscillations == "freeze")

    def _record(self, epoch: int, rate: float, loss: float, value: float, started: float) -> EpochRecord:
        oscillating, frozen = self.oscillations.shares()
        return EpochRecord(
            epoch=epoch,
            lr=rate,
            train_loss=loss if math.isfinite(loss) else None,
            value=value if math.isfinite(value) else None,
            seconds=time.perf_counter() - started,
            oscillating=oscillating,
            frozen=frozen,
        )

    def save(self, path: Path) -> None:
        """Write all that a later process needs to go on."""
        outcome = {**asdict(self.outcome), "history": [one.model_dump() for one in self.outcome.history]}
        state = {
            "outcome": outcome,
            "reported": self.reported,
            "sign": self.sign,
            "factor": self.factor,
            "first_loss": self.first_loss,
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "oscillations": self.oscillations.state(),
            "loss": self.training.objective.state(),
        }
        torch.save(state, path)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        told = dict(state["outcome"])
        self.outcome = Outcome(**{**told, "history": [EpochRecord(**one) for one in told["history"]]})
        self.reported = state["reported"]
        self.sign, self.factor, self.first_loss = state["sign"], state["factor"], state["first_loss"]
        self.model.load_state_dict(state["model"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.oscillations.load_state(state["oscillations"])
        self.training.objective.load_state(state["loss"])
        for epoch in self.reported:
            self.training.report(self.outcome.history[epoch])


def _mean(fabric: Fabric, total: Tensor) -> float:
    """Return the mean of `[samples, sum of losses]` over all processes."""
    summed = fabric.all_reduce(total.clone(), reduce_op="sum")
    assert isinstance(summed, Tensor)
    samples, losses = summed.tolist()
    return float(losses / samples) if samples else math.nan


def _groups(simulation: Simulation, range_learning: bool, qat: Qat) -> list[dict[str, Any]]:
    """Return the parameters to train in groups: weights, and ranges with a learning rate of their own."""
    weights, ranges = simulation.trainable(range_learning)
    groups: list[dict[str, Any]] = [{"params": weights, "scale": 1.0, "lr": 0.0}]
    return [*groups, {"params": ranges, "scale": qat.range_lr_scale, "lr": 0.0}] if ranges else groups


def _snapshot(model: fx.GraphModule) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
